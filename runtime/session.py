"""One place that makes onnxruntime sessions, so that verifying, measuring and serving run the very same thing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.runtime import hardware
from onnxpress.runtime.arenas import apply_arena, shrinking_session
from onnxpress.runtime.errors import InferenceError, InvalidBundleError, ProviderError, first_line
from onnxpress.runtime.library_pages import dropped_library_pages
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.processes import keep_in_forks
from onnxpress.runtime.providers.names import CPU
from onnxpress.runtime.providers.options import ON_CPU, Provider
from onnxpress.runtime.providers.placement import RECORD_KEY
from onnxpress.runtime.settings import Arena, ServingSettings

if TYPE_CHECKING:
    import onnxruntime

_ERRORS_ONLY = 3  # onnxruntime's severity: warnings about placement and casts are not for users
_SILENT = 4

PACKED_WEIGHTS = "weights.bin"
"""Name of the file that `make_session(write_packed=...)` writes weights to, beside the graph."""

_WRITE_PACKED = {
    "session.optimized_model_external_initializers_file_name": PACKED_WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}


def import_onnxruntime() -> None:
    """Import onnxruntime with its telemetry off, also where it was imported before onnxpress set the variable."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()


def make_session(
    model: Path | str,
    session_settings: SessionSettings,
    *,
    settings: ServingSettings,
    providers: Sequence[Provider] = ON_CPU,
    write_packed: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file.

    Args:
        model: path of the file.
        session_settings: the graph options the variant was measured with.
        settings: how it uses the machine. Its threads share one operator; 1 makes no thread pool, so several runs may
            go side by side.
        providers: most wanted first. Building an engine of TensorRT is announced on the log.
        write_packed: an ONNX file to write: the graph as onnxruntime optimizes it here. Weights lie beside it in
            `PACKED_WEIGHTS`, those that kernels rearrange also in that form, so that sessions map them.

    Raises:
        InvalidBundleError: onnxruntime cannot load the file, or write the other one.
        InvalidInputError: the arena is another one than the process shares, or off by the options of the CPU provider
            and shared or configured by the settings.
        ProviderError: the first provider did not start, or what it builds cannot be kept.
    """
    import_onnxruntime()
    import onnxruntime

    settings = dataclasses.replace(settings, arena=_arena(settings.arena, providers))
    options = _session_options(session_settings, settings, write_packed)
    # A provider that fails to start is reported below, in a sentence, rather than by onnxruntime's own log.
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        make: Callable[..., onnxruntime.InferenceSession] = onnxruntime.InferenceSession
        if settings.arena.shrink != "never":
            make = functools.partial(shrinking_session(), arena=settings.arena)
        with contextlib.ExitStack() as builds, dropped_library_pages(settings.library_pages == "drop"):
            for provider in providers:
                builds.enter_context(provider.build or contextlib.nullcontext())
            session = make(
                str(model),
                options,
                providers=[(provider.name, provider.options) for provider in providers],
                disabled_optimizers=list(session_settings.disabled_optimizers),
                enable_fallback=0,
            )
    except ProviderError:  # where an engine is to be built
        raise
    # onnxruntime's exception classes have no common base but Exception.
    except Exception as error:
        raise InvalidBundleError(f"onnxruntime cannot load {model}: {first_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    keep_in_forks(session)
    if session.get_providers()[0] != providers[0].name:
        raise ProviderError(
            f"{providers[0].name} did not start, onnxruntime would have used {session.get_providers()[0]}; its "
            "libraries are probably missing or of another version, or it has no device: see onnxpress doctor"
        )
    return session


def _arena(arena: Arena, providers: Sequence[Provider]) -> Arena:
    """The arena of the settings, on or off as the options of the CPU provider say where they say it."""
    for provider in providers:
        if provider.name == CPU and "use_arena" in provider.options:
            return dataclasses.replace(arena, enabled=provider.options["use_arena"] == "1")
    return arena


def _session_options(
    session_settings: SessionSettings, settings: ServingSettings, write_packed: Path | None
) -> onnxruntime.SessionOptions:
    """What onnxruntime is told of a session, but for its providers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.thread_count
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT  # what fails is raised, and the message is in our sentence
    apply_arena(options, settings.arena)
    config = {RECORD_KEY: "1", **hardware.session_config(describe_machine()), **session_settings.config}
    if not settings.prepacking:
        config["session.disable_prepacking"] = "1"
    if not settings.spinning:
        config["session.intra_op.allow_spinning"] = "0"
    if settings.share_weights:
        # Kernels still rearrange each weight, to look it up by its hash; an arena would keep the room that takes.
        config["session.use_device_allocator_for_initializers"] = "1"
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if write_packed is not None:
        options.optimized_model_filepath = str(write_packed)
        for key, value in _WRITE_PACKED.items():
            options.add_session_config_entry(key, value)
    return options


def inference_error(error: Exception) -> InferenceError:
    """What onnxruntime raised while it ran a graph, as a sentence. Its exception classes have no common base."""
    return InferenceError(
        f"onnxruntime failed while it ran the model: {first_line(error)}; where memory is short, ask for less at once, "
        "else export the bundle again"
    )


def runner(
    session: onnxruntime.InferenceSession, outputs: Sequence[str]
) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """A function from graph inputs to the named outputs."""

    def run(feeds: dict[str, Any]) -> Mapping[str, Any]:
        try:
            return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))
        except Exception as error:
            raise inference_error(error) from error

    return run
