"""MODEL, as a user typed it, to a local folder whose files are complete, safe to read and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from onnxpress.exporter.config import ExportConfig, ProgressHook
from onnxpress.exporter.hub import CARD, MODEL_PATTERNS, fetch_model
from onnxpress.exporter.onnx_file.folder import find_model, list_models, weight_files
from onnxpress.exporter.recipe import Recipe, read_recipe
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.paths import sha256_of

_PICKLES = ("*.bin", "*.pt")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on the local disk."""

    name: str
    location: str
    """What the user typed."""
    folder: Path
    revision: str | None
    config: dict[str, Any]
    """The content of config.json."""
    files_sha256: str
    """Over the names and contents of every file the export may read."""
    recipe: Recipe | None
    pipeline_tag: str | None = None
    """What the model's card says it is for, in the hub's words; None: it does not say."""
    onnx: Path | None = None
    """The ONNX file to start from; None: the weights are for PyTorch."""

    @property
    def reference(self) -> str:
        """What variants are compared with, for a person."""
        return "PyTorch" if self.onnx is None else "the ONNX file as given"


def resolve_source(model: str, config: ExportConfig, progress: ProgressHook | None = None) -> Source:
    """Find a model: an existing folder or ONNX file, else a recipe, else a hub id.

    Args:
        model: what the user typed.
        config: options of the export.
        progress: told of a download, as part of the step `load`.

    Raises:
        InvalidInputError: there is no such folder, file, recipe or hub model.
        UnsupportedModelError: the folder has no usable configuration or weights.
    """
    folder, revision, recipe = _locate(model, config, progress)
    model_folder = transformer_folder(folder)
    onnx = _onnx_file(model, folder, config.allow_pickle)
    settings = read_json(model_folder / "config.json")
    if not isinstance(settings, dict):
        raise UnsupportedModelError(f"{model_folder / 'config.json'} is not a JSON object; download the model again")
    if recipe is not None:
        recipe.check(settings)
    if onnx is None:
        _check_weights(model_folder, config.allow_pickle)
    is_local = Path(model).expanduser().exists()
    return Source(
        name=recipe.name if recipe else folder.resolve().name if is_local else model.rsplit("/", 1)[-1],
        location=model,
        folder=folder,
        revision=revision,
        config=settings,
        files_sha256=_hash_files(folder, config.allow_pickle, onnx),
        recipe=recipe,
        pipeline_tag=_pipeline_tag(folder),
        onnx=onnx,
    )


def transformer_folder(folder: Path) -> Path:
    """Where the transformer itself lies: the folder, or the subfolder named by sentence-transformers' modules.json."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return folder
    listed = read_json(modules)
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    inner = (folder / str(first.get("path", ""))).resolve()
    return inner if inner.is_relative_to(folder.resolve()) else folder


def read_json(path: Path) -> Any:
    """A JSON file of the model.

    Raises:
        UnsupportedModelError: it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(f"{path.parent} has no {path.name}; is it a Hugging Face model folder?") from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{path} is not valid JSON ({error}); download the model again") from error
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error.strerror}") from error


def _locate(model: str, config: ExportConfig, progress: ProgressHook | None) -> tuple[Path, str | None, Recipe | None]:
    path = Path(model).expanduser()
    if path.is_dir():
        return path, None, None
    if path.suffix == ".onnx" and path.is_file():
        return _described_by(path), None, None
    if path.exists():
        raise InvalidInputError(f"{model} is a file; give the model's folder, an .onnx file, a hub id or a recipe")
    recipe = read_recipe(model)
    if recipe is not None:
        installed = recipe.installed_folder()
        if installed is not None:
            return installed, None, recipe
        fetched = fetch_model(recipe.source.hub, config, progress)
        return fetched.folder, fetched.commit, recipe
    if "://" in model:
        raise InvalidInputError(f"{model!r} is an address; give the hub id alone, such as owner/name")
    if model.startswith((".", "~", os.sep)) or model.count("/") > 1 or not model:
        raise InvalidInputError(f"there is no model folder at {model!r}")
    fetched = fetch_model(model, config, progress)
    return fetched.folder, fetched.commit, None


