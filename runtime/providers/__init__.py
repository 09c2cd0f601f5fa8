"""Execution providers: what this machine offers, which one serves, what it is told, and where each node ended up."""

from onnxpress.runtime.providers.graph import ServedGraph, graph_of
from onnxpress.runtime.providers.names import CPU, CUDA, SHORT_NAMES, TENSORRT
from onnxpress.runtime.providers.options import ON_CPU, CpuOptions, CudaOptions, OtherProvider, Provider
from onnxpress.runtime.providers.placement import Placement
from onnxpress.runtime.providers.policy import Asked, Plan, choose_providers, make_plan
from onnxpress.runtime.providers.status import ProviderStatus, status_of, unusable_because
from onnxpress.runtime.providers.tensorrt import BuildProgress, TensorrtOptions

__all__ = [
    "CPU",
    "CUDA",
    "ON_CPU",
    "SHORT_NAMES",
    "TENSORRT",
    "Asked",
    "BuildProgress",
    "CpuOptions",
    "CudaOptions",
    "OtherProvider",
    "Placement",
    "Plan",
    "Provider",
    "ProviderStatus",
    "ServedGraph",
    "TensorrtOptions",
    "choose_providers",
    "graph_of",
    "make_plan",
    "status_of",
    "unusable_because",
]
