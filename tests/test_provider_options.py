"""runtime/providers: typed options become exactly onnxruntime's strings, and the building of engines is announced."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.encoder import SessionGraph
from onnxpress.runtime.errors import InvalidInputError, ProviderError
from onnxpress.runtime.manifest import SessionSettings, Tensor
from onnxpress.runtime.providers import (
    CPU,
    BuildProgress,
    CpuOptions,
    CudaOptions,
    OtherProvider,
    Provider,
    ServedGraph,
    TensorrtOptions,
)
from onnxpress.runtime.providers.tensorrt import EngineBuild
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import Arena, ServingSettings
from tests.fake_machine import L4, FakeMachine, install, without_gpu

INPUTS = (
    Tensor("input_ids", "tensor(int64)", ("batch", "sequence")),
    Tensor("pixels", "tensor(float)", ("batch", "3", "spans")),
)


def graph(precision: str = "fp16", **changes: Any) -> ServedGraph:
    facts = {"is_decoder": False, "sha256": "ab" * 32, "inputs": INPUTS, "max_tokens": 256, **changes}
    return ServedGraph("v", "cuda", precision, **facts)


# --- CUDA, CPU, others ---


def test_cuda_options_become_the_documented_strings() -> None:
    assert CudaOptions().provider() == Provider("CUDAExecutionProvider", {"device_id": "0"})
    everything = CudaOptions(
        device_id=1,
        memory_limit_bytes=2 * 2**30,
        arena_extend_strategy="same_as_requested",
        cuda_graphs=True,
        tf32=False,
        convolution_search="heuristic",
        convolution_max_workspace=True,
        copy_in_default_stream=True,
        unified_stream=False,
        strict_skip_layer_norm=True,
        prefer_nhwc=False,
        attention_kernels=2,
    )
    assert everything.provider().options == {
        "device_id": "1",
        "gpu_mem_limit": "2147483648",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_ep_level_unified_stream": "0",
        "enable_skip_layer_norm_strict_mode": "1",
        "prefer_nhwc": "0",
        "sdpa_kernel": "2",
    }
    strategy = CudaOptions(arena_extend_strategy="next_power_of_two").provider().options["arena_extend_strategy"]
    assert strategy == "kNextPowerOfTwo"
    searches = [CudaOptions(convolution_search=each).provider() for each in ("exhaustive", "default")]  # type: ignore[arg-type]
    assert [each.options["cudnn_conv_algo_search"] for each in searches] == ["EXHAUSTIVE", "DEFAULT"]


def test_cpu_options_become_the_arena_of_the_session(tmp_path: Path) -> None:
    assert CpuOptions().provider().options == {}
    assert CpuOptions(use_arena=True).provider().options == {"use_arena": "1"}
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny_graph())
    for use_arena, enabled, expected in (
        (None, True, True),
        (None, False, False),
        (True, True, True),
        (True, False, True),
        (False, True, False),
    ):
        provider = CpuOptions(use_arena=use_arena).provider()
        settings = ServingSettings(threads=1, arena=Arena(enabled))
        session = make_session(model, SessionSettings(), settings=settings, providers=[provider])
        assert session.get_session_options().enable_cpu_mem_arena is expected


def test_an_arena_that_cpu_options_switch_off_does_not_shrink_and_is_not_shared(tmp_path: Path) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny_graph())
    off = [CpuOptions(use_arena=False).provider()]
    shrinking = ServingSettings(threads=1, arena=Arena(shrink="after_run"))
    session = make_session(model, SessionSettings(), settings=shrinking, providers=off)
    session.run(None, {node.name: np.zeros(node.shape, np.float32) for node in session.get_inputs()})
    with pytest.raises(InvalidInputError, match="the arena is off, so it can be neither shared"):
        make_session(model, SessionSettings(), settings=ServingSettings(1, arena=Arena(shared=True)), providers=off)


def test_options_of_another_provider_pass_as_they_are() -> None:
    options = OtherProvider("QNNExecutionProvider", {"backend_type": "htp", "soc_model": 60, "scale": 0.5})
    expected = {"backend_type": "htp", "soc_model": "60", "scale": "0.5"}
    assert options.provider() == Provider("QNNExecutionProvider", expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CudaOptions(device_id=-1), "CudaOptions: device_id is -1; give a whole number of at least 0"),
        (lambda: CudaOptions(device_id=None), "CudaOptions: device_id is None; give a whole number of at least 0"),
        (lambda: CudaOptions(memory_limit_bytes=1.5), "memory_limit_bytes is 1.5; give a whole number of at least 1"),
        (lambda: CudaOptions(memory_limit_bytes=True), "memory_limit_bytes is True; give a whole number"),
        (lambda: CudaOptions(tf32=1), "CudaOptions: tf32 is 1; give True, False or None"),
        (
            lambda: CudaOptions(arena_extend_strategy="kSameAsRequested"),
            "is 'kSameAsRequested'; give 'next_power_of_two', 'same_as_requested' or None",
        ),
        (lambda: CudaOptions(arena_extend_strategy=["a"]), "arena_extend_strategy is ['a']; give 'next_power_of_two'"),
        (lambda: CudaOptions(convolution_search="fast"), "give 'exhaustive', 'heuristic', 'default' or None"),
        (lambda: CpuOptions(use_arena="no"), "CpuOptions: use_arena is 'no'; give True, False or None"),
        (lambda: TensorrtOptions(optimization_level=6), "optimization_level is 6; give a whole number from 0 to 5"),
        (lambda: TensorrtOptions(max_batch=8, typical_batch=9), "typical_batch is 9; give a whole number from 1 to 8"),
        (lambda: TensorrtOptions(fp16="yes"), "TensorrtOptions: fp16 is 'yes'; give True, False or None"),
        (lambda: TensorrtOptions(max_batch=None), "max_batch is None; give a whole number of at least 1"),
        (lambda: TensorrtOptions(engine_cache=None), "TensorrtOptions: engine_cache is None; give True or False"),
        (lambda: TensorrtOptions(on_build=3), "TensorrtOptions: on_build is 3; give a function or None"),
        (lambda: OtherProvider("openvino", None), "OtherProvider: options is None; give a dict"),
        (lambda: OtherProvider("openvino", ["a"]), "OtherProvider: options is ['a']; give a dict"),
        (lambda: OtherProvider(CPU, {"arena": 0}).provider(), "has no option 'arena'; it takes use_arena"),
        (lambda: OtherProvider(CPU, {"use_arena": "no"}).provider(), "use_arena is 'no'; give 0 or 1"),
        (lambda: OtherProvider("AzureExecutionProvider", {"a": 1}).provider(), "has no option 'a'; it takes none"),
        (lambda: OtherProvider(""), "OtherProvider's name is ''; give a provider's name"),
        (lambda: OtherProvider("qnn", {"on": True}), "option 'on' is True; give the text or number that the provider"),
        (lambda: OtherProvider("qnn", {1: "a"}), "options have the key 1; keys are strings"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert sentence in str(caught.value)


# --- TensorRT ---


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path))
    install(monkeypatch, FakeMachine(devices=(L4, L4)))
    return tmp_path


DEVICE = "nvidia-l4-sm89-trt10.16.1-ort1.31.1"


def test_tensorrt_options_become_the_documented_strings(cache: Path) -> None:
    options = TensorrtOptions(
        device_id=1,
        int8=True,
        max_batch=8,
        typical_tokens=32,
        workspace_bytes=2**30,
        optimization_level=5,
        layer_norm_fp32=True,
        cuda_graphs=False,
    )
    provider = options.provider(graph())
    folder = Path(provider.options["trt_engine_cache_path"])
    assert folder.parent == cache / "tensorrt" / ("ab" * 16) / DEVICE
    assert provider.name == "TensorrtExecutionProvider"
    assert provider.most_rows == 8
    assert provider.options == {
        "device_id": "1",
        "trt_fp16_enable": "True",
        "trt_bf16_enable": "False",
        "trt_int8_enable": "True",
        "trt_layer_norm_fp32_fallback": "True",
        "trt_max_workspace_size": "1073741824",
        "trt_builder_optimization_level": "5",
        "trt_cuda_graph_enable": "False",
        "trt_profile_min_shapes": "input_ids:1x1,pixels:1x3x1",
        "trt_profile_opt_shapes": "input_ids:4x32,pixels:4x3x32",
        "trt_profile_max_shapes": "input_ids:8x256,pixels:8x3x256",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache / "tensorrt" / "timing" / DEVICE),
    }


def test_a_model_with_the_engine_names_it_relative_to_itself(cache: Path) -> None:
    plain = TensorrtOptions().provider(graph()).options
    found = TensorrtOptions(ep_context=True).provider(graph()).options
    added = {key: value for key, value in found.items() if plain.get(key) != value}
    folder = Path(found["trt_ep_context_file_path"]).parent
    assert folder.parent == Path(plain["trt_engine_cache_path"]).parent
    assert added == {
        "trt_engine_cache_path": "engines",
        "trt_dump_ep_context_model": "True",
        "trt_ep_context_file_path": str(folder / "context.onnx"),
        "trt_ep_context_embed_mode": "0",
    }
    embedded = TensorrtOptions(ep_context=True, embed_engine=True).provider(graph()).options
    assert embedded["trt_ep_context_embed_mode"] == "1"


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [("fp32", ""), ("fp16", "fp16"), ("bf16", "bf16"), ("int8-static", "int8"), ("int8", ""), ("int4", "")],
)
def test_the_precision_of_the_variant_is_allowed(cache: Path, precision: str, allowed: str) -> None:
    options = TensorrtOptions().provider(graph(precision)).options
    flags = {name: options[f"trt_{name}_enable"] for name in ("fp16", "bf16", "int8")}
    assert flags == {name: str(name == allowed) for name in flags}
    assert TensorrtOptions(fp16=False).provider(graph("fp16")).options["trt_fp16_enable"] == "False"


def test_an_engine_is_kept_for_one_graph_device_version_and_set_of_options(cache: Path) -> None:
    def folder(options: TensorrtOptions | None = None, **changes: Any) -> str:
        return (options or TensorrtOptions()).provider(graph(**changes)).options["trt_engine_cache_path"]

    usual = folder()
    assert folder(TensorrtOptions(device_id=1)) == usual, "the second of two equal GPUs takes the same engine"
    assert folder(TensorrtOptions(on_build=print)) == usual
    others = [
        folder(sha256="cd" * 32),
        folder(max_tokens=128),
        folder(TensorrtOptions(fp16=False)),
        folder(TensorrtOptions(max_batch=64)),
        folder(TensorrtOptions(optimization_level=1)),
    ]
    assert len({usual, *others}) == len(others) + 1


def test_without_a_cache_or_a_graph_nothing_is_kept(cache: Path) -> None:
    provider = TensorrtOptions(engine_cache=False).provider(graph())
    assert not [key for key in provider.options if "cache" in key]
    assert provider.build is None
    of_nothing = TensorrtOptions(fp16=True).provider()
    assert of_nothing.options == {
        "device_id": "0",
        "trt_fp16_enable": "True",
        "trt_bf16_enable": "False",
        "trt_int8_enable": "False",
    }


def test_without_a_driver_there_is_no_engine_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, without_gpu())
    with pytest.raises(ProviderError, match=r"the NVIDIA driver .* is not installed"):
        TensorrtOptions().provider(graph())


# --- the notice that an engine is built ---


def test_a_build_is_announced_goes_on_being_announced_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[BuildProgress] = []
    again = threading.Event()

    def notify(progress: BuildProgress) -> None:
        told.append(progress)
        if len(told) > 2:
            again.set()

    build = EngineBuild("fp16", tmp_path / "engines", notify, every_seconds=0.01)
    with caplog.at_level(logging.INFO, "onnxpress"), build:
        assert again.wait(10)
    assert not told[0].done
    assert told[-1].done
    assert [progress.done for progress in told].count(True) == 1
    assert told[-1].seconds >= told[1].seconds >= told[0].seconds
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("building the TensorRT engine of 'fp16', which takes minutes")
    assert caplog.records[0].levelname == "WARNING"
    assert messages[1].startswith("still building")
    assert messages[-1].startswith("built the TensorRT engine of 'fp16' in")


def test_nothing_is_said_where_the_engine_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "TensorrtExecutionProvider_1_0_sm89.engine").write_bytes(b"")
    told: list[BuildProgress] = []
    with caplog.at_level(logging.INFO, "onnxpress"), EngineBuild("fp16", tmp_path, told.append):
        pass
    assert not told
    assert not caplog.records


def test_a_session_is_made_inside_the_notice(tmp_path: Path) -> None:
    told: list[BuildProgress] = []
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny_graph())
    provider = Provider(CPU, build=EngineBuild("fp16", tmp_path / "engines", told.append))
    make_session(model, SessionSettings(), settings=ServingSettings(threads=1), providers=[provider])
    assert [progress.done for progress in told] == [False, True]


def test_a_failed_build_is_not_called_done(tmp_path: Path) -> None:
    told: list[BuildProgress] = []
    model = tmp_path / "broken.onnx"
    model.write_bytes(b"no graph")
    provider = Provider(CPU, build=EngineBuild("fp16", tmp_path / "engines", told.append))
    with pytest.raises(Exception, match="cannot load"):
        make_session(model, SessionSettings(), settings=ServingSettings(threads=1), providers=[provider])
    assert [progress.done for progress in told] == [False]


def test_an_engine_that_cannot_be_kept_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_graph())
    (tmp_path / "file").touch()
    provider = Provider(CPU, build=EngineBuild("fp16", tmp_path / "file" / "engines"))
    with pytest.raises(ProviderError, match=r"^the TensorRT engine of 'fp16' cannot be kept in .*: Not a dir"):
        make_session(tmp_path / "model.onnx", SessionSettings(), settings=ServingSettings(1), providers=[provider])


def tiny_graph() -> bytes:
    from onnxpress.runtime.providers.system import _TINY_GRAPH

    onnxruntime.InferenceSession(_TINY_GRAPH, providers=[CPU])
    return _TINY_GRAPH


def test_batches_are_cut_to_the_rows_that_a_provider_takes(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    variant, settings = bundle.manifest.variant("fp32"), ServingSettings(threads=1)
    cut = SessionGraph(bundle, variant, [Provider(CPU, most_rows=3)], settings)
    plan = cut.plan([5, 4, 4, 3, 3, 3, 2, 40])
    assert max(map(len, plan)) == 3
    assert sorted(index for batch in plan for index in batch) == list(range(8))
    whole = SessionGraph(bundle, variant, [Provider(CPU)], settings)
    assert len(whole.plan([5] * 7)) == 1
