"""exporter/sentence against sentence-transformers itself, on folders that it saves from tiny random models."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_REASON = "compares with the reference, which the dev extra installs"
torch = pytest.importorskip("torch", reason=_REASON)
sentence_transformers = pytest.importorskip("sentence_transformers", reason=_REASON)

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers.sentence_transformer import modules as reference_modules  # noqa: E402

from onnxpress.exporter.sentence import (  # noqa: E402  # noqa: E402
    SentenceConfig,
    build_head,
    default_sentence_config,
    effective_max_length,
    lengths,
    position_limit,
    read_sentence_config,
    reading,
)
from onnxpress.runtime.errors import UnsupportedModelError  # noqa: E402

HIDDEN = 24
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
COMBINATIONS = [*((mode,) for mode in MODES), MODES, MODES[::-1], ("mean", "cls"), ("max", "max", "weightedmean")]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "find", ":", "a", "cat", "dog", "sat", "on", "the", "mat", "Mat")
TEXTS = ["a cat sat on the mat", "dog", "the dog sat", "cat on a mat on a cat on a mat"]


@pytest.fixture(scope="module")
def transformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with 40 positions and a word tokenizer, without anything of sentence-transformers."""
    folder = tmp_path_factory.mktemp("transformer")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=30, **special).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=40,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


Save = Callable[..., Path]


@pytest.fixture
def save(transformer_folder: Path, tmp_path: Path) -> Save:
    """Modules after the transformer -> the folder that sentence-transformers saves."""

    def save(*modules: Any, transformer: dict[str, Any] | None = None, **options: Any) -> Path:
        first = reference_modules.Transformer(str(transformer_folder), **transformer or {})
        model = sentence_transformers.SentenceTransformer(modules=[first, *modules], device="cpu", **options)
        model.save(str(tmp_path / "model"), create_model_card=False)
        return tmp_path / "model"

    return save


