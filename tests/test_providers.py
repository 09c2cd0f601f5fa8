"""runtime/providers: what was asked for is had, or an error says why not; what was not asked for is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import onnxpress
from onnxpress.runtime.errors import InvalidInputError, OnnxpressError, ProviderError
from onnxpress.runtime.providers import (
    CpuOptions,
    CudaOptions,
    OtherProvider,
    Provider,
    ServedGraph,
    TensorrtOptions,
    choose_providers,
    status_of,
    unusable_because,
)
from onnxpress.runtime.providers.names import ACCELERATORS
from tests.fake_machine import CPU, CUDA, L4, NO_DRIVER, OPENVINO, TENSORRT, FakeMachine, install, without_gpu

without_cuda = pytest.mark.skipif(unusable_because(CUDA) is None, reason="this machine has CUDA")


def graph(target: str = "cuda", *, precision: str = "fp16", is_decoder: bool = False) -> ServedGraph:
    return ServedGraph("fp16", target, precision, is_decoder, "0" * 64, (), 64)


def names(providers: Sequence[Provider]) -> list[str]:
    return [provider.name for provider in providers]


# --- asked for ---


@pytest.mark.parametrize(
    "asked", [None, "cpu", "CPU", CPU, ["cpu"], ("cpu",), CpuOptions(), [CpuOptions()], OtherProvider("cpu")]
)
def test_the_cpu_goes_by_several_names(asked: str | None) -> None:
    assert choose_providers(asked) == [Provider(CPU)]


@pytest.mark.parametrize("asked", ["gpu", "Cpu ", ["cpu", "warp"], "cudaexecutionprovider", OtherProvider("npu")])
def test_an_unknown_provider_is_named(asked: str | list[str]) -> None:
    with pytest.raises(ProviderError, match=r"was asked for but cannot be used: .* knows no provider .* has .*CPUEx"):
        choose_providers(asked)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ([], "empty list; give at least one"),
        ("", "providers holds ''; give names such as 'cuda'"),
        ([3], "providers holds 3; give names"),
        (5, "providers holds 5; give names"),
        ([("cuda", {})], r"providers holds \('cuda', {}\); give names"),
        (["cpu", None], "providers holds None"),
        (["cpu", CpuOptions()], "CPUExecutionProvider is named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked: list[str], sentence: str) -> None:
    with pytest.raises(ProviderError, match=sentence):
        choose_providers(asked)


def test_a_provider_error_is_one_of_ours() -> None:
    assert issubclass(ProviderError, OnnxpressError)


@without_cuda
@pytest.mark.parametrize(
    ("asked", "name"),
    [("cuda", CUDA), ("tensorrt", TENSORRT), (CUDA, CUDA), (["cuda", "cpu"], CUDA), (CudaOptions(), CUDA)],
)
def test_what_this_machine_lacks_is_refused_with_the_reason(asked: str | list[str], name: str) -> None:
    with pytest.raises(ProviderError, match=rf"{name} was asked for but cannot be used: \w+"):
        choose_providers(asked)


def test_with_a_device_what_was_asked_for_comes_first_and_the_cpu_last(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine())
    assert names(choose_providers("cuda")) == [CUDA, CPU]
    assert names(choose_providers("cpu", graph("cuda"))) == [CPU]
    assert names(choose_providers(["tensorrt", "cpu"])) == [TENSORRT, CUDA, CPU]
    assert names(choose_providers(["cuda", "tensorrt"])) == [CUDA, TENSORRT, CPU]
    limited = CudaOptions(memory_limit_bytes=2**30)
    assert choose_providers([limited, "cpu"]) == [limited.provider(), Provider(CPU)]
    assert choose_providers([limited, CpuOptions(use_arena=False)])[1].options == {"use_arena": "0"}


def test_tensorrt_is_followed_by_cuda_on_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine(devices=(L4, L4)))
    chosen = choose_providers(TensorrtOptions(device_id=1))
    assert [(each.name, each.options.get("device_id")) for each in chosen] == [
        (TENSORRT, "1"),
        (CUDA, "1"),
        (CPU, None),
    ]


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine())
    with pytest.raises(ProviderError, match=r"device_id is 1, but this machine has only 0: NVIDIA L4$"):
        choose_providers(CudaOptions(device_id=1))


def test_short_names_of_other_providers_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine((OPENVINO, CPU), package="onnxruntime-openvino", cuda=None))
    asked = [OtherProvider("openvino", {"device_type": "CPU", "num_of_threads": 4}), "cpu"]
    expected = [Provider(OPENVINO, {"device_type": "CPU", "num_of_threads": "4"}), Provider(CPU)]
    assert choose_providers(asked) == expected
    assert choose_providers("OpenVINO") == [Provider(OPENVINO), Provider(CPU)]


# --- why not ---


def test_the_gpu_wheel_without_a_gpu_names_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = install(monkeypatch, without_gpu())
    with pytest.raises(ProviderError) as caught:
        choose_providers("cuda")
    assert str(caught.value) == (
        f"the provider {CUDA} was asked for but cannot be used: {NO_DRIVER}, and libcublasLt.so.13, libcublas.so.13, "
        "libcurand.so.10 and libcudart.so.13 are missing; this machine seems to have no GPU of NVIDIA, and pip install "
        "'onnxruntime-gpu[cuda,cudnn]' brings the libraries"
    )
    with pytest.raises(
        ProviderError, match=r"libnvinfer\.so\.10, .* 'tensorrt-cu13-libs==10\.\*' brings the libraries"
    ):
        choose_providers("tensorrt")
    assert not machine.preloaded, "nothing of gigabytes is loaded where there is no driver"


@pytest.mark.parametrize(
    ("machine", "name", "sentence"),
    [
        (
            FakeMachine(no_driver="the NVIDIA driver lists no device", card=True),
            CUDA,
            r"^the NVIDIA driver lists no device; a GPU of NVIDIA is in this machine: install .* \(--gpus all\)$",
        ),
        (
            FakeMachine(driver_cuda=(12, 8)),
            CUDA,
            "^the NVIDIA driver runs CUDA up to 12.8, this onnxruntime was built for CUDA 13.0; install a newer",
        ),
        (
            FakeMachine(missing=["libcurand.so.10"]),
            CUDA,
            r"^libcurand\.so\.10 is missing; pip install 'onnxruntime-gpu\[cuda,cudnn\]' brings it$",
        ),
        (
            FakeMachine(missing=["libcudnn.so.9"]),
            TENSORRT,
            r"^libcudnn\.so\.9 is missing; pip install nvidia-cudnn-cu13 brings it$",
        ),
        (
            FakeMachine(missing=["libnvinfer.so.10", "libnvonnxparser.so.10"]),
            TENSORRT,
            r"^libnvinfer.so.10 and libnvonnxparser.so.10 are missing; pip install 'tensorrt-cu13-libs==10\.\*' brings",
        ),
        (
            FakeMachine((CPU,), package="onnxruntime"),
            CUDA,
            r"^the installed onnxruntime 1.31.1 was built without it; .* pip install 'onnxpress\[gpu\]', brings one",
        ),
        (
            FakeMachine((CPU,), package="onnxruntime"),
            OPENVINO,
            r"pip install 'onnxruntime-openvino>=1\.28', brings one that has it$",
        ),
        (FakeMachine((CPU,)), "QNNExecutionProvider", r"^the installed onnxruntime-gpu 1.31.1 was built without it$"),
    ],
)
def test_reasons_name_the_library_or_device_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, name: str, sentence: str
) -> None:
    install(monkeypatch, machine)
    assert re.search(sentence, unusable_because(name) or ""), unusable_because(name)


def test_cuda_runs_without_cudnn_and_says_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine(missing=["libcudnn.so.9"]))
    status = status_of(CUDA)
    assert status.usable
    assert status.devices == ("NVIDIA L4, compute capability 8.9",)
    assert "convolutions" in status.notes[0]
    assert "nvidia-cudnn-cu13" in status.notes[0]
    assert status_of(TENSORRT).reason == "libcudnn.so.9 is missing"


# --- chosen by itself ---


@pytest.mark.parametrize(
    ("machine", "target", "expected", "level", "said"),
    [
        (FakeMachine((CPU,)), "cpu", [CPU], "INFO", "'fp16' is served on CPUExecutionProvider, which it was made for"),
        (FakeMachine(), "cuda", [CUDA, CPU], "INFO", "is served on CUDAExecutionProvider, which it was made for"),
        (FakeMachine(), "tensorrt", [TENSORRT, CUDA, CPU], "INFO", "TensorrtExecutionProvider, which it was made for"),
        (FakeMachine(), "cpu", [CPU], "INFO", "CUDAExecutionProvider can be used here, too: providers='cuda'"),
        (without_gpu(), "cpu", [CPU], "WARNING", f"CUDAExecutionProvider cannot be used: {NO_DRIVER}"),
        (without_gpu(), "cuda", [CPU], "WARNING", "was made for cuda and is served on CPUExecutionProvider instead"),
        (
            FakeMachine((OPENVINO, CPU), cuda=None),
            "cuda",
            [OPENVINO, CPU],
            "WARNING",
            "served on OpenVINOExecutionProvider instead; CUDAExecutionProvider cannot be used: the installed",
        ),
        (
            FakeMachine((CUDA, OPENVINO, CPU), starts={CUDA: "out of memory"}),
            "cuda",
            [OPENVINO, CPU],
            "WARNING",
            "CUDAExecutionProvider cannot be used: it does not start: out of memory",
        ),
        (
            FakeMachine(missing=["libnvinfer.so.10"]),
            "tensorrt",
            [CUDA, CPU],
            "WARNING",
            "served on CUDAExecutionProvider instead; TensorrtExecutionProvider cannot be used: libnvinfer.so.10",
        ),
    ],
)
def test_what_is_chosen_by_itself_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: FakeMachine,
    target: str,
    expected: list[str],
    level: str,
    said: str,
) -> None:
    install(monkeypatch, machine)
    with caplog.at_level(logging.INFO, "onnxpress"):
        assert names(choose_providers(None, graph(target))) == expected
        choose_providers(None, graph(target))
    (record,) = caplog.records
    assert record.name == "onnxpress"
    assert record.levelname == level
    assert said in record.getMessage()
    assert "\n" not in record.getMessage()


def test_an_explicit_choice_is_not_commented(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch, FakeMachine())
    with caplog.at_level(logging.DEBUG, "onnxpress"):
        choose_providers("cuda", graph("cpu"))
    assert not caplog.records


def test_a_variant_for_the_cpu_starts_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = install(monkeypatch, FakeMachine())
    choose_providers(None, graph("cpu"))
    assert machine.asked_to_start == []
    choose_providers(None, graph("cuda"))
    assert machine.asked_to_start == [CUDA]


def test_tensorrt_is_taken_where_its_engine_is_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path))
    install(monkeypatch, FakeMachine())
    assert names(choose_providers(None, graph("cuda"))) == [CUDA, CPU]
    build = TensorrtOptions().provider(graph("cuda")).build
    assert build is not None
    build.folder.mkdir(parents=True)
    (build.folder / "some_sm89.engine").write_bytes(b"")
    with caplog.at_level(logging.INFO, "onnxpress"):
        assert names(choose_providers(None, graph("cuda"))) == [TENSORRT, CUDA, CPU]
    assert "whose engine for this machine is in the cache" in caplog.text
    assert names(choose_providers(None, graph("cpu"))) == [CPU]
    monkeypatch.setattr(FakeMachine, "tensorrt_version", lambda self: "10.17.0")
    assert names(choose_providers(None, graph("cuda"))) == [CUDA, CPU], "an engine of another TensorRT is none"


def test_a_decoder_is_not_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine())
    decoder = graph("tensorrt", is_decoder=True)
    with pytest.raises(ProviderError, match=r"does not run text generation: it has no operator .* use 'cuda'"):
        choose_providers("tensorrt", decoder)
    assert names(choose_providers(None, decoder)) == [CUDA, CPU]


def test_a_decoder_is_offered_to_cuda_and_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeMachine((CUDA, OPENVINO, CPU), starts={CUDA: "out of memory"}))
    assert names(choose_providers(None, graph("cuda", is_decoder=True))) == [CPU]


def test_providers_that_need_a_choice_are_never_taken_by_themselves() -> None:
    assert not {TENSORRT, "AzureExecutionProvider", "XnnpackExecutionProvider", "DnnlExecutionProvider"} & {
        *ACCELERATORS
    }


# --- load ---


def test_load_takes_names_and_options(tiny_bundle: Path) -> None:
    expected = onnxpress.load(tiny_bundle, variant="fp32").embed(["a text"])
    model = onnxpress.load(tiny_bundle, variant="fp32", providers=[CpuOptions(use_arena=False)])
    assert model.providers == (CPU,)
    assert model.embed(["a text"]).tolist() == expected.tolist()


@without_cuda
def test_load_refuses_options_of_a_provider_that_is_not_here(tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=f"{CUDA} was asked for but cannot be used"):
        onnxpress.load(tiny_bundle, providers=[CudaOptions(memory_limit_bytes=2**30), "cpu"])


def test_load_says_once_what_the_gpu_wheel_does_without_a_gpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, without_gpu())
    with caplog.at_level(logging.WARNING, "onnxpress"):
        for _ in range(2):
            assert onnxpress.load(tiny_bundle, variant="fp32").providers == (CPU,)
    (message,) = [record.getMessage() for record in caplog.records if "served on" in record.getMessage()]
    assert message.startswith("variant 'fp32' is served on CPUExecutionProvider, which it was made for; CUDAExecution")
    assert message.endswith("; onnxpress doctor says what to do")


def test_options_that_cannot_be_meant_are_bad_input() -> None:
    with pytest.raises(InvalidInputError, match="memory_limit_bytes is 0; give a whole number of at least 1"):
        CudaOptions(memory_limit_bytes=0)
