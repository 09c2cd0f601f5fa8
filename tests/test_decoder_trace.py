"""Decoders as traced graphs against PyTorch: prefill, decoding, chunks, windows, and what must not go unnoticed."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from onnxpress.exporter.decoder import conversion, describe_decoder, families
from onnxpress.exporter.decoder.refusals import REFUSALS, refuse_decoder
from onnxpress.quantize.graphs import check_structure
from onnxpress.runtime.errors import UnsupportedModelError
from tests.decoder_models import (
    CONTEXT,
    FAMILIES,
    VOCABULARY,
    DecoderSession,
    Logits,
    in_pytorch,
    make_decoder,
    trace,
)

TOLERANCE = 1e-4
"""Of the largest logit."""
ALWAYS = ("llama", "gemma2", "gemma3_text", "gpt2", "bloom", "olmoe")
"""Not left to the slow tests: rotary embedding inside and outside attention, windows, soft caps, norms of queries and
keys, learned positions, ALiBi, experts."""
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 20},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 20,
    },
    "longrope": {
        "short_factor": [1.0, 1.3, 1.7, 2.0, 2.1, 2.2, 2.3, 2.4],
        "long_factor": [3.0] * 8, "factor": 4.0, "original_max_position_embeddings": 20,
    },
}  # fmt: skip


def _families() -> list[Any]:
    return [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("family", _families())
def test_the_graph_of_a_family_computes_what_pytorch_does(family: str, tmp_path: Path) -> None:
    model = make_decoder(family)
    path, facts = trace(model, tmp_path)
    assert facts.context == CONTEXT
    check_structure(path)
    _assert_contract(path, facts.layers)
    _assert_equal(model, path, facts)


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ALWAYS[1:])])
def test_greedy_tokens_are_those_of_generate(family: str, tmp_path: Path) -> None:
    model = make_decoder(family, seed=3)
    path, facts = trace(model, tmp_path)
    prompts = [_tokens(length, seed) for seed, length in enumerate((1, 2, 5, 11))]
    session = DecoderSession(path, facts, len(prompts))
    logits = session.run(prompts, [0] * len(prompts))
    texts = [list(prompt) for prompt in prompts]
    for _ in range(20):
        starts = [len(text) for text in texts]
        for text, row in zip(texts, logits, strict=True):
            text.append(int(row.argmax()))
        logits = session.run([text[-1:] for text in texts], starts)
    for prompt, text in zip(prompts, texts, strict=True):
        _assert_greedy(model, prompt, text)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2", pytest.param("bloom", marks=pytest.mark.slow)])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, model, graph and facts."""
    model = make_decoder(request.param)
    return request.param, model, *trace(model, tmp_path_factory.mktemp("traced"))


class TestMistakes:
    """What the comparison above must notice; each mistake changes the logits by far more than the tolerance."""

    def test_wrong_positions(self, decoder: Any) -> None:
        name, model, path, facts = decoder
        text = _tokens(12, 1)
        session = DecoderSession(path, facts, 1)
        session.run([text[:-1]], [0])
        # ALiBi counts the keys; rotary embedding knows distances, which a shift of the last token alone changes.
        shifted = _difference(session.run([text[-1:]], [11], shift=5), in_pytorch(model, text)[-1:])
        assert shifted < TOLERANCE if name == "bloom" else shifted > 100 * TOLERANCE

    def test_wrong_lengths(self, decoder: Any) -> None:
        _, model, path, facts = decoder
        text, other = _tokens(12, 1), _tokens(20, 2)
        session = DecoderSession(path, facts, 2)
        session.run([text[:-1], other[:-1]], [0, 0])
        expected = in_pytorch(model, text)[-1:]
        new = [text[-1:], other[-1:]]
        assert _difference(session.run(new, [11, 19], lengths=[15, 20])[:1], expected) > 100 * TOLERANCE
        assert _difference(session.run(new, [11, 19])[:1], expected) < TOLERANCE

    def test_an_older_cache(self, decoder: Any) -> None:
        _, model, path, facts = decoder
        text = _tokens(12, 1)
        session = DecoderSession(path, facts, 1)
        session.run([_tokens(11, 2)], [0])
        expected = in_pytorch(model, text)[-1:]
        assert _difference(session.run([text[-1:]], [11]), expected) > 100 * TOLERANCE