def load_reference(folder: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def read(folder: Path) -> SentenceConfig:
    config = read_sentence_config(folder)
    assert config is not None
    return config


def pooling(*modes: str, **options: Any) -> Any:
    return reference_modules.Pooling(HIDDEN, modes, **options)


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file, made if it is missing; ... removes a key."""
    file.parent.mkdir(exist_ok=True)
    settings = json.loads(file.read_text()) if file.exists() else {}
    settings |= changes
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


def edit_module(folder: Path, index: int, **changes: Any) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))


def make_masks(padding: str, prompt: int) -> tuple[Any, Any]:
    """Attention mask and pooling mask [4, 9] of rows with 9, 5, 7 and 3 tokens, of which `prompt` are a prompt's."""
    attention, pooled = torch.zeros(2, 4, 9, dtype=torch.int64)
    for row, length in enumerate((9, 5, 7, 3)):
        start = 9 - length if padding == "left" else 0
        attention[row, start : start + length] = 1
        pooled[row, start + prompt : start + length] = 1
    return attention, pooled


def run_reference(model: Any, hidden: Any, attention: Any, prompt: int = 0) -> Any:
    """What the modules after the transformer make of token embeddings [b, s, h]: [b, d]."""
    features = {"token_embeddings": hidden, "attention_mask": attention, "prompt_length": prompt}
    with torch.no_grad():
        for module in list(model.eval())[1:]:
            features = module(features)
    return features["sentence_embedding"][..., : model.truncate_dim]


def assert_same_as_reference(folder: Path, dtype: Any = torch.float32, tolerance: float = 1e-6) -> None:
    """Left and right padding, with and without a prompt that is left out of pooling."""
    config = read(folder)
    model, head = load_reference(folder).to(dtype), build_head(folder, config, HIDDEN).to(dtype)
    hidden = torch.randn(4, 9, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    for padding, prompt in itertools.product(("left", "right"), (0, 2)):
        attention, pooled = make_masks(padding, prompt)
        expected = run_reference(model, hidden, attention, prompt)
        actual = head(hidden, attention, pooled)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert config.embedding_dimension == model.get_embedding_dimension()


# --- pooling ---


@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_pooling_equals_reference(save: Save, modes: tuple[str, ...], include_prompt: bool) -> None:
    folder = save(pooling(*modes, include_prompt=include_prompt))
    assert_same_as_reference(folder)
    config = read(folder)
    assert config.pooling_modes == modes
    assert config.include_prompt == include_prompt


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_equal_reference(save: Save, dtype: Any) -> None:
    assert_same_as_reference(save(pooling(*MODES), reference_modules.Dense(6 * HIDDEN, 8)), dtype, 0.0)


def test_half_precision_sums_in_float32(save: Save) -> None:
    folder = save(pooling("mean", "weightedmean"), reference_modules.Normalize())
    head = build_head(folder, read(folder), HIDDEN).half()
    hidden = torch.full((1, 4096, HIDDEN), 300.0, dtype=torch.float16)  # sum and squares exceed 65504
    mask = torch.ones(1, 4096, dtype=torch.int64)
    expected = torch.full((1, 2 * HIDDEN), (2 * HIDDEN) ** -0.5, dtype=torch.float16)
    torch.testing.assert_close(head(hidden, mask), expected)
    assert head(hidden, torch.zeros_like(mask)).isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_row_of_padding_is_finite_and_leaves_the_others(save: Save, mode: str) -> None:
    folder = save(pooling(mode), reference_modules.Normalize())
    head = build_head(folder, read(folder), HIDDEN)
    hidden = torch.randn(4, 9, HIDDEN, generator=torch.Generator().manual_seed(1))
    attention, _ = make_masks("left", 0)
    before = head(hidden, attention)
    attention[1] = 0
    for content in (hidden[1], torch.nan, torch.inf):
        hidden[1] = content
        after = head(hidden, attention)
        assert torch.equal(after[1], torch.zeros(HIDDEN))
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


@pytest.mark.parametrize("mode", MODES)
def test_text_that_is_only_a_prompt_is_finite(save: Save, mode: str) -> None:
    folder = save(pooling(mode, include_prompt=False), reference_modules.Normalize())
    hidden, attention = torch.randn(2, 5, HIDDEN), torch.ones(2, 5, dtype=torch.int64)
    actual = build_head(folder, read(folder), HIDDEN)(hidden, attention, torch.zeros_like(attention))
    expected = run_reference(load_reference(folder), hidden, attention, 5)
    assert actual.isfinite().all()
    if mode != "max":  # -inf in the reference
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "old",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
        {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_mean_tokens": False},
        {"pooling_mode": "cls", "pooling_mode_mean_tokens": True},
        {"include_prompt": True},
    ],
)
def test_old_pooling_keys(save: Save, old: dict[str, Any]) -> None:
    folder = save(pooling("mean"))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN, **old}))
    expected = load_reference(folder)[1].pooling_mode
    assert read(folder).pooling_modes == ((expected,) if isinstance(expected, str) else expected)
    assert_same_as_reference(folder)


# --- what follows ---


@pytest.mark.parametrize("name", reading._ACTIVATIONS)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")  # of softmax, in the reference
def test_every_activation(save: Save, name: str) -> None:
    dense = reference_modules.Dense(HIDDEN, 10, activation_function=getattr(torch.nn, name)())
    if name == "PReLU":
        torch.nn.init.constant_(dense.activation_function.weight, 0.7)
    folder = save(pooling("mean"), dense)
    model, head = load_reference(folder), build_head(folder, read(folder), HIDDEN)
    hidden, (attention, _) = torch.randn(4, 9, HIDDEN), make_masks("right", 0)
    torch.testing.assert_close(head(hidden, attention), run_reference(model, hidden, attention))


def test_activations_are_all_that_need_no_arguments() -> None:
    makeable = {"Identity"}
    for name in torch.nn.modules.activation.__all__:
        try:
            getattr(torch.nn, name)()
        except TypeError:
            continue
        makeable.add(name)
    assert set(reading._ACTIVATIONS) == makeable - {"Softmax2d"}  # for images


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"use_residual": True}, {"use_residual": True, "size": 48}])
def test_dense(save: Save, options: dict[str, Any]) -> None:
    size = options.pop("size", 7)
    folder = save(pooling("mean", "cls"), reference_modules.Dense(2 * HIDDEN, size, **options))
    assert_same_as_reference(folder)
    assert read(folder).modules[2].startswith(f"Dense 48->{size} tanh")


