"""An ONNX file that was given, run as it is: which of its inputs and outputs a task uses, and how.

What the file leaves to do - picking masked positions, pooling - is done here on its outputs, by numpy and by the head
in PyTorch; `reference.py` writes the graph in which the same is done by nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.labels import label_settings
from onnxpress.exporter.onnx_file.outputs import Array, plan_outputs, task_outputs
from onnxpress.exporter.sentence import (
    SentenceConfig,
    add_lower_case,
    default_sentence_config,
    effective_max_length,
    read_sentence_config,
)
from onnxpress.exporter.source import Source, transformer_folder
from onnxpress.exporter.texts import REAL_TEXTS
from onnxpress.exporter.tokenizer_files import FolderTokenizer, read_tokenizer
from onnxpress.runtime.encoder import FloatArray
from onnxpress.runtime.errors import UnsupportedModelError, first_line
from onnxpress.runtime.manifest import (
    EmbeddingSettings,
    LabelSettings,
    MaskSettings,
    TaskSettings,
    Tensor,
    TokenizerSettings,
)
from onnxpress.runtime.session import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime
    import tokenizers

    from onnxpress.exporter.onnx_file.head import PoolingHead

_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_NEEDED = ("input_ids", "attention_mask")
_POSSIBLE = (*_NEEDED, "token_type_ids")
_FURTHER = {"feature-extraction": "pooling_mask", "fill-mask": "mask_positions"}
_AXES = {"mask_positions": ("batch", "masks")}
_UNIT_LENGTH = 1e-3  # how far from 1 the length of a normalised embedding may be
# Names of the same setting in config.json, which transformers' classes give one name.
_ALIASES = {
    "max_position_embeddings": ("n_positions",),
    "num_attention_heads": ("n_heads", "n_head", "num_heads", "encoder_attention_heads"),
}


class OnnxModel:
    """A given file in onnxruntime, with its tokenizer. Safe to call from many threads."""

    def __init__(
        self,
        source: Source,
        task: str,
        config: ExportConfig,
        file: Path,
        *,
        optimized: bool = False,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            source: what describes the model.
            task: its task.
            config: options of the export.
            file: the ONNX file, `source.onnx` or the graph written from it.
            optimized: let onnxruntime rewrite the graph, as it does unless told not to.
            threads: CPU threads; None: onnxruntime's default.

        Raises:
            UnsupportedModelError: the file does not load, or it or the folder do not fit the task.
        """
        self.source, self.task, self.file = source, task, file
        self.config = plain_config(source.config)
        self._allow_pickle = config.allow_pickle
        self._session = _open(file, optimized, threads)
        self._tokenizer = self._read_tokenizer(config)
        self._types = self._check_inputs()
        sample = self._sample()
        found = self._run([output.name for output in self._session.get_outputs()], sample)
        self.plan = plan_outputs(file, task, self.sentence, self._types, found, sample["input_ids"].shape)
        self._hidden_size = int(found[self.plan.names[0]].shape[-1])
        self.fills_empty = False
        results = self.compute(sample)
        self._check_repeatable(results, self.compute(sample))
        # Graphs with masks of -inf give NaN for a text without tokens; the runtime's results are finite.
        empty = self.compute(sample | {"attention_mask": sample["attention_mask"] * [[1], [0]]})
        self.fills_empty = not all(np.isfinite(value).all() for value in empty.values())
        self.outputs = tuple(Tensor(name, "float", self._axes(value)) for name, value in results.items())
        self.settings = self._settings(results)

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer, which cuts texts at the maximum length."""
        return self._tokenizer.backend

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Of the graph to be written, each int64."""
        used = [name for name in (*_POSSIBLE, *_FURTHER.values()) if name in self._types and name not in self.unused]
        if self.plan.then == "pick masks":
            used.append("mask_positions")
        if self.plan.then == "pool" and not self.sentence.include_prompt and "pooling_mask" not in used:
            used.append("pooling_mask")
        return tuple(Tensor(name, "int64", _AXES.get(name, ("batch", "sequence"))) for name in used)

    @property
    def unused(self) -> tuple[str, ...]:
        """Inputs of the file that are always 0: segments of a model that has one."""
        return ("token_type_ids",) if getattr(self.config, "type_vocab_size", None) == 1 else ()

    @functools.cached_property
    def sentence(self) -> SentenceConfig:
        """What the folder says of sentence embeddings."""
        said = read_sentence_config(self.source.folder) if self.task == "feature-extraction" else None
        return said or default_sentence_config(self.source.folder)

    @functools.cached_property
    def head(self) -> PoolingHead:
        """What pools; imports PyTorch."""
        from onnxpress.exporter.onnx_file.head import PoolingHead

        return PoolingHead(self.source.folder, self.sentence, self._hidden_size, self._allow_pickle)

    def compute(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        """Outputs by the task's names for the graph's inputs.

        Raises:
            UnsupportedModelError: onnxruntime fails, mostly because sizes are fixed inside the graph.
        """
        found = self._run(self.plan.names, feeds)
        values = [found[name] for name in self.plan.names]
        if self.plan.then == "pool":
            values = [self.head.compute(values[0], feeds)]
        elif self.plan.then == "pick masks":
            values = [np.take_along_axis(values[0], feeds["mask_positions"][:, :, None], axis=1)]
        if self.fills_empty:
            for value in values:
                value[feeds["attention_mask"].sum(axis=1) == 0] = 0
        return dict(zip(task_outputs(self.task), values, strict=True))

    def _run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Array]:
        zeros = np.zeros_like(feeds["input_ids"])
        given = {name: np.asarray(feeds.get(name, zeros), kind) for name, kind in self._types.items()}
        try:
            return dict(zip(names, self._session.run(list(names), given), strict=True))
        # onnxruntime's exception classes have no common base but Exception.
        except Exception as error:
            raise UnsupportedModelError(
                f"{self.file} fails on {_sizes(feeds['input_ids'].shape)}: {first_line(error)}; are sizes "
                "fixed inside it, or is the tokenizer another model's?"
            ) from error

    def _read_tokenizer(self, config: ExportConfig) -> FolderTokenizer:
        folders = (transformer_folder(self.source.folder), self.file.parent)
        pad_id = getattr(self.config, "pad_token_id", None)
        tokenizer = read_tokenizer(folders, pad_id if isinstance(pad_id, int) else None, config.trust_remote_code)
        self.config.pad_token_id = tokenizer.pad_id if pad_id is None else pad_id
        add_lower_case(tokenizer.backend, self.sentence)
        # Written into tokenizer.json, where the runtime finds the side at which texts are cut.
        length = effective_max_length(self.sentence, self.config, tokenizer.model_max_length)
        tokenizer.backend.enable_truncation(length, direction=tokenizer.truncation_side)
        return tokenizer

    def _check_inputs(self) -> dict[str, Any]:
        """The types of the file's inputs, after a check that a text is all that they need."""
        inputs = {value.name: value for value in self._session.get_inputs()}
        if missing := [name for name in _NEEDED if name not in inputs]:
            raise UnsupportedModelError(f"{self.file} has no input {missing[0]} (it has {', '.join(inputs)})")
        for name, value in inputs.items():
            if name not in (*_POSSIBLE, _FURTHER.get(self.task)):
                raise UnsupportedModelError(
                    f"{self.file} needs the input {name!r}, which onnxpress does not make of a text; export the model "
                    "again so that the graph computes it"
                )
            if value.type not in _TYPES:
                raise UnsupportedModelError(f"{self.file} takes {name} as {value.type}; expected int64 or int32")
            if value.shape is not None and len(value.shape) != 2:
                raise UnsupportedModelError(f"{self.file} takes {name} of shape {value.shape}; expected two axes")
            for axis, size in zip(_AXES.get(name, ("batch", "sequence")), value.shape or (), strict=False):
                if isinstance(size, int) and size > 0:
                    raise UnsupportedModelError(
                        f"{self.file} has a fixed size: the {axis} axis of {name} is {size}; export the model again "
                        "with dynamic axes"
                    )
        return {name: _TYPES[value.type] for name, value in inputs.items()}

    def _sample(self) -> dict[str, Array]:
        """Two texts of different lengths."""
        encodings = [self.backend.encode(text) for text in (REAL_TEXTS[0], REAL_TEXTS[2])]
        width = max(len(encoding) for encoding in encodings)
        ids = np.full((2, width), self._tokenizer.pad_id, np.int64)
        mask = np.zeros((2, width), np.int64)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)], mask[row, : len(encoding)] = encoding.ids, 1
        zeros = np.zeros_like(ids)
        return {
            "input_ids": ids, "attention_mask": mask, "token_type_ids": zeros,
            "pooling_mask": mask, "mask_positions": zeros[:, :1],
        }  # fmt: skip

    def _check_repeatable(self, once: Mapping[str, Array], again: Mapping[str, Array]) -> None:
        for name, value in once.items():
            if not np.allclose(value, again[name], rtol=1e-3, atol=1e-4, equal_nan=True):
                raise UnsupportedModelError(
                    f"{self.file} gives other values in {name} when it runs again; export the model in evaluation "
                    "mode, without dropout"
                )

    def _axes(self, value: Array) -> tuple[str, ...]:
        if self.task == "question-answering":
            return ("batch", "sequence")
        middle = {"token-classification": ("sequence",), "fill-mask": ("masks",)}.get(self.task, ())
        return ("batch", *middle, str(value.shape[-1]))

    def _settings(self, results: Mapping[str, Array]) -> TaskSettings:
        truncation = self.backend.truncation
        assert truncation is not None
        return TaskSettings(
            task=self.task,
            tokenizer=TokenizerSettings(
                file="tokenizer.json",
                max_length=truncation["max_length"],
                pad_id=self._tokenizer.pad_id,
                padding_side=self._tokenizer.padding_side,
                pad_type_id=self._tokenizer.pad_type_id,
            ),
            embedding=self._embedding(results) if self.task == "feature-extraction" else None,
            labels=self._labels(results),
            mask=self._mask() if self.task == "fill-mask" else None,
        )

    def _embedding(self, results: Mapping[str, Array]) -> EmbeddingSettings:
        sentence, vectors = self.sentence, results["sentence_embedding"]
        is_described = self.plan.then == "pool" or (self.source.folder / "modules.json").is_file()
        prompts = self.source.recipe.prompts if self.source.recipe else None
        return EmbeddingSettings(
            dimension=vectors.shape[1],
            modules=sentence.modules if is_described else ("as in the ONNX file",),
            normalized=bool(np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < _UNIT_LENGTH),
            similarity=sentence.similarity,
            include_prompt=sentence.include_prompt,
            prompts={**sentence.prompts, **(prompts or {})},
            default_prompt_name=sentence.default_prompt_name,
        )

    def _labels(self, results: Mapping[str, Array]) -> LabelSettings | None:
        labels = label_settings(self.task, self.source)
        if labels is not None and len(labels.names) != results["logits"].shape[-1]:
            raise UnsupportedModelError(
                f"config.json of {self.source.name} names {len(labels.names)} labels, {self.file} gives "
                f"{results['logits'].shape[-1]} numbers"
            )
        return labels

    def _mask(self) -> MaskSettings:
        token = self._tokenizer.mask_token
        number = None if token is None else self.backend.token_to_id(token)
        if token is None or number is None:
            raise UnsupportedModelError(
                f"the tokenizer of {self.source.name} has no mask token, so it cannot fill masks; give another --task"
            )
        return MaskSettings(token, int(number))


def plain_config(settings: Mapping[str, Any]) -> SimpleNamespace:
    """config.json as an object such as transformers makes of it, for what is read of it here."""
    inner = settings.get("text_config")
    values = dict(settings) | (inner if isinstance(inner, dict) else {})
    for name, others in _ALIASES.items():
        if name not in values:
            values[name] = next((values[other] for other in others if other in values), None)
    if "t5" in str(values.get("model_type")):
        values["max_position_embeddings"] = None  # its positions are relative, whatever n_positions says
    values.setdefault("model_type", "")
    return SimpleNamespace(**values)


def _open(file: Path, optimized: bool, threads: int | None) -> onnxruntime.InferenceSession:
    import_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    # onnxruntime's exception classes have no common base but Exception.
    except Exception as error:
        raise UnsupportedModelError(
            f"onnxruntime {onnxruntime.__version__} cannot load {file}: {first_line(error)}"
        ) from error


def _sizes(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} texts of {shape[1]} tokens"
