"""Every family and head: the traced graph against the model in PyTorch, and what is refused."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from onnxpress.exporter import families
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.loading import LoadedModel, load_model
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.refusals import REFUSALS, refuse_missing_head, refuse_unexportable
from onnxpress.exporter.source import resolve_source
from onnxpress.exporter.tracing import trace
from onnxpress.quantize.graphs import save_program
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.tasks import TASKS
from tests.models import FAMILIES, make_model

Feeds = dict[str, np.ndarray[Any, Any]]
Shape = tuple[int, int, str]
"""Rows, tokens, and which rows are padded: none, right, left, or the last one wholly."""

NAMED = tuple(FAMILIES)[:15]
"""Families every task is tested with."""
ALWAYS = ("roberta", "deberta-v2", "modernbert")
"""Not left to the slow tests. Other families have tests of their own below; many other tests make BERT's graphs."""
ENCODER_TASKS = ("text-classification", "token-classification", "question-answering", "fill-mask")
NO_SUCH_CLASS = {
    ("nomic_bert", "question-answering"),
    ("xlnet", "fill-mask"),
    ("t5", "text-classification"),  # reads the decoder
    ("t5", "question-answering"),
    ("t5", "fill-mask"),
}
HEADS = [(family, task) for family in NAMED for task in ENCODER_TASKS if (family, task) not in NO_SUCH_CLASS]
ALWAYS_HEADS = (("electra", "fill-mask"), ("t5", "token-classification"), ("big_bird", "question-answering"))
SHAPES: tuple[Shape, ...] = (
    (1, 1, "none"), (3, 1, "none"), (1, 2, "none"), (2, 3, "none"), (4, 5, "right"), (3, 17, "right"), (3, 17, "left"),
    (3, 12, "wholly"), (2, 64, "right"),
)  # fmt: skip


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("family", [name if name in ALWAYS else _slow(name) for name in FAMILIES])
def test_the_graph_of_a_family_computes_what_pytorch_does(family: str, tmp_path: Path) -> None:
    model = _load(make_model(tmp_path / "model", family))
    _assert_equal(model, _graph(model, tmp_path), SHAPES)


@pytest.mark.parametrize(("family", "task"), [pair if pair in ALWAYS_HEADS else _slow(*pair) for pair in HEADS])
def test_the_graph_of_a_head_computes_what_pytorch_does(family: str, task: str, tmp_path: Path) -> None:
    model = _load(make_model(tmp_path / "model", family, task), task)
    graph = _graph(model, tmp_path)
    assert {value.name: tuple(value.shape) for value in graph.get_inputs()} == {
        name: ("batch", axis) for name, axis in model.input_axes.items()
    }
    assert {value.name: tuple(str(axis) for axis in value.shape) for value in graph.get_outputs()} == {
        value.name: value.shape for value in model.outputs
    }
    _assert_equal(model, graph, SHAPES)


class TestBigBird:
    """The smallest configuration switches above (5 + 2 * 1) * 4 = 28 tokens."""

    def test_one_graph_follows_the_switch_to_block_sparse_attention(self, tmp_path: Path) -> None:
        model = _load(make_model(tmp_path / "model", "big_bird"))
        shapes = [(2, length, padded) for length in (27, 28, 29, 31, 32, 61) for padded in ("none", "right", "left")]
        _assert_equal(model, _graph(model, tmp_path), [*shapes, (3, 30, "wholly"), (3, 44, "wholly")])

    def test_sparse_attention_differs_from_full_attention_above_the_switch_alone(self, tmp_path: Path) -> None:
        """Else the test above would pass with a graph that knows full attention only."""
        sparse = _load(make_model(tmp_path / "sparse", "big_bird"))
        full = _load(make_model(tmp_path / "full", "big_bird", attention_type="original_full"))
        for length, differs in ((28, False), (29, True)):
            (feeds,) = _inputs(sparse, [(2, length, "none")])
            (found,), (other,) = _compute(sparse, feeds).values(), _compute(full, feeds).values()
            assert (np.abs(found - other).max() > 0.01) == differs

    @pytest.mark.slow
    @pytest.mark.parametrize(("block_size", "random_blocks"), [(4, 3), (8, 2), (16, 1)])
    def test_other_block_sizes_and_counts_of_random_blocks(
        self, block_size: int, random_blocks: int, tmp_path: Path
    ) -> None:
        settings = {"block_size": block_size, "num_random_blocks": random_blocks, "max_position_embeddings": 512}
        model = _load(make_model(tmp_path / "model", "big_bird", **settings))
        switch = (5 + 2 * random_blocks) * block_size
        lengths = (switch, switch + 1, switch + block_size, 3 * switch - 1)
        shapes = [(2, length, padded) for length in lengths for padded in ("right", "left", "wholly")]
        _assert_equal(model, _graph(model, tmp_path), shapes)

    @pytest.mark.slow
    def test_the_lengths_for_which_transformers_has_a_plan_of_its_own(self, tmp_path: Path) -> None:
        settings = {"block_size": 16, "num_random_blocks": 3, "max_position_embeddings": 1024}
        model = _load(make_model(tmp_path / "model", "big_bird", **settings))
        _assert_equal(model, _graph(model, tmp_path), [(1, 1024, "none"), (1, 1023, "none")])

    def test_a_short_input_does_not_turn_the_model_into_one_with_full_attention(self, tmp_path: Path) -> None:
        model = _load(make_model(tmp_path / "model", "big_bird"))
        short, long = _inputs(model, [(1, 5, "none"), (2, 40, "none")])
        before = _compute(model, long)
        _compute(model, short)
        np.testing.assert_array_equal(_compute(model, long)["sentence_embedding"], before["sentence_embedding"])


