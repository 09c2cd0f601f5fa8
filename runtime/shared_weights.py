"""Weights that several processes share: rearranged for this processor's kernels once, in a file that all of them map.

onnxruntime maps a bundle's weights, but while a session opens its kernels rearrange most of them ("prepacking"), and
every process keeps a copy of its own. onnxruntime can write the optimized graph with the rearranged weights to a file
and map them from there (`session.save_external_prepacked_constant_initializers`; onnxruntime 1.32 does so for MatMul,
Gemm, MatMulNBits and the products of dynamically quantized encoders). The user cache keeps such a copy of a variant;
the first process that asks makes it while the others wait.

A copy belongs to a bundle, a variant, a kind of processor and a version of onnxruntime. A graph is asked for the
rearranged weights by a hash of what the kernel makes of the plain ones, so that a processor that arranges them
differently would compute right and share nothing. The results are the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxpress.runtime import hardware
from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.machine import describe_machine, onnxruntime_version
from onnxpress.runtime.manifest import Variant
from onnxpress.runtime.paths import sha256_of, sync, sync_tree, user_cache
from onnxpress.runtime.session import PACKED_WEIGHTS, make_session
from onnxpress.runtime.settings import ServingSettings

_LOG = logging.getLogger("onnxpress")
_FORMAT = 1
_MODEL, _RECORD, _LOCK = "model.onnx", "record.json", ".lock"
_UNFINISHED = ".new-"
_PARTS = (
    re.compile(rb"\n\x06offset\x12.(\d+)j.\n\x06length\x12.(\d+)", re.DOTALL),  # TensorProto.external_data
    re.compile(rb"\|(\d+);(\d+);"),  # its values "prepacked_0", ...: key|offset;length;checksum
)
"""Where a graph says at which byte a part of its weights begins and how long it is, as onnxruntime writes it."""
_TIMES_AS_LARGE = 2.5
"""A copy has the weights twice, plain and rearranged, and what a graph uses in two layouts once more."""
_SHARE_OF_DISK = 0.5
"""All copies together take at most this share of what would be free without them."""


class _NotSharedError(Exception):
    """The weights cannot be shared; the text says why."""


def model_to_open(bundle: Bundle, variant: Variant, settings: ServingSettings, *, on_cpu: bool) -> Path:
    """The ONNX file to make a session from: a copy whose weights processes share where the settings say so, which may
    have to be made first, else the bundle's own. Where there can be no copy, that is logged under "onnxpress" at level
    WARNING, with the reason.

    Args:
        bundle: an opened bundle.
        variant: one of its variants.
        settings: how the model uses the machine.
        on_cpu: whether the CPU computes; a GPU keeps weights in its own memory.

    Raises:
        InvalidBundleError: the variant's ONNX file is broken or leaves the variant's files.
    """
    model = bundle.model_path(variant)
    if not (settings.share_weights and settings.prepacking and on_cpu):  # weights left as they are, are shared anyway
        return model
    try:
        return _copy(bundle, variant, model) / _MODEL
    except (OSError, _NotSharedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _LOG.warning(
            "variant %s of %s keeps its weights in this process, no other shares them: %s",
            variant.name, bundle.folder, reason,
        )  # fmt: skip
        return model


def discard_changed(bundle: Bundle, variant: Variant) -> None:
    """Hash the copy of a variant's weights, if there is one, and remove it if it is not what was written; the next use
    makes it anew. Processes that have mapped it keep it.

    Raises:
        InvalidBundleError: it was changed and cannot be removed.
    """
    folder = _folder(_identity(bundle, variant))
    record = _read_record(folder)
    if record is None or _hash_or_none(folder / PACKED_WEIGHTS) == record.get("weights_sha256"):
        return
    try:
        with _locked(folder.parent):
            _remove(folder)
    except OSError as error:
        raise InvalidBundleError(
            f"the shared weights in {folder} were changed and cannot be removed ({error.strerror}); remove that folder"
        ) from error
    _LOG.warning("the shared weights in %s were changed, they are made again", folder)


def _copy(bundle: Bundle, variant: Variant, model: Path) -> Path:
    """The folder of the copy, made if it is not there."""
    identity = _identity(bundle, variant)
    folder = _folder(identity)
    if not _is_whole(folder, identity):
        if sys.platform == "win32":
            raise _NotSharedError("this system has no advisory locks that onnxpress knows")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            if not _is_whole(folder, identity):  # another process may have made it meanwhile
                _remove_unfinished(folder.parent)
                _remove(folder)
                size = sum(bundle.path_of(file).stat().st_size for file in {variant.model, *variant.files})
                _make_room(folder.parent, int(_TIMES_AS_LARGE * size))
                _write(model, variant, identity, folder)
                _LOG.info("wrote %s, from where processes share the weights of %s", folder, bundle.folder)
    with contextlib.suppress(OSError):  # a cache that cannot be written to may still be used
        os.utime(folder / _RECORD)
    return folder


def _identity(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    """All that decides what is in a copy, as JSON has it. Cores are left out: a worker may be pinned to one."""
    machine = describe_machine()
    return {
        "format": _FORMAT,
        "bundle": bundle.manifest_sha256,
        "variant": variant.name,
        "onnxruntime": onnxruntime_version(),
        "cpu": machine.cpu,
        "architecture": machine.architecture,
        "cpu_features": list(machine.cpu_features),
        "session": {**hardware.session_config(machine), **variant.session.config},
        "disabled_optimizers": list(variant.session.disabled_optimizers),
    }


def _folder(identity: dict[str, Any]) -> Path:
    return user_cache() / "weights" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_whole(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a copy is there, of this identity and of the sizes that were written. The weights are not hashed each
    time, as those of bundles are not; `discard_changed` does."""
    record = _read_record(folder)
    if record is None or record.get("of") != identity:
        return False
    try:
        size = (folder / PACKED_WEIGHTS).stat().st_size
    except OSError:
        return False
    return size == record.get("weights_bytes") and _hash_or_none(folder / _MODEL) == record.get("model_sha256")