def test_dense_without_an_activation_named_has_tanh(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Dense(HIDDEN, 7))
    edit(folder / "2_Dense" / "config.json", activation_function=..., module_input_name=..., module_output_name=...)
    assert_same_as_reference(folder)


def test_modules_on_every_token(save: Save) -> None:
    name = "token_embeddings"
    dense = reference_modules.Dense(HIDDEN, 16, module_input_name=name, activation_function=torch.nn.GELU())
    normalize = reference_modules.Normalize(name)
    folder = save(dense, normalize, reference_modules.Pooling(16, "max"))
    assert_same_as_reference(folder)
    assert read(folder).modules == (
        "Transformer", "Dense 24->16 gelu of every token", "Normalize of every token", "Pooling (max)",
    )  # fmt: skip
    assert not read(folder).normalize


def test_everything_in_one_folder(save: Save) -> None:
    layer_norm = reference_modules.LayerNorm(16)
    torch.nn.init.normal_(layer_norm.norm.weight)
    dense = reference_modules.Dense(2 * HIDDEN, 16, activation_function=torch.nn.Identity())
    modules = (pooling("mean", "cls", include_prompt=False), dense, layer_norm)
    folder = save(*modules, reference_modules.Normalize(), reference_modules.Dropout(0.5))
    assert_same_as_reference(folder)
    config = read(folder)
    assert config.modules == (
        "Transformer", "Pooling (mean + cls, prompt left out)", "Dense 48->16", "LayerNorm 16", "Normalize", "Dropout",
    )  # fmt: skip
    assert config.normalize
    assert json.loads(json.dumps(dataclasses.asdict(config)))["head"][1]["out_features"] == 16


def test_truncate_dim_follows_normalize(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Normalize(), truncate_dim=5)
    assert_same_as_reference(folder)
    assert read(folder).modules[-1] == "Truncate 5"
    assert not read(folder).normalize


# --- the whole model ---


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_encode_with_a_prompt(save: Save, include_prompt: bool, padding_side: str) -> None:
    folder = save(
        pooling("mean", "weightedmean", include_prompt=include_prompt),
        reference_modules.Normalize(),
        prompts={"query": "find the cat :", "other": ""},
        default_prompt_name="query",
    )
    model, config = load_reference(folder), read(folder)
    model.tokenizer.padding_side = padding_side
    features = model.preprocess(TEXTS, prompt=config.prompts["query"])
    mask = features["attention_mask"]
    with torch.no_grad():
        hidden = model[0](dict(features))["token_embeddings"]
    rank = mask.cumsum(dim=1) * mask  # of a token in its text, from 1
    head = build_head(folder, config, HIDDEN)
    actual = head(hidden, mask, mask * (rank > features["prompt_length"]))
    np.testing.assert_allclose(actual, model.encode(TEXTS, show_progress_bar=False), rtol=0, atol=2e-6)
    assert (config.prompts, config.default_prompt_name) == (model.prompts, "query")


def test_similarity_and_prompts_as_in_the_reference(save: Save) -> None:
    folder = save(pooling("mean"), similarity_fn_name="dot")
    assert read(folder).similarity == "dot"
    for saved in ("euclidean", "manhattan", None, "maxsim"):
        edit(folder / "config_sentence_transformers.json", similarity_fn_name=saved, prompts={"query": None, "x": "y "})
        model, config = load_reference(folder), read(folder)
        assert (config.similarity, config.prompts) == (model.similarity_fn_name, model.prompts)
    (folder / "config_sentence_transformers.json").unlink()
    assert read(folder).prompts == load_reference(folder).prompts
    assert read(folder).similarity == "cosine"


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers.models:DeprecationWarning")
def test_folder_of_an_old_release(save: Save) -> None:
    """The files of all-MiniLM-L6-v2, and a transformer in a subfolder as releases before 2 wrote it."""
    folder = save(pooling("mean"))
    (folder / "0_Transformer").mkdir()
    for file in [*folder.glob("*.safetensors"), *folder.glob("[ct]o*.json")]:
        shutil.move(file, folder / "0_Transformer")
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "0_Transformer" / "sentence_roberta_config.json", max_seq_length=12, do_lower_case=True)
    edit(folder / "1_Pooling" / "config.json", embedding_dimension=..., word_embedding_dimension=HIDDEN)
    names = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{name}", "type": f"sentence_transformers.models.{name}"}
        for index, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    config = read(folder)
    assert (config.transformer_path, config.max_seq_length, config.do_lower_case) == ("0_Transformer", 12, True)
    assert config.modules == ("Transformer", "Pooling (mean)", "Normalize")
    assert config.normalize
    model = load_reference(folder)
    assert model.max_seq_length == 12
    assert model.tokenizer("CAT")["input_ids"] == model.tokenizer("cat")["input_ids"]


