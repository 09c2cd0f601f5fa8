"""Ways to spoil a manifest, and the other JSON files of a bundle."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from bench.fuzzing import sealing, values

# Options of onnxruntime that make it read or write files that somebody else chose.
_FILE_OPTIONS = (
    "session.collect_node_memory_stats_to_file",
    "session.node_partition_config_file",
    "session.model_external_initializers_file_folder_path",
    "session.optimized_model_external_initializers_file_name",
    "ep.context_file_path",
    "ep.context_model_external_initializers_file_name",
)
_OTHER_OPTIONS = (
    ("session.load_model_format", "ORT"),
    ("ep.context_enable", "1"),
    ("session.save_model_format", "ORT"),
    ("session.intra_op_thread_affinities", "1;2;3"),
    ("session.intra_op_thread_affinities", "999999"),
    ("session.use_ort_model_bytes_directly", "1"),
    ("session.dynamic_block_base", "x"),
    ("session.set_denormal_as_zero", "\0"),
    ("session.disable_prepacking", "1"),
    ("", ""),
    ("x" * 2000, "1"),
    ("session.x64quantprecision", "x" * 5000),
)


def change_values(folder: Path, rng: random.Random, canary: Path) -> str:
    """One to three values."""
    document = sealing.read(folder)
    said = [values.change(document, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    sealing.write(folder, document)
    return "; ".join(said)


def scramble(folder: Path, rng: random.Random, canary: Path) -> str:
    """The bytes."""
    path = folder / sealing.MANIFEST
    data, said = values.scramble(path.read_bytes(), rng)
    path.write_bytes(data)
    return said


def reencode(folder: Path, rng: random.Random, canary: Path) -> str:
    """Other encodings, and JSON that says a thing twice or without end."""
    path = folder / sealing.MANIFEST
    text = path.read_text()
    kinds = {
        "BOM": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "UTF-32": text.encode("utf-32"),
        "Latin-1": text.replace("tiny", "tüny").encode("latin-1"),
        "twice": (text + text).encode(),
        "a key twice": text.replace("{", '{"task": "fill-mask", "task": "x",', 1).encode(),
        "nested": b'{"schema_version": 2, "machine": ' + b"[" * 200_000,
        "nested below the limit": text.replace(
            '"machine": {', '"machine": {"x": ' + "[" * 900 + "]" * 900 + ","
        ).encode(),
        "long number": text.replace('"schema_version": 2', '"schema_version": ' + "9" * 10_000).encode(),
        "endless number": text.replace('"size_bytes": ', '"size_bytes": 1e999, "x": ').encode(),
        "huge": text.encode() + b" " * 2**24,
        "empty": b"",
        "old": text.replace('"schema_version": 2', '"schema_version": 1').encode(),
    }
    kind = rng.choice(sorted(kinds))
    path.write_bytes(kinds[kind])
    return kind


def point_outside(folder: Path, rng: random.Random, canary: Path) -> str:
    """Paths, and options of onnxruntime, that lead to the canary."""
    document = sealing.read(folder)
    variant = rng.choice(document["variants"])
    relative = os.path.relpath(canary, folder)
    target = rng.choice((relative, str(canary), f"fp32/../{relative}", f"./{relative}", f"file://{canary}"))
    kind = rng.choice(("option", "option", "other", "file", "tokenizer", "model", "files", "name", "optimizer"))
    if kind == "option":
        key = rng.choice(_FILE_OPTIONS)
        target = rng.choice((str(canary), str(canary.parent / "written"), str(canary.parent)))
        variant["session"]["config"][key] = target
        sealing.write(folder, document)
        return f"{key} = {target}"
    if kind == "other":
        key, value = rng.choice(_OTHER_OPTIONS)
        variant["session"]["config"][key] = value
        sealing.write(folder, document)
        return f"{key[:50]} = {value[:50]}"
    if kind == "file":
        rng.choice(document["files"])["path"] = target
    elif kind == "tokenizer":
        document["tokenizer"]["file"] = target
    elif kind == "model":
        variant["model"] = target
    elif kind == "files":
        variant["files"].append(target)
    elif kind == "name":
        variant["name"] = document["default_variant"] = target
    else:
        variant["session"]["disabled_optimizers"] = [target, "", "\0", "x" * 5000]
    if rng.random() < 0.7:
        document["files"].append({"path": target, "size_bytes": canary.stat().st_size, "sha256": ""})
    sealing.write(folder, document)
    return f"{kind} = {target}"


def spoil_report(folder: Path, rng: random.Random, canary: Path) -> str:
    """report.json, which a bundle serves without."""
    path = folder / "report.json"
    if not path.is_file():
        return change_values(folder, rng, canary)
    if rng.random() < 0.3:
        data, said = values.scramble(path.read_bytes(), rng)
        path.write_bytes(data)
    else:
        document = json.loads(path.read_text())
        said = "; ".join(values.change(document, rng) for _ in range(3))
        path.write_text(json.dumps(document))
    sealing.seal(folder)
    return f"report.json: {said}"
