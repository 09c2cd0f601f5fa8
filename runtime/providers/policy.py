"""Which providers serve a session: a choice that was made explicit wins or fails with the reason; without one, what the
variant was made for is taken where this machine has it, and a line on the log says what was done.

Without a choice, a variant for the CPU stays there, because that is where it was verified and measured. One for CUDA or
TensorRT goes to TensorRT where its engine is in the cache (or it was made for TensorRT), else to CUDA, else to another
accelerator of the wheel, else to the CPU. Text generation keeps its cache where CUDA or the CPU reach it, so only these
two are offered a decoder.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from onnxpress.runtime.errors import ProviderError
from onnxpress.runtime.providers import system
from onnxpress.runtime.providers.graph import ServedGraph
from onnxpress.runtime.providers.names import CPU, CUDA, SHORT_NAMES, TENSORRT, full_name, short_name
from onnxpress.runtime.providers.options import CpuOptions, CudaOptions, OtherProvider, Provider
from onnxpress.runtime.providers.status import accelerators, status_of
from onnxpress.runtime.providers.system import DriverError
from onnxpress.runtime.providers.tensorrt import TensorrtOptions

ProviderOptions = CudaOptions | TensorrtOptions | CpuOptions | OtherProvider
Asked = str | ProviderOptions | Sequence[str | ProviderOptions] | None
"""How providers are asked for: names and options in order of preference; None to choose by itself."""

_TYPES = (CudaOptions, TensorrtOptions, CpuOptions, OtherProvider)
_LOG = logging.getLogger("onnxpress")
_told: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The providers of a session and why these."""

    providers: tuple[Provider, ...]
    """The most wanted first; the CPU last, for operators the others lack."""
    sentence: str
    """What was chosen, for a person."""
    as_expected: bool
    """False: an accelerator that the wheel has, or the variant was made for, cannot be used."""


def choose_providers(asked: Asked, graph: ServedGraph | None = None) -> list[Provider]:
    """Providers for a session, most wanted first. A choice that was not made explicit is logged under "onnxpress", once
    in a process for each outcome: at level INFO, or WARNING where an accelerator of the wheel cannot be used.

    Args:
        asked: names and options in order of preference, or None to choose by itself.
        graph: what is served; without it nothing but the CPU is chosen by itself.

    Raises:
        ProviderError: a provider asked for is unknown or cannot be used here; the text says why and what to do.
        InvalidInputError: an option that cannot be meant.
    """
    plan = make_plan(asked, graph)
    if asked is None and plan.sentence not in _told:
        _told.add(plan.sentence)
        # `routine`: a command, unlike a program's log, does not say what nobody needs to know.
        level = logging.INFO if plan.as_expected else logging.WARNING
        hint = "" if plan.as_expected else "; onnxpress doctor says what to do"
        _LOG.log(level, plan.sentence + hint, extra={"routine": plan.as_expected})
    return list(plan.providers)


def make_plan(asked: Asked, graph: ServedGraph | None = None) -> Plan:
    """What `choose_providers` chooses, with the reason; logs nothing. Arguments and errors as there."""
    if asked is not None:
        providers = _explicit(asked, graph)
        return Plan(providers, f"{_named(graph)} is served on {providers[0].name}, as asked for", True)
    if graph is None or graph.target == "cpu":
        return _on_cpu(graph)
    return _accelerated(graph)


# --- asked for ---


def _explicit(
    asked: str | ProviderOptions | Sequence[str | ProviderOptions], graph: ServedGraph | None
) -> tuple[Provider, ...]:
    wanted = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    if not wanted:
        raise ProviderError("providers is an empty list; give at least one, such as 'cpu', or None to choose by itself")
    chosen: dict[str, Provider] = {}
    for each in wanted:
        provider = _one(each, graph)
        if provider.name in chosen:
            raise ProviderError(f"{provider.name} is named twice among the providers; name it once, with its options")
        chosen[provider.name] = provider
    return _completed(chosen)


def _one(asked: str | ProviderOptions, graph: ServedGraph | None) -> Provider:
    options = asked if isinstance(asked, _TYPES) else _options_of(asked)
    name = _name_of(options)
    if reason := status_of(name).sentence:
        raise ProviderError(f"the provider {name} was asked for but cannot be used: {reason}")
    if isinstance(options, CudaOptions | TensorrtOptions):
        _require_device(name, options.device_id)
    if isinstance(options, OtherProvider):
        options = dataclasses.replace(options, name=name)
    return options.provider(graph)


