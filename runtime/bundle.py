"""A bundle on disk: opened with its manifest, paths and sizes checked, hashed on demand. Never written to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.manifest import FileRecord, Manifest, Variant, parse_manifest
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.paths import MANIFEST_NAME, is_inside, sha256_of

REPORT_JSON = "report.json"
_IN_MEMORY = "*/_ORT_MEM_ADDR_"  # onnxruntime's name for weights at an address of this process
_MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_REPORT_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle folder. `manifest_sha256` identifies its content in caches."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    def path_of(self, relative: str) -> Path:
        """Path of one of the bundle's files.

        Raises:
            InvalidBundleError: it is missing, is no regular file, or is outside the bundle.
        """
        return _own_file(self.folder, relative)[0]

    def report(self) -> dict[str, Any]:
        """What report.json says; empty where it cannot be read: a bundle serves without it."""
        try:
            path, size = _own_file(self.folder, REPORT_JSON)
            found = json.loads(path.read_text(encoding="utf-8")) if size <= _MAX_REPORT_BYTES else {}
            return found if isinstance(found, dict) else {}
        except (InvalidBundleError, OSError, ValueError, RecursionError):
            return {}

    def model_path(self, variant: Variant) -> Path:
        """The variant's ONNX file, after checking that its external data stays among the variant's own files.

        Raises:
            InvalidBundleError: the ONNX file is broken or names a file that is not the variant's.
        """
        model = self.path_of(variant.model)
        parent = Path(variant.model).parent
        for location in sorted(external_data_locations(model)):
            if (
                location.startswith(_IN_MEMORY)
                or not is_inside(location)
                or (parent / location).as_posix() not in variant.files
            ):
                raise InvalidBundleError(
                    f"{variant.model} reads its weights from {location[:200]!r}, which is not one of the files of "
                    f"variant {variant.name!r}; do not use this bundle"
                )
        return model

    def check_unchanged(self) -> None:
        """For what is opened later than the bundle was: two exports must not answer as one.

        Raises:
            InvalidBundleError: another bundle, or none, is in the folder now.
        """
        try:
            is_same = sha256_of(self.folder / MANIFEST_NAME) == self.manifest_sha256
        except OSError:
            is_same = False
        if not is_same:
            raise InvalidBundleError(
                f"the bundle in {self.folder} was replaced or removed after it was loaded, before all of it was in "
                "use; load it again (warm_up=True in the settings takes all of it into use at once)"
            )

    def verify_hashes(self) -> None:
        """Hash every file and compare.

        Raises:
            InvalidBundleError: a file's content is not what was sealed; the text names it.
        """
        for record in self.manifest.files:
            found = sha256_of(self.path_of(record.path))
            if found != record.sha256:
                raise InvalidBundleError(
                    f"{record.path} was changed since the bundle was sealed (sha256 {found[:12]}..., expected "
                    f"{record.sha256[:12]}...); export the bundle again"
                )


def open_bundle(path: str | Path, verify: bool = False) -> Bundle:
    """Open a bundle folder and check its schema, paths and sizes.

    Args:
        path: the folder.
        verify: also hash every file.

    Raises:
        InvalidBundleError: not a bundle, or a file is missing, resized, changed or outside the folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidBundleError(f"the bundle is given as {path!r:.80}; give the path of its folder")
    folder = Path(path)
    location = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            raise InvalidBundleError(f"there is no bundle folder at {path}")
        if not location.is_file():
            raise InvalidBundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}")
        if _own_file(folder, MANIFEST_NAME)[1] > _MAX_MANIFEST_BYTES:
            raise InvalidBundleError(f"{location} is larger than {_MAX_MANIFEST_BYTES} bytes; do not use this bundle")
        data = location.read_bytes()
        manifest = parse_manifest(data.decode(), str(location))
        bundle = Bundle(folder, manifest, hashlib.sha256(data).hexdigest())
        _check_files(bundle)
    except UnicodeDecodeError as error:
        raise InvalidBundleError(f"{location} is not UTF-8 text; export the bundle again") from error
    except OSError as error:
        raise InvalidBundleError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    if verify:
        bundle.verify_hashes()
    return bundle


def _check_files(bundle: Bundle) -> None:
    manifest = bundle.manifest
    records = {record.path: record for record in manifest.files}
    for record in manifest.files:
        _check_file(bundle.folder, record)
    needed = [manifest.tokenizer.file]
    for variant in manifest.variants:
        needed += [variant.model, *variant.files]
    for path in needed:
        if path not in records:
            raise InvalidBundleError(f"the manifest uses {path!r} but does not list it; export the bundle again")


def _check_file(folder: Path, record: FileRecord) -> None:
    _, size = _own_file(folder, record.path)
    if size != record.size_bytes:
        raise InvalidBundleError(
            f"{record.path} has {size} bytes, the bundle was sealed with {record.size_bytes}; copy or export it again"
        )


def _own_file(folder: Path, relative: str) -> tuple[Path, int]:
    """Path and size of a regular file in the bundle's folder: opening a pipe or a device could block or never end.

    Raises:
        InvalidBundleError: it is not one.
    """
    if not is_inside(relative):
        raise InvalidBundleError(f"the manifest names {relative[:200]!r}, outside the bundle; do not use this bundle")
    path = folder / relative
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise InvalidBundleError(f"{relative} is a link that leaves the bundle; do not use this bundle")
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidBundleError(f"{relative} is missing from the bundle {folder}; copy or export it again") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other, before Python 3.13
        raise InvalidBundleError(f"{relative[:200]} cannot be read; copy or export the bundle again") from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidBundleError(f"{relative} is missing from the bundle {folder}: what is there is no regular file")
    return path, found.st_size
