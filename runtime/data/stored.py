"""Datasets on disk, as the library `datasets` writes them: folders by `save_to_disk`, Parquet and Arrow files.

The library is imported only when there is such data to read. It maps Arrow files into memory and reads Parquet by row
groups, and it imports neither PyTorch nor transformers by itself (5.2).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxpress.runtime.data.options import Source
from onnxpress.runtime.errors import InvalidInputError, first_line

SPLITS = {"evaluation": ("validation", "test", "train"), "calibration": ("train", "validation", "test")}
"""Which split is used of several, the first there is."""
_SUFFIXES = (".parquet", ".arrow")
_BATCH = 256  # rows decoded at once


def is_stored(path: Path) -> bool:
    """Whether a path is such a dataset: by the file's suffix, or by what `save_to_disk` puts into a folder."""
    if path.is_dir():
        return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return path.suffix.lower() in _SUFFIXES


def split_folder(source: Source) -> Path:
    """The folder of the split to use, for a `DatasetDict`; other data is what its path says.

    Raises:
        InvalidInputError: there is no such split, or there are no splits to choose from.
    """
    path, wanted = source.path, source.options.split
    listing = path / "dataset_dict.json"
    if not listing.is_file():
        if wanted is not None:
            raise InvalidInputError(
                f"the split {wanted!r} is asked for, but {source} has no splits; only a DatasetDict has some"
            )
        return path
    try:
        splits = [str(name) for name in json.loads(listing.read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{listing} is broken ({first_line(error)}); save the dataset again") from error
    choices = SPLITS[source.purpose] if wanted is None else (wanted,)
    chosen = next((name for name in choices if name in splits), None)
    if chosen is None and wanted is None and len(splits) == 1:
        (chosen,) = splits
    if chosen is None:
        missing = f"the split {wanted!r}" if wanted is not None else f"none of the splits {', '.join(choices)}"
        how = "" if source.purpose == "evaluation" else "; give the folder of one, such as FOLDER/SPLIT"
        raise InvalidInputError(f"{source} has not {missing}; it has: {', '.join(splits) or 'none'}{how}")
    return path / chosen


class StoredRows:
    """The rows of a dataset on disk."""

    def __init__(self, source: Source) -> None:
        """
        Raises:
            InvalidInputError: the dataset is broken, or a library is not installed.
        """
        self._source = source
        with _library(source):
            import datasets

            if source.path.is_dir():
                with _no_bars():
                    dataset = datasets.load_from_disk(str(source.path))
                self._features = dict(dataset.features)
                self._batches: Iterable[Any] = dataset.with_format("arrow").iter(_BATCH)
            else:
                schema, self._batches = _open_file(source.path)
                self._features = dict(datasets.Features.from_arrow_schema(schema))
        self.names = list(self._features)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        """Each row's place, and its cells in some of the columns; integers that stand for a name are that name."""
        index = 0
        decoders = [self._features[name] for name in columns]
        with _library(self._source):
            for batch in self._batches:
                found = [batch.column(name).to_pylist() for name in columns]
                for row in range(batch.num_rows):
                    cells = [_named(feature, values[row]) for feature, values in zip(decoders, found, strict=True)]
                    yield f"{self._source.path}, row {index}", cells
                    index += 1


def _open_file(path: Path) -> tuple[Any, Iterable[Any]]:
    """Schema and batches of a Parquet or Arrow file."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        return file.schema_arrow, file.iter_batches(_BATCH)
    # `datasets` writes streams; other programs write files, which begin with a mark.
    source = pyarrow.memory_map(str(path))
    try:
        reader = pyarrow.ipc.open_stream(source)
        return reader.schema, reader
    except pyarrow.ArrowInvalid:
        reader = pyarrow.ipc.open_file(source)
        return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))


def _named(feature: Any, value: Any) -> Any:
    """A cell with the names of its labels, also inside lists and objects. -1, which marks a missing label, stays."""
    names = getattr(feature, "names", None)
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else value
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _named(feature.get(key), item) for key, item in value.items()}
    inner = getattr(feature, "feature", None)
    if inner is not None and isinstance(value, list):
        return [_named(inner, item) for item in value]
    return value


@contextlib.contextmanager
def _library(source: Source) -> Iterator[None]:
    """Around everything that the libraries do."""
    try:
        yield
    except ImportError as error:
        raise InvalidInputError(f"{source} needs the library datasets; install onnxpress[data]") from error
    except (InvalidInputError, GeneratorExit):  # of our own, and the reader's wish to stop
        raise
    # datasets and pyarrow raise many types on files that are no dataset or broken.
    except Exception as error:
        raise InvalidInputError(f"{source} cannot be read as a dataset: {first_line(error)}") from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars that `datasets` writes on the terminal."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