class TestWindows:
    """Layers that see the last tokens only."""

    @pytest.mark.parametrize("window", [1, 6, pytest.param(1000, marks=pytest.mark.slow)])
    def test_shorter_and_longer_than_the_text(self, window: int, tmp_path: Path) -> None:
        model = make_decoder("mistral", sliding_window=window)
        path, facts = trace(model, tmp_path)
        _assert_equal(model, path, facts)
        windows = {_attributes(node).get("local_window_size") for node in _nodes(path, "GroupQueryAttention")}
        assert windows == {window}

    def test_layers_keep_their_own(self, tmp_path: Path) -> None:
        path, _ = trace(make_decoder("gemma2"), tmp_path)
        nodes = _nodes(path, "GroupQueryAttention")
        assert [_attributes(node)["local_window_size"] for node in nodes] == [6, -1]


class TestPositions:
    """Rotary embeddings that are scaled, and ALiBi over long texts."""

    @pytest.mark.parametrize(
        "kind", [kind if kind == "longrope" else pytest.param(kind, marks=pytest.mark.slow) for kind in ROPES]
    )
    def test_scaled_rotary_embeddings(self, kind: str, tmp_path: Path) -> None:
        model = make_decoder("llama", rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]})
        path, facts = trace(model, tmp_path)
        assert facts.context == (20 if kind == "longrope" else CONTEXT)
        assert len(facts.notes) == (kind in ("longrope", "dynamic"))
        _assert_equal(model, path, facts)

    def test_a_shorter_context_is_said_with_the_reason(self) -> None:
        longrope = {"rope_type": "longrope", "rope_theta": 10000.0, **ROPES["longrope"]}
        facts = describe_decoder(make_decoder("llama", rope_parameters=longrope))
        assert "20 tokens, not 40" in facts.notes[0]
        assert "longrope" in facts.notes[0]

    def test_a_long_text_before_does_not_change_the_frequencies(self, tmp_path: Path) -> None:
        longrope = {"rope_type": "longrope", "rope_theta": 10000.0, **ROPES["longrope"]}
        model = make_decoder("llama", rope_parameters=longrope)
        in_pytorch(model, _tokens(30, 0))
        path, facts = trace(model, tmp_path)
        text = _tokens(9, 1)
        found = DecoderSession(path, facts, 1).run([text], [0])
        assert _difference(found, in_pytorch(model, text)[-1:]) < TOLERANCE

    @pytest.mark.slow
    def test_alibi_is_rounded_as_falcon_rounds_it(self, tmp_path: Path) -> None:
        model = make_decoder("falcon-rw", max_position_embeddings=700)
        path, facts = trace(model, tmp_path)
        text = _tokens(690, 1)
        session = DecoderSession(path, facts, 1)
        session.run([text[:600]], [0])
        expected = in_pytorch(model, text)
        assert _difference(session.run([text[600:]], [600]), expected[-1:]) < TOLERANCE


class TestWeights:
    """How they are stored."""

    @pytest.mark.parametrize("tied", [True, False])
    def test_once_and_as_products(self, tied: bool, tmp_path: Path) -> None:
        model = make_decoder("llama", tie_word_embeddings=tied, hidden_size=64, vocab_size=1000)
        path, facts = trace(model, tmp_path)
        weights = sum(4 * parameter.numel() for parameter in model.parameters())
        tables = 2 * 4 * CONTEXT * 8  # cos and sin of each position
        assert weights <= sum(file.stat().st_size for file in tmp_path.iterdir()) < weights + tables + 20_000
        operators = Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)
        assert "Gemm" not in operators
        # Per layer: queries, keys and values in one, output, gate, up, down; and the head.
        assert operators["MatMul"] == 5 * facts.layers + 1
        assert operators["Transpose"] == tied
        _assert_equal(model, path, facts)

    def test_heads_of_an_odd_width_are_padded(self, tmp_path: Path) -> None:
        model = make_decoder("llama", head_dim=12)
        path, facts = trace(model, tmp_path)
        assert facts.head_dims == (16, 16)
        _assert_equal(model, path, facts)

    @pytest.mark.slow
    def test_the_same_without_the_short_cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_decoder("llama")
        (tmp_path / "short").mkdir()
        short, _ = trace(model, tmp_path / "short")
        monkeypatch.setattr(conversion, "_has_onnx_form", lambda node, table: False)
        path, facts = trace(model, tmp_path)
        _assert_equal(model, path, facts)
        counted = [
            Counter(node.op_type for node in onnx.load(str(graph), load_external_data=False).graph.node)
            for graph in (short, path)
        ]
        assert counted[0] == counted[1]

    @pytest.mark.slow
    def test_what_the_short_cut_cannot_convert_is_decomposed_after_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_decoder("olmo")  # clamps in place, for which there is no ONNX form
        monkeypatch.setattr(conversion, "_has_onnx_form", lambda node, table: True)
        path, facts = trace(model, tmp_path)
        _assert_equal(model, path, facts)


