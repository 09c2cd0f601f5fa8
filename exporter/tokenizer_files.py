"""A folder's tokenizer without PyTorch: `tokenizer.json`, and what the files beside it say of padding and masks.

The rules are those of transformers' `PreTrainedTokenizerFast`. Where there is no tokenizer.json, transformers converts
the other forms, and PyTorch is imported with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers

from onnxpress.exporter.source import read_json
from onnxpress.runtime.errors import UnsupportedModelError, first_line

FILE = "tokenizer.json"
# Where no file names the token.
_PADDING = ("[PAD]", "<pad>", "<|padding|>")
_MASKS = ("[MASK]", "<mask>")
_VOCABULARIES = ("vocab*", "merges*", "*.model", "*.vocab", "*.codes", "*.tiktoken", "tokenization*.py")
_MOST_TOKENS = 2**31  # transformers writes 1e30 for "no limit"


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer and what the task needs to know about it."""

    backend: tokenizers.Tokenizer
    model_max_length: int | None
    """Tokens; None: the files name no limit."""
    truncation_side: Literal["left", "right"]
    padding_side: Literal["left", "right"]
    pad_id: int
    pad_type_id: int
    mask_token: str | None


def read_tokenizer(folders: Sequence[Path], pad_id: int | None, trust_remote_code: bool) -> FolderTokenizer:
    """The tokenizer of the first folder that has one.

    Args:
        folders: where to look.
        pad_id: what config.json gives, for tokenizers that name no padding token.
        trust_remote_code: run Python code that comes with the tokenizer, where it has no tokenizer.json.

    Raises:
        UnsupportedModelError: there is none that can be read.
    """
    folder = next((folder for folder in folders if (folder / FILE).is_file()), None)
    if folder is None:
        return _convert(folders, trust_remote_code)
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / FILE))
    # tokenizers raises plain Exception for every malformed file.
    except Exception as error:
        raise UnsupportedModelError(f"{folder / FILE} cannot be read ({error}); download the model again") from error
    settings = _object(folder / "special_tokens_map.json") | _object(folder / "tokenizer_config.json")
    padding: dict[str, Any] = backend.padding or {}
    truncation: dict[str, Any] = backend.truncation or {}
    backend.no_padding()
    limit = settings.get("model_max_length")
    return FolderTokenizer(
        backend=backend,
        model_max_length=int(limit) if isinstance(limit, int | float) and 0 < limit < _MOST_TOKENS else None,
        truncation_side=_side(settings.get("truncation_side") or truncation.get("direction")),
        padding_side=_side(settings.get("padding_side") or padding.get("direction")),
        pad_id=_pad_id(backend, _content(settings.get("pad_token")) or padding.get("pad_token"), pad_id),
        pad_type_id=int(settings.get("pad_token_type_id") or padding.get("pad_type_id") or 0),
        mask_token=_content(settings.get("mask_token")) or _known(backend, _MASKS),
    )


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer, of which transformers would make one that knows no words.

    Raises:
        UnsupportedModelError: there is none.
    """
    if not any(any(folder.glob(pattern)) for pattern in (FILE, *_VOCABULARIES)):
        raise UnsupportedModelError(f"{folder} has no tokenizer; put the model's {FILE} there")


def _convert(folders: Sequence[Path], trust_remote_code: bool) -> FolderTokenizer:
    require_tokenizer(folders[0])
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folders[0], trust_remote_code=trust_remote_code, local_files_only=True
        )
        backend = tokenizer.backend_tokenizer
    # transformers, its converters and remote code raise many types; each means the same to the user.
    except Exception as error:
        reason = first_line(error)
        raise UnsupportedModelError(
            f"{folders[0]} has no {FILE}, and transformers cannot make one ({reason}); put the model's {FILE} there"
        ) from error
    return FolderTokenizer(
        backend=backend,
        model_max_length=tokenizer.model_max_length,
        truncation_side=tokenizer.truncation_side,
        padding_side=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id or 0,
        pad_type_id=tokenizer.pad_token_type_id,
        mask_token=tokenizer.mask_token,
    )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object without its empty entries, itself empty where there is no file."""
    found = read_json(path) if path.is_file() else {}
    return {key: value for key, value in found.items() if value is not None} if isinstance(found, dict) else {}


def _content(token: Any) -> str | None:
    """A token that is written as text, or as an object with its properties."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _pad_id(backend: tokenizers.Tokenizer, named: str | None, configured: int | None) -> int:
    found = None if named is None else backend.token_to_id(named)
    if found is None:
        found = configured
    if found is None and (token := _known(backend, _PADDING)) is not None:
        found = backend.token_to_id(token)
    return int(found or 0)


def _known(backend: tokenizers.Tokenizer, tokens: Sequence[str]) -> str | None:
    return next((token for token in tokens if backend.token_to_id(token) is not None), None)


def _side(named: Any) -> Literal["left", "right"]:
    return "left" if named == "left" else "right"
