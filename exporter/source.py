"""MODEL, as a user typed it, to a local folder whose files are complete, safe to read and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.recipe import Recipe, read_recipe, recipe_names
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.paths import sha256_of

# Everything transformers or sentence-transformers may read; other exports that live beside the weights are left out.
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja")
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


def resolve_source(model: str, config: ExportConfig) -> Source:
    """Find a model: an existing folder, else a recipe, else a hub id.

    Raises:
        InvalidInputError: there is no such folder, recipe or hub model.
        UnsupportedModelError: the folder has no usable configuration or weights.
    """
    folder, revision, recipe = _locate(model, config)
    model_folder = transformer_folder(folder)
    settings = read_json(model_folder / "config.json")
    if not isinstance(settings, dict):
        raise UnsupportedModelError(f"{model_folder / 'config.json'} is not a JSON object; download the model again")
    _check_weights(model_folder, config.allow_pickle)
    return Source(
        name=recipe.name if recipe else folder.name if Path(model).is_dir() else model.rsplit("/", 1)[-1],
        location=model,
        folder=folder,
        revision=revision,
        config=settings,
        files_sha256=_hash_files(folder, config.allow_pickle),
        recipe=recipe,
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


def _locate(model: str, config: ExportConfig) -> tuple[Path, str | None, Recipe | None]:
    path = Path(model).expanduser()
    if path.is_dir():
        return path, None, None
    if path.exists():
        raise InvalidInputError(f"{model} is a file; give the model's folder, a hub id or a recipe")
    recipe = read_recipe(model)
    if recipe is not None:
        installed = recipe.installed_folder()
        if installed is not None:
            return installed, None, recipe
        return (*_download(recipe.source.hub, config), recipe)
    if model.startswith((".", "~", os.sep)) or model.count("/") > 1 or not model:
        raise InvalidInputError(f"there is no model folder at {model!r}")
    return (*_download(model, config), None)


def _download(hub_id: str, config: ExportConfig) -> tuple[Path, str | None]:
    """The snapshot of a hub model in the hub's own cache, and its commit."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    patterns = [*_PATTERNS, *_PICKLES] if config.allow_pickle else list(_PATTERNS)
    # Its bars would be drawn across the export's own; a user who set HF_HUB_DISABLE_PROGRESS_BARS decided already.
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()
    try:
        folder = huggingface_hub.snapshot_download(hub_id, revision=config.revision, allow_patterns=patterns)
    except errors.HFValidationError as error:
        raise InvalidInputError(f"{hub_id!r} is neither a folder, a recipe nor a hub id; {_known()}") from error
    except errors.RevisionNotFoundError as error:
        raise InvalidInputError(f"the hub model {hub_id!r} has no revision {config.revision!r}") from error
    except errors.GatedRepoError as error:
        raise InvalidInputError(f"the hub model {hub_id!r} is gated; ask for access and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise InvalidInputError(
            f"the hub has no model {hub_id!r} that you may read; check the name, or set HF_TOKEN if it is private; "
            f"{_known()}"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise InvalidInputError(
            f"there is no folder {hub_id!r}, and the hub cannot be reached or did not answer to look for a model of "
            f"that name ({type(error).__name__}); {_known()}"
        ) from error
    return Path(folder), Path(folder).name


def _known() -> str:
    return f"recipes: {', '.join(recipe_names())}"


def _check_weights(folder: Path, allow_pickle: bool) -> None:
    """Refuse folders without complete safetensors (or, when allowed, pickles)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map", {}).values()
        names = sorted(set(map(str, shards)))
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
        raise UnsupportedModelError(f"{folder} has no weights (no model.safetensors)")
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


def _hash_files(folder: Path, allow_pickle: bool) -> str:
    patterns = (*_PATTERNS, *_PICKLES) if allow_pickle else _PATTERNS
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.rglob(pattern)}):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part in ("onnx", "openvino") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()