class TestLongformer:
    """Windows of 4 and 8 tokens in two layers; the first token is global where a text is classified."""

    @pytest.mark.slow
    @pytest.mark.parametrize("task", ["feature-extraction", "token-classification", "fill-mask"])
    def test_local_attention(self, task: str, tmp_path: Path) -> None:
        model = _load(make_model(tmp_path / "model", "longformer", task), task)
        _assert_equal(model, _graph(model, tmp_path), SHAPES)

    def test_global_attention(self, tmp_path: Path) -> None:
        task = "text-classification"
        model = _load(make_model(tmp_path / "model", "longformer", task), task)
        _assert_equal(model, _graph(model, tmp_path), [*SHAPES, (3, 40, "left"), (3, 41, "wholly")])


def test_xlnet_is_not_limited_by_a_memory_that_nobody_reads(tmp_path: Path) -> None:
    """torch.export proves no size for XLNet and finds them out; with memory it finds fewer than 512 tokens."""
    model = _load(make_model(tmp_path / "model", "xlnet"))
    graph = _graph(model, tmp_path)
    _assert_equal(model, graph, [*SHAPES, (1, 600, "none")])
    assert {tuple(value.shape) for value in graph.get_inputs()} == {("batch", "sequence")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose module is exchanged."""
    return _load(make_model(tmp_path_factory.mktemp("toy") / "model", "bert", type_vocab_size=1))


class TestSilentSpecialisation:
    """Modules that torch.export traces without a word, into graphs for some sizes only."""

    def test_a_fixed_length_is_refused(self, toy: LoadedModel) -> None:
        def fixed(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.tensor(list(range(input_ids.shape[1]))) * attention_mask

        with pytest.raises(UnsupportedModelError, match=r"its sequence size was fixed at 7 while tracing"):
            trace(_with(toy, fixed))

    def test_a_fixed_batch_is_refused(self, toy: LoadedModel) -> None:
        def fixed(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.tensor(list(range(len(input_ids))))[:, None] * attention_mask

        with pytest.raises(UnsupportedModelError, match=r"its batch size was fixed at 2 while tracing"):
            trace(_with(toy, fixed))

    def test_one_branch_for_short_inputs_is_refused(self, toy: LoadedModel) -> None:
        def branching(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids * attention_mask if input_ids.shape[1] <= 20 else input_ids

        with pytest.raises(UnsupportedModelError, match=r"would not hold for 21 tokens"):
            trace(_with(toy, branching))

    def test_padding_to_a_multiple_is_refused(self, toy: LoadedModel) -> None:
        def padding(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            missing = -input_ids.shape[1] % 4
            return nn.functional.pad(input_ids, (0, missing)) if missing else input_ids * attention_mask

        with pytest.raises(UnsupportedModelError, match=r"would not hold for \d+ tokens"):
            trace(_with(toy, padding))

    def test_a_module_for_all_lengths_is_traced(self, toy: LoadedModel) -> None:
        def free(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids * attention_mask

        program = trace(_with(toy, free))
        assert [str(value.shape) for value in program.graph.outputs] == ["[batch,sequence]"]


class TestFamilyModules:
    """exporter/families/: found by name, in force while a model is traced."""

    def test_each_is_named_after_a_model_type(self) -> None:
        known = {name.replace("-", "_") for name in CONFIG_MAPPING_NAMES}
        found = {info.name for info in pkgutil.iter_modules(families.__path__)}
        assert found
        assert found <= known

    def test_replacements_end_with_the_trace(self, tmp_path: Path) -> None:
        model = _load(make_model(tmp_path / "model", "longformer"))
        attention = transformers.models.longformer.modeling_longformer.LongformerSelfAttention
        original = attention.forward
        with families.traceable(model.module):
            assert attention.forward is not original
        assert attention.forward is original

    def test_a_call_that_changes_the_model_is_undone(self) -> None:
        module = nn.Sequential(nn.Linear(2, 2))
        first = module[0]
        with families.unchanged(module):
            module[0] = nn.Linear(2, 2)
            module.seen = 7
        assert module[0] is first
        assert not hasattr(module, "seen")

    @pytest.mark.parametrize("model_type", ["../../secrets", "os.path", "bert", ""])
    def test_a_model_type_without_a_module_needs_none(self, model_type: str) -> None:
        module = nn.Linear(1, 1)
        module.config = transformers.BertConfig()
        module.config.model_type = model_type
        with families.traceable(module):
            pass

    def test_xmod_uses_the_adapter_of_its_default_language(self, tmp_path: Path) -> None:
        folder = make_model(tmp_path / "model", "xmod", default_language=None)
        with pytest.raises(UnsupportedModelError, match=r"set default_language in config\.json to one of en_XX, de_DE"):
            trace(_load(folder))


class TestRefusals:
    """Families that are known not to export."""

    @pytest.mark.parametrize("model_type", REFUSALS)
    def test_each_names_the_model_the_type_the_reason_and_what_works(self, model_type: str) -> None:
        refusal = REFUSALS[model_type]
        task = refusal.tasks[0] if refusal.tasks else "feature-extraction"
        with pytest.raises(UnsupportedModelError) as caught:
            refuse_unexportable(model_type, "some/model", task)
        for part in ("some/model", model_type, refusal.reason, refusal.alternative):
            assert part in str(caught.value)

    def test_the_table_knows_what_transformers_and_onnxpress_know(self) -> None:
        assert set(REFUSALS) <= set(CONFIG_MAPPING_NAMES)
        assert {task for refusal in REFUSALS.values() for task in refusal.tasks} <= set(TASKS)

    def test_no_family_that_exports_is_in_it_for_its_embeddings(self) -> None:
        for family in FAMILIES:
            refuse_unexportable(family, "some/model", "feature-extraction")

    def test_a_head_that_transformers_does_not_have_is_refused_with_those_it_has(self) -> None:
        with pytest.raises(
            UnsupportedModelError, match=r"no such head for xlnet; it has heads for feature-extraction, "
        ):
            refuse_missing_head("xlnet", "some/model", "fill-mask")
        refuse_missing_head("xlnet", "some/model", "text-classification")

    def test_an_unknown_family_is_tried(self) -> None:
        refuse_unexportable("no_such_type", "some/model", "fill-mask")
        refuse_missing_head("no_such_type", "some/model", "fill-mask")


def _load(folder: Path, task: str = "feature-extraction") -> LoadedModel:
    with quiet():
        return load_model(resolve_source(str(folder), ExportConfig()), task, ExportConfig())


def _graph(model: LoadedModel, folder: Path) -> onnxruntime.InferenceSession:
    with quiet():
        save_program(trace(model), folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def _compute(model: LoadedModel, feeds: Feeds) -> Mapping[str, Any]:
    with quiet():
        return model.compute(feeds)


def _assert_equal(model: LoadedModel, graph: onnxruntime.InferenceSession, shapes: Sequence[Shape]) -> None:
    names = [value.name for value in graph.get_outputs()]
    for shape, feeds in zip(shapes, _inputs(model, shapes), strict=True):
        expected = _compute(model, feeds)
        for name, found in zip(names, graph.run(None, feeds), strict=True):
            scale = max(1.0, float(np.nanmax(np.abs(expected[name]), initial=0)))
            np.testing.assert_allclose(
                found / scale, expected[name] / scale, rtol=0, atol=3e-5, err_msg=f"{name} at {shape}"
            )


def _inputs(model: LoadedModel, shapes: Sequence[Shape]) -> Iterator[Feeds]:
    """Random graph inputs; padded rows have different lengths."""
    rng = np.random.default_rng(3)
    for rows, tokens, padded in shapes:
        mask = np.ones((rows, tokens), np.int64)
        for row in range(rows):
            count = min(3 * row, tokens - 1)
            mask[row, tokens - count :] = 0 if padded == "right" else 1
            mask[row, :count] = 0 if padded == "left" else 1
        if padded == "wholly":
            mask[-1] = 0
        ids = rng.integers(0, model.limits.vocabulary, (rows, tokens))
        made = {
            "input_ids": np.where(mask == 1, ids, model.settings.tokenizer.pad_id),
            "attention_mask": mask,
            "token_type_ids": rng.integers(0, 2, (rows, tokens)),
            "mask_positions": rng.integers(0, tokens, (rows, 3)),
        }
        yield {name: made[name] for name in model.input_axes}


def _with(model: LoadedModel, forward: Any) -> LoadedModel:
    """The same model whose module is a function."""

    class Toy(nn.Module):
        config = transformers.BertConfig()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"values": forward(input_ids, attention_mask)}

    return dataclasses.replace(model, module=Toy())
