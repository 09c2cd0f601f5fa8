"""Where a bundle's figures come from, and what of that is different here: processor, features, cores, onnxruntime.

Says it in sentences for people, and once to the log of a program that loads the bundle. Measures nothing (bench.py).
"""

from __future__ import annotations

import logging

from onnxpress.runtime.bench import read_bench
from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.hardware import EXACT_INT8, FULL, int8_kinds, may_saturate
from onnxpress.runtime.machine import Machine, describe_machine, onnxruntime_version
from onnxpress.runtime.manifest import Manifest, Variant

_LOG = logging.getLogger("onnxpress")
_BYTES = ("int8", "int8-static", "mixed")
_told: set[tuple[str, str]] = set()


def made_on(manifest: Manifest) -> Machine:
    """The machine a bundle was made on; what its manifest does not say is empty."""
    told = manifest.machine
    features = told.get("cpu_features")
    return Machine(
        cpu=str(told.get("cpu") or ""),
        architecture=str(told.get("architecture") or ""),
        cores=_whole(told.get("cores")),
        cpu_features=tuple(map(str, features)) if isinstance(features, list) else (),
        memory_bytes=_whole(told.get("memory_bytes")),
        system=str(told.get("system") or ""),
        python=str(told.get("python") or ""),
        gpu=None if told.get("gpu") is None else str(told["gpu"]),
    )


def _whole(value: object) -> int:
    """A number of the manifest, which may say anything there; 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def differences(manifest: Manifest) -> tuple[str, ...]:
    """What measurements depend on and is different here, each in a few words; empty where figures apply."""
    there, here = made_on(manifest), describe_machine()
    found = []
    if there.cpu != here.cpu or there.architecture != here.architecture:
        found.append(f"processor {_processor(there)} there, {_processor(here)} here")
    if lacking := [name for name in there.cpu_features if name not in here.cpu_features]:
        found.append(f"no {', '.join(lacking)} here")
    if more := [name for name in here.cpu_features if name not in there.cpu_features]:
        found.append(f"{', '.join(more)} here only")
    if there.cores != here.cores:
        found.append(f"{there.cores} cores there, {here.cores} here")
    if there.gpu != here.gpu and any(variant.target != "cpu" for variant in manifest.variants):
        found.append(f"GPU {there.gpu or 'none'} there, {here.gpu or 'none'} here")
    versions = manifest.versions
    then, now = versions.get("onnxruntime") or versions.get("onnxruntime-gpu"), onnxruntime_version()
    if then != now:
        found.append(f"onnxruntime {then} there, {now} here")
    return tuple(found)


def stale_notice(bundle: Bundle) -> str | None:
    """A sentence where the bundle's figures are those of something else than this machine; None where they apply,
    where it has none, or where it was measured here."""
    manifest = bundle.manifest
    if not any(variant.latency_ms is not None or variant.texts_per_second is not None for variant in manifest.variants):
        return None
    found = differences(manifest)
    if not found or read_bench(bundle).variants:
        return None
    return (
        f"the bundle's figures were measured elsewhere and may not apply ({'; '.join(found)}); measure here with: "
        f"onnxpress bench {bundle.folder}"
    )


def saturation_warning(bundle: Bundle, variant: Variant) -> str | None:
    """A sentence where 8 bits of a variant were chosen for a processor that multiplies them without an error and this
    one does not; None where that is not so, or the accuracy was measured here."""
    if not may_saturate(describe_machine()) or not _has_full_range(bundle.manifest, variant):
        return None
    measured = read_bench(bundle).of(variant.name)
    if measured is not None and measured.accuracy is not None:
        return None
    return (
        f"variant {variant.name!r} has signed 8-bit weights, which are right for the processor it was made on "
        f"({made_on(bundle.manifest).cpu or 'unknown'}) and saturate the fast products of this one, which has neither "
        f"VNNI nor AMX: onnxruntime is told to use exact, slower ones ({EXACT_INT8}). Accuracy may suffer in other "
        f"programs, and speed here; measure both with: onnxpress bench "
        f"{bundle.folder} --eval FILE; or export on such a machine"
    )


def log_origin(bundle: Bundle, variant: Variant) -> None:
    """Log what `stale_notice` (level INFO) and `saturation_warning` (level WARNING) say, once in this process for each
    variant."""
    key = (bundle.manifest_sha256, variant.name)
    if key in _told:
        return
    _told.add(key)
    if _LOG.isEnabledFor(logging.INFO) and (notice := stale_notice(bundle)) is not None:
        _LOG.info(notice)
    if (warning := saturation_warning(bundle, variant)) is not None:
        _LOG.warning(warning)


def _has_full_range(manifest: Manifest, variant: Variant) -> bool:
    """Whether the weights are signed and use all 8 bits. Those in blocks, as decoders have them, are multiplied by
    kernels that do not saturate."""
    quantized = variant.precision in _BYTES and variant.target == "cpu" and manifest.generation is None
    return quantized and int8_kinds(made_on(manifest)) == (FULL,)


def _processor(machine: Machine) -> str:
    named = machine.cpu or "unknown"
    return named if machine.architecture in ("", named) else f"{named} ({machine.architecture})"
