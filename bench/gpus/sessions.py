"""Sessions of bench/gpu.py, made with onnxruntime's own options, so that what is measured is written here in full."""

from __future__ import annotations

from typing import Any

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
RECORD = "session.record_ep_graph_assignment_info"


def open_session(options: dict[str, Any]) -> Any:
    """A session of a bundle's variant.

    Args:
        options: `bundle`, `variant`; `device`: cuda or cpu; `graphs`: capture CUDA graphs (nothing on the CPU).
    """
    import onnxruntime

    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.session import import_onnxruntime

    import_onnxruntime()
    on_gpu = options["device"] == "cuda"
    if on_gpu:
        from bench.gpus.needs import preload

        preload()
    bundle = open_bundle(options["bundle"])
    variant = bundle.manifest.variant(options["variant"])
    settings = onnxruntime.SessionOptions()
    settings.enable_mem_pattern = False
    settings.log_severity_level = 3
    for key, value in {RECORD: "1", **variant.session.config}.items():
        settings.add_session_config_entry(key, value)
    cuda = (CUDA, {"enable_cuda_graph": "1" if options.get("graphs") else "0"})
    session = onnxruntime.InferenceSession(
        str(bundle.model_path(variant)),
        settings,
        providers=[cuda, CPU] if on_gpu else [CPU],
        disabled_optimizers=list(variant.session.disabled_optimizers),
        enable_fallback=0,
    )
    if session.get_providers()[0] != (CUDA if on_gpu else CPU):
        raise SystemExit(f"{CUDA} did not start; onnxruntime would have used {session.get_providers()}")
    return session


def placement(session: Any) -> dict[str, dict[str, int]]:
    """How many nodes of each operator each provider was given, as onnxruntime recorded."""
    found: dict[str, dict[str, int]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = found.setdefault(part.ep_name, {})
        for node in part.get_nodes():
            operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return found
