"""Token scores to entities, the results of transformers' TokenClassificationPipeline (5.24): pure functions.

A text's tokens become words (strategies first, average, max), tokens or words get labels, neighbours of one label
become an entity, and entities that several windows of a long text found are merged. Knows nothing of graphs and
batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from onnxpress.runtime.encoder import FloatArray
from onnxpress.runtime.tasks.scores import softmax

if TYPE_CHECKING:
    import tokenizers

Strategy = Literal["none", "simple", "first", "average", "max"]
"""none: each token by itself. The others make entities of neighbours with one label: of tokens (simple), or of words,
where a word has the label of its first token (first), of its surest token (max) or of its mean scores (average)."""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """A labelled piece of a text."""

    label: str
    """Without `B-` and `I-`, except with the strategy none."""
    score: float
    """Probability of the label: of the token, or the mean over the tokens or words of the entity."""
    word: str
    """The tokens put together by the tokenizer; it may be lower-cased, for example. `text` is what was written."""
    text: str
    """The characters from `start` to `end` of the input."""
    start: int
    end: int
    index: int | None = None
    """Place among the text's tokens, special tokens counted. Only with the strategy none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """What must be known of a tokenizer to make words of its tokens."""

    token: Callable[[int], str]
    """Token of an id."""
    join: Callable[[list[str]], str]
    """Tokens to text."""
    unknown_id: int | None
    marks_subwords: bool
    """A token that continues a word begins with a mark (WordPiece's `##`)."""

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Vocabulary:
        """Read from a tokenizer."""
        decoder, model = backend.decoder, backend.model
        # Byte-level BPE needs no unknown token, and Unigram does not tell its own.
        names = [getattr(model, "unk_token", None), "<unk>", "[UNK]"]
        ids = (backend.token_to_id(name) for name in names if name)
        return cls(
            token=backend.id_to_token,
            join=" ".join if decoder is None else decoder.decode,
            unknown_id=next((identity for identity in ids if identity is not None), None),
            marks_subwords=bool(getattr(model, "continuing_subword_prefix", None)),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token that is not special, with what the model says of it."""

    word: str
    scores: FloatArray
    """Probabilities [labels]."""
    best: int
    """The most probable label; the first of equal ones."""
    score: np.float32
    """Its probability."""
    start: int
    end: int
    index: int
    continues_word: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Labelled:
    """A token or word, its label chosen."""

    label: str
    score: np.float32
    word: str
    start: int
    end: int


def read_tokens(text: str, encoding: tokenizers.Encoding, logits: FloatArray, vocabulary: Vocabulary) -> list[Token]:
    """The tokens of a window, special ones left out.

    Args:
        text: the whole text.
        encoding: the window, with offsets into the text.
        logits: float32 [sequence, labels].
        vocabulary: of the tokenizer that made the encoding.
    """
    scores = softmax(logits)
    best, highest = scores.argmax(axis=-1).tolist(), scores.max(axis=-1)
    ids, offsets, special = encoding.ids, encoding.offsets, encoding.special_tokens_mask
    tokens = []
    for index, (identity, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
        if special[index]:
            continue
        word = vocabulary.token(identity)
        if identity == vocabulary.unknown_id:
            word, continues = text[start:end], False
        elif vocabulary.marks_subwords:
            # The mark makes the token longer than what it stands for.
            continues = len(word) != end - start
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        tokens.append(Token(word, scores[index], best[index], highest[index], start, end, index, continues))
    return tokens


def find_entities(
    text: str,
    tokens: Sequence[Token],
    strategy: Strategy,
    labels: Sequence[str],
    ignored: Collection[str],
    vocabulary: Vocabulary,
) -> list[Entity]:
    """Entities among the tokens of one window.

    Args:
        text: the whole text.
        tokens: of the window.
        strategy: see `Strategy`.
        labels: names in the order of the scores.
        ignored: labels of entities that are left out.
        vocabulary: of the tokenizer.
    """
    if strategy == "none":
        return [_entity_of_token(text, token, labels) for token in tokens if labels[token.best] not in ignored]
    groups = _group(_label(tokens, strategy, labels, vocabulary))
    return [_entity_of_group(text, group, vocabulary) for group in groups if _kind(group[0].label) not in ignored]


def merge_overlapping(entities: Iterable[Entity]) -> list[Entity]:
    """Of entities of several windows that overlap, the longest; of equally long ones, the surest; else the first.

    Entities without characters overlap nothing, so each window's is kept, as in the pipeline: it compares the first
    entity with itself too, and so gives it twice if it is of that kind.
    """
    ordered = sorted(entities, key=lambda entity: entity.start)
    if not ordered:
        return []
    merged = []
    last = ordered[0]
    for entity in ordered:
        if last.start <= entity.start < last.end:
            if _rank(entity) > _rank(last):
                last = entity
        else:
            merged.append(last)
            last = entity
    return [*merged, last]


def take_each_once(windows: Sequence[Sequence[Token]], shared: int) -> list[Token]:
    """Tokens of a whole text out of its windows, each from the window that shows most on the token's narrower side; the
    earlier of two that show as much.

    Args:
        windows: in the order of the text.
        shared: tokens that neighbouring windows have in common.

    Returns:
        the tokens, `index` counted over the whole text.
    """
    chosen: list[Token] = []
    contexts: list[int] = []
    start = 0
    for window in windows:
        for offset, token in enumerate(window):
            context = min(offset, len(window) - 1 - offset)
            position = start + offset
            if position == len(chosen):
                chosen.append(token)
                contexts.append(context)
            elif context > contexts[position]:
                chosen[position], contexts[position] = token, context
        start += len(window) - shared
    first = windows[0][0].index if chosen else 0
    return [dataclasses.replace(token, index=first + position) for position, token in enumerate(chosen)]


def _rank(entity: Entity) -> tuple[int, float]:
    return entity.end - entity.start, entity.score


def _entity_of_token(text: str, token: Token, labels: Sequence[str]) -> Entity:
    start, end = token.start, token.end
    return Entity(labels[token.best], float(token.score), token.word, text[start:end], start, end, token.index)


def _label(
    tokens: Sequence[Token], strategy: Strategy, labels: Sequence[str], vocabulary: Vocabulary
) -> list[_Labelled]:
    """Tokens (simple) or words (the others) with their labels."""
    if strategy == "simple":
        return [_Labelled(labels[token.best], token.score, token.word, token.start, token.end) for token in tokens]
    labelled = []
    for word in _words(tokens):
        scores = _word_scores(word, strategy)
        joined = vocabulary.join([token.word for token in word])
        labelled.append(_Labelled(labels[int(scores.argmax())], scores.max(), joined, word[0].start, word[-1].end))
    return labelled


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    """Tokens that continue a word, together with those before them; the first one begins a word in any case."""
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues_word:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word_scores(word: Sequence[Token], strategy: Strategy) -> FloatArray:
    """Scores [labels] that stand for a word."""
    if strategy == "first":
        return word[0].scores
    if strategy == "max":
        return max(word, key=lambda token: token.score).scores
    mean: FloatArray = np.mean([token.scores for token in word], axis=0)
    return mean


def _group(items: Iterable[_Labelled]) -> list[list[_Labelled]]:
    """Neighbours with one tag. `B-` begins a group; a label without a prefix continues one, as `I-` does."""
    groups: list[list[_Labelled]] = []
    for item in items:
        begins, tag = _split_tag(item.label)
        if groups and not begins and tag == _split_tag(groups[-1][-1].label)[1]:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _split_tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the label without `B-` or `I-`."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _kind(label: str) -> str:
    """An entity's label. What stands before the first hyphen is dropped whatever it is, as in the pipeline."""
    return label.split("-", 1)[-1]


def _entity_of_group(text: str, group: Sequence[_Labelled], vocabulary: Vocabulary) -> Entity:
    start, end = group[0].start, group[-1].end
    return Entity(
        label=_kind(group[0].label),
        score=float(np.mean([item.score for item in group])),
        word=vocabulary.join([item.word for item in group]),
        text=text[start:end],
        start=start,
        end=end,
    )