class TestTheModel:
    """What tracing does to it: nothing."""

    def test_is_left_as_it_was(self, tmp_path: Path) -> None:
        model = make_decoder("gemma2")
        text = _tokens(9, 1)
        before = in_pytorch(model, text)
        attributes = [sorted(vars(part)) for part in model.modules()]
        trace(model, tmp_path)
        assert [sorted(vars(part)) for part in model.modules()] == attributes
        assert model.config._attn_implementation == "eager"
        np.testing.assert_array_equal(in_pytorch(model, text), before)

    def test_is_described_without_tracing(self, tmp_path: Path) -> None:
        model = make_decoder("gemma3_text")
        _, facts = trace(model, tmp_path)
        assert describe_decoder(model) == facts
        assert (facts.layers, facts.kv_heads, facts.head_dims) == (2, (2, 2), (16, 16))
        assert facts.vocabulary == VOCABULARY


class TestRefusals:
    """What a graph cannot hold is said, never left out."""

    @pytest.mark.parametrize("model_type", REFUSALS)
    def test_each_names_the_model_the_type_the_reason_and_what_works(self, model_type: str) -> None:
        with pytest.raises(UnsupportedModelError) as caught:
            refuse_decoder(model_type, "some/model")
        refusal = REFUSALS[model_type]
        for part in ("some/model", model_type, refusal.reason, refusal.alternative):
            assert part in str(caught.value)

    def test_the_table_knows_model_types_of_transformers_and_no_family_that_exports(self) -> None:
        assert set(REFUSALS) <= set(CONFIG_MAPPING_NAMES)
        assert not set(REFUSALS) & set(FAMILIES)

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"model_type": "xglm", "d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 64},
             "its attention is not handled, .* through transformers' AttentionInterface; decoders with .* export"),
            ({"model_type": "openai-gpt", "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 40},
             "does not go through transformers' AttentionInterface"),
            ({"model_type": "lfm2", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 64, "layer_types": ["conv", "full_attention"]},
             "more than keys and values"),
            ({"model_type": "llama4_text", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "intermediate_size_mlp": 32,
              "num_local_experts": 2, "attention_chunk_size": 8}, "begins anew at each chunk"),
            ({"model_type": "gemma3_text", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "use_bidirectional_attention": True},
             "not causal"),
            ({"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 64, "num_local_experts": 2, "hidden_act": "gelu"},
             "something else than SwiGLU"),
        ],
    )  # fmt: skip
    def test_what_stands_in_the_way_is_found(self, settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
        model_type, *_ = settings.values()
        shared = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = transformers.AutoConfig.for_model(model_type, **{**shared, **dict(list(settings.items())[1:])})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} .*{reason}") as caught:
            trace(model, tmp_path)
        assert "CausalMask" not in str(caught.value)  # no names of this package's own code
        assert not list(tmp_path.iterdir())

    def test_positions_that_do_not_begin_at_0(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_decoder("gpt2")
        embed = model.transformer.wpe.forward
        calls: list[int] = []

        def forward(positions: torch.Tensor) -> torch.Tensor:
            calls.append(positions.shape[0])
            # Positions that the model makes by itself come as one row.
            return embed(positions + (positions.shape[0] == 1))

        monkeypatch.setattr(model.transformer.wpe, "forward", forward)
        with pytest.raises(UnsupportedModelError, match="counts from another number than 0"):
            describe_decoder(model)
        assert 1 in calls

    def test_a_model_that_attends_to_other_keys_than_it_caches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_decoder("llama")
        for layer in model.model.layers:
            attention = layer.self_attn
            forward = attention.forward

            def changed(*args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
                cache = kwargs["cache" if "cache" in kwargs else "past_key_values"]
                update = cache.update
                monkeypatch.setattr(cache, "update", lambda key, *rest, **by: (2 * key, update(key, *rest, **by)[1]))
                return _forward(*args, **kwargs)

            monkeypatch.setattr(attention, "forward", changed)
        with pytest.raises(UnsupportedModelError, match="other keys or values than it caches"):
            describe_decoder(model)

    def test_a_family_module_is_named_after_a_model_type(self) -> None:
        names = {path.stem for path in Path(families.__path__[0]).glob("*.py")} - {"__init__"}
        assert names
        assert names <= {name.replace("-", "_") for name in CONFIG_MAPPING_NAMES}

    def test_a_model_type_without_a_module_needs_none(self) -> None:
        model = nn.Linear(1, 1)
        model.config = transformers.LlamaConfig()
        for model_type in ("../../secrets", "os.path", ""):
            model.config.model_type = model_type
            with families.traceable(model):
                pass


def _assert_equal(model: Any, path: Path, facts: Any, vocabulary: int = VOCABULARY) -> None:
    """Every logit of prefill, decoding up to the context, chunks, and rows of a larger cache is PyTorch's."""
    first, second = (_tokens(facts.context, seed, vocabulary) for seed in (1, 2))
    expected = in_pytorch(model, first), in_pytorch(model, second)

    def check(found: Logits, *ends: int) -> None:
        wanted = np.stack([logits[end - 1] for logits, end in zip(expected, ends, strict=False)])
        assert _difference(found, wanted) < TOLERANCE, f"at {ends}"

    together = DecoderSession(path, facts, 2)
    check(together.run([first[:9], second[:5]], [0, 0]), 9, 5)
    for end in range(9, facts.context):
        check(together.run([first[end : end + 1], second[end - 4 : end - 3]], [end, end - 4]), end + 1, end - 3)

    chunked = DecoderSession(path, facts, 1)
    ends = (0, 4, facts.context // 2 - 1, facts.context // 2, facts.context)
    for start, end in itertools.pairwise(ends):
        every = chunked.run([first[start:end]], [start], every=True)[0]
        assert _difference(every, expected[0][start:end]) < TOLERANCE, f"from {start} to {end}"

    joined = DecoderSession(path, facts, 3)
    check(joined.run([first[:9]], [0], row=1), 9)
    joined.run([_tokens(3, 3, vocabulary)], [0], row=0)
    check(joined.run([first[9:11]], [9], row=1), 11)
    check(joined.run([first[11:12]], [11], row=1), 12)


def _assert_contract(path: Path, layers: int) -> None:
    """The graph's inputs, outputs and operators are those that were promised."""
    graph = onnx.load(str(path), load_external_data=False).graph
    parts = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    tokens = ["input_ids", "position_ids", "logit_index", "seqlens_k", "total_sequence_length"]
    assert [value.name for value in graph.input] == [*tokens, *(f"past.{part}" for part in parts)]
    assert [value.name for value in graph.output] == ["logits", *(f"present.{part}" for part in parts)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch", "sequence"]
    assert shapes["logit_index"] == ["batch", "positions"]
    assert shapes["logits"] == ["batch", "positions", VOCABULARY]
    assert shapes["past.0.key"] == shapes["present.0.key"]
    assert shapes["past.0.key"][::2] == ["batch", "max_length"]
    operators = Counter(node.op_type for node in graph.node)
    assert operators["GroupQueryAttention"] == layers
    assert not {"Gemm", "Attention", "MultiHeadAttention"} & set(operators)


def _assert_greedy(model: Any, prompt: list[int], text: list[int]) -> None:
    """A text is what generate makes of a prompt, up to the first token where the two best logits are almost equal."""
    count = len(text) - len(prompt)
    expected = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=count,
        min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None,
    )[0].tolist()  # fmt: skip
    for place, (found, wanted) in enumerate(zip(text, expected, strict=True)):
        if found != wanted:
            logits = in_pytorch(model, expected[:place])[-1]
            second, best = np.sort(logits)[-2:]
            assert best - second < TOLERANCE * np.abs(logits).max()
            return


def _difference(found: Logits, expected: Logits) -> float:
    """The largest, in units of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _tokens(count: int, seed: int, vocabulary: int = VOCABULARY) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(3, vocabulary, count).tolist()
    return tokens


def _nodes(path: Path, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(str(path), load_external_data=False).graph.node if node.op_type == op_type]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
