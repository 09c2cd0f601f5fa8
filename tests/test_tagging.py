"""Token classification against transformers' own pipeline, with the same PyTorch model behind both."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from onnxpress.runtime.encoder import Encoder, Feeds, FloatArray
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import LabelSettings, TaskSettings, Tensor, TokenizerSettings
from onnxpress.runtime.tasks.entities import STRATEGIES, Entity, Strategy, merge_overlapping
from onnxpress.runtime.tasks.tagging import Tagger
from onnxpress.runtime.tokenizer import Tokenizer
from tests import tokenizer_styles
from tests.models import POSITIONS, VOCABULARY, bert_config, make_tokenizer

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "I-MISC", "well-known", "B-well-known")
SENTENCES = (
    "the order was not sent where is my parcel",
    "my cat is not the dog, the dog was sent.",
    "where is the cats parcel? not ordered",
)
AWKWARD = (
    "",
    " ",
    "   \t ",
    "\n",
    "the order was not sent",
    "The Order Was NOT sent",
    "  my  cat ,is    not... the dog",
    "\r\nthe\r\n\r\n  cat\nwas\tsent\r",
    "订单没有寄出",
    "where is 我的包裹 the parcel",
    "🙂",
    "the 🙂🙂 cat👍🏽sent",
    "👨‍👩‍👧‍👦 dog 🏳️‍🌈",
    "cafe\u0301 o\u0308rder e\u0301\u0323\u0302 \u0301",
    "ÀÉÎ ﬁnd ﷺ ½ ™",
    "?!?!...,,,;;--((cat))",
    "das Straße İstanbul ǅ",
    "שלום עולם",
    "zero\u200bwidth\u00a0space \ufeffbom \x07bell",
    "[UNK] <unk> [CLS] </s> ##s ▁the Ġcat",
    "http://www.example.com/order?id=1#my-parcel",
)
LONG = (
    " ".join(SENTENCES * 3),
    "订单没有寄出，我的包裹在哪里？" * 5,
    "the cat🙂 👨‍👩‍👧 cafe\u0301s" * 4,
    "parcel" * 40,
    "  " * 40 + "cat",
)


def word_piece() -> transformers.PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def no_decoder() -> transformers.PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.decoder = None
    return tokenizer


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """As RoBERTa's."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return _wrap(backend)


def byte_level_with_prefix() -> transformers.PreTrainedTokenizerFast:
    """With a space before the text, so that tokens without characters occur, and cut on the left."""
    tokenizer = byte_level()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.truncation_side = "left"
    return tokenizer


def unigram() -> transformers.PreTrainedTokenizerFast:
    """As XLM-R's."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        SENTENCES * 3,
        trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _wrap(backend)


def _wrap(backend: tokenizers.Tokenizer) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=POSITIONS,
    )


KINDS: dict[str, Callable[[], transformers.PreTrainedTokenizerFast]] = {
    "word_piece": word_piece,
    "no_decoder": no_decoder,
    "byte_level": byte_level,
    "byte_level_with_prefix": byte_level_with_prefix,
    "unigram": unigram,
    "deberta_v2": tokenizer_styles.deberta_v2,
}


class FunctionGraph:
    """Computes each row by itself with a function from token ids [sequence] to logits [sequence, labels]."""

    workers = 1

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        self.compute = compute

    def plan(self, lengths: Iterable[int]) -> list[list[int]]:
        return [[index] for index, _ in enumerate(lengths)]

    def run(self, feeds: Feeds, alone: bool) -> list[FloatArray]:
        assert feeds["attention_mask"].all()
        return [np.stack([self.compute(row) for row in feeds["input_ids"]]).astype(np.float32)]


def make_tagger(
    folder: Path,
    tokenizer: transformers.PreTrainedTokenizerFast,
    compute: Callable[[np.ndarray], np.ndarray],
    labels: tuple[str, ...] = LABELS,
    max_length: int = POSITIONS,
) -> Tagger:
    tokenizer.backend_tokenizer.enable_truncation(max_length, direction=tokenizer.truncation_side)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    padding = TokenizerSettings("tokenizer.json", max_length, tokenizer.pad_token_id, "right", 0)
    inputs = [Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    outputs = [Tensor("logits", "float32", ("batch", "sequence", str(len(labels))))]
    return Tagger(
        Encoder(FunctionGraph(compute), padding, inputs, outputs),
        Tokenizer(folder / "tokenizer.json", padding),
        TaskSettings("token-classification", padding, None, LabelSettings(labels, "softmax"), None),
    )


@dataclasses.dataclass
class Pair:
    """A model behind transformers' pipeline and behind a Tagger."""

    pipeline: transformers.TokenClassificationPipeline
    tagger: Tagger


