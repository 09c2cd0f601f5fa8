"""What `onnxpress doctor` tells: the machine and its limits, versions, every provider and why it can or cannot be used,
and what would be served how. Changes nothing."""

from __future__ import annotations

import dataclasses
import os

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.machine import (
    Machine,
    cgroup_cpus,
    cgroup_memory_bytes,
    describe_machine,
    versions,
)
from onnxpress.runtime.providers import SHORT_NAMES, Plan, ProviderStatus, ServedGraph, graph_of, make_plan, status_of
from onnxpress.runtime.providers import system as provider_system
from onnxpress.runtime.providers.names import ACCELERATORS
from onnxpress.runtime.session import import_onnxruntime
from onnxpress.runtime.settings import settings_of
from onnxpress.runtime.tuned import read_tuned
from onnxpress.runtime.verifying import is_verified_here


@dataclasses.dataclass(frozen=True)
class Limits:
    """What this process may use of the machine."""

    logical_cpus: int
    """Of the machine, hyper-threads counted."""
    allowed_cpus: int
    """Of them, those in the affinity mask."""
    cgroup_cpus: float | None
    """CPU time the cgroup allows, in CPUs; None: no limit."""
    cgroup_memory_bytes: int | None
    """None: no limit."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The onnxruntime that is installed."""

    package: str
    version: str
    cuda_version: str | None
    """The CUDA it was built for."""


@dataclasses.dataclass(frozen=True)
class Serving:
    """What `onnxpress.load` does when it is told nothing else."""

    variant: str | None
    """None: any."""
    providers: tuple[str, ...]
    options: dict[str, dict[str, str]]
    """Of each provider, as onnxruntime is told."""
    threads: int
    tuned_for: str | None
    """What `onnxpress tune` kept settings for; None: the default settings."""
    verified: bool | None
    """Whether the gate passed on this provider, where the bundle was made or here; None without a bundle."""
    sentence: str
    as_expected: bool


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything."""

    machine: Machine
    limits: Limits
    versions: dict[str, str]
    onnxruntime: Runtime
    providers: tuple[ProviderStatus, ...]
    """Those of the wheel first, then those another wheel would have."""
    serving: tuple[Serving, ...]
    """Of the bundle; without one, of any variant for the CPU and for CUDA."""


def diagnose(bundle: Bundle | None = None, variant: str | None = None) -> Diagnosis:
    """Look at this machine, and at how it would serve a bundle. Starts every provider of the wheel that may work.

    Args:
        bundle: an opened bundle.
        variant: of the bundle; None for its default.

    Raises:
        InvalidBundleError: the bundle has no such variant.
    """
    import_onnxruntime()
    wheel = provider_system.SYSTEM.wheel
    names = dict.fromkeys((*wheel.available, *SHORT_NAMES.values(), *ACCELERATORS))
    return Diagnosis(
        machine=describe_machine(),
        limits=_limits(),
        versions=versions(),
        onnxruntime=Runtime(wheel.package, wheel.version, wheel.cuda_version),
        providers=tuple(status_of(name, start=True) for name in names),
        serving=_serving(bundle, variant),
    )


def _limits() -> Limits:
    logical = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return Limits(logical, allowed, cgroup_cpus(), cgroup_memory_bytes())


def _serving(bundle: Bundle | None, name: str | None) -> tuple[Serving, ...]:
    if bundle is None:
        return tuple(_told(make_plan(None, _any_variant(target))) for target in ("cpu", "cuda"))
    variant = bundle.manifest.variant(name)
    plan = make_plan(None, graph_of(bundle, variant))
    leader = plan.providers[0].name
    was_passed = variant.status == "passed" and leader == SHORT_NAMES[variant.target]
    told = _told(plan, variant.name, was_passed or is_verified_here(bundle, variant, leader))
    tuned = read_tuned(bundle).of(variant.name)
    if tuned is not None:
        told = dataclasses.replace(
            told, threads=tuned.settings.thread_count, tuned_for=f"{tuned.goal} of {tuned.traffic}"
        )
    return (told,)


def _any_variant(target: str) -> ServedGraph:
    return ServedGraph("", target, "fp32", is_decoder=False, sha256="", inputs=(), max_tokens=1)


def _told(plan: Plan, variant: str | None = None, verified: bool | None = None) -> Serving:
    return Serving(
        variant=variant,
        providers=tuple(provider.name for provider in plan.providers),
        options={provider.name: provider.options for provider in plan.providers},
        threads=settings_of(None).thread_count,
        tuned_for=None,
        verified=verified,
        sentence=plan.sentence,
        as_expected=plan.as_expected,
    )
