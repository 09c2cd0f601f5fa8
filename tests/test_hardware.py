"""runtime/hardware.py: what each kind of processor and GPU decides of an export, and the reasons that are given."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.exporter import config as config_module
from onnxpress.exporter.config import ExportConfig
from onnxpress.runtime import hardware, machine, session
from onnxpress.runtime.hardware import (
    EXACT_INT8,
    FULL,
    SAFE,
    Hardware,
    accuracy_level,
    decide,
    int8_kinds,
    may_saturate,
    offered,
)
from onnxpress.runtime.machine import Machine, compute_capability, describe_machine
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.settings import ServingSettings


def fake(*features: str, architecture: str = "x86_64") -> Machine:
    return Machine("any", architecture, 2, features, 2**30, "Linux 6", "3.11", None)


AVX2 = fake("avx", "avx2", "fma")
AVX512 = fake("avx2", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16")
VNNI = fake("avx2", "avx512f", "avx512bw", "avx512_vnni")
AVX_VNNI = fake("avx2", "avx_vnni")
AMX = fake("avx2", "avx512f", "avx512_vnni", "amx_int8")
OLD = fake("avx")
UNREAD = fake()
NEON = fake("asimd", "bf16", architecture="aarch64")
NEON_DOT = fake("asimd", "asimddp", architecture="aarch64")
APPLE = fake("asimd", "asimddp", "i8mm", architecture="arm64")


def reasons(here: Hardware, precisions: Sequence[str] = ("fp32", "int8"), made: Sequence[str] = ()) -> dict[str, str]:
    return {entry.name: f"{entry.choice}: {entry.reason}" for entry in decide(here, precisions, made)}


def on_cpu(machine: Machine, is_decoder: bool = False) -> Hardware:
    return Hardware(machine, "cpu", is_decoder, None)


def on_gpu(capability: str | None, target: str = "cuda") -> Hardware:
    return Hardware(AVX2, target, False, capability)


# Encoders


@pytest.mark.parametrize(
    ("machine", "named"),
    [
        (VNNI, "AVX-512 VNNI"),
        (AVX_VNNI, "AVX-VNNI"),
        (AMX, "AMX"),
        (NEON_DOT, "the dot product of NEON"),
        (APPLE, "the i8mm instructions of NEON"),
    ],
)
def test_weights_use_all_bits_where_products_are_summed_in_32(machine: Machine, named: str) -> None:
    assert int8_kinds(machine) == (FULL,)
    assert hardware.int8_dot_product(machine) == named
    assert reasons(on_cpu(machine))["weights of int8"] == (
        f"signed, 8 bits: {named} sums 8-bit products in 32 bits, so signed weights may use all of their bits."
    )
    assert hardware.session_config(machine) == {}


def test_without_the_dot_product_the_weights_of_neon_are_signed_and_full_as_well() -> None:
    assert int8_kinds(NEON) == (FULL,)
    assert hardware.session_config(NEON) == {}
    assert "only kernels of x86 saturate" in reasons(on_cpu(NEON))["weights of int8"]


@pytest.mark.parametrize("machine", [AVX2, AVX512, OLD, UNREAD])
def test_weights_of_x86_without_vnni_keep_to_7_bits_or_are_unsigned(machine: Machine) -> None:
    assert int8_kinds(machine) == SAFE
    found = reasons(on_cpu(machine))
    assert found["weights of int8"].startswith("signed, 7 bits, or unsigned, 8 bits: this processor has n")
    assert ("neither VNNI nor AMX" in found["weights of int8"]) is bool(machine.cpu_features)
    assert found[EXACT_INT8].startswith("1: a graph made for another processor")
    assert hardware.session_config(machine) == {EXACT_INT8: "1"}


def test_blocks_of_encoders_are_told_where_there_are_some() -> None:
    name = "accuracy level of products with weights in blocks"
    assert name not in reasons(on_cpu(VNNI))
    assert reasons(on_cpu(VNNI), made=("fp32", "int4"))[name].startswith("4: ")


def test_activations_of_static_int8_are_told_where_there_are_some() -> None:
    assert "activations of static int8" not in reasons(on_cpu(VNNI))
    assert reasons(on_cpu(VNNI), made=("int8-static",))["activations of static int8"].startswith("unsigned: ")
    assert reasons(on_cpu(APPLE), made=("int8-static",))["activations of static int8"].startswith("signed: ")


# Decoders


@pytest.mark.parametrize(
    ("machine", "level", "told"),
    [
        (AVX2, 4, "AVX2 kernels"),
        (VNNI, 4, "AVX2 kernels"),
        (NEON_DOT, 4, "NEON kernels"),
        (UNREAD, 4, "kernels"),
        (OLD, 1, "without AVX2"),
        (NEON, 1, "without the dot product of NEON"),
    ],
)
def test_products_of_decoders_round_activations_where_there_are_kernels(
    machine: Machine, level: int, told: str
) -> None:
    assert accuracy_level(machine) == level
    found = reasons(on_cpu(machine, is_decoder=True))
    assert "weights of int8" not in found
    assert found["accuracy level of products with weights in blocks"].startswith(f"{level}: ")
    assert told in found["accuracy level of products with weights in blocks"]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (AVX2, ("fp32", "int8", "int4")),
        (UNREAD, ("fp32", "int8", "int4")),
        (NEON, ("fp32", "int4")),
        (OLD, ("fp32",)),
    ],
)
def test_decoders_get_no_weights_that_would_be_unpacked_at_each_step(
    machine: Machine, expected: tuple[str, ...]
) -> None:
    here = on_cpu(machine, is_decoder=True)
    assert offered(here, ("fp32", "int8", "int4")) == expected
    told = reasons(here, ("fp32", "int8", "int4"))["variants by default"]
    assert told.startswith(", ".join(expected) + ": ")
    assert ("are unpacked at each step" in told) is (len(expected) < 3)


# GPUs


@pytest.mark.parametrize(
    ("capability", "expected", "told"),
    [
        (
            "5.2",
            ("fp32",),
            "capability 5.2, and float16 needs 5.3; the GPU here has compute capability 5.2, and bfloat16",
        ),
        ("7.5", ("fp32", "fp16"), "the GPU here has compute capability 7.5, and bfloat16 needs 8.0."),
        ("8.0", ("fp32", "fp16", "bf16"), "the GPU here has compute capability 8.0, which computes in all of them."),
        ("8.9", ("fp32", "fp16", "bf16"), "capability 8.9, which"),
        ("12.0", ("fp32", "fp16", "bf16"), "capability 12.0, which"),
        (
            None,
            ("fp32", "fp16", "bf16"),
            "there is no NVIDIA GPU here to ask, so nothing that cuda may run was left out.",
        ),
    ],
)
def test_a_gpu_gets_the_types_that_it_computes_in(capability: str | None, expected: tuple[str, ...], told: str) -> None:
    here = on_gpu(capability)
    assert offered(here, ("fp32", "fp16", "bf16")) == expected
    assert list(reasons(here, ("fp32", "fp16", "bf16"))) == ["variants by default"]
    assert told in reasons(here, ("fp32", "fp16", "bf16"))["variants by default"]


def test_every_reason_is_a_sentence() -> None:
    hardware = [
        on_cpu(machine, is_decoder) for machine in (AVX2, VNNI, NEON, OLD, APPLE) for is_decoder in (True, False)
    ]
    for here in (*hardware, on_gpu("7.5"), on_gpu(None)):
        for entry in decide(here, ("fp32", "fp16", "int8", "int4"), ("int8-static",)):
            assert re.fullmatch(r"[a-zA-Z].*[a-z0-9]\.", entry.reason), entry
            assert entry.choice


# The exporter goes by it


def test_an_export_makes_by_default_what_the_gpu_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "compute_capability", lambda: "7.5")
    assert ExportConfig(target="cuda").effective_variants("text-generation") == ("fp32", "fp16")
    assert ExportConfig(target="cuda", variants=("bf16",)).effective_variants("text-generation") == ("bf16",)
    monkeypatch.setattr(config_module, "compute_capability", lambda: None)
    assert ExportConfig(target="cuda").effective_variants("text-generation") == ("fp32", "fp16", "bf16")


def test_the_cpu_does_not_ask_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "compute_capability", lambda: pytest.fail("asked for a GPU"))
    assert ExportConfig().effective_variants("feature-extraction") == ("fp32", "fp16", "int8")


@pytest.mark.parametrize(
    ("machine", "size", "symmetric"), [(AVX2, 64, True), (VNNI, 128, False), (NEON, 128, False), (UNREAD, 128, False)]
)
def test_weights_of_4_bits_are_made_in_blocks_that_suit_the_kernels(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, size: int, symmetric: bool
) -> None:
    monkeypatch.setattr(config_module, "describe_machine", lambda: machine)
    made = ExportConfig().weight_only(4)
    assert (made.block_for(4096), made.symmetric_for(4)) == (size, symmetric)
    assert made.block_for(96) == 32  # larger ones would fill up too much
    told = reasons(on_cpu(machine, is_decoder=True), ("int4",), ["int4"])["weights of int4 in blocks"]
    assert told.startswith(f"up to {size} weights, {'without' if symmetric else 'with'} zero points: ")
    asked = ExportConfig(block_size=16, symmetric=not symmetric).weight_only(4)
    assert (asked.block_for(4096), asked.symmetric_for(4)) == (16, not symmetric)
    assert not ExportConfig(calibration="synthetic").weight_only(4).symmetric_for(4)
    assert ExportConfig(target="cuda").weight_only(4).block_for(4096) == 128
    assert ExportConfig().weight_only(8).block_for(4096) == 128


@pytest.mark.parametrize(("machine", "level"), [(NEON, 1), (AVX2, 4)])
def test_decoders_are_made_with_the_level_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, level: int
) -> None:
    monkeypatch.setattr(config_module, "describe_machine", lambda: machine)
    assert ExportConfig().weight_only(4).accuracy_level == level
    assert ExportConfig(accuracy_level=0).weight_only(4).accuracy_level == 0


# What onnxruntime is told


def int8_product(folder: Path) -> Path:
    """A product of unsigned activations and signed weights of 8 bits."""
    weight = np.full((32, 8), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder / "product.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize(("machine", "told"), [(AVX2, "1"), (VNNI, None), (NEON, None)])
def test_onnxruntime_is_told_to_compute_exactly_where_it_would_saturate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: Machine, told: str | None
) -> None:
    monkeypatch.setattr(session, "describe_machine", lambda: machine)
    made = session.make_session(int8_product(tmp_path), SessionSettings(), settings=ServingSettings(1))
    (sums,) = made.run(None, {"x": np.full((2, 32), 255, np.uint8)})
    # Where the processor under test is not told and does saturate, the sums are not those.
    assert (sums == 32 * 255 * 127).all() or (told is None and may_saturate(describe_machine()))
    options = made.get_session_options()
    if told is None:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry(EXACT_INT8)
    else:
        assert options.get_session_config_entry(EXACT_INT8) == told


def test_a_variant_may_say_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "describe_machine", lambda: AVX2)
    made = session.make_session(
        int8_product(tmp_path), SessionSettings(config={EXACT_INT8: "0"}), settings=ServingSettings(1)
    )
    assert made.get_session_options().get_session_config_entry(EXACT_INT8) == "0"


# Reading it


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 8.9", "8.9"),
        ("echo 12.0; echo 9.0", "9.0"),
        ("echo '[N/A]'", None),
        ("echo no devices were found; exit 6", None),
        ("", None),
    ],
)
def test_the_compute_capability_is_what_the_driver_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str | None
) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    assert compute_capability.__wrapped__() == expected


def test_a_driver_that_does_not_answer_offers_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr(machine, "_NVIDIA_SMI_SECONDS", 0.2)
    assert compute_capability.__wrapped__() is None


def test_no_driver_offers_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail("ran something"))
    assert compute_capability.__wrapped__() is None


def test_macos_says_its_features_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "machdep.cpu.brand_string": b"Apple M1\0",
        "hw.optional.AdvSIMD": b"\1\0\0\0",
        "hw.optional.arm.FEAT_DotProd": b"\1\0\0\0",
        "hw.optional.arm.FEAT_I8MM": b"\0\0\0\0",
    }
    monkeypatch.setattr(machine, "_cpu_info", dict)
    monkeypatch.setattr(machine, "_sysctl", lambda name: told.get(name, b""))
    here = machine.describe_machine.__wrapped__()
    assert here.cpu == "Apple M1"
    assert here.cpu_features == ("asimd", "asimddp")