def _hash_or_none(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None


def _write(model: Path, variant: Variant, identity: dict[str, Any], folder: Path) -> None:
    """Make a copy beside its place, and rename it."""
    staging = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    try:
        settings = ServingSettings(threads=1, share_weights=True)
        try:
            make_session(model, variant.session, settings=settings, write_packed=staging / _MODEL)
        except InvalidBundleError as error:
            raise _NotSharedError(f"no copy could be written to {folder.parent}: {error}") from error
        weights = staging / PACKED_WEIGHTS
        weights.touch()  # a graph without a weight that is worth it has none
        _check_length(staging)
        record = {
            "of": identity,
            "model_sha256": sha256_of(staging / _MODEL),
            "weights_sha256": sha256_of(weights),
            "weights_bytes": weights.stat().st_size,
        }
        (staging / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        sync_tree(staging)
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_length(staging: Path) -> None:
    """onnxruntime may not notice that the end was not written, and reading a mapped file behind its end is fatal."""
    found = (staging / PACKED_WEIGHTS).stat().st_size
    graph = (staging / _MODEL).read_bytes()
    parts = [map(int, part) for pattern in _PARTS for part in pattern.findall(graph)]
    if found < max(map(sum, parts), default=0):
        raise _NotSharedError(f"only {found} bytes could be written to {staging.parent}; is the disk full?")


def _make_room(root: Path, needed: int) -> None:
    """Remove the copies that were not used for the longest time until `needed` more bytes are within the limit."""
    held = sorted(
        (record.stat().st_mtime, record.parent, sum(file.stat().st_size for file in record.parent.iterdir()))
        for record in root.glob(f"*/{_RECORD}")
    )
    total = sum(size for _, _, size in held)
    limit = _SHARE_OF_DISK * (shutil.disk_usage(root).free + total)
    if needed > limit:
        raise _NotSharedError(
            f"a copy may take {needed / 1e6:.0f} MB, and {root} may hold {limit / 1e6:.0f} MB; free some of the disk, "
            "or set ONNXPRESS_CACHE to a larger one"
        )
    for _, folder, size in held:
        if total + needed <= limit:
            break
        _remove(folder)
        total -= size


def _remove(folder: Path) -> None:
    """A rename first, so that no process finds half a copy."""
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside, ignore_errors=True)


def _remove_unfinished(root: Path) -> None:
    """What killed processes left, and what has lost its record: who writes holds the lock, so nobody does now."""
    for folder in root.iterdir():
        if folder.is_dir() and not (folder / _RECORD).is_file():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Only one process at a time; the system drops the lock however that process ends."""
    import fcntl

    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
