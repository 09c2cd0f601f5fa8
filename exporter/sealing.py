"""The output folder appears whole, by one rename, or not at all; leftovers of killed runs are found and removed.

While a bundle is made it lies beside its place in `.NAME.onnxpress-XXXX`, a folder locked by the process that makes it.
The kernel drops the lock however that process ends, so a later run can tell a dead leftover from a live run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.paths import MANIFEST_NAME, sync, sync_tree


@contextlib.contextmanager
def staging_folder(output: Path, force: bool) -> Iterator[Path]:
    """A new folder beside `output` to build in; removed when the block ends, unless `seal` moved it into place.

    Raises:
        InvalidInputError: `output` is in use by something that is not a bundle to be replaced, or cannot be written.
    """
    check_output(output, force)
    with contextlib.ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            # Nobody else looks for leftovers while the new folder is there but not locked yet.
            with _locked(output.parent):
                _remove_leftovers(output)
                folder = Path(tempfile.mkdtemp(prefix=_prefix(output), dir=output.parent))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                stack.enter_context(_locked(folder))
        except OSError as error:
            raise InvalidInputError(f"the output {output} cannot be written: {error.strerror}") from error
        yield folder


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that would overwrite something.

    Raises:
        InvalidInputError: there is a file, a folder that is not a bundle, or a bundle and no `force`.
    """
    if not output.name or output.name in (".", ".."):
        raise InvalidInputError(f"the output {str(output)!r} is not a folder name; give one that is new")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InvalidInputError(f"the output {output} exists and is not a folder; give another")
    if output.is_dir() and any(output.iterdir()):
        if not (output / MANIFEST_NAME).is_file():
            raise InvalidInputError(f"the output {output} is not empty and not a bundle; give another folder")
        if not force:
            raise InvalidInputError(f"the output {output} already holds a bundle; give --force to replace it")


def seal(folder: Path, output: Path, force: bool) -> None:
    """Move a finished bundle into place. From then on nothing writes to it.

    A bundle that was there is moved aside first and removed afterwards: a crash between the two renames leaves no
    output, never a mixture.

    Raises:
        InvalidInputError: something has appeared at `output` since the export began.
    """
    check_output(output, force)
    sync_tree(folder)
    folder.chmod(0o755)  # mkdtemp makes it private
    if output.exists():
        old = Path(tempfile.mkdtemp(prefix=_prefix(output), dir=output.parent))
        output.rename(old / "replaced")
        folder.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(output)
    sync(output.parent)


def _prefix(output: Path) -> str:
    return f".{output.name}.onnxpress-"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder. It follows the folder through a rename and needs no file in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(output: Path) -> None:
    """Remove what killed runs left beside `output`; folders whose lock is held belong to a live run and stay."""
    for leftover in output.parent.glob(f"{_prefix(output)}*"):
        if not _in_use(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
