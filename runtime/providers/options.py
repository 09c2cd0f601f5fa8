"""What a provider is told, as typed options with the units in their names; each becomes onnxruntime's own strings.

Keys and values are those of onnxruntime's documentation of each provider, found in the libraries of onnxruntime-gpu
1.31 as well. An option that is None is not passed, so that onnxruntime's default holds. TensorRT's are in tensorrt.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from onnxpress.runtime.errors import InvalidInputError, require_types
from onnxpress.runtime.providers.names import AZURE, CPU, CUDA

if TYPE_CHECKING:
    from onnxpress.runtime.providers.graph import ServedGraph
    from onnxpress.runtime.providers.tensorrt import EngineBuild

_STRATEGIES = {"next_power_of_two": "kNextPowerOfTwo", "same_as_requested": "kSameAsRequested"}
_SEARCHES = {"exhaustive": "EXHAUSTIVE", "heuristic": "HEURISTIC", "default": "DEFAULT"}
_KEYS = {CPU: ("use_arena",), AZURE: ()}  # of providers that leave out, without a word, what they do not know


@dataclasses.dataclass(frozen=True)
class Provider:
    """A provider of a session, ready for onnxruntime."""

    name: str
    """onnxruntime's."""
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    most_rows: int | None = None
    """Rows of a batch that it takes at most; None: any number."""
    build: EngineBuild | None = dataclasses.field(default=None, compare=False)
    """What may take minutes when the session is made, and whom to tell."""


ON_CPU = (Provider(CPU),)
"""The CPU with onnxruntime's defaults."""


@dataclasses.dataclass(frozen=True)
class CpuOptions:
    """Options of the CPU provider."""

    use_arena: bool | None = None
    """Keep freed memory for the next run; None: as `Arena.enabled` of the settings says, which it overrules. The CPU
    provider takes this from the session (`enable_cpu_mem_arena`), which runtime/session.py sets by it."""

    def __post_init__(self) -> None:
        require_types(self, "CpuOptions: ")

    def provider(self, graph: ServedGraph | None = None) -> Provider:
        """The provider for a session."""
        return Provider(CPU, given({"use_arena": digit(self.use_arena)}))


@dataclasses.dataclass(frozen=True)
class CudaOptions:
    """Options of the CUDA provider (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html)."""

    device_id: int = 0
    """Which GPU, as CUDA_VISIBLE_DEVICES counts them."""
    memory_limit_bytes: int | None = None
    """The most that the arena may take on the device; weights are in it, workspaces of libraries are not."""
    arena_extend_strategy: Literal["next_power_of_two", "same_as_requested"] | None = None
    """By how much the arena grows: to the next power of two, or by what is asked for."""
    cuda_graphs: bool | None = None
    """Capture runs as CUDA graphs and replay them; inputs must then keep their shapes and addresses."""
    tf32: bool | None = None
    """Multiply float32 with 10 bits of mantissa, which Ampere and later do several times as fast; onnxruntime's default
    is yes."""
    convolution_search: Literal["exhaustive", "heuristic", "default"] | None = None
    """How cuDNN finds its algorithm for a convolution."""
    convolution_max_workspace: bool | None = None
    """Let that algorithm use as much memory as it likes."""
    copy_in_default_stream: bool | None = None
    """Copy to and from the device on the stream that computes."""
    unified_stream: bool | None = None
    """One stream for all threads."""
    strict_skip_layer_norm: bool | None = None
    """Sum skip connections in float32."""
    prefer_nhwc: bool | None = None
    """Lay out convolutions with channels last."""
    attention_kernels: int | None = None
    """Bits that allow kernels of attention (`sdpa_kernel`)."""

    def __post_init__(self) -> None:
        check_whole(self, "device_id", least=0, or_none=False)
        check_whole(self, "memory_limit_bytes", least=1)
        check_whole(self, "attention_kernels", least=0)
        require_types(self, "CudaOptions: ")

    def provider(self, graph: ServedGraph | None = None) -> Provider:
        """The provider for a session."""
        options = {
            "device_id": str(self.device_id),
            "gpu_mem_limit": text(self.memory_limit_bytes),
            "arena_extend_strategy": _STRATEGIES.get(self.arena_extend_strategy or ""),
            "enable_cuda_graph": digit(self.cuda_graphs),
            "use_tf32": digit(self.tf32),
            "cudnn_conv_algo_search": _SEARCHES.get(self.convolution_search or ""),
            "cudnn_conv_use_max_workspace": digit(self.convolution_max_workspace),
            "do_copy_in_default_stream": digit(self.copy_in_default_stream),
            "use_ep_level_unified_stream": digit(self.unified_stream),
            "enable_skip_layer_norm_strict_mode": digit(self.strict_skip_layer_norm),
            "prefer_nhwc": digit(self.prefer_nhwc),
            "sdpa_kernel": text(self.attention_kernels),
        }
        return Provider(CUDA, given(options))


@dataclasses.dataclass(frozen=True)
class OtherProvider:
    """A provider without typed options here; keys and values go to onnxruntime as they are."""

    name: str
    """A short name such as `openvino`, or onnxruntime's."""
    options: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidInputError(
                f"OtherProvider's name is {self.name!r}; give a provider's name, such as 'openvino'"
            )
        require_types(self, "OtherProvider: ")
        for key, value in self.options.items():
            if not isinstance(key, str):
                raise InvalidInputError(f"OtherProvider's options have the key {key!r}; keys are strings")
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise InvalidInputError(
                    f"OtherProvider's option {key!r} is {value!r}; give the text or number that the provider documents"
                )

    def provider(self, graph: ServedGraph | None = None) -> Provider:
        """The provider for a session; `name` must be onnxruntime's by now.

        Raises:
            InvalidInputError: an option that would have no effect.
        """
        options = {key: str(value) for key, value in self.options.items()}
        known = _KEYS.get(self.name, options)
        if unknown := [key for key in options if key not in known]:
            raise InvalidInputError(f"{self.name} has no option {unknown[0]!r}; it takes {', '.join(known) or 'none'}")
        if self.name == CPU and options.get("use_arena", "0") not in ("0", "1"):
            raise InvalidInputError(f"{CPU}: use_arena is {options['use_arena']!r}; give 0 or 1")
        return Provider(self.name, options)


# --- what option classes share ---


def given(options: Mapping[str, str | None]) -> dict[str, str]:
    """The options that were given a value."""
    return {key: value for key, value in options.items() if value is not None}


def text(value: int | None) -> str | None:
    """A number as onnxruntime reads it."""
    return None if value is None else str(value)


def digit(flag: bool | None) -> str | None:
    """A flag as the CUDA provider documents it."""
    return None if flag is None else str(int(flag))


def check_whole(options: Any, name: str, least: int, most: int | None = None, *, or_none: bool = True) -> None:
    """
    Raises:
        InvalidInputError: the field is no whole number in the range, nor None where that is allowed.
    """
    value = getattr(options, name)
    if value is None and or_none:
        return
    right = (
        isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)
    )
    if not right:
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidInputError(f"{type(options).__name__}: {name} is {value!r}; give a whole number {bounds}")
