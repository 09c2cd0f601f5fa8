"""Output that follows a JSON schema, a regular expression, a list of choices or a grammar, through llguidance.

Before each token llguidance says which may come next, so that what is there can always be completed. It works on the
bytes of tokens and knows nothing of the model; how a token is chosen among the allowed ones is in sampling.py.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError, OnnxpressError, UnsupportedModelError

if TYPE_CHECKING:
    import llguidance
    import tokenizers

BoolArray = npt.NDArray[np.bool_]
Kind = Literal["JSON schema", "regular expression", "list of choices", "Lark grammar"]

# Room for indented JSON, and no more: a model that is unsure would otherwise go on with spaces for ever.
_JSON_SPACE = r"[\x20\x0A\x0D\x09]{0,32}"
_LONGEST_GRAMMAR = 1_000_000  # characters
_MOST_KEPT = 32  # compiled grammars
_UNFORCED = '%llguidance {"no_forcing": true}\n'  # see `Constraint._is_misread`


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What an output must be. Made with the functions below; checked by `Grammars.start`, which knows the tokens."""

    kind: Kind
    text: str
    """As llguidance reads it."""


def json_schema(schema: Mapping[str, Any] | str) -> Grammar:
    """JSON that is valid under a schema (2020-12), given as a mapping or as its text.

    Raises:
        InvalidInputError: `schema` is no JSON object. What it says is checked by `Grammars.start`.
    """
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping):
            raise InvalidInputError(f"the JSON schema is of type {type(parsed).__name__}; give an object")
        own = parsed.get("x-guidance", {})
        if not isinstance(own, Mapping):
            raise InvalidInputError(f"the JSON schema's x-guidance is {own!r:.80}; give an object")
        options = {"whitespace_pattern": _JSON_SPACE, **own}
        return _grammar("JSON schema", json.dumps({**parsed, "x-guidance": options}))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"the JSON schema is not JSON: {error}") from error


def json_object() -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> Grammar:
    r"""Text that matches a pattern as a whole, in the syntax of Rust's regex crate: as Python's without look-around and
    references to groups, and with `\d` and `\w` meaning ASCII as in JSON schemas (`\p{L}` is any letter).

    Raises:
        InvalidInputError: `pattern` is not a text.
    """
    return _grammar("regular expression", pattern)