@pytest.fixture(scope="module", params=itertools.product(KINDS, ("sharp", "ties")), ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    kind, logits = request.param
    torch.manual_seed(1)
    tokenizer = KINDS[kind]()
    size = max(tokenizer.get_vocab().values()) + 1
    model = transformers.BertForTokenClassification(
        bert_config(vocab_size=size, id2label=dict(enumerate(LABELS)))
    ).eval()
    with torch.no_grad():  # so that every label is somewhere the best
        model.classifier.bias -= model(torch.randint(size, (20, POSITIONS))).logits.mean(dim=(0, 1))
    if logits == "ties":  # few different values: ties between labels, tokens and windows
        model.classifier.register_forward_hook(lambda module, inputs, output: output.round())

    def compute(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.as_tensor(ids)[None]).logits[0].numpy()

    pipeline = transformers.TokenClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    return Pair(pipeline, make_tagger(tmp_path_factory.mktemp(kind), tokenizer, compute))


def of_pipeline(pipeline: Any, text: str, strategy: Strategy, **options: Any) -> list[Entity]:
    """The pipeline's result in our form."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        found = pipeline(text, aggregation_strategy=strategy, **options)
    return [
        Entity(
            label=entity["entity" if strategy == "none" else "entity_group"],
            score=float(entity["score"]),
            word=entity["word"],
            text=text[entity["start"] : entity["end"]],
            start=entity["start"],
            end=entity["end"],
            index=entity.get("index"),
        )
        for entity in found
    ]


def about(entities: Iterable[Entity]) -> list[Entity]:
    """With scores that allow for the rounding of a padded batch."""
    return [dataclasses.replace(entity, score=pytest.approx(entity.score, abs=1e-5)) for entity in entities]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_exactly_those_of_the_pipeline(pair: Pair, strategy: Strategy) -> None:
    found = pair.tagger.tag(AWKWARD, strategy=strategy)

    assert found == [of_pipeline(pair.pipeline, text, strategy) for text in AWKWARD]
    labels = {entity.label for entities in found for entity in entities}
    assert len(labels) > 2


@pytest.mark.parametrize("stride", [0, 9, 40])
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_long_texts_give_the_entities_of_the_pipeline_with_the_same_stride(
    pair: Pair, strategy: Strategy, stride: int
) -> None:
    found = pair.tagger.tag(LONG, strategy=strategy, stride=stride)

    for text, entities in zip(LONG, found, strict=True):
        assert about(entities) == of_pipeline(pair.pipeline, text, strategy, stride=stride)


def test_a_quarter_of_a_window_is_shared_unless_told_otherwise(pair: Pair) -> None:
    assert pair.tagger.tag(LONG[0]) == pair.tagger.tag(LONG[0], stride=(POSITIONS - 2) // 4)
    assert pair.tagger.tag(LONG[0]) != pair.tagger.tag(LONG[0], stride=0)


@pytest.mark.parametrize("ignored", [(), ("PER", "LOC"), ("O", "known", "MISC"), ("B-PER",)])
def test_ignored_labels_are_those_of_the_result(pair: Pair, ignored: tuple[str, ...]) -> None:
    for text, strategy in itertools.product(AWKWARD[4:12], ("none", "simple")):
        expected = of_pipeline(pair.pipeline, text, strategy, ignore_labels=list(ignored))
        assert pair.tagger.tag(text, strategy=strategy, ignore_labels=ignored) == expected


SPANS = st.lists(
    st.builds(
        lambda start, length, score: Entity("X", score, "", "", start, start + length),
        st.integers(0, 9),
        st.integers(0, 4),
        st.sampled_from([0.5, 0.75]),
    ),
    max_size=12,
)


@given(entities=SPANS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_overlapping_entities_are_merged_as_the_pipeline_does(entities: list[Entity]) -> None:
    merge = transformers.TokenClassificationPipeline.aggregate_overlapping_entities

    expected = merge(None, [dataclasses.asdict(entity) for entity in entities])

    assert [dataclasses.asdict(entity) for entity in merge_overlapping(entities)] == expected


CHARACTERS = st.one_of(st.characters(codec="utf-8"), st.sampled_from("the cat \r\n.,'é\u0301\u200d🙂👩字"))


@given(text=st.text(CHARACTERS, max_size=20), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_text_gives_the_entities_of_the_pipeline_with_right_offsets(
    pair: Pair, text: str, strategy: Strategy
) -> None:
    assume(len(pair.pipeline.tokenizer(text).input_ids) <= POSITIONS)  # the pipeline does not read on
    found = pair.tagger.tag(text, strategy=strategy, ignore_labels=())

    for entity in found:
        assert 0 <= entity.start <= entity.end <= len(text)
        assert entity.text == text[entity.start : entity.end]
    assert found == of_pipeline(pair.pipeline, text, strategy, ignore_labels=[])


def context(ids: np.ndarray) -> np.ndarray:
    """Logits [sequence, 2] that tell how many tokens of the window are on the narrower side of each."""
    place = np.arange(len(ids)) - 1  # one special token before, one after
    narrower = np.minimum(place, len(ids) - 3 - place)
    return np.stack([np.zeros(len(ids)), narrower], axis=1)


@pytest.mark.parametrize("stride", [0, 1, 4, 7, 9])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["word_piece", "byte_level", "unigram"])
@pytest.mark.parametrize("text", [SENTENCES[0], "中文🙂 the cat e\u0301" * 3, "cat"], ids=["words", "signs", "word"])
def test_strategy_none_gives_every_token_once_from_the_window_that_shows_most_around_it(
    tmp_path: Path, kind: str, side: str, stride: int, text: str
) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.truncation_side = side
    whole = tokenizer.backend_tokenizer.encode(text)
    tagger = make_tagger(tmp_path, tokenizer, context, ("O", "X"), max_length=12)

    found = tagger.tag(text, strategy="none", ignore_labels=(), stride=stride)

    assert [entity.index for entity in found] == list(range(1, len(whole) - 1))
    assert [(entity.start, entity.end) for entity in found] == whole.offsets[1:-1]
    expected = [
        most_context(place, len(whole) - 2, 10, stride, tokenizer.truncation_side) for place in range(len(found))
    ]
    shown = [np.log(entity.score / (1 - entity.score)) for entity in found]
    assert shown == pytest.approx([abs(value) for value in expected], abs=1e-2)


def test_of_windows_that_show_as_much_around_a_token_the_earlier_is_taken(tmp_path: Path) -> None:
    def first_letter(ids: np.ndarray) -> np.ndarray:
        return np.eye(len(VOCABULARY))[np.full(len(ids), ids[1])]

    tagger = make_tagger(tmp_path, word_piece(), first_letter, VOCABULARY, max_length=7)

    found = tagger.tag("a b c d e f g", strategy="none", stride=3)  # windows abcde and cdefg

    assert [(entity.word, entity.label) for entity in found] == list(zip("abcdefg", "aaaaccc", strict=True))


def most_context(place: int, count: int, window: int, stride: int, side: str) -> int:
    """Over the windows that hold a token, the most tokens on its narrower side."""
    if side == "left":
        place = count - 1 - place
    starts = [start for start in range(0, count, window - stride) if start == 0 or start + stride < count]
    windows = [(start, min(start + window, count)) for start in starts]
    return max(min(place - start, end - 1 - place) for start, end in windows if start <= place < end)


def by_id(ids: np.ndarray) -> np.ndarray:
    """Logits [sequence, labels] for the label that a token's id tells."""
    return np.eye(len(LABELS))[ids % len(LABELS)]


@pytest.mark.parametrize("kind", KINDS)
def test_words_have_the_label_of_their_first_token(tmp_path: Path, kind: str) -> None:
    tokenizer = KINDS[kind]()
    sentences = [["the", "orders", "was", "sent", "."], ["my", "字🙂", "e\u0301", "cats", "dog", ",?"] * 20, []]
    expected = []
    for sentence in sentences:
        encoding = tokenizer.backend_tokenizer.encode(" ".join(sentence))
        starts = itertools.accumulate((len(word) + 1 for word in sentence[:-1]), initial=0)
        first = [first_token(encoding, start, start + len(word)) for start, word in zip(starts, sentence, strict=False)]
        expected.append([LABELS[encoding.ids[index] % len(LABELS)] for index in first])
    tagger = make_tagger(tmp_path, tokenizer, by_id)

    assert tagger.label_words(sentences) == expected


def first_token(encoding: tokenizers.Encoding, start: int, end: int) -> int:
    """Index of the first token that holds a character of a span."""
    held = [index for index, (left, right) in enumerate(encoding.offsets) if max(left, start) < min(right, end)]
    return held[0]


@pytest.mark.parametrize(("labels", "expected"), [(("X", "O"), "O"), (("NOUN", "VERB"), "NOUN")])
def test_a_word_without_a_token_has_the_label_of_what_is_nothing(
    tmp_path: Path, labels: tuple[str, ...], expected: str
) -> None:
    tagger = make_tagger(tmp_path, word_piece(), lambda ids: np.eye(2)[np.full(len(ids), 1)], labels)
    other = labels[1]

    assert tagger.label_words([["cat", "\x07", "dog", ""], ["\x07"]]) == [
        [other, expected, other, expected],
        [expected],
    ]


@pytest.fixture
def tagger(tmp_path: Path) -> Tagger:
    return make_tagger(tmp_path, word_piece(), by_id)


def test_one_text_gives_one_list_and_many_give_many(tagger: Tagger) -> None:
    entities = tagger.tag("the cat was sent", ignore_labels=())

    assert entities
    assert tagger.tag(["the cat was sent", ""], ignore_labels=()) == [entities, []]
    assert tagger.tag([]) == []
    assert tagger.tag("") == []
    assert tagger.label_words([]) == []


def test_a_text_without_tokens_is_not_given_to_the_model(tmp_path: Path) -> None:
    def fail(ids: np.ndarray) -> np.ndarray:
        raise AssertionError(ids)

    tokenizer = word_piece()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # adds no special tokens

    assert make_tagger(tmp_path, tokenizer, fail).tag(["", "\x07"]) == [[], []]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tagger: tagger.tag("cat", strategy="last"), "the strategy is 'last'; give one of none, simple, first"),
        (lambda tagger: tagger.tag(["cat", 3]), "text 1 is of type int; give a str"),
        (lambda tagger: tagger.tag([("a", "b")]), "text 0 is of type tuple; give a str"),
        (lambda tagger: tagger.tag(None), "texts is of type NoneType; give a str or a list of them"),
        (lambda tagger: tagger.label_words(3), "sentences is of type int; give a list of lists of words"),
        (lambda tagger: tagger.label_words([3]), "sentence 0 is 3; give a list of words"),
        (lambda tagger: tagger.tag("cat", ignore_labels="PER"), r"ignore_labels is 'PER'; give a list .*\['PER'\]"),
        (lambda tagger: tagger.tag("cat", stride=62), "stride is 62; give a whole number from 0 to 61"),
        (lambda tagger: tagger.tag("cat", stride=-1), "stride is -1; give"),
        (lambda tagger: tagger.tag("cat", stride=1.5), r"stride is 1\.5; give"),
        (lambda tagger: tagger.tag("cat", stride=True), "stride is True; give"),
        (lambda tagger: tagger.label_words(["a cat"]), "sentence 0 is 'a cat'; give a list of words"),
        (lambda tagger: tagger.label_words([["a"], ["cat", None]]), r"sentence 1 is \['cat', None\]; give a list"),
    ],
)
def test_what_cannot_be_used_is_named(tagger: Tagger, call: Callable[[Tagger], Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(tagger)