def test_reference_does_not_strip(save: Save) -> None:
    folder = save(pooling("mean"))
    model = load_reference(folder)
    model.tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.CharDelimiterSplit("|")
    assert model.preprocess(["cat ", "cat"])["input_ids"].tolist() == [[2, 1, 3], [2, 7, 3]]


# --- length ---


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_seq_length": 17},
        {"max_seq_length": 35},
        {"max_seq_length": None},
        {"tokenizer_args": {"model_max_length": 9}},
        {"processor_kwargs": {"model_max_length": 9}, "max_seq_length": 17},
        {"processing_kwargs": {"text": {"max_length": 6}}, "max_seq_length": 17},
        {"processing_kwargs": {"text": {"max_length": 6}, "common": {"max_length": 8}}},
    ],
    ids=str,
)
def test_texts_are_cut_where_the_reference_cuts(save: Save, settings: dict[str, Any]) -> None:
    folder = save(pooling("mean"))
    tokenizer_limit = transformers.AutoTokenizer.from_pretrained(folder).model_max_length
    edit(folder / "sentence_bert_config.json", **settings)
    model = load_reference(folder)
    tokens = model.preprocess(["cat " * 60])["input_ids"].shape[1]
    assert effective_max_length(read(folder), model[0].config, tokenizer_limit) == tokens


@pytest.mark.parametrize("tokenizer_limit", [30, 400, int(1e30)])
def test_without_max_seq_length_the_smaller_limit_counts(
    transformer_folder: Path, tmp_path: Path, tokenizer_limit: int
) -> None:
    folder = shutil.copytree(transformer_folder, tmp_path / "model")
    edit(folder / "tokenizer_config.json", model_max_length=tokenizer_limit)
    model = load_reference(folder)
    assert effective_max_length(None, model[0].config, tokenizer_limit) == model.max_seq_length


def test_length_is_bounded_by_positions(save: Save) -> None:
    folder = save(pooling("mean"))
    edit(folder / "sentence_bert_config.json", max_seq_length=64)
    model = load_reference(folder)
    assert model.max_seq_length == 64  # and fails on a text of 41 tokens
    assert effective_max_length(read(folder), model[0].config, 30) == 40


@pytest.mark.parametrize("kind", ["t5", "xlnet"])
def test_no_limit_at_all(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind)
    assert position_limit(config) is None
    assert effective_max_length(None, config, int(1e30)) == lengths.UNLIMITED_LENGTH


SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 12, "type_vocab_size": 2,
}  # fmt: skip
SPECIAL_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "esm": {"mask_token_id": 5, "position_embedding_type": "absolute"},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 16},
    "lilt": {"channel_shrink_ratio": 2, "hidden_size": 24},
    "longformer": {"attention_window": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "deberta": {"position_biased_input": True},
}
WITHOUT_OFFSET = ("bert", "distilbert", "electra", "albert", "deberta", "deberta-v2")


