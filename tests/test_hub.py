"""Models named by their hub id, from a local stand-in of the hub's HTTP interface."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.source import resolve_source
from onnxpress.runtime.errors import UnsupportedModelError
from tests.hub_server import OTHER_TOKEN, TOKEN, Break, Hub, Repository, commit, files_of, serving

CHUNK_BYTES = 10 * 2**20  # what the client has written before a break it keeps for the rest of its run
NOBODY = "http://127.0.0.1:9"

# The client reads where the hub is when it is imported, so every question is asked in a process of its own.
ASK = """
import json, sys
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.source import resolve_source
from onnxpress.runtime.errors import OnnxpressError

model, options = sys.argv[1], json.loads(sys.argv[2])
if (limit := options.pop("file_bytes", None)) is not None:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
told = []
try:
    source = resolve_source(model, ExportConfig(**options), lambda *what: told.append(what))
    names = sorted(path.relative_to(source.folder).as_posix() for path in source.folder.rglob("*") if path.is_file())
    answer = {"folder": str(source.folder), "commit": source.revision, "tag": source.pipeline_tag, "files": names,
              "sha256": source.files_sha256}
except OnnxpressError as error:
    answer = {"error": str(error)}
print(json.dumps({**answer, "told": told}))
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    folder: Path = Path()
    commit: str = ""
    tag: str | None = None
    files: list[str] = dataclasses.field(default_factory=list)
    sha256: str = ""
    error: str = ""
    told: list[list[Any]] = dataclasses.field(default_factory=list)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.reset()
    server.repositories["acme/tiny"] = Repository.of(model())
    return server


