"""What an export is asked to do: one frozen dataclass, checked when made. Its fields are the command's options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from onnxpress.quantize.embedding_tables import EmbeddingConfig
from onnxpress.quantize.migration import MigrationConfig
from onnxpress.quantize.ranges import METHODS
from onnxpress.quantize.weight_only import WeightOnlyConfig
from onnxpress.runtime import hardware
from onnxpress.runtime.data.options import DataOptions
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.hardware import Hardware
from onnxpress.runtime.machine import compute_capability, describe_machine
from onnxpress.runtime.settings import require_threads

Target = Literal["cpu", "cuda", "tensorrt"]
Objective = Literal["throughput", "latency", "size", "memory"]
Measure = Literal["quick", "full", "none"]
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-static", "int4")

# Dynamic int8 needs DynamicQuantizeLinear, for which onnxruntime has a CPU kernel only; for bfloat16 it has hardly any
# there.
PRECISIONS_OF_TARGET: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "fp16", "int8", "int8-static", "int4"),
    "cuda": ("fp32", "fp16", "bf16"),
    "tensorrt": ("fp32", "fp16"),
}


# 8 and 4 bits of a decoder are those of its weights alone.
_PRECISIONS_OF_DECODERS = ("fp32", "fp16", "bf16", "int8", "int4")
# Those of an encoder's int4, too.
_PRECISIONS_OF_ENCODERS = ("fp32", "fp16", "bf16", "int8", "int8-static", "int4")
_DEFAULTS_OF_ENCODERS = ("fp32", "fp16", "int8")

_CALIBRATED_OF_DECODERS = ("int4",)
_CALIBRATED_OF_ENCODERS = ("int8", "int8-static")

_WEIGHT_ONLY = ("block_size", "symmetric", "accuracy_level", "head_bits")
_OF_STATIC = ("calibration_method", "migration")
_OF_TABLES = ("embedding_bits",)
_OPTIONS_OF: dict[bool, dict[tuple[str, ...], tuple[str, ...]]] = {
    True: {_WEIGHT_ONLY: PRECISIONS, _OF_STATIC: (), _OF_TABLES: ()},
    False: {_WEIGHT_ONLY: ("int4",), _OF_STATIC: ("int8-static",), _OF_TABLES: ("int8", "int8-static")},
}
"""Options, and the variants that heed them; of decoders, and of encoders."""


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """How far a variant may be from PyTorch float32. A variant beyond them is not in the bundle."""

    fp32_max_abs: float = 1e-4
    """Largest |difference|, in units of max(1, largest |output|)."""
    fp16_cosine: float = 0.9995
    """Embeddings: lowest cosine similarity of any of them."""
    int8_cosine: float = 0.98
    fp16_rms: float = 0.03
    """Logits: largest root mean square error, in units of max(1, root mean square of the logits). The defaults are what
    the cosines above come to: vectors at an angle a differ by 2 sin(a / 2) of their length."""
    bf16_rms: float = 0.2
    int8_rms: float = 0.2
    int4_rms: float = 0.5
    """Wide, because a model with random weights is the hardest there is; trained ones are judged by perplexity."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InvalidInputError(f"the threshold {field.name} is {value!r}; give a number from 0 to 1")

    def for_precision(self, precision: str, task: str) -> tuple[Literal["max_abs", "cosine", "rms"], float]:
        """The kind of comparison for a precision and a task, and its bound."""
        if precision == "fp32":
            return "max_abs", self.fp32_max_abs
        if task == "feature-extraction":
            return "cosine", self.fp16_cosine if precision == "fp16" else self.int8_cosine
        if precision in ("mixed", "int8-static"):
            precision = "int4" if task == "text-generation" else "int8"
        bound: float = getattr(self, f"{precision}_rms")
        return "rms", bound


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Options of an export. Those left None are taken from the recipe, or inferred, or get the default named here."""

    task: str | None = None
    """What the model is for, such as feature-extraction; inferred from the model when None."""
    variants: tuple[str, ...] | None = None
    """Precisions to make; None: every one that the target, and a GPU of it that is here, runs and the task has."""
    target: Target = "cpu"
    """Where the bundle will run."""
    evaluation: tuple[Path, ...] | None = None
    """Files of scored examples, folders of texts or datasets (docs/evaluation.md); all their rows together are
    evaluated."""
    evaluation_columns: Mapping[str, str] | None = None
    """The task's name of a column: its name in the files. Those left out are found by their usual names."""
    evaluation_labels: Mapping[str, str] | None = None
    """A label as the files have it: the model's name of it."""
    evaluation_split: str | None = None
    """Of a dataset with several; None: validation, else test, else train."""
    evaluation_samples: int | None = None
    """Examples at most, drawn evenly from all; None: 20,000."""
    calibration: tuple[Path, ...] | Literal["synthetic"] | None = None
    """Texts that activations are calibrated and the 4-bit weights of a decoder are rounded on, or random tokens. None:
    for encoders the evaluation's texts, else random tokens; for decoders nothing, each weight is rounded by itself."""
    calibration_columns: Mapping[str, str] | None = None
    """As `evaluation_columns`, of `text` and `text_pair`."""
    calibration_samples: int | None = None
    """Texts at most, drawn evenly from all; None: 256, of decoders 2,048."""
    block_size: int | None = None
    """Of a decoder's int8 and int4, and an encoder's int4: as `WeightOnlyConfig` has it, like the next three."""
    symmetric: bool | None = None
    accuracy_level: int | None = None
    head_bits: int | None = None
    calibration_method: Literal["minmax", "percentile", "entropy"] | None = None
    """How int8-static finds the range of an activation; None: by minmax and by percentile, and the better is taken."""
    migration: float | Literal["off"] | None = None
    """How far int8-static moves scales from activations to weights, from 0 to 1; None: with and without, and the better
    is taken."""
    embedding_bits: Literal[4, 8] | None = None
    """Of the embedding tables in int8 and int8-static of an encoder; None: they stay in float32."""
    objective: Objective = "throughput"
    """What the default variant is chosen by, among those that hold the accuracy."""
    max_accuracy_drop: float | None = None
    """Points of the evaluation's metric (0-100) a variant may lose against PyTorch; None: 1, unless `min_metric` is
    given. Where it is given, precisions are searched that hold it (docs/search.md)."""
    min_metric: float | None = None
    """The least, of perplexity the most, that a variant's primary figure may be; a search is made for it as well."""
    search_budget: float = 300.0
    """Seconds that a search may take."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""
    allow_pickle: bool = False
    """Read weights stored as Python pickles where there are no safetensors, with torch's restricted unpickler."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    force: bool = False
    """Replace a bundle that is already at the output."""
    measure: Measure = "quick"
    """How long to measure latency, throughput and memory: quick, full, or none."""
    threads: int | None = None
    """CPU threads to measure with; None: the cores this process may use."""
    cache: bool = True
    """Keep and reuse traced and converted graphs in the user's cache folder."""
    thresholds: Thresholds | None = None
    """Verification bounds; None: those of the recipe, or the defaults."""

    def __post_init__(self) -> None:
        _one_of("target", self.target, get_args(Target))
        _one_of("objective", self.objective, get_args(Objective))
        _one_of("measure", self.measure, get_args(Measure))
        for name in self.variants or ():
            _one_of("variant", name, PRECISIONS)
            if name not in PRECISIONS_OF_TARGET[self.target]:
                able = ", ".join(PRECISIONS_OF_TARGET[self.target])
                others = ", ".join(target for target, names in PRECISIONS_OF_TARGET.items() if name in names)
                raise InvalidInputError(
                    f"variant {name!r} does not run on target {self.target!r}, which takes: {able}; it is for: {others}"
                )
        if self.variants is not None and not self.variants:
            raise InvalidInputError("variants is empty; give at least one of " + ", ".join(PRECISIONS))
        self.weight_only(4)
        if self.calibration_method is not None:
            _one_of("calibration method", self.calibration_method, METHODS)
        if self.migration is not None and self.migration != "off":
            MigrationConfig(self.migration)
        if self.embedding_bits is not None:
            EmbeddingConfig(bits=self.embedding_bits)
        if isinstance(self.calibration, str) and self.calibration != "synthetic":
            raise InvalidInputError(f"calibration is {self.calibration!r}; give a tuple of paths, or 'synthetic'")
        self.evaluation_data()
        self.calibration_data()
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 100:
            raise InvalidInputError(f"max_accuracy_drop is {self.max_accuracy_drop}; give points from 0 to 100")
        if self.min_metric is not None and not math.isfinite(self.min_metric):
            raise InvalidInputError(f"min_metric is {self.min_metric}; give a number")
        if not 0 <= self.search_budget < math.inf:
            raise InvalidInputError(f"search_budget is {self.search_budget}; give seconds, at least 0")
        require_threads(self.threads)

    def weight_only(self, bits: int) -> WeightOnlyConfig:
        """How the weights of a decoder become 8 or 4 bits.

        Raises:
            InvalidInputError: a value that is not allowed.
        """
        given = {name: value for name in _WEIGHT_ONLY if (value := getattr(self, name)) is not None}
        machine = describe_machine()
        given.setdefault("accuracy_level", hardware.accuracy_level(machine))
        if bits == 4 and self.target == "cpu":
            given["largest_block"], symmetric = hardware.int4_blocks(machine)
            # Who gives texts to round on wants accuracy: zero points are worth it then.
            given.setdefault("symmetric", symmetric and self.calibration is None)
        return WeightOnlyConfig(bits=bits, **given)

    def evaluation_data(self) -> DataOptions:
        """How evaluation data is read.

        Raises:
            InvalidInputError: a value that is not allowed.
        """
        given = (self.evaluation_columns or {}, self.evaluation_labels or {})
        return DataOptions(*given, self.evaluation_split, self.evaluation_samples)

    def calibration_data(self) -> DataOptions:
        """How calibration data is read.

        Raises:
            InvalidInputError: a value that is not allowed.
        """
        return DataOptions(columns=self.calibration_columns or {}, samples=self.calibration_samples)

    def check_task(self, task: str) -> None:
        """Refuse what is not there for a task.

        Raises:
            InvalidInputError: a variant or an option; the sentence names it.
        """
        variants = self.effective_variants(task)
        for names, precisions in _OPTIONS_OF[task == "text-generation"].items():
            given = [name for name in names if getattr(self, name) is not None]
            if given and not set(precisions) & set(variants):
                of = " or ".join(precisions) or "encoders"
                raise InvalidInputError(
                    f"{given[0]} is for {of}; the variants of this model, for {task}, are {', '.join(variants)}: leave "
                    "it out"
                )
        users = _CALIBRATED_OF_DECODERS if task == "text-generation" else _CALIBRATED_OF_ENCODERS
        if self.calibration and not set(users) & set(variants):
            raise InvalidInputError(
                f"calibration is for {' and '.join(users)}, not for the variants asked for: {', '.join(variants)}"
            )

    def effective_variants(self, task: str) -> tuple[str, ...]:
        """The precisions to make for a task, in the order of `PRECISIONS`, each once.

        Raises:
            InvalidInputError: one that was asked for does not exist for the task.
        """
        able = _PRECISIONS_OF_DECODERS if task == "text-generation" else _PRECISIONS_OF_ENCODERS
        for name in self.variants or ():
            if name not in able:
                raise InvalidInputError(f"variant {name!r} is not made for {task}; it takes: {', '.join(able)}")
        asked = self.variants or hardware.offered(self.hardware_for(task), self.default_precisions(task))
        return tuple(name for name in PRECISIONS if name in asked and name in able)

    def default_precisions(self, task: str) -> tuple[str, ...]:
        """The precisions that are made for a task unless others are asked for, before the hardware is looked at."""
        usual = _PRECISIONS_OF_DECODERS if task == "text-generation" else _DEFAULTS_OF_ENCODERS
        names = tuple(name for name in PRECISIONS_OF_TARGET[self.target] if name in usual)
        if task == "text-generation" and self.target == "cpu":
            return tuple(name for name in names if name != "fp16")  # no faster than fp32 there; int8 is smaller
        return names

    def hardware_for(self, task: str) -> Hardware:
        """What decides what was not asked for: this machine, and its GPU where that is the target."""
        capability = None if self.target == "cpu" else compute_capability()
        return Hardware(describe_machine(), self.target, task == "text-generation", capability)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInputError(f"unknown {what} {value!r}; give one of: {', '.join(allowed)}")


ProgressHook = Callable[[str, str, float | None], None]
"""Called as hook(step, detail, fraction): `fraction` 0 when a step starts, 1 when it ends, None while it runs."""