@pytest.mark.parametrize("kind", [*WITHOUT_OFFSET, *lengths._POSITIONS_AFTER_PADDING])
def test_position_limit_is_where_models_stop_to_work(kind: str) -> None:
    sizes = SIZES | SPECIAL_SIZES.get(kind, {})
    config = transformers.AutoConfig.for_model(kind, pad_token_id=2, **sizes)
    model = transformers.AutoModel.from_config(config).eval()
    limit = position_limit(config)
    assert limit == 12 - (0 if kind in WITHOUT_OFFSET else 2 if kind == "mpnet" else 3)
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 7), attention_mask=torch.ones(1, limit, dtype=torch.int64))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 7), attention_mask=torch.ones(1, limit + 1, dtype=torch.int64))


def test_computed_positions_have_no_limit() -> None:
    for kind, extra in (("modernbert", {}), ("llama", {}), ("esm", {"position_embedding_type": "rotary"})):
        assert position_limit(transformers.AutoConfig.for_model(kind, max_position_embeddings=12, **extra)) is None
    relative = transformers.AutoConfig.for_model("deberta-v2", position_biased_input=False, relative_attention=True)
    assert position_limit(relative) is None


# --- no modules.json ---


def test_plain_transformer_gets_mean_pooling(transformer_folder: Path) -> None:
    assert read_sentence_config(transformer_folder) is None
    model = load_reference(transformer_folder)
    config = default_sentence_config(transformer_folder)
    assert config.pooling_modes == (model[1].pooling_mode,) == ("mean",)
    assert config.prompts == model.prompts
    hidden, (attention, _) = torch.randn(4, 9, HIDDEN), make_masks("right", 0)
    expected = run_reference(model, hidden, attention)
    torch.testing.assert_close(build_head(transformer_folder, None, HIDDEN)(hidden, attention), expected)


def test_plain_causal_model_gets_its_last_token(transformer_folder: Path, tmp_path: Path) -> None:
    edit(tmp_path / "config.json", architectures=["LlamaForCausalLM"])
    assert default_sentence_config(tmp_path).pooling_modes == ("lasttoken",)
    edit(tmp_path / "config.json", is_causal=False)
    assert default_sentence_config(tmp_path).pooling_modes == ("mean",)


# --- ONNX ---


@pytest.mark.parametrize("modes", [("mean",), MODES], ids="+".join)
def test_exports_with_free_batch_and_sequence(save: Save, modes: tuple[str, ...], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    dense = reference_modules.Dense(len(modes) * HIDDEN, 16, use_residual=True)
    folder = save(pooling(*modes, include_prompt=False), dense, reference_modules.LayerNorm(16))
    head = build_head(folder, read(folder), HIDDEN)
    hidden, (attention, pooled) = torch.randn(4, 9, HIDDEN), make_masks("right", 2)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.export.export(head, (hidden, attention, pooled), dynamic_shapes=(axes, axes, axes))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    left = make_masks("left", 1)
    cases = [(hidden, attention, pooled), (hidden, *left), (hidden[:1, :1], attention[:1, :1], attention[:1, :1])]
    empty = left[0].clone()
    empty[2] = 0
    cases += [(hidden, empty, empty * left[1]), (torch.randn(3, 33, HIDDEN), *torch.ones(2, 3, 33, dtype=torch.int64))]
    for inputs in cases:
        feeds = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        (actual,) = session.run(None, feeds)
        np.testing.assert_allclose(actual, head(*inputs).numpy(), rtol=1e-5, atol=1e-6)
        assert np.isfinite(actual).all()


# --- refusals: one sentence that names the file and the value ---


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        build_head(folder, read_sentence_config(folder), HIDDEN, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    "type_name",
    [
        *(f"sentence_transformers.models.{name}" for name in (
            "WeightedLayerPooling", "LSTM", "CNN", "BoW", "WordEmbeddings", "WordWeights", "StaticEmbedding", "Router",
            "Asym", "CLIPModel", "Transformer",
        )),
        "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
        "custom_pooling.Pooling",
        "sentence_transformers_but_not.Pooling",
        "Pooling",
    ],
)  # fmt: skip
def test_other_modules_are_refused_by_name(save: Save, type_name: str) -> None:
    folder = save(pooling("mean"), reference_modules.Normalize())
    edit_module(folder, 2, type=type_name)
    message = refusal(folder)
    assert f"{type_name} (in 2_Normalize) as module 3" in message
    assert message.endswith("supported of sentence_transformers: Transformer, then Pooling, with Dense, LayerNorm, "
                            "Normalize and Dropout")  # fmt: skip


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "C:\\x", "a/../../b", "..\\x"])
def test_paths_stay_in_the_folder(save: Save, path: str) -> None:
    folder = save(pooling("mean"))
    edit_module(folder, 1, path=path)
    assert f"names the path {path!r}, which leaves the model's folder" in refusal(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", "[3]", '[{"type": "x"}]', '[{"name": "0", "path": 1, "type": "x"}]']
)
def test_module_list_of_another_shape(save: Save, content: str) -> None:
    folder = save(pooling("mean"))
    (folder / "modules.json").write_text(content)
    assert "modules.json " in refusal(folder)