def _options_of(name: str) -> ProviderOptions:
    """What a name alone stands for."""
    if not isinstance(name, str) or not name:
        raise ProviderError(
            f"providers holds {name!r}; give names such as 'cuda', or CudaOptions, TensorrtOptions, CpuOptions, "
            "OtherProvider"
        )
    defaults: dict[str, ProviderOptions] = {CPU: CpuOptions(), CUDA: CudaOptions(), TENSORRT: TensorrtOptions()}
    full = full_name(name, system.SYSTEM.wheel.known)
    return defaults.get(full) or OtherProvider(full)


def _name_of(options: ProviderOptions) -> str:
    if isinstance(options, OtherProvider):
        return full_name(options.name, system.SYSTEM.wheel.known)
    return {CpuOptions: CPU, CudaOptions: CUDA, TensorrtOptions: TENSORRT}[type(options)]


def _require_device(name: str, device_id: int) -> None:
    try:
        devices = system.SYSTEM.cuda_driver().devices
    except DriverError as error:
        raise ProviderError(f"the provider {name} was asked for but cannot be used: {error}") from error
    if device_id >= len(devices):
        listed = ", ".join(f"{index}: {device.name}" for index, device in enumerate(devices))
        raise ProviderError(f"{name}: device_id is {device_id}, but this machine has only {listed}")


def _completed(chosen: dict[str, Provider]) -> tuple[Provider, ...]:
    """With CUDA after TensorRT, for what TensorRT has no operator for, and the CPU at the end."""
    first = next(iter(chosen.values()))
    rest = [provider for name, provider in chosen.items() if name not in (first.name, CPU)]
    if TENSORRT in chosen and CUDA not in chosen:
        device_id = int(chosen[TENSORRT].options["device_id"])
        rest.append(CudaOptions(device_id=device_id).provider())
    if first.name == CPU:
        return (first, *rest)
    return (first, *rest, chosen.get(CPU) or CpuOptions().provider())


# --- chosen by itself ---


def _on_cpu(graph: ServedGraph | None) -> Plan:
    reasons = {name: status_of(name).reason for name in accelerators()}
    unusable = {name: reason for name, reason in reasons.items() if reason is not None}
    usable = [name for name in reasons if name not in unusable]
    sentence = f"{_named(graph)} is served on {CPU}, which it was made for"
    if usable:
        sentence += f"; {usable[0]} can be used here, too: providers={short_name(usable[0])!r} asks for it"
    if unusable:
        sentence += f"; {_cannot(unusable)}"
    return Plan((CpuOptions().provider(),), sentence, as_expected=not unusable)


def _accelerated(graph: ServedGraph) -> Plan:
    if (provider := _tensorrt(graph)) is not None:
        why = "which it was made for" if graph.target == "tensorrt" else "whose engine for this machine is in the cache"
        return Plan(_completed({TENSORRT: provider}), f"{_named(graph)} is served on {TENSORRT}, {why}", True)
    target = SHORT_NAMES[graph.target]
    lacking = {target: _reason_against(target, graph)} if target != CUDA else {}
    for name in accelerators():
        if graph.is_decoder and name != CUDA:
            continue
        if (reason := status_of(name, start=True).reason) is not None:
            lacking[name] = reason
            continue
        chosen = _completed({name: _options_of(name).provider(graph)})
        if name == target:
            return Plan(chosen, f"{_named(graph)} is served on {name}, which it was made for", True)
        return Plan(chosen, _instead(graph, name, lacking or {target: _reason_against(target, graph)}), False)
    lacking.setdefault(target, _reason_against(target, graph))
    return Plan((CpuOptions().provider(),), _instead(graph, CPU, lacking), False)


def _tensorrt(graph: ServedGraph) -> Provider | None:
    """TensorRT where it may be used without being asked for."""
    options = TensorrtOptions()
    if graph.is_decoder or not status_of(TENSORRT).usable:
        return None
    if graph.target != "tensorrt" and not options.has_engine(graph):
        return None
    return options.provider(graph) if status_of(TENSORRT, start=True).usable else None


def _reason_against(name: str, graph: ServedGraph) -> str:
    """Why the provider a variant was made for does not serve it."""
    if name == TENSORRT and graph.is_decoder:
        return "it has no operator for attention over a key/value cache"
    return status_of(name, start=True).reason or "another one was preferred"


def _instead(graph: ServedGraph, name: str, lacking: Mapping[str, str]) -> str:
    made = f" was made for {graph.target} and" if graph.variant else ""
    return f"{_named(graph)}{made} is served on {name} instead; {_cannot(lacking)}"


def _cannot(reasons: Mapping[str, str]) -> str:
    """Why providers cannot be used; those with the same reason together."""
    names_of: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_of.setdefault(reason, []).append(name)
    return "; ".join(f"{' and '.join(same)} cannot be used: {reason}" for reason, same in names_of.items())


def _named(graph: ServedGraph | None) -> str:
    if graph is None:
        return "the graph"
    return f"variant {graph.variant!r}" if graph.variant else f"a variant for {graph.target}"