def _described_by(onnx: Path) -> Path:
    """The folder with an ONNX file's configuration: the file's own, or one above it (`onnx/model.onnx`)."""
    beside, above = onnx.absolute().parent, onnx.absolute().parent.parent
    is_its_part = beside.name == "onnx" or transformer_folder(above) == beside.resolve()
    if (above / "modules.json").is_file() and is_its_part and not (beside / "modules.json").is_file():
        return above
    for folder in (beside, above):
        if (transformer_folder(folder) / "config.json").is_file():
            return folder
    raise UnsupportedModelError(
        f"there is no config.json beside {onnx} or in the folder above; put the model's config.json and tokenizer.json "
        "there"
    )


def _onnx_file(model: str, folder: Path, allow_pickle: bool) -> Path | None:
    """The ONNX file to start from: the one that was named, or the folder's where it has no weights for PyTorch."""
    named = Path(model).expanduser()
    if named.is_file():
        return named
    inner = transformer_folder(folder)
    weights = ("model.safetensors", "model.safetensors.index.json", *(_PICKLES if allow_pickle else ()))
    return None if any(any(inner.glob(name)) for name in weights) else find_model((inner, folder))


def _pipeline_tag(folder: Path) -> str | None:
    """The task in the front matter of the model's card, if it has a card that can be read."""
    card = folder / CARD
    if not card.is_file():
        return None
    from huggingface_hub.repocard import metadata_load

    try:
        said = (metadata_load(card) or {}).get("pipeline_tag")
    except Exception:  # noqa: BLE001
        return None  # YAML of any brokenness; the card is a hint, and the export can be told the task by an option
    return said if isinstance(said, str) else None


def _check_weights(folder: Path, allow_pickle: bool) -> None:
    """Refuse folders without complete safetensors (or, when allowed, pickles)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = read_json(index)
        shards = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise UnsupportedModelError(f"{index} names no weights; download the model again")
        names = sorted(set(map(str, shards.values())))
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        names = []
    for name in names:
        _check_safetensors(folder / name)
    if names:
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        others = list_models(folder)
        advice = f"; name one of its ONNX files: {', '.join(others[:10])}" if others else ""
        raise UnsupportedModelError(f"{folder} has no weights (no model.safetensors, no model.onnx){advice}")
    if not allow_pickle:
        raise UnsupportedModelError(
            f"{folder} has its weights only as a Python pickle ({pickles[0]}), which can run code when read; convert "
            "it to safetensors, or give --allow-pickle if you trust its author"
        )


def _check_safetensors(path: Path) -> None:
    """Compare a safetensors file's header with its size (format: 8 bytes length, JSON header, tensor bytes)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes where its header says {8 + length + end}")
    except FileNotFoundError as error:
        raise UnsupportedModelError(f"{path} is missing; download the model again") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise UnsupportedModelError(f"{path} is truncated or broken ({error}); download the model again") from error


def _hash_files(folder: Path, allow_pickle: bool, onnx: Path | None) -> str:
    patterns = (*MODEL_PATTERNS, *_PICKLES) if allow_pickle else MODEL_PATTERNS
    inner = transformer_folder(folder).resolve()
    files: dict[str, Path] = {}
    for path in sorted({path for pattern in patterns for path in folder.rglob(pattern)}):
        relative = path.relative_to(folder)
        unread = onnx is not None and path.suffix == ".safetensors" and path.parent.resolve() == inner
        hidden = any(part.startswith(".") or part in ("onnx", "openvino") for part in relative.parts)
        if path.is_file() and not hidden and not unread:
            files[relative.as_posix()] = path
    if onnx is not None:
        files |= {"the ONNX file": onnx} | {f"its weights: {name}": path for name, path in weight_files(onnx).items()}
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()
