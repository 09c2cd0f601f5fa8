"""A bundle on disk: opened with its manifest, paths and sizes checked, hashed on demand. Never written to."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.manifest import FileRecord, Manifest, Variant, parse_manifest
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.paths import MANIFEST_NAME, is_inside, sha256_of

_MAX_MANIFEST_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle folder. `manifest_sha256` identifies its content in caches."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    def path_of(self, relative: str) -> Path:
        """Absolute path of one of the bundle's files (checked when the bundle was opened)."""
        return self.folder / relative

    def model_path(self, variant: Variant) -> Path:
        """The variant's ONNX file, after checking that its external data stays among the variant's own files.

        Raises:
            InvalidBundleError: the ONNX file is broken or names a file that is not the variant's.
        """
        model = self.path_of(variant.model)
        parent = Path(variant.model).parent
        for location in sorted(external_data_locations(model)):
            if not is_inside(location) or (parent / location).as_posix() not in variant.files:
                raise InvalidBundleError(
                    f"{variant.model} reads its weights from {location!r}, which is not one of the files of variant "
                    f"{variant.name!r}; do not use this bundle"
                )
        return model

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
    folder = Path(path)
    location = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            raise InvalidBundleError(f"there is no bundle folder at {path}")
        if not location.is_file():
            raise InvalidBundleError(f"{path} is not a bundle: it has no {MANIFEST_NAME}")
        if location.stat().st_size > _MAX_MANIFEST_BYTES:
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
    if not is_inside(record.path):
        raise InvalidBundleError(f"the manifest names {record.path!r}, outside the bundle; do not use this bundle")
    path = folder / record.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidBundleError(f"{record.path} is a link that leaves the bundle; do not use this bundle")
    if not path.is_file():
        raise InvalidBundleError(f"{record.path} is missing from the bundle {folder}; copy or export it again")
    size = path.stat().st_size
    if size != record.size_bytes:
        raise InvalidBundleError(
            f"{record.path} has {size} bytes, the bundle was sealed with {record.size_bytes}; copy or export it again"
        )