def test_two_modules_of_one_name(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Normalize())
    edit_module(folder, 2, name="1")  # sentence-transformers would run only the last of them
    assert "expected a name of its own" in refusal(folder)


def test_order_of_modules(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Normalize())
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], modules[2], modules[1]]))
    assert "'Normalize' on the wrong side of Pooling" in refusal(folder)
    for listed, count in ((modules[::2], 0), ([*modules[:2], modules[1] | {"name": "2"}], 2)):
        (folder / "modules.json").write_text(json.dumps(listed))
        assert f"has {count} Pooling modules" in refusal(folder)
    (folder / "modules.json").write_text(json.dumps(modules[1:]))
    assert "as module 1, which cannot be exported" in refusal(folder)


TRANSFORMER, MODEL, POOLING, DENSE = (
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json",
)  # fmt: skip
BAD_SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"max_seq_length": "many"}, "has max_seq_length = 'many'; expected a whole number of 1 or more"),
    (TRANSFORMER, {"max_seq_length": 0}, "has max_seq_length = 0; expected a whole number of 1 or more"),
    (TRANSFORMER, {"do_lower_case": 1}, "has do_lower_case = 1; expected true or false"),
    (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask'; expected feature-extraction"),
    (TRANSFORMER, {"module_output_name": "x"}, "has module_output_name = 'x'; expected token_embeddings"),
    (TRANSFORMER, {"modality_config": {"image": {}}}, "expected plain text that gives last_hidden_state"),
    (TRANSFORMER, {"query_length": 32}, "has query_length = 32, a setting that cannot be exported"),
    (TRANSFORMER, {"query_expansion": {"length": 3}}, "a setting that cannot be exported"),
    (TRANSFORMER, {"config_kwargs": {"is_causal": False}}, "has is_causal = False, a setting that cannot be exported"),
    (TRANSFORMER, {"tokenizer_args": {"x": 1}}, "has x = 1, a setting that cannot be exported"),
    (TRANSFORMER, {"model_args": 3}, "has model_args = 3; expected a JSON object"),
    (TRANSFORMER, {"processing_kwargs": {"text": {"truncation": False}}}, "has truncation = False; expected true"),
    (TRANSFORMER, {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "has add_special_tokens = False"),
    (MODEL, {"model_type": "CrossEncoder"}, "holds a CrossEncoder; only a SentenceTransformer can be exported"),
    (MODEL, {"default_prompt_name": "x"}, "has default_prompt_name = 'x'; expected one of its prompts (query, doc"),
    (MODEL, {"prompts": {"query": 3}}, "has prompts = {'query': 3}; expected a text for every name"),
    (MODEL, {"truncate_dim": -1}, "has truncate_dim = -1; expected a whole number of 1 or more"),
    (POOLING, {"pooling_mode": "median"}, "has pooling_mode = 'median'; expected one or more of cls, max, mean, "),
    (POOLING, {"pooling_mode": []}, "has pooling_mode = []; expected one or more of"),
    (POOLING, {"pooling_mode": None}, "has pooling_mode = None; expected one or more of"),
    (POOLING, {"embedding_dimension": ...}, "has embedding_dimension = None; expected a whole number from 1 to"),
    (POOLING, {"include_prompt": "no"}, "has include_prompt = 'no'; expected true or false"),
    (POOLING, {"window": 3}, "has window = 3, a setting that cannot be exported"),
    (DENSE, {"activation_function": "os.system"}, "has activation_function = 'os.system'; expected torch.nn. and one"),
    (DENSE, {"activation_function": "torch.nn.Module"}, "has activation_function = 'torch.nn.Module'; expected"),
    (DENSE, {"activation_function": "torch.hub.load"}, "has activation_function = 'torch.hub.load'; expected"),
    (DENSE, {"activation_function": None}, "has activation_function = None; expected torch.nn. and one of"),
    (DENSE, {"in_features": 25}, "is for vectors of size 25; they are of size 24 here"),
    (DENSE, {"out_features": 10**30}, "expected a whole number from 1 to 2147483647"),
    (DENSE, {"out_features": 2**31 - 1}, "do not fit its config.json: expected linear.bias [2147483647], "),
    (DENSE, {"module_input_name": "x"}, "has module_input_name = 'x'; expected sentence_embedding or token_embeddings"),
    (DENSE, {"module_output_name": "x"}, "has module_output_name = 'x'; expected the same as its input"),
    (DENSE, {"module_input_name": "token_embeddings", "module_output_name": None}, "on the wrong side of Pooling"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "changes", "sentence_part"), BAD_SETTINGS, ids=lambda value: str(value)[:60])
def test_settings_that_are_refused(save: Save, file: str, changes: dict[str, Any], sentence_part: str) -> None:
    folder = save(pooling("mean"), reference_modules.Dense(HIDDEN, 8))
    edit(folder / file, **changes)
    assert sentence_part in refusal(folder)


@pytest.mark.parametrize("file", ["modules.json", TRANSFORMER, MODEL, POOLING, DENSE])
@pytest.mark.parametrize("content", ['{"a": ', "\xff", "[" * 100_000], ids=["cut", "not utf-8", "deep"])
def test_broken_json(save: Save, file: str, content: str) -> None:
    folder = save(pooling("mean"), reference_modules.Dense(HIDDEN, 8))
    (folder / file).write_bytes(content.encode("latin-1"))
    message = refusal(folder)
    assert message.startswith(f"{folder / file} is not valid JSON (")
    assert message.endswith("; download the model again")
    (folder / file).write_text('"text"')
    assert str(folder / file) in refusal(folder)


def test_weights_that_are_refused(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Dense(HIDDEN, 8))
    weights, place = folder / "2_Dense" / "model.safetensors", folder / "2_Dense"
    content = weights.read_bytes()
    weights.write_bytes(content[:-7])
    assert f"{weights} is truncated or broken (" in refusal(folder)
    weights.unlink()
    assert refusal(folder) == f"{place} has no model.safetensors; download the model again"
    weights.write_bytes(content)
    edit(place / "config.json", use_residual=True)
    assert "expected linear.bias [8], linear.weight [8, 24], residual.weight [8, 24], found linear.bias" in refusal(
        folder
    )
    edit(place / "config.json", use_residual=True, activation_function="torch.nn.GLU")
    assert "residual.weight" in refusal(folder)


def test_pickle_is_read_only_when_allowed(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Dense(HIDDEN, 8))
    place = folder / "2_Dense"
    expected = build_head(folder, read(folder), HIDDEN).state_dict()
    torch.save(load_reference(folder)[2].state_dict(), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    assert "only as a Python pickle (pytorch_model.bin)" in refusal(folder)
    assert "give --allow-pickle if you trust its author" in refusal(folder)
    actual = build_head(folder, read(folder), HIDDEN, allow_pickle=True).state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    torch.save(Path, place / "pytorch_model.bin")  # a class: code that weights_only refuses to import
    assert "is truncated or broken (" in refusal(folder, allow_pickle=True)


def test_residual_that_does_not_fit_its_activation(save: Save) -> None:
    folder = save(pooling("mean"), reference_modules.Dense(HIDDEN, HIDDEN, use_residual=True))
    edit(folder / "2_Dense" / "config.json", activation_function="torch.nn.GLU")
    assert f"the module in {folder / '2_Dense'} cannot be computed: " in refusal(folder)