def weights(tensor_bytes: int = 4) -> bytes:
    """A safetensors file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [tensor_bytes], "data_offsets": [0, tensor_bytes]}}).encode()
    return (
        struct.pack("<Q", len(header)) + header + bytes(range(256)) * (tensor_bytes // 256) + bytes(tensor_bytes % 256)
    )


def model(**changes: bytes) -> dict[str, bytes]:
    """The files of a model, as far as they are looked at before it is loaded."""
    card = b"---\npipeline_tag: text-classification\n---\n# Tiny\n"
    return {"config.json": b'{"model_type": "bert"}', "model.safetensors": weights(), "README.md": card, **changes}


def environment(hub: Hub, home: Path, **variables: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}


def ask(
    hub: Hub, home: Path, name: str = "acme/tiny", options: dict[str, Any] | None = None, **variables: str
) -> Answer:
    """What `resolve_source` finds or refuses, in a process of its own that must write nothing else."""
    process = subprocess.run(
        [sys.executable, "-c", ASK, name, json.dumps(options or {})],
        env=environment(hub, home, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.stderr == ""
    found = Answer(**json.loads(process.stdout))
    assert "\n" not in found.error
    return dataclasses.replace(found, folder=Path(found.folder))


def test_a_model_is_exported_by_its_hub_id(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    hub.repositories["acme/tiny"] = Repository.of(files_of(tiny_model))
    command = ["export", "acme/tiny", "--output", str(tmp_path / "b"), "--revision", "v1"]
    process = subprocess.run(
        [sys.executable, "-m", "onnxpress", *command, "--variants", "fp32", "--measure", "none", "--quiet"],
        env=environment(hub, tmp_path / "hf"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    source = json.loads((tmp_path / "b" / "onnxpress.json").read_text())["source"]
    assert (source["name"], source["location"], source["revision"]) == ("tiny", "acme/tiny", commit("first"))


# Cache and revisions


def test_a_model_is_downloaded_once_and_a_new_commit_only_where_it_differs(hub: Hub, tmp_path: Path) -> None:
    first = ask(hub, tmp_path)
    assert first.commit == commit("first")
    assert hub.downloads() == ["README.md", "config.json", "model.safetensors"]
    assert ask(hub, tmp_path).folder == first.folder
    assert hub.downloads() == []
    repository = hub.repositories["acme/tiny"]
    repository.commits[commit("second")] = model(**{"config.json": b'{"model_type": "roberta"}'})
    repository.branches["main"] = commit("second")
    second = ask(hub, tmp_path)
    assert second.commit == commit("second")
    assert second.sha256 != first.sha256
    assert hub.downloads() == ["config.json"]
    assert ask(hub, tmp_path, options={"revision": "v1"}).folder == first.folder
    assert ask(hub, tmp_path, options={"revision": commit("second")}).folder == second.folder
    assert hub.downloads() == []


def test_a_revision_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    assert "'acme/tiny' has no revision 'v9'" in ask(hub, tmp_path, options={"revision": "v9"}).error
    del hub.repositories["acme/tiny"].branches["main"]
    assert "'acme/tiny' has no branch 'main'; name a branch" in ask(hub, tmp_path).error


# Which files


def test_only_what_the_export_reads_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    wanted = {"1_Pooling/config.json": b"{}", "tokenizer.json": b"{}", "vocab.txt": b"", "spm.model": b""}
    others = (
        "pytorch_model.bin tf_model.h5 flax_model.msgpack model.fp16.safetensors onnx/model.onnx onnx/config.json "
        "openvino/openvino_model.bin openvino/config.json checkpoint-5/model.safetensors checkpoint-5/optimizer.pt "
        "original/consolidated.safetensors training_args.bin .gitattributes picture.png"
    )
    files = model(**wanted, **dict.fromkeys(others.split(), b"?"))
    hub.repositories["acme/tiny"] = Repository.of(files)
    expected = sorted({*model(), *wanted})
    assert ask(hub, tmp_path / "a").files == expected
    assert ask(hub, tmp_path / "b", options={"allow_pickle": True}).files == expected  # there are safetensors


def test_pickles_come_only_when_allowed_and_only_where_there_is_nothing_else(hub: Hub, tmp_path: Path) -> None:
    files = model(
        **{"pytorch_model.bin": b"?", "2_Dense/model.safetensors": weights(), "2_Dense/pytorch_model.bin": b""}
    )
    del files["model.safetensors"]
    hub.repositories["acme/both"] = Repository.of(files)
    allowed = ask(hub, tmp_path, "acme/both", {"allow_pickle": True})
    assert {"pytorch_model.bin", "2_Dense/model.safetensors"} <= set(allowed.files)
    assert "2_Dense/pytorch_model.bin" not in allowed.files
    hub.repositories["acme/old"] = Repository.of({"config.json": b"{}", "pytorch_model.bin": b"?"})
    refused = ask(hub, tmp_path, "acme/old").error
    assert "'acme/old' has its weights only as a Python pickle (pytorch_model.bin)" in refused
    assert "--allow-pickle" in refused
    hub.repositories["acme/none"] = Repository.of({"config.json": b"{}"})
    assert "no weights" in ask(hub, tmp_path, "acme/none").error


def test_every_shard_is_needed(hub: Hub, tmp_path: Path) -> None:
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    files = {name: content for name, content in model().items() if name != "model.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": dict(zip("abc", shards, strict=True))}).encode()
    files |= dict.fromkeys(shards, weights())
    hub.repositories["acme/sharded"] = Repository.of(files)
    assert set(shards) <= set(ask(hub, tmp_path / "a", "acme/sharded").files)
    del files[shards[1]]
    assert f"{shards[1]} is missing" in ask(hub, tmp_path / "b", "acme/sharded").error


# Who may read


def test_a_private_model_needs_a_token_that_may_read_it(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/private"] = Repository.of(model(), private=True)
    refused = ask(hub, tmp_path, "acme/private").error
    assert "no model 'acme/private' that you may read" in refused
    assert "set HF_TOKEN" in refused
    other = ask(hub, tmp_path, "acme/private", HF_TOKEN=OTHER_TOKEN).error
    assert "the rights of the token" in other
    assert "HF_TOKEN" not in other  # it is set
    assert "does not accept the token in use (401)" in ask(hub, tmp_path, "acme/private", HF_TOKEN="hf_expired").error
    assert ask(hub, tmp_path, "acme/private", HF_TOKEN=TOKEN).commit == commit("first")
    saved = tmp_path / "of a user who logged in"
    saved.mkdir()
    (saved / "token").write_text(TOKEN)
    assert ask(hub, saved, "acme/private").commit == commit("first")


def test_a_gated_model_needs_access(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/gated"] = Repository.of(model(), gated=True)
    refused = ask(hub, tmp_path, "acme/gated").error
    assert f"gated; ask for access at {hub.url}/acme/gated and set HF_TOKEN" in refused
    assert "the token in use has no access" in ask(hub, tmp_path, "acme/gated", HF_TOKEN=OTHER_TOKEN).error
    assert ask(hub, tmp_path, "acme/gated", HF_TOKEN=TOKEN).commit == commit("first")


# When it does not work


def test_what_is_refused_on_the_command_line_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxpress", "export", "acme/nothing", "--output", str(tmp_path / "b")]
    process = subprocess.run(
        command, env=environment(hub, tmp_path / "hf", HF_TOKEN=TOKEN), capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith("onnxpress: the hub has no model 'acme/nothing' that you may read; check the name")
    assert len(process.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("refusal", "parts"),
    [
        ((503, {}), ("a problem of its own (503)", "no complete copy of 'acme/tiny'", "try again later")),
        ((429, {"Retry-After": "70"}), ("asked too often (429)", "in 70 seconds", "HF_TOKEN")),
        ((403, {"X-Error-Message": "No fine-grained right"}), ("403: No fine-grained right",)),
        ((418, {}), ("answers 418",)),
        ((200, {}), ("does not answer as a hub does", "HF_ENDPOINT")),
    ],
)
def test_a_hub_that_refuses(
    hub: Hub, tmp_path: Path, refusal: tuple[int, dict[str, str]], parts: tuple[str, ...]
) -> None:
    hub.refusal = refusal
    said = ask(hub, tmp_path).error
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    ("name", "part"),
    [("not a name", "neither a folder, a recipe nor a hub id"), ("https://hub/acme/tiny", "give the hub id alone")],
)
def test_what_is_no_hub_id(hub: Hub, tmp_path: Path, name: str, part: str) -> None:
    assert part in ask(hub, tmp_path, name).error
    assert hub.requests == []


def test_a_cache_that_cannot_take_the_model(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/large"] = Repository.of(model(**{"model.safetensors": weights(200_000)}))
    # A file that may not grow stands for a disk that is full.
    said = ask(hub, tmp_path / "hf", "acme/large", {"file_bytes": 100_000}).error
    assert f"'acme/large' does not fit onto the disk of {tmp_path / 'hf'}" in said
    assert "HF_HOME" in said
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}/hub cannot be written" in ask(hub, tmp_path / "file").error


# Interrupted


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    large = weights(CHUNK_BYTES + 2_000_000)
    hub.repositories["acme/large"] = Repository.of(model(**{"model.safetensors": large}))
    hub.breaks["model.safetensors"] = [Break(CHUNK_BYTES + 1000)]
    found = ask(hub, tmp_path, "acme/large")
    assert (found.folder / "model.safetensors").read_bytes() == large
    asked = [
        request.start for request in hub.requests if (request.method, request.file) == ("GET", "model.safetensors")
    ]
    assert asked == [0, CHUNK_BYTES]
    said = [detail for step, detail, fraction in found.told if (step, fraction) == ("load", None)]
    assert any("resume" in detail for detail in said), said
    assert said[-1] == "downloading acme/large: 12.5 of 12.5 MB"


def test_the_next_run_asks_only_for_the_files_that_are_missing(hub: Hub, tmp_path: Path) -> None:
    hub.breaks["model.safetensors"] = [Break(3, reset=True)]
    said = ask(hub, tmp_path).error
    assert "the download of 'acme/tiny' broke off" in said
    assert "run this again" in said
    assert "model.safetensors" in hub.downloads()
    assert "no complete copy" in ask(hub, tmp_path, HF_HUB_OFFLINE="1").error
    assert ask(hub, tmp_path).commit == commit("first")
    assert hub.downloads() == ["model.safetensors"]


# Offline


def test_offline_means_what_is_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    unknown = ask(hub, tmp_path, HF_HUB_OFFLINE="1").error
    assert "HF_HUB_OFFLINE is set" in unknown
    assert "no complete copy of 'acme/tiny'" in unknown
    unreachable = ask(hub, tmp_path, HF_ENDPOINT=NOBODY).error
    assert f"the hub at {NOBODY} cannot be reached" in unreachable
    found = ask(hub, tmp_path, options={"revision": "v1"})
    hub.requests.clear()
    again = ask(hub, tmp_path, options={"revision": "v1"}, HF_HUB_OFFLINE="1")
    assert (again.folder, again.sha256) == (found.folder, found.sha256)
    assert (
        "no complete copy of 'acme/tiny' at 'v2'"
        in ask(hub, tmp_path, options={"revision": "v2"}, HF_HUB_OFFLINE="1").error
    )
    assert hub.requests == []


def test_a_complete_copy_is_used_when_the_hub_does_not_answer(hub: Hub, tmp_path: Path) -> None:
    found = ask(hub, tmp_path)
    told = f"acme/tiny at commit {found.commit[:8]} from the cache, without asking the hub"
    hub.refusal = (503, {})
    for variables in ({}, {"HF_ENDPOINT": NOBODY}):
        again = ask(hub, tmp_path, **variables)
        assert (again.folder, again.told) == (found.folder, [["load", told, None]])
    (found.folder / "config.json").unlink()
    assert "no complete copy" in ask(hub, tmp_path).error


def test_a_copy_without_its_card_is_complete(hub: Hub, tmp_path: Path) -> None:
    found = ask(hub, tmp_path)
    (found.folder / "README.md").unlink()
    again = ask(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert (again.folder, again.tag) == (found.folder, None)


# The card


@pytest.fixture
def local(tmp_path: Path) -> Callable[[bytes | None], Path]:
    def write(card: bytes | None) -> Path:
        for name, content in model().items():
            (tmp_path / name).write_bytes(content)
        if card is None:
            (tmp_path / "README.md").unlink()
        else:
            (tmp_path / "README.md").write_bytes(card)
        return tmp_path

    return write


def test_the_card_of_a_hub_model_says_its_task_offline_too(hub: Hub, tmp_path: Path) -> None:
    assert ask(hub, tmp_path).tag == "text-classification"
    assert ask(hub, tmp_path, HF_HUB_OFFLINE="1").tag == "text-classification"


@pytest.mark.parametrize(
    ("card", "tag"),
    [
        (b"---\npipeline_tag: fill-mask\ntags: [bert]\n---\ntext", "fill-mask"),
        (b"---\r\npipeline_tag: fill-mask\r\n---\r\n", "fill-mask"),
        (b"---\ntags: [bert]\n---\n", None),
        (b"---\npipeline_tag: [fill-mask]\n---\n", None),
        (b"---\npipeline_tag: {\n---\n", None),
        (b"---\n- fill-mask\n---\n", None),
        (b"---\n\xff\xfe\n---\n", None),
        (b"# no front matter", None),
        (None, None),
    ],
)
def test_a_card_is_a_hint_and_never_an_error(
    card: bytes | None, tag: str | None, local: Callable[[bytes | None], Path]
) -> None:
    assert resolve_source(str(local(card)), ExportConfig()).pipeline_tag == tag


def test_the_text_of_a_card_does_not_make_another_model(local: Callable[[bytes | None], Path]) -> None:
    found = [resolve_source(str(local(card)), ExportConfig()).files_sha256 for card in (b"one", b"two", None)]
    assert len(set(found)) == 1


def test_an_index_that_names_no_shards(local: Callable[[bytes | None], Path]) -> None:
    folder = local(None)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="names no weights"):
        resolve_source(str(folder), ExportConfig())
