"""Texts to entities: the task `token-classification`. Long texts are read in overlapping windows, to their end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, overload

from onnxpress.runtime.encoder import Encoder
from onnxpress.runtime.errors import InvalidInputError, require_whole
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tasks.base import TaskModel, listed, texts_only
from onnxpress.runtime.tasks.entities import (
    STRATEGIES,
    Entity,
    Strategy,
    Token,
    Vocabulary,
    find_entities,
    merge_overlapping,
    read_tokens,
    take_each_once,
)
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps
from onnxpress.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


class Tagger(TaskModel):
    """A token classifier: named entities, parts of speech."""

    needs = "labels"

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        assert settings.labels is not None
        self.labels = settings.labels
        self._vocabulary = Vocabulary.of(tokenizer.backend)
        special: int = tokenizer.backend.num_special_tokens_to_add(False)
        self._window_tokens = tokenizer.settings.max_length - special

    # A str is an iterable of str too: the first signature that fits counts.
    @overload
    def tag(  # type: ignore[overload-overlap]
        self,
        texts: str,
        *,
        strategy: Strategy = ...,
        ignore_labels: Sequence[str] = ...,
        stride: int | None = ...,
        most_tokens: int | None = ...,
    ) -> list[Entity]: ...

    @overload
    def tag(
        self,
        texts: Iterable[str],
        *,
        strategy: Strategy = ...,
        ignore_labels: Sequence[str] = ...,
        stride: int | None = ...,
        most_tokens: int | None = ...,
    ) -> list[list[Entity]]: ...

    @in_steps
    def tag(
        self,
        texts: str | Iterable[str],
        *,
        strategy: Strategy = "simple",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        most_tokens: int | None = None,
    ) -> Steps[list[Entity] | list[list[Entity]]]:
        """Find entities, as transformers' pipeline does with the same `aggregation_strategy` and `stride`.

        Args:
            texts: one text or any number of them, of any length up to `MAX_TEXT_CHARACTERS`.
            strategy: `none` for each token by itself, `simple` for neighbouring tokens with one label; `first`,
                `average` and `max` give all tokens of a word one label first (see `entities.Strategy`). Where the
                tokenizer does not mark how words go on, whatever stands between two spaces is a word.
            ignore_labels: labels to leave out; for entities without `B-` and `I-`.
            stride: tokens that neighbouring windows of a long text have in common; a quarter of a window if None.
            most_tokens: of all windows of all texts together; with more it is an error, before all are made. None for
                no limit.

        Returns:
            the entities of a text in its order; for more texts than one, a list of them for each. With the strategy
            none, a token that is in several windows is taken from the one that shows most around it.

        Raises:
            InvalidInputError: an item is not a text, there is no such strategy or stride, or there is more to read
                than `most_tokens`.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        items = texts_only(texts)
        if strategy not in STRATEGIES:
            raise InvalidInputError(f"the strategy is {strategy!r}; give one of {', '.join(STRATEGIES)}")
        if isinstance(ignore_labels, str):
            raise InvalidInputError(f"ignore_labels is {ignore_labels!r}; give a list of labels: [{ignore_labels!r}]")
        shared = self._shared_tokens(stride)
        require_whole("most_tokens", most_tokens, or_none=True)
        read = yield from self._read(items, shared, most_tokens)
        results = [
            self._entities(text, windows, strategy, ignore_labels, shared)
            for text, windows in zip(items, read, strict=True)
        ]
        return results[0] if isinstance(texts, str) else results

    @in_steps
    def label_words(self, sentences: Sequence[Sequence[str]]) -> Steps[list[list[str]]]:
        """One label for each word of sentences that are split already, as seqeval compares them.

        The words are read as a text, joined with one space. A word has the label of the first token that holds one of
        its characters; a word without a token (the tokenizer may drop control characters, for example) is `O`, or the
        model's first label where it has no `O`.

        Raises:
            InvalidInputError: a sentence is a str instead of a sequence of words, or a word is not a str.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        sentences = listed("sentences", sentences, "a list of lists of words")
        for number, sentence in enumerate(sentences):
            if (
                not isinstance(sentence, Iterable)
                or isinstance(sentence, str)
                or not all(isinstance(word, str) for word in sentence)
            ):
                raise InvalidInputError(f"sentence {number} is {sentence!r:.80}; give a list of words, each a str")
        shared = self._shared_tokens(None)
        texts = [" ".join(sentence) for sentence in sentences]
        read = yield from self._read(texts, shared)
        return [
            self._labels_of_words(sentence, self._tokens(windows, shared))
            for sentence, windows in zip(sentences, read, strict=True)
        ]

    def _shared_tokens(self, stride: int | None) -> int:
        if stride is None:
            return self._window_tokens // 4
        if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride < self._window_tokens:
            raise InvalidInputError(
                f"stride is {stride!r}; give a whole number from 0 to {self._window_tokens - 1}: a window of this "
                f"model holds {self._window_tokens} tokens beside the special ones"
            )
        return stride

    def _read(
        self, texts: Sequence[str], shared: int, most_tokens: int | None = None
    ) -> Steps[list[list[list[Token]]]]:
        """Tokens with scores: for each text, for each of its windows. A window without tokens is left out."""
        windows = [
            (number, window)
            for number, encoding in enumerate(self._encode(texts, shared, most_tokens))
            for window in (encoding, *encoding.overflowing)
            if not all(window.special_tokens_mask)
        ]
        outputs = yield Work([window for _, window in windows])
        read: list[list[list[Token]]] = [[] for _ in texts]
        for (number, window), output in zip(windows, outputs, strict=True):
            read[number].append(read_tokens(texts[number], window, output["logits"], self._vocabulary))
        return read

    def _encode(self, texts: Sequence[str], shared: int, most_tokens: int | None) -> list[tokenizers.Encoding]:
        """The texts with all their windows; some at a time, so that not all are made of what is too much."""
        if most_tokens is None:
            return self.tokenizer.encode(texts, stride=shared)
        self.tokenizer.check(texts)
        made: list[tokenizers.Encoding] = []
        tokens = start = characters = 0
        for end, text in enumerate(texts, 1):
            characters += len(text)
            if characters < most_tokens and end < len(texts):
                continue
            encodings = self.tokenizer.encode(texts[start:end], stride=shared)
            tokens += sum(len(window) for one in encodings for window in (one, *one.overflowing))
            if tokens > most_tokens:
                raise InvalidInputError(
                    f"the texts have more than {most_tokens:,} tokens together, in windows that share some; no more "
                    "are allowed, so send fewer at once"
                )
            made += encodings
            start, characters = end, 0
        return made

    def _entities(
        self, text: str, windows: Sequence[list[Token]], strategy: Strategy, ignored: Sequence[str], shared: int
    ) -> list[Entity]:
        if strategy == "none":
            windows = [self._tokens(windows, shared)]
        found = [
            find_entities(text, window, strategy, self.labels.names, ignored, self._vocabulary) for window in windows
        ]
        if len(found) == 1:
            return found[0]
        return merge_overlapping(entity for entities in found for entity in entities)

    def _tokens(self, windows: Sequence[list[Token]], shared: int) -> list[Token]:
        """All tokens of a text, each once."""
        # A tokenizer that cuts on the left gives the windows from the end of the text on.
        backwards = self.tokenizer.backend.truncation["direction"] == "left"
        return take_each_once(windows[::-1] if backwards else windows, shared)

    def _labels_of_words(self, words: Sequence[str], tokens: Sequence[Token]) -> list[str]:
        names = self.labels.names
        fallback = "O" if "O" in names else names[0]
        labels = []
        start = position = 0
        for word in words:
            end = start + len(word)
            while position < len(tokens) and tokens[position].end <= start:
                position += 1
            has_token = position < len(tokens) and tokens[position].start < end
            labels.append(names[tokens[position].best] if has_token else fallback)
            start = end + 1
        return labels
