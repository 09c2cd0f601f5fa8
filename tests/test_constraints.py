"""runtime/generation/constraints.py: whatever the model wants, the output follows the schema, pattern or grammar."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from onnxpress.runtime.errors import InvalidInputError, OnnxpressError, UnsupportedModelError
from onnxpress.runtime.generation.constraints import Grammar, Grammars, choice, json_object, json_schema, lark, regex
from onnxpress.runtime.generation.sampling import Sampler, Sampling
from tests.text_tokenizers import DECODERS, byte_fallback, byte_level

MOST_TOKENS = 400
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"byte-level": byte_level, "byte fallback": byte_fallback}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue é"]}, "minItems": 1, "maxItems": 3},
        "score": {"type": ["number", "null"]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@functools.cache
def grammars(kind: str) -> tuple[Tokenizer, Grammars]:
    tokenizer = TOKENIZERS[kind]()
    padded = tokenizer.get_vocab_size() + 5  # models often have more logits than tokens
    return tokenizer, Grammars(tokenizer, [tokenizer.token_to_id("</s>")], padded)


def write(kind: str, grammar: Grammar, seed: int, liked: str = '"}]') -> str:
    """What a model with random logits writes, which likes `liked`, so that it comes to an end."""
    tokenizer, made = grammars(kind)
    end = tokenizer.token_to_id("</s>")
    vocabulary = tokenizer.get_vocab_size() + 5
    constraint = made.start(grammar)
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), guide=constraint)
    random = np.random.default_rng(seed)
    favour = np.zeros(vocabulary, np.float32)
    favour[[end, *tokenizer.encode(liked).ids]] = 6
    tokens: list[int] = []
    for _ in range(MOST_TOKENS):
        if constraint.is_done():
            break
        logits = random.standard_normal(vocabulary).astype(np.float32) * 2 + favour
        tokens.append(sampler.next(logits).token_id)
        if tokens[-1] == end:
            break
    else:
        pytest.fail(f"no end after {MOST_TOKENS} tokens: {tokenizer.decode(tokens)!r}")
    assert constraint.may_end()
    text: str = tokenizer.decode([*tokens], skip_special_tokens=True)
    return text


def is_person(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(PERSON["required"]) <= value.keys() <= set(PERSON["properties"])
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 150
        and 1 <= len(value["tags"]) <= 3
        and set(value["tags"]) <= {"red", "blue é"}
        and (value.get("score") is None or isinstance(value["score"], (int, float)))
    )


KINDS = pytest.mark.parametrize("kind", TOKENIZERS)


@KINDS
def test_json_follows_its_schema(kind: str) -> None:
    for seed in range(15):
        assert is_person(json.loads(write(kind, json_schema(PERSON), seed)))


@KINDS
def test_a_schema_may_be_given_as_text(kind: str) -> None:
    assert is_person(json.loads(write(kind, json_schema(json.dumps(PERSON)), 0)))


@KINDS
def test_a_json_object_is_one(kind: str) -> None:
    for seed in range(15):
        assert isinstance(json.loads(write(kind, json_object(), seed)), dict)


def test_a_recursive_schema_is_followed() -> None:
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"leaf": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["leaf"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
    for seed in range(5):
        value = json.loads(write("byte-level", json_schema(tree), seed))
        while value is not None:
            assert isinstance(value["leaf"], bool)
            value = value.get("next")


@KINDS
@pytest.mark.parametrize(
    "pattern",
    [r"a+b?", r"\d{4}-\d{2}-\d{2}", r"(yes|no), (the|中é)!", r"[^\n]{0,20}", r"😀{2,3}", r"", r"x*y/z\"?", r"\w+ \S\s"],
)
def test_text_matches_its_pattern(kind: str, pattern: str) -> None:
    for seed in range(5):
        text = write(kind, regex(pattern), seed)
        assert re.fullmatch(pattern, text), text


@KINDS
def test_one_of_the_choices_is_taken(kind: str) -> None:
    options = ["the", "the hello", 'a "quote"', "new\nline", "back\\slash", "/é/", "😀"]
    seen = {write(kind, choice(options), seed) for seed in range(60)}
    assert seen <= set(options)
    assert len(seen) >= 4


def test_a_grammar_is_followed() -> None:
    sums = lark('start: number (" + " number)*\nnumber: /[0-9]{1,3}/')
    for seed in range(10):
        assert re.fullmatch(r"\d{1,3}( \+ \d{1,3})*", write("byte-level", sums, seed))


def test_a_mask_has_a_place_for_each_logit_and_allows_no_token_twice() -> None:
    tokenizer, made = grammars("byte-level")
    constraint = made.start(regex("ab"))
    mask = constraint.mask()
    assert (mask.shape, mask.dtype) == ((tokenizer.get_vocab_size() + 5,), np.bool_)
    assert np.flatnonzero(mask).tolist() == [tokenizer.token_to_id("a")]
    assert not constraint.may_end()
    constraint.commit(tokenizer.token_to_id("a"))
    assert np.flatnonzero(constraint.mask()).tolist() == [tokenizer.token_to_id("b")]
    constraint.commit(tokenizer.token_to_id("b"))
    assert constraint.is_done()
    assert np.flatnonzero(constraint.mask()).tolist() == [tokenizer.token_to_id("</s>")]
    constraint.commit(tokenizer.token_to_id("</s>"))


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    tokenizer, made = grammars("byte-level")
    with pytest.raises(OnnxpressError, match="not allowed here by the grammar"):
        made.start(regex("ab")).commit(tokenizer.token_to_id("b"))


def test_each_answer_has_its_own_place_in_a_grammar() -> None:
    tokenizer, made = grammars("byte-level")
    first, second = made.start(regex("ab")), made.start(regex("ab"))
    first.commit(tokenizer.token_to_id("a"))
    assert np.flatnonzero(second.mask()).tolist() == [tokenizer.token_to_id("a")]


def tokenizer_with(base: Callable[[], Tokenizer], **parts: Any) -> Tokenizer:
    tokenizer = base()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        tokenizer_with(byte_level, normalizer=normalizers.NFC()),
        tokenizer_with(byte_level, normalizer=normalizers.Lowercase()),
        tokenizer_with(byte_level, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        tokenizer_with(byte_fallback, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
        tokenizer_with(
            byte_fallback,
            normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        ),
    ],
    ids=["NFC", "lower case", "a space before", "Metaspace", "SentencePiece"],
)
def test_a_tokenizer_that_changes_texts_writes_them_unchanged(tokenizer: Tokenizer) -> None:
    text = "The É e\u0301 the {Hello}"
    constraint = Grammars(tokenizer, [tokenizer.token_to_id("</s>")], tokenizer.get_vocab_size()).start(choice([text]))
    tokens: list[int] = []
    while not constraint.is_done():
        tokens.append(int(constraint.mask().argmax()))
        constraint.commit(tokens[-1])
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("grammar", [choice(["hello <image>"]), json_schema({"const": "hello <image>"})])
def test_tokens_without_logits_are_never_asked_for(kind: str, grammar: Grammar) -> None:
    tokenizer = TOKENIZERS[kind]()
    vocabulary = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["hello"])
    tokenizer.add_special_tokens(["<image>"])
    constraint = Grammars(tokenizer, [tokenizer.token_to_id("</s>")], vocabulary).start(grammar)
    tokens: list[int] = []
    while not constraint.is_done():
        allowed = constraint.mask()
        assert len(allowed) == vocabulary
        assert allowed.any()
        tokens.append(int(allowed.argmax()))
        constraint.commit(tokens[-1])
    assert tokenizer.decode(tokens).strip('"') == "hello <image>"


def test_several_end_tokens_may_all_end_an_answer() -> None:
    tokenizer = byte_level()
    ends = [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<s>")]
    constraint = Grammars(tokenizer, ends, tokenizer.get_vocab_size()).start(regex("a*"))
    assert constraint.mask()[ends].all()


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (json_schema({"type": "objekt"}), "the JSON schema cannot be used: Invalid type: objekt"),
        (json_schema({"type": "string", "pattern": "("}), "the JSON schema cannot be used: .*unclosed group"),
        (
            json_schema({"type": "array", "uniqueItems": True}),
            r"cannot be used: Unimplemented keys: \[\"uniqueItems\"\]",
        ),
        (json_schema({"type": "integer", "minimum": 5, "maximum": 1}), "Unsatisfiable schema"),
        (json_schema({"$ref": "#/nowhere"}), "Pointer '/nowhere' does not exist"),
        (json_schema({"$ref": "http://example.com/x"}), "does not fetch resources"),
        (regex("a("), "the regular expression cannot be used: .*unclosed group"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (lark('start: "a" other'), 'the Lark grammar cannot be used: .*unknown name: "other"'),
        (lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "too deeply nested"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(grammar: Grammar, message: str) -> None:
    _, made = grammars("byte-level")
    with pytest.raises(InvalidInputError, match=message) as caught:
        made.start(grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: json_schema("{"), "the JSON schema is not JSON"),
        (lambda: json_schema("[1]"), "the JSON schema is of type list; give an object"),
        (lambda: json_schema({"const": {1, 2}}), "the JSON schema is not JSON"),
        (lambda: json_schema({"x-guidance": 5}), "the JSON schema's x-guidance is 5; give an object"),
        (lambda: regex(5), "the regular expression is of type int; give a str"),  # type: ignore[arg-type]
        (lambda: regex("a" * 1_000_001), "the regular expression has 1,000,001 characters"),
        (lambda: choice([]), "the list of choices is empty"),
        (lambda: choice(5), "the choices are 5; give a list of texts"),  # type: ignore[arg-type]
        (lambda: choice(["a", ""]), "choice 1 is ''"),
        (lambda: choice(["a", 3]), "choice 1 is 3"),  # type: ignore[list-item]
    ],
)
def test_what_is_no_grammar_is_refused_at_once(make: Callable[[], Grammar], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("grammar", "form"),
    [
        (choice(["<s>"]), "<s>"),
        (choice(["a\x7fb"]), "a\x7fb"),
        (regex("[0-9]<s>[0-9]"), "[0-9]<s>[0-9]"),
        (regex("<s>[0-9]{3}</s>"), "<s>[0-9]{3}</s>"),
        (json_schema({"const": "</s>"}), '"</s>"'),
    ],
)
def test_a_text_may_have_the_spelling_of_a_special_token(kind: str, grammar: Grammar, form: str) -> None:
    assert re.fullmatch(form, write(kind, grammar, 0))


def test_a_grammar_may_ask_for_a_special_token() -> None:
    tokenizer, made = grammars("byte-level")
    constraint = made.start(lark('start: "a" <s> "b"'))
    for token in ("a", "<s>", "b"):
        assert np.flatnonzero(constraint.mask()).tolist() == [tokenizer.token_to_id(token)]
        constraint.commit(tokenizer.token_to_id(token))


def test_a_tokenizer_without_bytes_is_refused_by_name() -> None:
    tokenizer = DECODERS["WordPiece"]()
    with pytest.raises(UnsupportedModelError, match=r"llguidance cannot read its tokens: .*WordPiece"):
        Grammars(tokenizer, [0], tokenizer.get_vocab_size()).start(json_object())


def test_without_llguidance_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer = byte_level()
    with pytest.raises(InvalidInputError, match=r"pip install 'onnxpress\[generate\]'"):
        Grammars(tokenizer, [0], tokenizer.get_vocab_size()).start(json_object())


def test_a_model_that_likes_spaces_still_comes_to_an_end() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for seed in range(5):
        text = write("byte-level", json_schema(schema), seed, liked=" \n")
        assert isinstance(json.loads(text)["a"], bool)
        assert len(text) > 40
