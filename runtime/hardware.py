"""What the kernels of a processor or a GPU mean for quantization: which 8 bits, what products compute in, which
precisions are worth making. Decides from what machine.py found and gives the reason; measures nothing.

The facts are those of onnxruntime 1.32 (mlas/lib/platform.cpp, qnbitgemm.cpp; the page "Quantize ONNX models" of its
documentation):

- VNNI, AMX and the dot product of NEON sum 8-bit products in 32 bits. Signed weights may then use all 8 bits.
- AVX2 and AVX-512 without VNNI add two products of an unsigned activation and a signed weight in 16 bits
  (VPMADDUBSW), which saturates: 2 x 255 x 127 > 32,767. Weights within 7 bits are safe, and unsigned ones use another
  kernel.
- NEON without the dot product makes activations signed and adds two products in 16 bits, which hold them:
  2 x 128 x 127 < 32,767.
- Products with weights in blocks (MatMulNBits) can round activations to 8 bits where there is AVX2 or the dot product
  of NEON. Elsewhere they compute in float32 whatever they are asked for; with 8 bits, and on x86 with 4, all weights
  are unpacked at each step.

docs/hardware.md has what was measured of this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from onnxpress.runtime.machine import Machine

_DOT_PRODUCTS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "the i8mm instructions of NEON",
    "asimddp": "the dot product of NEON",
}
_LEAST_CAPABILITY = {"fp16": (5, 3), "bf16": (8, 0)}
"""CUDA compute capability from which a GPU computes in a type (CUDA C++ Programming Guide, "Arithmetic
Instructions")."""
HALF_TYPES: dict[str, Literal["float16", "bfloat16"]] = {"fp16": "float16", "bf16": "bfloat16"}
"""Precisions of half the size of float32, and the names of their types."""

VARIANTS = "variants by default"
ACCURACY_LEVEL = "accuracy level of products with weights in blocks"
INT4_BLOCKS = "weights of int4 in blocks"
"""Names of decisions that a person may take."""

EXACT_INT8 = "session.x64quantprecision"
"""onnxruntime's option to turn signed 8-bit weights that could saturate into unsigned ones while a graph is loaded."""


@dataclasses.dataclass(frozen=True)
class Int8Kind:
    """8 bits that a processor's kernels multiply without an error."""

    signed: bool
    reduce_range: bool
    """Use 7 of the 8 bits."""


FULL = Int8Kind(signed=True, reduce_range=False)
"""Right where products are summed in 32 bits, and on all but x86."""
SAFE = (Int8Kind(signed=True, reduce_range=True), Int8Kind(signed=False, reduce_range=False))
"""Right everywhere; the first one is faster where there is no 8-bit dot product."""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What an export is for, and where it runs."""

    machine: Machine
    target: str
    """cpu, cuda or tensorrt."""
    is_decoder: bool
    """Whether the weights alone are quantized."""
    capability: str | None
    """CUDA compute capability of the GPU that is the target; None: there is none to ask, and nothing is left out."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """Something that was decided by the hardware."""

    name: str
    choice: str
    reason: str
    """A sentence."""


def is_x86(machine: Machine) -> bool:
    """Whether it is an x86 processor, of 32 or 64 bits."""
    return machine.architecture.lower() in ("x86_64", "amd64", "i386", "i586", "i686", "x86")


def int8_dot_product(machine: Machine) -> str | None:
    """What sums 8-bit products in 32 bits, for a person; None where nothing does."""
    return next((name for flag, name in _DOT_PRODUCTS.items() if flag in machine.cpu_features), None)


def may_saturate(machine: Machine) -> bool:
    """Whether products of unsigned activations and signed 8-bit weights can be wrong, because sums of two saturate."""
    return is_x86(machine) and int8_dot_product(machine) is None


def int8_kinds(machine: Machine) -> tuple[Int8Kind, ...]:
    """The weights of 8 bits that are worth measuring on a processor, dynamic and static; mostly the fastest first."""
    return SAFE if may_saturate(machine) else (FULL,)


def signed_activations(machine: Machine) -> bool:
    """Whether activations of static 8-bit graphs are best signed. The kernels of x86 take unsigned ones."""
    return not is_x86(machine)


def session_config(machine: Machine) -> dict[str, str]:
    """What onnxruntime must be told on a processor to compute every graph right. onnxruntime 1.32 itself heeds it on
    each x86 processor with AVX2, also where VNNI makes it needless and slow."""
    return {EXACT_INT8: "1"} if may_saturate(machine) else {}


def accuracy_level(machine: Machine) -> Literal[1, 4]:
    """What products with weights in blocks shall compute in: 4 for activations of 8 bits, 1 for float32. A processor
    whose features could not be read is taken for one of today's."""
    return 4 if not machine.cpu_features or any(flag in machine.cpu_features for flag in ("avx2", "asimddp")) else 1


def int4_blocks(machine: Machine) -> tuple[int, bool]:
    """The largest blocks of 4-bit weights that are worth it, and whether they do without zero points."""
    return (64, True) if _lacks_avx512(machine) else (128, False)


def _lacks_avx512(machine: Machine) -> bool:
    return is_x86(machine) and bool(machine.cpu_features) and "avx512f" not in machine.cpu_features


def offered(hardware: Hardware, precisions: Sequence[str]) -> tuple[str, ...]:
    """The precisions to make by default.

    Args:
        hardware: of the export.
        precisions: those that onnxruntime has kernels for.
    """
    return tuple(name for name in precisions if _against(hardware, name) is None)


def decide(hardware: Hardware, precisions: Sequence[str], made: Sequence[str]) -> tuple[Decision, ...]:
    """Everything that the hardware decides of an export, with the reasons.

    Args:
        hardware: of the export.
        precisions: those that onnxruntime has kernels for.
        made: those of the variants that are made.
    """
    machine = hardware.machine
    variants = _variants(hardware, precisions)
    if hardware.target != "cpu":
        return (variants,)
    if hardware.is_decoder:
        return (variants, *_int4_blocks(machine, made), _accuracy_level(machine))
    static = (_activations(machine),) if {"int8-static", "mixed"}.intersection(made) else ()
    blocks = (*_int4_blocks(machine, made), _accuracy_level(machine)) if "int4" in made else ()
    return (variants, _weights(machine), *static, *blocks, *_exact(machine))


def _variants(hardware: Hardware, precisions: Sequence[str]) -> Decision:
    reasons = [reason for name in precisions if (reason := _against(hardware, name)) is not None]
    if reasons:
        reason = f"{'; '.join(dict.fromkeys(reasons))}."
    elif hardware.target == "cpu":
        reason = "onnxruntime has kernels for them here; for bfloat16 it has them on CUDA only."
    elif hardware.capability is None:
        reason = f"there is no NVIDIA GPU here to ask, so nothing that {hardware.target} may run was left out."
    else:
        reason = f"the GPU here has compute capability {hardware.capability}, which computes in all of them."
    return Decision(VARIANTS, ", ".join(offered(hardware, precisions)), reason)


def _against(hardware: Hardware, precision: str) -> str | None:
    """Why a precision is not made by default, or None."""
    if hardware.target != "cpu":
        least, capability = _LEAST_CAPABILITY.get(precision), hardware.capability
        if least is None or capability is None or tuple(map(int, capability.split("."))) >= least:
            return None
        needs = f"{HALF_TYPES[precision]} needs {'.'.join(map(str, least))}"
        return f"the GPU here has compute capability {capability}, and {needs}"
    unpacked = ("int8", "int4") if is_x86(hardware.machine) else ("int8",)
    if hardware.is_decoder and precision in unpacked and accuracy_level(hardware.machine) == 1:
        return f"without {_lacks_for_blocks(hardware.machine)}, {precision} weights are unpacked at each step"
    return None


def _lacks_for_blocks(machine: Machine) -> str:
    return "AVX2" if is_x86(machine) else "the dot product of NEON"


def _weights(machine: Machine) -> Decision:
    name = "weights of int8"
    if (found := int8_dot_product(machine)) is not None:
        reason = f"{found} sums 8-bit products in 32 bits, so signed weights may use all of their bits."
        return Decision(name, "signed, 8 bits", reason)
    if not may_saturate(machine):
        reason = "only kernels of x86 saturate; those of this processor add 8-bit products without an error."
        return Decision(name, "signed, 8 bits", reason)
    lacking = "neither VNNI nor AMX" if machine.cpu_features else "no instruction sets that could be read"
    reason = (
        f"this processor has {lacking}: sums of two 8-bit products saturate at 16 bits unless weights keep to 7 bits "
        "or are unsigned; both are made, the faster one that passes is taken."
    )
    return Decision(name, "signed, 7 bits, or unsigned, 8 bits", reason)


def _activations(machine: Machine) -> Decision:
    if signed_activations(machine):
        reason = "this processor's kernels multiply signed by signed 8-bit numbers."
        return Decision("activations of static int8", "signed", reason)
    reason = "the kernels of x86 multiply unsigned activations by signed weights."
    return Decision("activations of static int8", "unsigned", reason)


def _exact(machine: Machine) -> tuple[Decision, ...]:
    if not may_saturate(machine):
        return ()
    reason = "a graph made for another processor may have signed 8-bit weights, which would saturate on this one."
    return (Decision(EXACT_INT8, "1", reason),)


def _int4_blocks(machine: Machine, made: Sequence[str]) -> tuple[Decision, ...]:
    if "int4" not in made:
        return ()
    size, symmetric = int4_blocks(machine)
    choice = f"up to {size} weights, {'without' if symmetric else 'with'} zero points"
    if _lacks_avx512(machine):
        reason = (
            "the kernels of AVX2 take a tenth less time for blocks of 64 without zero points than for blocks of 128 "
            "with them, which lose as much."
        )
    else:
        reason = "the kernels take less time for larger blocks; zero points make up for what these lose."
    return (Decision(INT4_BLOCKS, choice, reason),)


def _accuracy_level(machine: Machine) -> Decision:
    if accuracy_level(machine) == 4:
        kernels = "AVX2" if is_x86(machine) else "NEON"
        reason = (
            f"onnxruntime has {kernels} kernels that round activations to 8 bits block by block: several times as fast "
            "as float32 for one token, and hardly less accurate."
        )
        return Decision(ACCURACY_LEVEL, "4", reason)
    lacking = _lacks_for_blocks(machine)
    reason = f"without {lacking} onnxruntime computes these products in float32, whatever it is asked for."
    return Decision(ACCURACY_LEVEL, "1", reason)
