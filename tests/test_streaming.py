"""runtime/generation/streaming.py: pieces of text that are whole characters and together the text of all tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from onnxpress.runtime.generation.streaming import Detokenizer
from tests.text_tokenizers import DECODERS, byte_fallback, byte_level

TEXTS = [
    "the hello he",
    "  the  hello ",
    "😀🎉👩‍👩‍👧‍👦 🏳️‍🌈",
    "我想知道我的订单什么时候能到。",
    "cafe\u0301 n\u0303 Z\u0351\u036b\u0343\u0334",
    "\x00\t\n\r\u2028 \ufffd \U0010ffff",
    "a<s>the</s><tool>é! new 中",
    "",
]
PIECES = st.lists(
    st.one_of(
        st.sampled_from(TEXTS),
        st.text(max_size=8),
        st.lists(st.integers(0, 300), max_size=8),  # bytes that are no text, and tokens that are none
    ),
    max_size=5,
)
ALL = pytest.mark.parametrize("kind", DECODERS)


@functools.cache
def made(kind: str) -> tuple[Tokenizer, Detokenizer]:
    tokenizer = DECODERS[kind]()
    return tokenizer, Detokenizer(tokenizer)


def tokens_of(tokenizer: Tokenizer, pieces: Sequence[str | list[int]]) -> list[int]:
    ids = [
        piece if isinstance(piece, list) else tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces
    ]
    return [token for part in ids for token in part]


def has_long_run(tokenizer: Tokenizer, tokens: Sequence[int]) -> bool:
    """Whether byte tokens follow each other for so long that the first are shown before the last are known."""
    special = tokenizer.get_added_tokens_decoder()
    names = [tokenizer.id_to_token(token) for token in tokens if token not in special]
    return "b" * 64 in "".join("b" if name.startswith("<0x") else " " for name in names if name is not None)


def pieces_of(detokenizer: Detokenizer, tokens: Sequence[int], **options: object) -> list[str]:
    stream = detokenizer.stream(**options)  # type: ignore[arg-type]
    return [*(stream.push(token) for token in tokens), stream.finish()]


@ALL
@example([[94] * 6, "我"], False)  # eight tokens of bytes that are no text, the last in the middle of a character
@given(PIECES, st.booleans())
def test_the_pieces_are_the_text_of_the_whole(kind: str, parts: list[str | list[int]], skip: bool) -> None:
    tokenizer, detokenizer = made(kind)
    tokens = tokens_of(tokenizer, parts)
    assume(not has_long_run(tokenizer, tokens))
    pieces = pieces_of(detokenizer, tokens, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=skip)


@ALL
@given(st.lists(st.sampled_from([*TEXTS, "the", "."]), min_size=1, max_size=3), PIECES)
def test_after_a_prompt_the_text_is_what_it_adds(kind: str, prompt: list[str], parts: list[str | list[int]]) -> None:
    tokenizer, detokenizer = made(kind)
    before, tokens = tokens_of(tokenizer, prompt), tokens_of(tokenizer, parts)
    assume(not has_long_run(tokenizer, before + tokens))
    prompt_text = tokenizer.decode(before, skip_special_tokens=True)
    whole = tokenizer.decode(before + tokens, skip_special_tokens=True)
    # Bytes right after the prompt's can make of its last run what they make of their own.
    if whole.startswith(prompt_text):
        assert "".join(pieces_of(detokenizer, tokens, after=before)) == whole[len(prompt_text) :]


def test_a_space_at_the_start_is_the_prompts_affair() -> None:
    tokenizer = byte_fallback()
    detokenizer = Detokenizer(tokenizer)
    the, hello = tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁hello")
    assert "".join(pieces_of(detokenizer, [hello])) == "hello"
    assert "".join(pieces_of(detokenizer, [hello], after=[the])) == " hello"
    special = tokenizer.token_to_id("</s>")
    assert "".join(pieces_of(detokenizer, [special, special, hello], after=[the, special])) == " hello"


@pytest.mark.parametrize("text", ["中", "😀", "é", "😀中"])
def test_no_piece_is_a_part_of_a_character(text: str) -> None:
    for tokenizer in (byte_level(), byte_fallback()):
        tokens = tokenizer.encode(f"a{text}b{text}", add_special_tokens=False).ids
        pieces = pieces_of(Detokenizer(tokenizer), tokens)
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == f"a{text}b{text}"


def test_byte_level_characters_come_with_their_last_byte() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("a 轭b", add_special_tokens=False).ids
    assert len(tokens) == 5
    pieces = pieces_of(Detokenizer(tokenizer), tokens)
    assert pieces == ["a", " ", "", "轭", "b", ""]


def test_an_incomplete_character_at_the_end_is_a_replacement() -> None:
    for tokenizer in (byte_level(), byte_fallback()):
        tokens = tokenizer.encode("a中", add_special_tokens=False).ids
        tokens = [*tokens[:1], *tokenizer.encode("😀", add_special_tokens=False).ids[:1]]
        assert pieces_of(Detokenizer(tokenizer), tokens)[-1] == "\ufffd"


def test_words_are_not_held_back() -> None:
    tokenizer = byte_fallback()
    tokens = tokenizer.encode("the hello.", add_special_tokens=False).ids
    tokens = [tokenizer.token_to_id(token) for token in ("▁the", "▁hello", ".")]
    assert pieces_of(Detokenizer(tokenizer), tokens) == ["the", " hello", ".", ""]


def test_a_long_run_of_byte_tokens_is_not_held_back_for_ever() -> None:
    text = "ሰላምለዓለምሁሉ" * 20  # no space, and every character of three byte tokens
    tokenizer = byte_fallback()
    tokens = list(text.encode())
    pieces = pieces_of(Detokenizer(tokenizer), tokens)
    assert "".join(pieces) == text == tokenizer.decode(tokens)
    quiet, longest = 0, 0
    for piece in pieces:
        quiet = 0 if piece else quiet + 1
        longest = max(longest, quiet)
    assert longest <= 64


def test_a_prompt_that_ends_with_a_long_run_does_not_spoil_what_follows() -> None:
    tokenizer = byte_fallback()
    before, tokens = list(("ሰላምለዓለምሁሉ" * 9).encode()), list("ሰላ".encode())
    assert "".join(pieces_of(Detokenizer(tokenizer), tokens, after=before)) == "ሰላ"


def test_special_tokens_are_shown_where_wanted() -> None:
    for tokenizer in (byte_level(), byte_fallback()):
        end, letter = tokenizer.token_to_id("</s>"), tokenizer.token_to_id("a")
        detokenizer = Detokenizer(tokenizer)
        assert "".join(pieces_of(detokenizer, [letter, end, letter])) == "aa"
        assert "".join(pieces_of(detokenizer, [letter, end, letter], skip_special_tokens=False)) == "a</s>a"


def test_tokens_beyond_the_vocabulary_have_no_text() -> None:
    for kind in DECODERS:
        tokenizer, detokenizer = made(kind)
        assert "".join(pieces_of(detokenizer, [10**6, 0, 10**6])) == tokenizer.decode([10**6, 0, 10**6])


def test_streams_of_one_tokenizer_do_not_mix() -> None:
    detokenizer = Detokenizer(byte_level())
    first, second = detokenizer.stream(), detokenizer.stream()
    tokens = byte_level().encode("😀", add_special_tokens=False).ids
    shown = ["", ""]
    for token in tokens:
        shown[0] += first.push(token)
        shown[1] += second.push(token)
    assert shown == ["😀", "😀"]


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind.startswith(("byte", "Metaspace"))])
def test_tokens_by_themselves_are_together_the_text(kind: str) -> None:
    tokenizer, detokenizer = made(kind)
    known = [token for token in range(tokenizer.get_vocab_size()) if detokenizer.token_text(token).raw is not None]
    first = tokens_of(tokenizer, ["the"])
    raws = {token: detokenizer.token_text(token).raw or b"" for token in known}
    # No parts of characters: decoders differ in what becomes of them.
    characters = [
        token for token in known if raws[token] and raws[token].decode(errors="ignore").encode() == raws[token]
    ]
    assert len(characters) > 2
    for start in range(0, len(characters), 7):
        tokens = characters[start : start + 7]
        text = tokenizer.decode([*first, *tokens], skip_special_tokens=False)[len(tokenizer.decode(first)) :]
        assert b"".join(raws[token] for token in tokens).decode() == text


def test_a_special_token_has_a_name_and_no_text() -> None:
    tokenizer, detokenizer = made("byte-level")
    assert detokenizer.token_text(tokenizer.token_to_id("</s>")) == ("</s>", None)
    assert detokenizer.token_text(tokenizer.token_to_id("ðŁĺ")) == ("ðŁĺ", "😀".encode()[:3])
    assert detokenizer.token_text(tokenizer.get_vocab_size() + 5).raw is None
