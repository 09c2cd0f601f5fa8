"""runtime/manifest.py: read strictly, written canonically, older schema versions upgraded, nothing else let through."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.runtime import manifest as manifest_module
from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.manifest import (
    SCHEMA_VERSION,
    EmbeddingSettings,
    FileRecord,
    GenerationSettings,
    LabelSettings,
    Manifest,
    MaskSettings,
    SessionSettings,
    Source,
    Tensor,
    TokenizerSettings,
    Variant,
    parse_manifest,
    render_manifest,
)

MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    created="2026-11-24T00:00:00Z",
    source=Source("tiny", "/models/tiny", None, "ab" * 32),
    task="feature-extraction",
    architecture="BertModel",
    tokenizer=TokenizerSettings("tokenizer.json", max_length=32, pad_id=0, padding_side="right", pad_type_id=0),
    embedding=EmbeddingSettings(8, ("Transformer", "Pooling (mean)"), True, "cosine", False, {"query": "Q: "}, None),
    labels=LabelSettings(("negative", "positive"), "softmax"),
    mask=MaskSettings("[MASK]", 4),
    generation=GenerationSettings(1, (2,), (8,), 64, 99, (2,), None, {"temperature": 0.7}, "{{ messages }}", {}),
    inputs=tuple(Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
    outputs=(Tensor("sentence_embedding", "float", ("batch", "8")),),
    files=(FileRecord("tokenizer.json", 3, "cd" * 32), FileRecord("fp32/model.onnx", 5, "ef" * 32)),
    variants=(
        Variant(
            name="fp32",
            precision="fp32",
            target="cpu",
            status="passed",
            model="fp32/model.onnx",
            files=("fp32/model.onnx",),
            size_bytes=5,
            session=SessionSettings(("SkipLayerNormFusion",), {"session.use_env_allocators": "1"}),
            parity_kind="max_abs",
            parity_threshold=1e-4,
            accuracy=80.6,
        ),
    ),
    default_variant="fp32",
    default_reason="the only one — «schnell»",
    machine={"cpu": "any", "cores": 2, "features": ["avx2"]},
    versions={"onnxpress": "0.1.0"},
)
DOCUMENT: dict[str, Any] = json.loads(render_manifest(MANIFEST))


def parse(document: Any) -> Manifest:
    return parse_manifest(json.dumps(document), "bundle/onnxpress.json")


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """DOCUMENT with one value replaced; ... removes its key."""
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return document


def test_a_manifest_survives_the_round_trip() -> None:
    assert parse_manifest(render_manifest(MANIFEST), "") == MANIFEST


def test_equal_manifests_are_written_alike() -> None:
    text = render_manifest(MANIFEST)
    assert render_manifest(parse_manifest(text, "")) == text
    assert "«schnell»" in text
    assert text.endswith("}\n")


def test_keys_with_defaults_may_be_missing() -> None:
    document = changed("variants", 0, "accuracy", to=...)
    assert parse(document).variants[0].accuracy is None


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("colour",), "red", "colour: unknown key"),
        (("source", "colour"), "red", "source.colour: unknown key"),
        (("variants", 0, "colour"), "red", "variants[0].colour: unknown key"),
        (("task",), ..., "task: missing"),
        (("files", 1, "sha256"), ..., "files[1].sha256: missing"),
        (("variants", 0, "session", "config"), "x", "variants[0].session.config: expected an object, got 'x'"),
        (("variants", 0, "session", "config", "a"), 1, "variants[0].session.config.a: expected str, got 1"),
        (("files", 0, "size_bytes"), "3", "files[0].size_bytes: expected int, got '3'"),
        (("files", 0, "size_bytes"), 3.5, "files[0].size_bytes: expected int, got 3.5"),
        (("files", 0, "size_bytes"), True, "files[0].size_bytes: expected int, got True"),
        (("files",), {}, "files: expected a list, got dict"),
        (("files", 0), [], "files[0]: expected an object, got list"),
        (("embedding", "normalized"), 1, "embedding.normalized: expected bool, got 1"),
        (("embedding", "prompts", "query"), None, "embedding.prompts.query: expected str, got None"),
        (("tokenizer",), None, "tokenizer: expected an object, got NoneType"),
        (("variants", 0, "parity_threshold"), "small", "variants[0].parity_threshold: expected float, got 'small'"),
        (("variants", 0, "target"), "tpu", "variants[0].target: expected 'cpu' or 'cuda' or 'tensorrt', got 'tpu'"),
        (("variants", 0, "status"), [], "variants[0].status: expected 'passed' or 'unverified', got list"),
        (("inputs", 0, "shape", 1), 7, "inputs[0].shape[1]: expected str, got 7"),
        (("machine",), [], "machine: expected an object, got list"),
    ],
)
def test_a_bad_value_is_named_with_its_place(path: tuple[Any, ...], value: Any, sentence: str) -> None:
    with pytest.raises(InvalidBundleError) as caught:
        parse(changed(*path, to=value))
    message = str(caught.value)
    assert sentence in message
    assert message.startswith("bundle/onnxpress.json")
    assert "export the bundle again" in message


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("tokenizer", "max_length"), 0, "tokenizer.max_length: expected a number from 1"),
        (("tokenizer", "max_length"), 2**31, "tokenizer.max_length: expected a number from 1"),
        (("tokenizer", "pad_id"), -1, "tokenizer.pad_id"),
        (("tokenizer", "pad_type_id"), 2**70, "tokenizer.pad_type_id"),
        (("mask", "id"), -1, "mask.id"),
        (("embedding", "dimension"), 9, "the last axis of 'sentence_embedding' is '8', expected 9"),
        (("embedding", "default_prompt_name"), "none", "embedding.default_prompt_name: there is no prompt 'none'"),
        (("generation", "layers"), 2, "generation.kv_heads: expected one number for each of 2 layers"),
        (("generation", "kv_heads", 0), 0, "generation.kv_heads"),
        (("generation", "context"), -5, "generation.context"),
        (("generation", "eos_ids", 0), 99, "generation.eos_ids: expected a number from 0 to 98"),
        (("generation", "bos_id"), -1, "generation.bos_id"),
        (("inputs",), [], "inputs: 'input_ids' is missing"),
        (("inputs", 1, "name"), "input_ids", "inputs: a name comes twice"),
        (("inputs", 0, "shape"), ["batch"], "inputs[0].shape: expected at least two axes"),
        (("inputs", 0, "shape", 1), "batch", "the second axis of 'input_ids' is 'batch'"),
        (("outputs", 0, "name"), "logits", "outputs: 'sentence_embedding' is missing"),
        (("variants", 0, "name"), "../../x", "variants[0].name: '../../x' is no name"),
        (("variants", 0, "name"), "", "variants[0].name: '' is no name"),
        (("variants", 0, "model"), "fp32/model.ort", "variants[0].model: expected a name that ends with .onnx"),
        (("variants", 0, "parity_threshold"), 10**400, "not a valid manifest"),
        (("variants", 0, "session", "disabled_optimizers"), ["a/b"], "'a/b' is no name of an optimizer"),
        (("variants", 0, "session", "config"), {"session.use_env_allocators": ""}, "'' is no value of an option"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_place(path: tuple[Any, ...], value: Any, sentence: str) -> None:
    document = changed(*path, to=value)
    if path[-1] == "name" and path[0] == "variants":
        document["default_variant"] = value
    with pytest.raises(InvalidBundleError) as caught:
        parse(document)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "session.collect_node_memory_stats_to_file",
        "session.node_partition_config_file",
        "session.model_external_initializers_file_folder_path",
        "session.optimized_model_external_initializers_file_name",
        "session.load_model_format",
        "ep.context_enable",
        "ep.context_file_path",
        "session.intra_op_thread_affinities",
    ],
)
def test_options_that_name_files_or_belong_to_the_service_are_refused(key: str) -> None:
    with pytest.raises(InvalidBundleError, match=f"'{key}' is no option that a bundle may set"):
        parse(changed("variants", 0, "session", "config", to={key: "/tmp/x"}))


def test_two_variants_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidBundleError, match="'fp32' comes twice"):
        parse(changed("variants", to=DOCUMENT["variants"] * 2))


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"'])
def test_numbers_and_texts_that_no_json_has_are_refused_everywhere(written: str) -> None:
    text = json.dumps(changed("machine", "cores", to="HERE")).replace('"HERE"', written)
    with pytest.raises(InvalidBundleError, match=r"onnxpress\.json is not valid JSON"):
        parse_manifest(text, "onnxpress.json")


def test_a_whole_number_is_a_float_too() -> None:
    threshold = parse(changed("variants", 0, "parity_threshold", to=1)).variants[0].parity_threshold
    assert threshold == 1.0
    assert isinstance(threshold, float)


def test_a_number_that_is_no_float_is_refused() -> None:
    with pytest.raises(InvalidBundleError, match="not a valid manifest"):
        parse(changed("variants", 0, "parity_threshold", to=10**400))


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"a": 1,}', "[" * 100_000, '{"schema_version": 1} x', "\0"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidBundleError, match=r"onnxpress\.json is not valid JSON"):
        parse_manifest(text, "onnxpress.json")


@pytest.mark.parametrize(
    "document", [[], 3, "text", None, {}, *({"schema_version": v} for v in (0, -1, "1", 1.0, True))]
)
def test_what_has_no_schema_version_is_refused(document: Any) -> None:
    with pytest.raises(InvalidBundleError, match="no usable schema_version"):
        parse(document)


def test_a_newer_schema_asks_for_a_newer_onnxpress() -> None:
    document = changed("schema_version", to=SCHEMA_VERSION + 1) | {"tomorrow": 1}
    with pytest.raises(InvalidBundleError, match=f"schema version {SCHEMA_VERSION + 1}, .*upgrade onnxpress"):
        parse(document)


def test_a_bundle_of_the_first_version_is_read() -> None:
    document = changed("schema_version", to=1)
    for key in ("labels", "mask", "generation"):
        del document[key]
    for key in ("padding_side", "pad_type_id"):
        del document["tokenizer"][key]
    assert parse(document) == dataclasses.replace(MANIFEST, labels=None, mask=None, generation=None)


def test_an_older_schema_is_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_job(document: dict[str, Any]) -> dict[str, Any]:
        return {("task" if key == "job" else key): value for key, value in document.items()} | {
            "schema_version": SCHEMA_VERSION + 1
        }

    def add_reason(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"default_reason": "none was kept", "schema_version": SCHEMA_VERSION + 2}

    monkeypatch.setattr(manifest_module, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    upgrades = {SCHEMA_VERSION: rename_job, SCHEMA_VERSION + 1: add_reason}
    monkeypatch.setattr(manifest_module, "UPGRADES", upgrades)
    old = {key: value for key, value in DOCUMENT.items() if key not in ("task", "default_reason")} | {"job": "a task"}
    upgraded = parse(old)
    assert upgraded == dataclasses.replace(
        MANIFEST, schema_version=SCHEMA_VERSION + 2, task="a task", default_reason="none was kept"
    )


def test_an_upgrade_that_meets_a_broken_document_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"task": document["variants"][0]["job"].upper(), "schema_version": SCHEMA_VERSION + 1}

    monkeypatch.setattr(manifest_module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(manifest_module, "UPGRADES", {SCHEMA_VERSION: upgrade})
    for variants in (..., [], 3, [{"job": 5}], [5], DOCUMENT["variants"]):
        with pytest.raises(InvalidBundleError, match="not a valid manifest"):
            parse(changed("variants", to=variants))


def test_every_older_version_has_an_upgrade() -> None:
    assert sorted(manifest_module.UPGRADES) == list(range(1, SCHEMA_VERSION))


def test_the_default_variant_must_be_there() -> None:
    with pytest.raises(InvalidBundleError, match="no variant 'int8'; it has: fp32"):
        parse(changed("default_variant", to="int8"))
    with pytest.raises(InvalidBundleError, match="no variant 'fp32'"):
        parse(changed("variants", to=[]))


def test_a_variant_is_found_by_name_or_is_the_default() -> None:
    assert MANIFEST.variant(None) is MANIFEST.variant("fp32") is MANIFEST.variants[0]
    with pytest.raises(InvalidBundleError, match="no variant 'int4'"):
        MANIFEST.variant("int4")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [found for key, inner in items for found in ((*path, key), *_places(inner, (*path, key)))]


PLACES = _places(DOCUMENT)


def _refused_or_read(read: Callable[[], Manifest]) -> None:
    """Whatever a file says, it is a manifest or an `InvalidBundleError`."""
    try:
        found = read()
    except InvalidBundleError:
        return
    assert isinstance(found.variant(None), Variant)
    for record in found.files:
        assert type(record.size_bytes) is int
        assert type(record.path) is str


@given(st.sampled_from(PLACES), JSON | st.just(...))
@settings(max_examples=300)
def test_any_value_anywhere_is_read_or_refused_in_a_sentence(path: tuple[Any, ...], value: Any) -> None:
    document = changed(*path, to=value)
    _refused_or_read(lambda: parse_manifest(json.dumps(document), "onnxpress.json"))


@given(st.integers(0, len(json.dumps(DOCUMENT)) - 1), st.integers(0, 8), st.text(max_size=3))
@settings(max_examples=200)
def test_any_edit_of_the_text_is_read_or_refused_in_a_sentence(start: int, removed: int, added: str) -> None:
    text = json.dumps(DOCUMENT)
    _refused_or_read(lambda: parse_manifest(text[:start] + added + text[start + removed :], "onnxpress.json"))


@given(JSON)
def test_any_document_is_refused_in_a_sentence(document: Any) -> None:
    with pytest.raises(InvalidBundleError):
        parse(document)
