"""What a `tokenizer.json` must not say, because the Rust library that reads it would abort the process or count for
minutes, and the library's own failures as errors of onnxpress.

The library fails in two ways: with a plain `Exception`, and with the panics of Rust, which Python code gets as
`pyo3_runtime.PanicException`, a `BaseException` that cannot be imported. All else it reads is checked by it alone.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import InvalidBundleError, first_line

_MAX_BYTES = 512 * 2**20  # the largest vocabularies, of 260,000 tokens with all merges, take 35 MB
_LARGEST_ID = 50_000_000  # the library counts from 0 to the largest id when it writes a tokenizer out
_CHARSMAP = b"precompiled_charsmap"
_PLAIN_CHARSMAP = re.compile(rb'"precompiled_charsmap":\s*"([A-Za-z0-9+/=]+)"')
_LARGE_NUMBER = re.compile(rb":\s*[0-9]{8}")
_HIDDEN = re.compile(rb"\\u00[2-7]")  # letters written as escapes, which no library does


def read_tokenizer_file(path: Path) -> bytes:
    """Content of a tokenizer file, found to be one that the library can read or refuse.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or has numbers or tables that the library does not survive.
    """
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, the limit is {_MAX_BYTES:,}")
    data = path.read_bytes()
    # Parsing takes half as long as the library itself needs, so that it is done only where there is a reason.
    charsmaps = _PLAIN_CHARSMAP.findall(data)
    if _HIDDEN.search(data) or _LARGE_NUMBER.search(data) or len(charsmaps) != data.count(_CHARSMAP):
        _check_document(json.loads(data))
    for charsmap in charsmaps:
        _check_charsmap(charsmap)
    return data


def _check_document(document: Any) -> None:
    rest = [document]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key == _CHARSMAP.decode() and isinstance(inner, str):
                    _check_charsmap(inner.encode())
                elif key == "vocab" and isinstance(inner, dict):
                    _check_ids(inner.values())
                elif key == "id":
                    _check_ids([inner])
            rest += value.values()


def _check_ids(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and value > _LARGEST_ID:
            raise ValueError(f"no token has the id {str(value)[:20]}")


def _check_charsmap(text: bytes) -> None:
    """The library allocates what the first four bytes say before it looks whether there is so much."""
    try:
        table = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its precompiled_charsmap is not base64 ({error})") from error
    if len(table) < 4 or int.from_bytes(table[:4], "little") > len(table) - 4:
        raise ValueError("its precompiled_charsmap is cut off")


def is_of_library(error: BaseException) -> bool:
    """Whether an exception is one that the tokenizers library raises for whatever it cannot do."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


@contextlib.contextmanager
def tokenizing() -> Iterator[None]:
    """Makes the library's failures in a `with` block errors with a sentence.

    Raises:
        InvalidBundleError: the library failed.
    """
    try:
        yield
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise InvalidBundleError(
            f"the bundle's tokenizer fails: {first_line(error)}; export the bundle again"
        ) from error
