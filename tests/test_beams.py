"""runtime/generation/beams.py: the answers of transformers' beam search, and what cannot be combined with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.beams import Beams, BeamSearch
from onnxpress.runtime.generation.cache import CacheLayout, CacheMemoryError, KeyValueCache
from onnxpress.runtime.generation.decoder import Decoder
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_models import CONTEXT, VOCABULARY, make_decoder, trace
from tests.tiny_generator import SETTINGS, TINY, make_bundle, opening

PROMPTS = [[5, 9, 33, 71], [80], [4, 8, 15, 16, 23, 42, 77, 11, 90, 31, 12]]


@pytest.fixture(scope="module", params=["llama", "mistral"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BeamSearch]:
    """The same tiny decoder in PyTorch and as a graph; the second has a window shorter than the answers."""
    model = make_decoder(request.param)
    path, facts = trace(model, tmp_path_factory.mktemp("decoder"))
    cache = KeyValueCache(CacheLayout(facts.kv_heads, facts.head_dims), facts.context)
    return model, BeamSearch(Decoder(make_session(path, SessionSettings(), settings=ServingSettings(1)), cache))


def in_transformers(
    model: Any, prompts: list[list[int]], beams: Beams, count: int, most_new: int, **options: Any
) -> list[list[tuple[list[int], float]]]:
    """Token ids and scores of the `count` best answers to each prompt, all prompts together."""
    width = max(map(len, prompts))
    found = model.generate(
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=most_new,
        do_sample=False,
        num_return_sequences=count,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=0,
        **dataclasses.asdict(beams),
        **options,
    )
    answers = [row[width:] for row in found.sequences.tolist()]
    ends = options.get("eos_token_id") or []
    answers = [
        row[: next((place + 1 for place, token in enumerate(row) if token in ends), most_new)] for row in answers
    ]
    return [
        list(zip(answers[start : start + count], found.sequences_scores.tolist()[start:], strict=False))
        for start in range(0, len(answers), count)
    ]


@pytest.mark.parametrize(
    ("beams", "most_new", "ends", "penalty"),
    [
        (Beams(2), 12, (), 1.0),
        (Beams(5), 25, (), 1.0),
        (Beams(3), 1, (7,), 1.0),
        (Beams(4), 20, tuple(range(40, 50)), 1.0),
        (Beams(4, length_penalty=0.0), 20, tuple(range(40, 50)), 1.0),
        (Beams(4, length_penalty=2.5), 20, tuple(range(40, 50)), 1.0),
        (Beams(4, length_penalty=-1.0, early_stopping="never"), 20, tuple(range(40, 50)), 1.0),
        (Beams(4, length_penalty=1.5, early_stopping="never"), 20, tuple(range(40, 50)), 1.0),
        (Beams(3, early_stopping=True), 20, tuple(range(20, 50)), 1.0),
        (Beams(3), 15, (41, 42), 1.3),
    ],
    ids=str,
)
def test_answers_and_scores_are_those_of_transformers(
    models: tuple[Any, BeamSearch], beams: Beams, most_new: int, ends: tuple[int, ...], penalty: float
) -> None:
    model, search = models
    options = {"eos_token_id": list(ends) or None, "repetition_penalty": penalty}
    lengths = set()
    for prompt in PROMPTS:
        (expected,) = in_transformers(model, [prompt], beams, beams.num_beams, most_new, **options)
        found = search.search(prompt, most_new, beams, ends, penalty)
        lengths |= {len(beam.token_ids) for beam in found}
        assert [list(beam.token_ids) for beam in found] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([beam.score for beam in found], [score for _, score in expected], rtol=1e-4)
    assert len(lengths) > 1 or len(ends) < 3 or beams.length_penalty > 1


def test_prompts_of_unequal_length_get_what_transformers_gives_them_together(models: tuple[Any, BeamSearch]) -> None:
    model, search = models
    beams = Beams(3)
    together = in_transformers(model, PROMPTS, beams, 2, 12, eos_token_id=None)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        found = search.search(prompt, 12, beams)[:2]
        assert [list(beam.token_ids) for beam in found] == [tokens for tokens, _ in expected]


def test_a_search_goes_up_to_the_end_of_the_context(models: tuple[Any, BeamSearch]) -> None:
    model, search = models
    prompt = PROMPTS[2]
    room = CONTEXT - len(prompt)
    (expected,) = in_transformers(model, [prompt], Beams(2), 2, room, eos_token_id=None)
    found = search.search(prompt, room, Beams(2))
    assert [list(beam.token_ids) for beam in found] == [tokens for tokens, _ in expected]


def test_more_candidates_than_there_are_is_no_error(models: tuple[Any, BeamSearch]) -> None:
    _, search = models
    found = search.search([5], 3, Beams(64), tuple(range(VOCABULARY // 2)))
    assert len({beam.token_ids for beam in found}) == len(found) == 64


def test_rows_are_rearranged_behind_what_they_have_in_common() -> None:
    cache = KeyValueCache(CacheLayout((2,), (8,)), 64)
    cache.reserve(4, 10, keep=())
    for row in range(4):
        cache.tokens[row] = [1, 2, 10 + row, 20 + row]
        for buffer in cache.buffers.values():
            buffer[row, :, :4] = row
            buffer[row, :, :2] = 7
    cache.rearrange([1, 0, 0], 2)
    assert cache.tokens == [[1, 2, 11, 21], [1, 2, 10, 20], [1, 2, 10, 20], [1, 2, 13, 23]]
    assert cache.tokens[1] is not cache.tokens[2]
    for buffer in cache.buffers.values():
        assert buffer[:, 0, :5, 0].tolist() == [[7, 7, 1, 1, 0], [7, 7, 0, 0, 0], [7, 7, 0, 0, 0], [7, 7, 3, 3, 0]]


# Through the generator


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Generator]]:
    with opening(make_bundle(tmp_path_factory.mktemp("bundle"))) as open_with:
        yield open_with


@pytest.fixture(scope="module")
def generator(load: Callable[..., Generator]) -> Generator:
    return load()


def test_the_best_answers_come_with_their_texts(generator: Generator) -> None:
    answer = generator.generate("Once upon", num_beams=4, n=3, max_new_tokens=10, length_penalty=0.5)
    prompt = generator._prompts.encode("Once upon")
    expected = generator._beams.search(prompt, 10, Beams(4, 0.5), SETTINGS.eos_ids)
    answers = [answer, *answer.others]
    assert [each.token_ids for each in answers] == [beam.token_ids for beam in expected[:3]]
    for each in answers:
        assert each.text == generator.tokenizer.backend.decode(list(each.token_ids))
        assert each.finish_reason == ("stop" if each.token_ids[-1] in SETTINGS.eos_ids else "length")
        assert each.prompt_tokens == len(prompt)
    several = generator.generate(["a", "Once upon"], num_beams=4, max_new_tokens=10, length_penalty=0.5)
    assert [len(each.others) for each in several] == [0, 0]
    assert several[1].token_ids == answer.token_ids


def test_stop_tokens_end_a_beam(generator: Generator) -> None:
    stops = list(range(60, 160))
    found = generator.generate("x", num_beams=3, n=3, max_new_tokens=20, stop_token_ids=stops)
    for each in (found, *found.others):
        assert each.finish_reason == "stop"
        assert [token in stops for token in each.token_ids] == [False] * (len(each.token_ids) - 1) + [True]
        assert each.text == generator.tokenizer.backend.decode(list(each.token_ids[:-1]))


def test_one_beam_is_no_search(generator: Generator) -> None:
    plain = generator.generate("x", temperature=0.0, logprobs=1)
    assert generator.generate("x", num_beams=1, temperature=0.0, logprobs=1) == plain


def test_a_model_that_draws_by_default_draws_nothing_here(load: Callable[..., Generator]) -> None:
    drawing = load({"defaults": {"do_sample": True, "temperature": 0.7, "top_k": 50, "max_new_tokens": 12}})
    found = {drawing.generate("x", num_beams=3).token_ids for _ in range(3)}
    assert found == {load().generate("x", num_beams=3).token_ids}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 65}, "num_beams is 65"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature cannot be combined with num_beams"),
        ({"num_beams": 2, "top_k": 5}, "top_k cannot be combined"),
        ({"num_beams": 2, "stop": "end"}, "stop cannot be combined"),
        ({"num_beams": 2, "stop": ""}, "stop text 0 is empty"),
        ({"num_beams": 2, "logprobs": 1}, "logprobs cannot be combined"),
        ({"num_beams": 2, "logprobs": 0}, "logprobs cannot be combined"),
        ({"num_beams": 2, "seed": 0}, "seed cannot be combined"),
        ({"num_beams": 2, "temprature": 0}, "temprature cannot be combined"),
        ({"num_beams": 2, "prompt_lookup": 4}, "prompt_lookup cannot be combined"),
        ({"num_beams": 2, "timeout_seconds": 4.0}, "timeout_seconds cannot be combined"),
        ({"num_beams": 2, "timeout_seconds": 0}, "timeout_seconds cannot be combined"),
        ({"num_beams": 2, "n": 3}, "n is 3, of 2 beams"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty is 'long'"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"num_beams": 2, "max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"length_penalty": 2.0}, "length_penalty is for beam search; give num_beams too"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        generator.generate("x", **options)
    assert message in str(caught.value)


def test_what_asks_for_nothing_may_be_said_beside_beams(generator: Generator) -> None:
    nothing = dict.fromkeys(("seed", "logprobs", "grammar", "timeout_seconds"))
    neutral: dict[str, Any] = dict.fromkeys(("temperature", "top_k", "min_p", "prompt_lookup"), 0)
    neutral |= {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "stop": [], **nothing}
    plain = generator.generate("x", num_beams=2, max_new_tokens=4)
    assert generator.generate("x", num_beams=2, max_new_tokens=4, **neutral) == plain


def test_a_stream_has_no_beams(generator: Generator) -> None:
    with pytest.raises(InvalidInputError, match="num_beams cannot be combined with a stream"):
        generator.stream("x", num_beams=2)
    with pytest.raises(InvalidInputError, match="num_beams cannot be combined with a stream"):
        generator.open_stream("x", num_beams=2)


def test_beams_that_do_not_fit_the_memory_allowed_are_refused(load: Callable[..., Generator]) -> None:
    small = load(cache_bytes=TINY.layout.size_bytes(3, 40))
    with pytest.raises(CacheMemoryError, match=r"4 beams of 40 tokens need .* of cache, .* are allowed"):
        small.generate([5] * 30, num_beams=4, max_new_tokens=11)
    assert small.generate([5] * 30, num_beams=3, max_new_tokens=11).token_ids
