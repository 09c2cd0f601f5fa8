"""One place that makes onnxruntime sessions, so that verifying, measuring and serving run the very same thing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.runtime import hardware
from onnxpress.runtime.errors import InvalidBundleError, ProviderError, first_line
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.providers.options import ON_CPU, Provider
from onnxpress.runtime.providers.placement import RECORD_KEY

if TYPE_CHECKING:
    import onnxruntime

_ERRORS_ONLY = 3  # onnxruntime's severity: warnings about placement and casts are not for users
_SILENT = 4


def import_onnxruntime() -> None:
    """Import onnxruntime with its telemetry off, also where it was imported before onnxpress set the variable."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()


def make_session(
    model: Path | str,
    settings: SessionSettings,
    *,
    threads: int,
    providers: Sequence[Provider] = ON_CPU,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file.

    Args:
        model: path of the file.
        settings: the graph options the variant was measured with.
        threads: threads that share one operator; 1 makes no thread pool, so several runs may go side by side.
        providers: most wanted first. Building an engine of TensorRT is announced on the log.

    Raises:
        InvalidBundleError: onnxruntime cannot load the file.
        ProviderError: the first provider did not start.
    """
    import_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Texts differ in length from run to run; the memory plan onnxruntime would keep for each shape never pays.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = all(provider.options.get("use_arena") != "0" for provider in providers)
    for key, value in {RECORD_KEY: "1", **hardware.session_config(describe_machine()), **settings.config}.items():
        options.add_session_config_entry(key, value)
    # A provider that fails to start is reported below, in a sentence, rather than by onnxruntime's own log.
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        with contextlib.ExitStack() as builds:
            for provider in providers:
                builds.enter_context(provider.build or contextlib.nullcontext())
            session = onnxruntime.InferenceSession(
                str(model),
                options,
                providers=[(provider.name, provider.options) for provider in providers],
                disabled_optimizers=list(settings.disabled_optimizers),
                enable_fallback=0,
            )
    # onnxruntime's exception classes have no common base but Exception.
    except Exception as error:
        raise InvalidBundleError(f"onnxruntime cannot load {model}: {first_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    if session.get_providers()[0] != providers[0].name:
        raise ProviderError(
            f"{providers[0].name} did not start, onnxruntime would have used {session.get_providers()[0]}; its "
            "libraries are probably missing or of another version, or it has no device: see onnxpress doctor"
        )
    return session


def runner(
    session: onnxruntime.InferenceSession, outputs: Sequence[str]
) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """A function from graph inputs to the named outputs."""

    def run(feeds: dict[str, Any]) -> Mapping[str, Any]:
        return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))

    return run
