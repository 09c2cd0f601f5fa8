"""Answers that stand in a text: the task `question-answering`, extractive. It marks answers, it does not write any.

Texts become windows of tokens here, and logits become answers in `spans.py`. Both follow the question-answering
pipeline of transformers 4.57, `answer`'s defaults too; see `spans.py` for the scores. Of a model that reads the context
first (padding on the left) the question is masked like any question; the pipeline forgets to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

import numpy as np

from onnxpress.runtime.errors import InvalidInputError, require_whole
from onnxpress.runtime.tasks.base import TaskModel, listed
from onnxpress.runtime.tasks.spans import Answer, Window, best_answers, widen_to_words
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps

if TYPE_CHECKING:
    import tokenizers

WINDOW_TOKENS = 384
"""Tokens of a window unless told otherwise, where the model reads as many."""
STRIDE = 128
"""Tokens that neighbouring windows share unless told otherwise, half a window at most."""


class _Options(TypedDict, total=False):
    """What the signatures of `Reader.answer` have in common; its docstring says what each is."""

    max_answer_tokens: int
    stride: int | None
    window_tokens: int | None
    allow_no_answer: bool
    align_to_words: bool
    most_tokens: int | None


class Reader(TaskModel):
    """An extractive question answering model."""

    # A str is an iterable of str too, hence the two complaints that are ignored: the first signature that fits counts.
    @overload
    def answer(  # type: ignore[overload-overlap]
        self, question: str, context: str, *, top_k: None = ..., **options: Unpack[_Options]
    ) -> Answer: ...

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, question: str, context: str, *, top_k: int, **options: Unpack[_Options]
    ) -> list[Answer]: ...

    @overload
    def answer(
        self, question: Iterable[str], context: str | Iterable[str], *, top_k: None = ..., **options: Unpack[_Options]
    ) -> list[Answer]: ...

    @overload
    def answer(
        self, question: Iterable[str], context: str | Iterable[str], *, top_k: int, **options: Unpack[_Options]
    ) -> list[list[Answer]]: ...

    @in_steps
    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        top_k: int | None = None,
        max_answer_tokens: int = 15,
        stride: int | None = None,
        window_tokens: int | None = None,
        allow_no_answer: bool = False,
        align_to_words: bool = True,
        most_tokens: int | None = None,
    ) -> Steps[Answer | list[Answer] | list[list[Answer]]]:
        """Find the answers to questions in their contexts.

        Args:
            question: one question or any number of them.
            context: the text to search; of several questions a text for each, or one text for all.
            top_k: None gives the best answer, a number a list of at most so many, best first.
            max_answer_tokens: how long an answer may be, before it is widened to words.
            stride: tokens that neighbouring windows of a long context share; None for 128, at most half a window.
                None also halves it for a question that leaves no more room than that beside it.
            window_tokens: tokens read at once, question and special tokens included; None for 384, at most what the
                model reads.
            allow_no_answer: the empty answer competes: text "", start and end 0. For models trained to say so.
            align_to_words: widen answers to the words that their ends lie in. For scripts without spaces between words
                False is mostly better.
            most_tokens: of all windows of all contexts together; with more it is an error, before they are made. None
                for no limit.

        Returns:
            an `Answer`; with `top_k` a list of them; for several questions a list of either, in their order.

        Raises:
            InvalidInputError: a text is empty or unusable, a question leaves no room for its context, there are not as
                many contexts as questions, a number cannot be used, or there is more to read than `most_tokens`.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        reading = _Reading(self._window_tokens(window_tokens), self._context_first, stride, align_to_words)
        wanted = 1 if top_k is None else top_k
        require_whole("top_k", wanted)
        require_whole("max_answer_tokens", max_answer_tokens)
        require_whole("most_tokens", most_tokens, or_none=True)
        pairs = _pairs(question, context)
        encodings = self._encode(pairs, reading, most_tokens)
        windows = [[_window(encoding, reading) for encoding in of_pair] for of_pair in encodings]
        _check_readable(pairs, windows)
        # All windows of all pairs at once, so that they share batches.
        rows = iter((yield Work([encoding for of_pair in encodings for encoding in of_pair])))
        answers = [
            best_answers(
                text,
                of_pair,
                [(row["start_logits"], row["end_logits"]) for row in islice(rows, len(of_pair))],
                top_k=wanted,
                max_answer_tokens=max_answer_tokens,
                allow_no_answer=allow_no_answer,
                # As in the pipeline: different spans may be widened to the same words, so more are needed.
                candidates=2 * wanted + 10 if align_to_words else wanted,
            )
            for (_, text), of_pair in zip(pairs, windows, strict=True)
        ]
        if top_k is None:
            best = [answers_of_pair[0] for answers_of_pair in answers]
            return best[0] if isinstance(question, str) else best
        return answers[0] if isinstance(question, str) else answers

    @property
    def _context_first(self) -> bool:
        return self.tokenizer.settings.padding_side == "left"

    def _window_tokens(self, given: int | None) -> int:
        most = self.tokenizer.settings.max_length
        if given is None:
            return min(most, WINDOW_TOKENS)
        require_whole("window_tokens", given)
        if given > most:
            raise InvalidInputError(f"window_tokens is {given}, the model reads {most} at most; give no more than that")
        return given

    def _encode(
        self, pairs: Sequence[tuple[str, str]], reading: _Reading, most_tokens: int | None
    ) -> list[list[tokenizers.Encoding]]:
        """The windows of each pair of question and context, at least one."""
        rooms = self._rooms([question for question, _ in pairs], reading.window_tokens)
        strides = [_fitting(reading.stride, room) for room in rooms]
        steps = [room - stride for room, stride in zip(rooms, strides, strict=True)]
        if most_tokens is not None:
            self._check_size([context for _, context in pairs], rooms, steps, reading.window_tokens, most_tokens)
        found: list[list[tokenizers.Encoding]] = [[] for _ in pairs]
        for stride in sorted(set(strides)):  # nearly always one
            indices = [index for index, other in enumerate(strides) if other == stride]
            texts = [pairs[index][::-1] if reading.context_first else pairs[index] for index in indices]
            encodings = self.tokenizer.encode(texts, reading.cut, stride, reading.window_tokens)
            for index, encoding in zip(indices, encodings, strict=True):
                found[index] = [encoding, *encoding.overflowing]
                if len(found[index]) > 1 and reading.given_stride not in (None, stride):
                    raise InvalidInputError(
                        f"stride is {reading.given_stride}, but question {index} leaves {rooms[index]} of a window's "
                        f"{reading.window_tokens} tokens for its context; give a stride below {rooms[index]}, or None"
                    )
        return found

    def _check_size(
        self, contexts: Sequence[str], rooms: Sequence[int], steps: Sequence[int], window_tokens: int, most: int
    ) -> None:
        """Refuse what would become too many windows: a long question leaves each little room, and a long context then
        becomes many times as long.

        Args:
            contexts: the texts.
            rooms: tokens of each that fit into a window.
            steps: tokens between the beginnings of its windows.
            window_tokens: of a window at most.
            most: tokens of all windows together.
        """

        def tokens(lengths: Iterable[int]) -> int:
            # A window holds at most `room` of a context, and beside it the question and special tokens.
            return sum(
                length + window_tokens - room if length <= room else window_tokens * (1 - (room - length) // step)
                for length, room, step in zip(lengths, rooms, steps, strict=True)
            )

        # Mostly a character is no more than a token, so that nothing need be counted.
        if tokens(map(len, contexts)) <= most:
            return
        alone = self.tokenizer.backend.num_special_tokens_to_add(False)
        different = list(dict.fromkeys(contexts))
        length_of = {
            context: sum(len(window) - alone for window in (encoding, *encoding.overflowing))
            for context, encoding in zip(different, self.tokenizer.encode(different, stride=0), strict=True)
        }
        lengths = [length_of[context] for context in contexts]
        if (found := tokens(lengths)) > most:
            raise InvalidInputError(
                f"the contexts have {sum(lengths):,} tokens and would be read as {found:,}, in windows that share some "
                f"and hold the question too; {most:,} are allowed. Send less at once, shorten the questions, or give a "
                "smaller stride"
            )

    def _rooms(self, questions: Sequence[str], window_tokens: int) -> list[int]:
        """How many tokens of the context fit into a window beside each question."""
        backend = self.tokenizer.backend
        alone, both = backend.num_special_tokens_to_add(False), backend.num_special_tokens_to_add(True)
        rooms = []
        for index, encoding in enumerate(self.tokenizer.encode(questions)):
            # A question that was cut here is as long as the model reads, and so leaves no room either.
            taken = len(encoding) - alone
            rooms.append(window_tokens - both - taken)
            if rooms[-1] < 1:
                most = self.tokenizer.settings.max_length
                more = f", or give more window_tokens, up to {most}" if window_tokens < most else ""
                raise InvalidInputError(
                    f"question {index} has at least {taken} tokens, which leaves none of a window's {window_tokens} "
                    f"for its context; shorten it{more}"
                )
        return rooms


class _Reading:
    """How contexts are cut into windows, and how windows are read."""

    def __init__(self, window_tokens: int, context_first: bool, stride: int | None, align_to_words: bool) -> None:
        if stride is not None:
            require_whole("stride", stride, least=0)
            if stride >= window_tokens:
                raise InvalidInputError(
                    f"stride is {stride}, a window has {window_tokens} tokens; give a smaller stride"
                )
        self.window_tokens = window_tokens
        self.context_first = context_first
        self.cut: Literal["only_first", "only_second"] = "only_first" if context_first else "only_second"
        self.given_stride = stride
        self.stride = min(window_tokens // 2, STRIDE) if stride is None else stride
        self.align_to_words = align_to_words


def _window(encoding: tokenizers.Encoding, reading: _Reading) -> Window:
    """What `spans.py` needs to know of a window."""
    part = 0 if reading.context_first else 1
    in_context = np.array([sequence == part for sequence in encoding.sequence_ids], np.bool_)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)  # [sequence, 2], also of no tokens
    starts, ends = offsets[:, 0], offsets[:, 1]
    if reading.align_to_words:
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
        # Words of the question have the same numbers as words of the context.
        starts, ends = widen_to_words(starts, ends, np.where(in_context, words, -1))
    return Window(in_context, starts, ends, has_null=encoding.special_tokens_mask[:1] == [1])


def _check_readable(pairs: Sequence[tuple[str, str]], windows: Sequence[Sequence[Window]]) -> None:
    """Refuse contexts without tokens, such as white space: they hold no answer that could be returned."""
    for index, ((_, text), of_pair) in enumerate(zip(pairs, windows, strict=True)):
        if not any(window.readable for window in of_pair):
            raise InvalidInputError(
                f"context {index} has nothing the model can read: {text[:40]!r}; give a text with words"
            )


def _fitting(stride: int, room: int) -> int:
    """The stride, halved until windows with room for so many tokens of the context move on.

    Halved and not made just small enough: the tokenizer is copied for each stride.
    """
    while stride >= room:
        stride //= 2
    return stride


def _pairs(question: str | Iterable[str], context: str | Iterable[str]) -> list[tuple[str, str]]:
    """Questions and contexts, side by side."""
    if isinstance(question, str) and not isinstance(context, str):
        raise InvalidInputError(
            "one question needs one context, a str; to ask several contexts give a question for each"
        )
    questions = [question] if isinstance(question, str) else listed("question", question)
    contexts = [context] * len(questions) if isinstance(context, str) else listed("context", context)
    if len(questions) != len(contexts):
        raise InvalidInputError(
            f"there are {len(questions)} questions and {len(contexts)} contexts; give a context for each question, "
            "or one str for all"
        )
    for kind, texts in (("question", questions), ("context", contexts)):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidInputError(f"{kind} {index} is of type {type(text).__name__}; give a str")
            if not text:
                raise InvalidInputError(f"{kind} {index} is empty; give a text")
    return list(zip(questions, contexts, strict=True))
