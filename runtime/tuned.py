"""The settings that `onnxpress tune` kept for a bundle on this machine: a file in the user's cache, keyed by the
manifest's hash, the machine and onnxruntime's version. Finds nothing itself (tuning.py).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.machine import describe_machine, onnxruntime_version
from onnxpress.runtime.manifest import Variant
from onnxpress.runtime.paths import user_cache, write_atomically
from onnxpress.runtime.settings import ServingSettings

SCHEMA_VERSION = 1
_LOG = logging.getLogger("onnxpress")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Settings of a variant, and what they were found to be good for."""

    variant: str
    goal: str
    """latency, throughput or memory."""
    traffic: str
    """What was measured on, for a person."""
    gain: float
    """How many times as good as the default settings."""
    created: str
    """UTC time."""
    settings: ServingSettings


@dataclasses.dataclass(frozen=True)
class Kept:
    """All that is kept of a bundle."""

    variants: tuple[Tuned, ...]
    problem: str | None = None
    """A sentence where there is a file that cannot be used."""

    def of(self, variant: str) -> Tuned | None:
        """What is kept for a variant."""
        return next((tuned for tuned in self.variants if tuned.variant == variant), None)


def read_tuned(bundle: Bundle) -> Kept:
    """What is kept of a bundle for this machine and onnxruntime; nothing where the file is broken."""
    path = _path(bundle)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(f"expected schema version {SCHEMA_VERSION}")
        return decode(Kept, document)
    except FileNotFoundError:
        return Kept(())
    except (OSError, ValueError, RecursionError, InvalidInputError) as error:
        return Kept((), f"{path} cannot be used and is ignored: {error}; onnxpress tune writes it anew")


def tuned_settings(bundle: Bundle, variant: Variant) -> ServingSettings | None:
    """The settings kept for a variant, which is logged at level INFO; a broken file is at level WARNING."""
    kept = read_tuned(bundle)
    if kept.problem is not None:
        _LOG.warning(kept.problem)
    found = kept.of(variant.name)
    if found is None:
        return None
    _LOG.info(
        "%s is served with the settings that onnxpress tune found for %s on %s: %s",
        variant.name,
        found.goal,
        found.created,
        found.settings.describe(),
    )
    return found.settings


def keep_tuned(bundle: Bundle, tuned: Tuned) -> Path:
    """Keep settings in place of those that are there for the same variant. Returns the file.

    Raises:
        InvalidInputError: the user's cache cannot be written.
    """
    others = tuple(found for found in read_tuned(bundle).variants if found.variant != tuned.variant)
    return _write(bundle, (*others, tuned))


def forget_tuned(bundle: Bundle, variant: str | None = None) -> bool:
    """Drop what is kept of a variant, or of all. False where there was nothing.

    Raises:
        InvalidInputError: the user's cache cannot be written.
    """
    kept, path = read_tuned(bundle), _path(bundle)
    left = tuple(found for found in kept.variants if variant is not None and found.variant != variant)
    if not path.exists() or (kept.problem is None and len(left) == len(kept.variants)):
        return False
    _write(bundle, left)
    return True


def _write(bundle: Bundle, variants: tuple[Tuned, ...]) -> Path:
    path = _path(bundle)
    document = {"schema_version": SCHEMA_VERSION, "variants": [dataclasses.asdict(found) for found in variants]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
    except OSError as error:
        raise InvalidInputError(
            f"settings cannot be kept in {path.parent}: {error.strerror}; set ONNXPRESS_CACHE to a folder that can be "
            "written"
        ) from error
    return path


def _path(bundle: Bundle) -> Path:
    name = f"{describe_machine().key()}-ort{onnxruntime_version()}.json"
    return user_cache() / "tuned" / bundle.manifest_sha256[:32] / name
