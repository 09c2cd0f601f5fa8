"""runtime/tokenizer.py: texts that are token ids already, and pairs of texts that are too long together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

import onnxpress
from onnxpress.runtime import tokenizer as module
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TokenizerSettings
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.token_sequences import Cut, PackedTokens, Side, TokenSequence
from onnxpress.runtime.tokenizer import Tokenizer
from tests import tokenizer_styles as styles
from tests.served_models import make_bundle

STYLES: dict[str, Callable[[], transformers.PreTrainedTokenizerFast]] = {
    "bert": styles.wordpiece,
    "roberta": styles.byte_level,
    "unigram": styles.unigram,
    "xlnet": styles.xlnet,
    "t5": styles.t5,
    "qwen": styles.qwen,
}
MOST = 12
CUTS: tuple[Cut, ...] = ("longest_first", "only_first", "only_second")
SIDES: tuple[Side, ...] = ("left", "right")
WORDS = st.text("the cat dog 订é .", max_size=40)


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(style: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    STYLES[style]().backend_tokenizer.save(str(path))
    return Tokenizer(path, TokenizerSettings(path.name, MOST, 0))


def outcome(encode: Callable[[], list[Any]]) -> Any:
    try:
        return [(one.ids, one.type_ids) for one in encode()]
    except InvalidInputError as error:
        return str(error)


@given(st.tuples(WORDS, WORDS), st.sampled_from(CUTS), st.sampled_from(SIDES))
def test_pairs_are_cut_as_the_library_cuts_them(made: Tokenizer, pair: tuple[str, str], cut: Cut, side: Side) -> None:
    library = outcome(lambda: made._encode([pair], (cut, 0, MOST, side), None))
    short = outcome(lambda: made.encode([pair], cut, side=side))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LONG_PAIR", 0)
        ours = outcome(lambda: made.encode([pair], cut, side=side))
    assert ours == library
    assert short == library


def test_long_pairs_are_cut_without_windows_of_what_is_cut_off(made: Tokenizer) -> None:
    # The library would make a window of each part of one text with each part of the other: 10 GB of them.
    long = "cat dog " * 20_000
    (found,) = made.encode([(long, long)])
    assert len(found) == MOST
    (second,) = made.encode([(long, "the cat")], "only_first")
    assert len(second) == MOST


def test_what_must_not_be_cut_is_refused(made: Tokenizer) -> None:
    assert len(made.encode(["the cat", ("the", "cat")], None)) == 2
    with pytest.raises(InvalidInputError, match=r"text 1 has \d+ tokens and the model reads \d+ beside special ones"):
        made.encode(["the", "cat dog " * 20], None)
    with pytest.raises(InvalidInputError, match=r"pair 0 has \d+ tokens"):
        made.encode([("the", "cat dog " * 20)], None)


@given(WORDS.filter(str.strip))
def test_ids_of_a_text_are_read_as_the_text(made: Tokenizer, text: str) -> None:
    (expected,) = made.encode([text])
    whole = made._backend(None)
    for special in (False, True):
        ids = whole.encode(text, add_special_tokens=special).ids
        if ids:
            (found,) = made.encode_ids([ids])
            assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], "token sequence 1 is empty"),
        ([-1], "has -1; token ids are whole numbers from 0"),
        ([True], "has True; token ids"),
        ([1.0], r"has 1\.0; token ids"),
        (["a"], "has 'a'; token ids"),
        ([[1]], r"has \[1\]; token ids"),
        ([2**32], "has 4294967296; token ids"),
        ([2**31], "has the id 2147483648, which the model's tokenizer does not know; it has"),
    ],
)
def test_ids_that_are_none_are_refused(made: Tokenizer, ids: list[Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        made.encode_ids([[1], ids])


def test_many_texts_are_packed_in_chunks(made: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Any] = [f"the cat {'dog ' * (number % 9)}" for number in range(23)]
    whole, most, encode = made.encode(texts), 0, made.encode

    def counted(part: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal most
        most = max(most, len(part))
        return encode(part, *arguments, **options)

    monkeypatch.setattr(module, "_CHUNK", 5)
    monkeypatch.setattr(made, "encode", counted)
    packed = made.encode_packed(texts)
    assert most == 5
    assert [([*one.ids], [*one.type_ids]) for one in packed] == [(one.ids, one.type_ids) for one in whole]
    with pytest.raises(InvalidInputError, match="text 12 is of type int"):
        made.encode_packed([*texts[:12], 12, *texts])


@pytest.mark.parametrize("number", [2**31, 2**32 - 1])
def test_whatever_number_a_tokenizer_gives_is_packed(made: Tokenizer, number: int) -> None:
    packed = PackedTokens(TokenSequence([number, 1], [0, number]))
    assert ([*packed.ids], [*packed.type_ids]) == ([number, 1], [0, number])


def test_text_is_cut_where_the_tokenizer_cuts(tmp_path: Path) -> None:
    backend = styles.wordpiece().backend_tokenizer
    document = json.loads(backend.to_str())
    document["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", TokenizerSettings("tokenizer.json", 5, 0))
    text = "the cat is not my dog"
    ids = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_ids([ids])[0].ids == tokenizer.encode([text])[0].ids
    assert tokenizer.encode_ids([ids])[0].ids[1:-1] == ids[-3:]


def test_tokens_are_embedded_as_their_texts(tmp_path: Path) -> None:
    with contextlib.closing(
        onnxpress.load(make_bundle(tmp_path / "b", "feature-extraction"), threads=1, task="feature-extraction")
    ) as model:
        texts = ["my order", "was not sent " * 60]
        ids = [model.tokenizer._backend(None).encode(text, add_special_tokens=False).ids for text in texts]
        expected = model.embed(texts)
        assert model.embed_tokens(ids) == pytest.approx(expected, abs=1e-6)
        assert model.embed_tokens(tuple(one) for one in ids) == pytest.approx(expected, abs=1e-6)
        assert model.embed_tokens([]).shape == (0, expected.shape[1])
        with BatchingRunner(model) as runner:
            assert runner.embed_tokens(ids) == pytest.approx(expected, abs=1e-6)


def test_documents_are_ranked_by_logits_where_that_is_asked_for(tmp_path: Path) -> None:
    model = onnxpress.load(make_bundle(tmp_path / "b", "text-ranking", scale=100.0), threads=1, task="text-ranking")
    documents = ["cat", "dog", "my order", "was not sent"]
    logits = {one.index: one.score for one in model.rank("order", documents, function="identity")}
    assert max(map(abs, logits.values())) > 20  # a sigmoid makes 1 of some
    ranked = model.rank("order", documents)
    assert [one.index for one in ranked] == sorted(logits, key=lambda index: -logits[index])
    assert [one.score for one in ranked] == [one.score for one in model.rank("order", documents, function="sigmoid")]
    assert all(0 <= one.score <= 1 for one in ranked)
    with pytest.raises(InvalidInputError, match="function is 'softmax'; give identity, sigmoid or None"):
        model.rank("order", documents, function="softmax")
    with pytest.raises(InvalidInputError, match="side is 'top'; give left, right or None"):
        model.rank("order", documents, side="top")  # type: ignore[arg-type]
    model.close()


def test_what_a_long_question_makes_of_a_long_context_is_counted_first(tmp_path: Path) -> None:
    model = onnxpress.load(make_bundle(tmp_path / "b", "question-answering"), threads=1, task="question-answering")
    question, context = "where is my order", "the cat is not my dog " * 40
    windows = model.tokenizer.encode([(question, context)], "only_second", 32, 64)[0]
    tokens = sum(len(window) for window in (windows, *windows.overflowing))
    found = model.answer(question, context, stride=32)
    assert model.answer(question, context, stride=32, most_tokens=tokens + 64) == found
    with pytest.raises(InvalidInputError, match=r"the contexts have 240 tokens and would be read as \d+, in windows"):
        model.answer(question, context, stride=32, most_tokens=tokens - 64)
    # Short ones are not taken for whole windows.
    assert len(model.answer(["a"] * 20, ["b"] * 20, most_tokens=20 * 5)) == 20
    with pytest.raises(InvalidInputError, match="most_tokens is 0"):
        model.answer("a", "b", most_tokens=0)
    model.close()


def test_tagging_counts_while_it_reads(tmp_path: Path) -> None:
    model = onnxpress.load(make_bundle(tmp_path / "b", "token-classification"), threads=1, task="token-classification")
    texts = ["ada was in london " * 40, "", "my cat", "ada " * 100]
    windows = [window for one in model.tokenizer.encode(texts, stride=15) for window in (one, *one.overflowing)]
    tokens = sum(map(len, windows))
    assert model.tag(texts, most_tokens=tokens) == model.tag(texts)
    assert model.tag(texts, most_tokens=100_000) == model.tag(texts)
    assert model.tag([], most_tokens=1) == []
    with pytest.raises(InvalidInputError, match=f"more than {tokens - 1} tokens together"):
        model.tag(texts, most_tokens=tokens - 1)
    with pytest.raises(InvalidInputError, match="more than 10 tokens together"):
        model.tag(texts, most_tokens=10)
    model.close()
