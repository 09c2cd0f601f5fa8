"""Options of TensorRT, the engines it keeps, and the notice that building one takes minutes.

An engine is made for one graph, one kind of GPU, one version of TensorRT and of onnxruntime, and certain options; it
lies in a folder of the user's cache that is named by all of these. Timings of kernels, which make the next build
quicker, are shared by all graphs. docs/providers.md shows the folders.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from onnxpress.runtime.errors import ProviderError, require_types
from onnxpress.runtime.paths import user_cache
from onnxpress.runtime.providers import system
from onnxpress.runtime.providers.graph import ServedGraph
from onnxpress.runtime.providers.names import TENSORRT
from onnxpress.runtime.providers.options import Provider, check_whole, given, text
from onnxpress.runtime.providers.system import CudaDevice, DriverError

_LOG = logging.getLogger("onnxpress")
_SECONDS_BETWEEN_NOTICES = 10.0
_CONTEXT_MODEL = "context.onnx"
_ENGINES = "engines"


@dataclasses.dataclass(frozen=True)
class BuildProgress:
    """How far the building of an engine is. TensorRT does not tell how much is left."""

    variant: str
    folder: Path
    """Where the engine will be."""
    seconds: float
    """Since it began."""
    done: bool


@dataclasses.dataclass(frozen=True)
class TensorrtOptions:
    """Options of the TensorRT provider (onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html)."""

    device_id: int = 0
    """Which GPU, as CUDA_VISIBLE_DEVICES counts them."""
    fp16: bool | None = None
    """Allow float16; None: where the variant is of that precision."""
    bf16: bool | None = None
    """Allow bfloat16; None: where the variant is of that precision."""
    int8: bool | None = None
    """Allow 8 bits as the graph's Q/DQ nodes say; None: where the variant has them."""
    max_batch: int = 32
    """Rows of the largest batch the engine takes; larger ones are cut."""
    typical_batch: int | None = None
    """Rows that it is tuned for; None for half of the most."""
    typical_tokens: int | None = None
    """Tokens of a text that it is tuned for; None for a quarter of the bundle's most."""
    workspace_bytes: int | None = None
    """Memory that kernels may use beside weights and activations."""
    optimization_level: int | None = None
    """How hard the builder looks for kernels, 0 to 5; TensorRT's default is 3."""
    layer_norm_fp32: bool | None = None
    """Compute LayerNormalization in float32 in a float16 engine."""
    cuda_graphs: bool | None = None
    """Capture runs as CUDA graphs and replay them."""
    engine_cache: bool = True
    """Keep engines and timings in the user's cache."""
    ep_context: bool = False
    """Also write a model that holds, or names, the engine: `context.onnx`, beside the engine."""
    embed_engine: bool = False
    """Whether that model holds the engine itself."""
    on_build: Callable[[BuildProgress], None] | None = dataclasses.field(default=None, compare=False)
    """Called when a build begins, every ten seconds while it lasts, from another thread, and when it ends."""

    def __post_init__(self) -> None:
        check_whole(self, "device_id", least=0, or_none=False)
        check_whole(self, "max_batch", least=1, or_none=False)
        check_whole(self, "typical_batch", least=1, most=self.max_batch)
        check_whole(self, "typical_tokens", least=1)
        check_whole(self, "workspace_bytes", least=1)
        check_whole(self, "optimization_level", least=0, most=5)
        require_types(self, "TensorrtOptions: ")

    def provider(self, graph: ServedGraph | None = None) -> Provider:
        """The provider for a session.

        Args:
            graph: what is served; None: nothing is known of it, so there are no shape profiles and no caches.

        Raises:
            ProviderError: a decoder, whose attention TensorRT has no operator for.
        """
        if graph is None:
            return Provider(TENSORRT, given(self._building(None)))
        if graph.is_decoder:
            raise ProviderError(
                f"{TENSORRT} does not run text generation: it has no operator for attention over a key/value cache; "
                "use 'cuda'"
            )
        building = given({**self._building(graph), **self._profiles(graph)})
        if not self.engine_cache:
            return Provider(TENSORRT, building, most_rows=self.max_batch)
        device, folder = self._folder(graph, building)
        options = {
            **building,
            "trt_engine_cache_enable": "True",
            # A model that names its engine must name it relative to itself (a rule of onnxruntime's).
            "trt_engine_cache_path": _ENGINES if self.ep_context else str(folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(user_cache() / "tensorrt" / "timing" / device),
        }
        if self.ep_context:
            options |= {
                "trt_dump_ep_context_model": "True",
                "trt_ep_context_file_path": str(folder / _CONTEXT_MODEL),
                "trt_ep_context_embed_mode": str(int(self.embed_engine)),
            }
        build = EngineBuild(graph.variant, folder, self.on_build)
        return Provider(TENSORRT, options, most_rows=self.max_batch, build=build)

    def has_engine(self, graph: ServedGraph) -> bool:
        """Whether the engine for a graph, this machine and these options is in the cache."""
        return not graph.is_decoder and (build := self.provider(graph).build) is not None and build.is_cached

    def _building(self, graph: ServedGraph | None) -> dict[str, str | None]:
        """What changes the engine, but for shapes."""
        precision = graph.precision if graph else ""
        return {
            "device_id": str(self.device_id),
            "trt_fp16_enable": _word(precision == "fp16" if self.fp16 is None else self.fp16),
            "trt_bf16_enable": _word(precision == "bf16" if self.bf16 is None else self.bf16),
            "trt_int8_enable": _word(precision == "int8-static" if self.int8 is None else self.int8),
            "trt_layer_norm_fp32_fallback": _word(self.layer_norm_fp32),
            "trt_max_workspace_size": text(self.workspace_bytes),
            "trt_builder_optimization_level": text(self.optimization_level),
            "trt_cuda_graph_enable": _word(self.cuda_graphs),
        }

    def _profiles(self, graph: ServedGraph) -> dict[str, str]:
        """The shapes an engine takes and is tuned for: `name:dims,name:dims`, from the bundle's own limits."""
        most = (self.max_batch, graph.max_tokens)
        typical = (
            self.typical_batch or max(1, self.max_batch // 2),
            min(self.typical_tokens or max(1, graph.max_tokens // 4), graph.max_tokens),
        )
        return {
            f"trt_profile_{kind}_shapes": ",".join(
                f"{tensor.name}:{'x'.join(_size(axis, *sizes) for axis in tensor.shape)}" for tensor in graph.inputs
            )
            for kind, sizes in (("min", (1, 1)), ("opt", typical), ("max", most))
        }

    def _folder(self, graph: ServedGraph, building: dict[str, str]) -> tuple[str, Path]:
        """A short name of GPU and versions, and the engine's folder. The GPU's number does not change an engine."""
        device = _device_key(self.device_id)
        told = {key: value for key, value in building.items() if key != "device_id"}
        made = hashlib.sha256(json.dumps([told, self.ep_context, self.embed_engine]).encode()).hexdigest()[:16]
        return device, user_cache() / "tensorrt" / graph.sha256[:32] / device / made


class EngineBuild:
    """Entered while a session is made: says that an engine is built, and goes on saying so, unless one is there."""

    def __init__(
        self,
        variant: str,
        folder: Path,
        notify: Callable[[BuildProgress], None] | None = None,
        every_seconds: float = _SECONDS_BETWEEN_NOTICES,
    ) -> None:
        self.variant = variant
        self.folder = folder
        self._notify = notify
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._start = 0.0

    @property
    def is_cached(self) -> bool:
        """Whether the folder has an engine, or a model that holds one."""
        return any(self.folder.rglob("*.engine")) or (self.folder / _CONTEXT_MODEL).is_file()

    def __enter__(self) -> EngineBuild:
        """
        Raises:
            ProviderError: the engine's folder cannot be made.
        """
        if self.is_cached:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProviderError(
                f"the TensorRT engine of {self.variant!r} cannot be kept in {self.folder}: {error.strerror}; set "
                "ONNXPRESS_CACHE to a folder that can be written, or give TensorrtOptions(engine_cache=False)"
            ) from error
        self._start = time.monotonic()
        _LOG.warning(
            f"building the TensorRT engine of {self.variant!r}, which takes minutes and is done once on this machine; "
            f"it is kept in {self.folder}"
        )
        self._tell(done=False)
        self._thread = threading.Thread(target=self._go_on, name="onnxpress-engine-build", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        if error is None:
            _LOG.info(f"built the TensorRT engine of {self.variant!r} in {self._seconds():.0f} s")
            self._tell(done=True)

    def _go_on(self) -> None:
        while not self._ended.wait(self._every_seconds):
            _LOG.info(f"still building the TensorRT engine of {self.variant!r}, {self._seconds():.0f} s so far")
            self._tell(done=False)

    def _tell(self, done: bool) -> None:
        if self._notify is not None:
            self._notify(BuildProgress(self.variant, self.folder, self._seconds(), done))

    def _seconds(self) -> float:
        return time.monotonic() - self._start


def _device_key(device_id: int) -> str:
    """GPU, TensorRT and onnxruntime, such as `nvidia-l4-sm89-trt10.16.1-ort1.31.1`.

    Raises:
        ProviderError: there is no such GPU.
    """
    try:
        devices = system.SYSTEM.cuda_driver().devices
    except DriverError as error:
        raise ProviderError(f"{TENSORRT} cannot be used: {error}") from error
    if device_id >= len(devices):
        raise ProviderError(f"{TENSORRT}: device_id is {device_id}, this machine has {len(devices)} (counted from 0)")
    device: CudaDevice = devices[device_id]
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    capability = device.capability.replace(".", "")
    versions = f"trt{system.SYSTEM.tensorrt_version() or '-unknown'}-ort{system.SYSTEM.wheel.version}"
    return f"{name}-sm{capability}-{versions}"


def _word(flag: bool | None) -> str | None:
    """A flag as onnxruntime's Python module wants it for TensorRT; it refuses "1"."""
    return None if flag is None else str(flag)


def _size(axis: str, batch: int, tokens: int) -> str:
    """An axis of the manifest as a number: `batch`, another name (`sequence`, positions of tokens), or itself."""
    if axis.isdigit():
        return axis
    return str(batch if axis == "batch" else tokens)