def choice(options: Iterable[str]) -> Grammar:
    """One of some texts.

    Raises:
        InvalidInputError: there are none, or one is not a text or empty.
    """
    if not isinstance(options, Iterable):
        raise InvalidInputError(f"the choices are {options!r:.80}; give a list of texts")
    texts = [options] if isinstance(options, str) else list(options)
    if not texts:
        raise InvalidInputError("the list of choices is empty; give at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise InvalidInputError(f"choice {index} is {text!r}; give a text that is not empty")
    return _grammar("list of choices", "start: " + " | ".join(map(_quoted, texts)))


def lark(text: str) -> Grammar:
    """A context-free grammar in llguidance's form of Lark, whose first rule is `start`.

    Raises:
        InvalidInputError: `text` is not a text.
    """
    return _grammar("Lark grammar", text)


class Grammars:
    """Starts constraints for a model's tokens. Made once for a model; safe to use from many threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_ids: Sequence[int], vocabulary: int) -> None:
        """
        Args:
            tokenizer: of the model.
            eos_ids: tokens that end an answer.
            vocabulary: logits of the model, of which there may be more than tokens.
        """
        self._tokenizer = tokenizer
        self._eos_ids = tuple(eos_ids)
        self._vocabulary = vocabulary
        added = tokenizer.get_added_tokens_decoder()
        special = frozenset(token for token, entry in added.items() if entry.special)
        self._kinds = _Tokens(vocabulary, frozenset(eos_ids), special)
        self._lock = threading.Lock()
        self._tokens: llguidance.LLTokenizer | None = None
        self._compiled: dict[Grammar, llguidance.LLMatcher] = {}

    def start(self, grammar: Grammar) -> Constraint:
        """A constraint for one answer. The first of a model takes up to a second, for llguidance to read its tokens.

        Raises:
            InvalidInputError: the grammar is none, is not valid, or is too complex; or llguidance is not installed.
            UnsupportedModelError: the tokens of the model are not made of bytes.
        """
        matcher = self._matcher(grammar).deep_copy()
        return Constraint(matcher, lambda: self._compile(grammar, _UNFORCED), self._kinds)

    def check(self, grammar: Grammar) -> None:
        """Raises what `start` would, and starts nothing."""
        self._matcher(grammar)

    def _matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        """Kept for further answers, which each take a copy."""
        if not isinstance(grammar, Grammar):
            raise InvalidInputError(
                f"the grammar is of type {type(grammar).__name__}; make one with json_schema, json_object, regex, "
                "choice or lark of onnxpress.runtime.generation.constraints"
            )
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compile(grammar)
            with self._lock:
                if len(self._compiled) >= _MOST_KEPT:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[grammar] = matcher
        return matcher

    def _compile(self, grammar: Grammar, options: str = "") -> llguidance.LLMatcher:
        tokens = self._read_tokens()
        from llguidance import LLMatcher, LLParserLimits, regex_to_lark

        try:
            if grammar.kind == "JSON schema" and not options:  # its errors do not repeat the schema
                source = LLMatcher.grammar_from_json_schema(grammar.text)
            elif grammar.kind == "JSON schema":
                source = LLMatcher.grammar_from_lark(f"{options}start: %json {grammar.text}")
            elif grammar.kind == "regular expression":
                source = LLMatcher.grammar_from_lark(f"{options}start: /{regex_to_lark(grammar.text, 'dw')}/")
            else:
                source = LLMatcher.grammar_from_lark(options + grammar.text)
            matcher = LLMatcher(tokens, source, log_level=0, limits=LLParserLimits(verbose_errors=False))
        except ValueError as error:
            raise InvalidInputError(f"the {grammar.kind} cannot be used: {error}") from error
        if matcher.is_error():
            raise InvalidInputError(f"the {grammar.kind} cannot be used: {_first_lines(matcher.get_error())}")
        return matcher

    def _read_tokens(self) -> llguidance.LLTokenizer:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise InvalidInputError(
                "constrained output needs llguidance, which is not installed; pip install 'onnxpress[generate]'"
            ) from error
        with self._lock:
            if self._tokens is None:
                # Tokenizers may have tokens without logits, as those of text models that share one with others.
                known = max(self._vocabulary, max(self._tokenizer.get_vocab().values(), default=-1) + 1)
                try:
                    eos = list(self._eos_ids) or None
                    self._tokens = LLTokenizer(_exact(self._tokenizer), n_vocab=known, eos_token=eos)
                except ValueError as error:
                    raise UnsupportedModelError(
                        f"output of this model cannot be constrained, because llguidance cannot read its tokens: "
                        f"{str(error)[:200]}"
                    ) from error
            return self._tokens


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """What a constraint knows of a model's tokens."""

    vocabulary: int
    eos_ids: frozenset[int]
    special: frozenset[int]
    """Those that are no text."""


class Constraint:
    """Which tokens may come next in one answer. One thread uses it at a time."""

    def __init__(
        self, matcher: llguidance.LLMatcher, unforced: Callable[[], llguidance.LLMatcher], tokens: _Tokens
    ) -> None:
        self._matcher = matcher
        self._make_unforced: Callable[[], llguidance.LLMatcher] | None = unforced
        self._tokens = tokens
        self._taken: list[int] = []

    def mask(self) -> BoolArray:
        """The tokens that may come next: bool [V]. An end token is among them where the output may end here.

        Raises:
            InvalidInputError: the grammar has become too complex to follow.
        """
        allowed = self._allowed()
        if self._make_unforced is not None and self._is_misread(allowed):
            self._matcher = self._make_unforced()
            self._make_unforced = None
            for token in self._taken:
                self._matcher.consume_token(token)
            allowed = self._allowed()
        return allowed

    def _allowed(self) -> BoolArray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            message = _first_lines(self._matcher.get_error())
            raise InvalidInputError(f"the output cannot be constrained further: {message}")
        return np.unpackbits(bits, count=self._tokens.vocabulary, bitorder="little").view(np.bool_)

    def _is_misread(self, allowed: BoolArray) -> bool:
        """Whether llguidance, where only one text can follow, has taken the spelling of a special token for the token:
        it tokenizes such a text as a whole, and does not accept what it then asks for. Or whether it asks for a token
        that has no logit."""
        only = np.flatnonzero(allowed)
        if not len(only):
            return True
        if len(only) != 1 or int(only[0]) not in self._tokens.special:
            return False
        return int(only[0]) not in self._tokens.eos_ids or not self.may_end()

    def commit(self, token_id: int) -> None:
        """Go on with a token.

        Raises:
            OnnxpressError: the token is not allowed here.
        """
        if self.is_done() and token_id in self._tokens.eos_ids:
            return
        if not self._matcher.consume_token(token_id):
            raise OnnxpressError(f"the token {token_id} is not allowed here by the grammar; choose one that `mask` has")
        self._taken.append(token_id)

    def is_done(self) -> bool:
        """Whether the output is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def may_end(self) -> bool:
        """Whether the output is complete, though more may follow."""
        return bool(self._matcher.is_accepting())


def _quoted(text: str) -> str:
    """As Lark has it, which takes no control characters as they are."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _grammar(kind: Kind, text: str) -> Grammar:
    """
    Raises:
        InvalidInputError: `text` is not a text, or is too long.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"the {kind} is of type {type(text).__name__}; give a str")
    if len(text) > _LONGEST_GRAMMAR:
        raise InvalidInputError(f"the {kind} has {len(text):,} characters; give {_LONGEST_GRAMMAR:,} at most")
    return Grammar(kind, text)


def _exact(tokenizer: tokenizers.Tokenizer) -> str:
    """The tokenizer as JSON, for llguidance, which needs tokens for exactly the text it has: not cut, not padded and
    not normalised. It undoes the changes of SentencePiece tokenizers itself, and not those of byte-level ones."""
    state = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
    if "ByteLevel" in json.dumps(state["decoder"]):
        state["normalizer"] = None
        parts = state["pre_tokenizer"] or {}
        for part in [parts, *parts.get("pretokenizers", ())]:
            if "add_prefix_space" in part:
                part["add_prefix_space"] = False
    return json.dumps(state)


def _first_lines(message: str) -> str:
    """llguidance's sentence, without its state and the whole grammar after it, on one line."""
    lines = [line.strip() for line in message.split("<state>")[0].splitlines()]
    return " ".join(line for line in lines if line)[:300]
