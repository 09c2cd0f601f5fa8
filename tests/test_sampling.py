"""runtime/generation/sampling.py and drawing.py: the probabilities transformers would draw from, and fair draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidInputError, OnnxpressError
from onnxpress.runtime.generation.drawing import candidates, draw
from onnxpress.runtime.generation.sampling import Choice, Sampler, Sampling, greedy

FloatArray = npt.NDArray[np.float32]

PROMPT = [3, 7, 7, 1, 40]
OPTIONS: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top-k": {"temperature": 0.8, "top_k": 5},
    "top-k of one": {"temperature": 0.8, "top_k": 1},
    "top-k of more than there are": {"temperature": 1.0, "top_k": 10**6},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "a small top-p": {"temperature": 1.0, "top_p": 0.001},
    "a large top-p": {"temperature": 1.5, "top_p": 0.999},
    "min-p": {"temperature": 1.2, "min_p": 0.05},
    "min-p of 1": {"temperature": 1.2, "min_p": 1.0},
    "top-k and top-p": {"temperature": 0.7, "top_k": 50, "top_p": 0.8},
    "all cuts": {"temperature": 1.3, "top_k": 200, "top_p": 0.95, "min_p": 0.02},
    "repetition": {"temperature": 1.0, "repetition_penalty": 1.3},
    "repetition wanted": {"temperature": 1.0, "repetition_penalty": 0.7, "top_p": 0.9},
    "everything": {"temperature": 0.9, "repetition_penalty": 1.2, "top_k": 100, "top_p": 0.9, "min_p": 0.01},
}


def random_logits(vocabulary: int, seed: int, spread: float = 3.0) -> FloatArray:
    return (np.random.default_rng(seed).standard_normal(vocabulary) * spread).astype(np.float32)


def by_transformers(logits: FloatArray, tokens: list[int], options: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Probabilities [V] by transformers' processors, in the order of `generate`, in float64."""
    chain = transformers.LogitsProcessorList()
    if "repetition_penalty" in options:
        chain.append(transformers.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    chain.append(transformers.TemperatureLogitsWarper(options["temperature"]))
    if options.get("top_k"):
        chain.append(transformers.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        chain.append(transformers.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        chain.append(transformers.MinPLogitsWarper(options["min_p"]))
    scores = chain(torch.tensor([tokens]), torch.tensor(logits[None], dtype=torch.float64))
    result: npt.NDArray[np.float64] = scores.softmax(-1)[0].numpy()
    return result


@pytest.mark.parametrize("vocabulary", [47, 3001, 20_000])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_probabilities_are_those_of_transformers(options: dict[str, Any], vocabulary: int) -> None:
    for seed in range(4):
        logits = random_logits(vocabulary, seed, spread=0.5 + 2 * seed)
        ours = Sampler(Sampling(**options), PROMPT).probabilities(logits)
        theirs = by_transformers(logits, PROMPT, options)
        in_reach = (theirs == 0) | (theirs > 1e-30)  # what is smaller may be 0 in float32
        assert np.array_equal((ours > 0)[in_reach], (theirs > 0)[in_reach])
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_repetition_penalty_counts_output_and_prompt_once() -> None:
    logits = random_logits(60, 5)
    options = {"temperature": 1.0, "repetition_penalty": 1.5}
    sampler = Sampler(Sampling(**options, seed=0), PROMPT)
    output = [sampler.next(logits).token_id for _ in range(80)]
    expected = by_transformers(logits, PROMPT + output, options)
    np.testing.assert_allclose(sampler.probabilities(logits), expected, atol=1e-6)


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = np.zeros(6, np.float32)
    logits[2] = 5
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25, logprobs=0), prompt_ids=[0, 0, 1])
    assert [sampler.next(logits).token_id for _ in range(3)] == [2, 2, 2]
    drawn = Sampler(Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25, seed=1), prompt_ids=[0, 1])
    first = drawn.next(logits).token_id
    changed = logits.copy()
    changed[first] -= 0.75
    np.testing.assert_allclose(drawn.probabilities(logits), torch.tensor(changed).softmax(0).numpy(), atol=1e-6)


def test_frequency_makes_a_greedy_answer_leave_a_token() -> None:
    logits = np.array([0, 1, 0.9], np.float32)
    sampler = Sampler(Sampling(frequency_penalty=0.06))
    assert [sampler.next(logits).token_id for _ in range(6)] == [1, 1, 2, 1, 2, 1]


def test_prompt_tokens_beyond_the_logits_are_passed_over() -> None:
    logits = random_logits(10, 0)
    sampler = Sampler(Sampling(repetition_penalty=2.0), prompt_ids=[99, 4, 10])
    assert sampler.next(logits).token_id == Sampler(Sampling(repetition_penalty=2.0), [4]).next(logits).token_id


@given(
    st.integers(0, 10**6),
    st.integers(1, 4000),
    st.one_of(st.floats(0.001, 0.999), st.sampled_from([1e-9, 1 - 1e-9])),
    st.sampled_from([0.0, 0.3, 1.5, 10, 100]),
    st.sampled_from([None, 1, 8]),
)
def test_top_p_keeps_what_a_sort_would(
    seed: int, vocabulary: int, share: float, spread: float, steps: int | None
) -> None:
    """`steps`: logits are multiples of 1/steps, so that many are equal."""
    logits = random_logits(vocabulary, seed, spread)
    if steps is not None:
        logits = np.round(logits * steps) / np.float32(steps)
    _, weights = candidates(logits, temperature=1.0, top_p=share)
    full = np.exp(logits - logits.max())
    order = np.argsort(-full, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(full[order], dtype=np.float64)[:-1]])
    distance = before - share * full.sum(dtype=np.float64)
    clear = (np.abs(distance) > 1e-9 * full.sum()) & (full[order] > 0)
    kept = weights[order] > 0
    assert kept[0]
    assert np.array_equal(kept[clear], (distance < 0)[clear])


@given(st.integers(0, 10**6), st.integers(1, 3000), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_where_the_cumulated_weights_reach_the_number(seed: int, count: int, uniform: float) -> None:
    random = np.random.default_rng(seed)
    weights = (random.random(count) * (random.random(count) < 0.3)).astype(np.float32)
    weights[random.integers(count)] = 1
    place = draw(weights, uniform)
    assert weights[place] > 0
    sums = np.cumsum(weights, dtype=np.float64)
    value = uniform * sums[-1]
    assert sums[place] - weights[place] - 1e-3 <= value <= sums[place] + 1e-3


def test_draws_have_the_probabilities() -> None:
    logits = random_logits(30, 2, spread=1.0)
    sampler = Sampler(Sampling(temperature=0.9, top_p=0.95, seed=4))
    expected = sampler.probabilities(logits)
    count = 20_000
    drawn = np.bincount([sampler.next(logits).token_id for _ in range(count)], minlength=30) / count
    # Five standard deviations of a share.
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9).all()


def test_a_seed_gives_the_same_tokens_whatever_else_is_sampled() -> None:
    rows = [random_logits(500, seed) for seed in range(40)]
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=11)
    alone = Sampler(sampling)
    tokens = [alone.next(row).token_id for row in rows]
    together, other = Sampler(sampling), Sampler(Sampling(temperature=1.0, seed=5))
    again = []
    for row in rows:
        other.next(row)
        again.append(together.next(row).token_id)
    assert again == tokens
    assert [Sampler(Sampling(temperature=1.0, top_p=0.9, seed=12)).next(row).token_id for row in rows] != tokens


def test_the_outputs_of_a_prompt_differ() -> None:
    logits = random_logits(500, 0, spread=1.0)
    sampling = Sampling(temperature=1.0, seed=3, n=3)
    outputs = []
    for index in range(3):
        sampler = Sampler(sampling, index=index)
        outputs.append(tuple(sampler.next(logits).token_id for _ in range(20)))
    assert len(set(outputs)) == 3


def test_without_a_seed_answers_differ() -> None:
    logits = random_logits(5000, 0, spread=0.5)
    first, second = Sampler(Sampling(temperature=1.0)), Sampler(Sampling(temperature=1.0))
    assert [first.next(logits) for _ in range(10)] != [second.next(logits) for _ in range(10)]


def test_greedy_takes_the_likeliest_and_of_equals_the_first() -> None:
    logits = np.array([[0, 2, 2, 1], [-5, -6, -5, -9]], np.float32)
    assert greedy(logits).tolist() == [1, 0]
    assert [Sampler(Sampling()).next(row).token_id for row in logits] == [1, 0]


def test_logits_stay_as_they_are() -> None:
    logits = random_logits(2000, 0)
    before = logits.copy()
    sampling = Sampling(
        temperature=0.5, top_k=50, top_p=0.8, min_p=0.1, repetition_penalty=2, presence_penalty=1, logprobs=3
    )
    sampler = Sampler(sampling, PROMPT)
    for _ in range(3):
        sampler.next(logits)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("count", [0, 1, 5, 999])
def test_logprobs_are_those_of_the_model(count: int) -> None:
    logits = random_logits(300, 3)
    logits[10] = logits[20]
    expected = torch.tensor(logits).log_softmax(0).numpy()
    choice = Sampler(Sampling(temperature=0.7, repetition_penalty=1.5, logprobs=count, seed=0), PROMPT).next(logits)
    assert choice.logprob == pytest.approx(expected[choice.token_id], abs=1e-5)
    order = np.lexsort((np.arange(300), -logits))[:count]
    assert [token for token, _ in choice.alternatives] == order.tolist()
    np.testing.assert_allclose([logprob for _, logprob in choice.alternatives], expected[order], atol=1e-5)


def test_logprobs_are_left_out_unless_asked_for() -> None:
    choice = Sampler(Sampling()).next(random_logits(10, 0))
    assert math.isnan(choice.logprob)
    assert choice.alternatives == ()


class OddTokensOnly:
    """A guide that forbids even tokens."""

    def __init__(self) -> None:
        self.committed: list[int] = []

    def mask(self) -> npt.NDArray[np.bool_]:
        return np.arange(100) % 2 == 1

    def commit(self, token_id: int) -> None:
        self.committed.append(token_id)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}])
def test_a_guide_limits_the_tokens_and_hears_of_them(options: dict[str, Any]) -> None:
    guide = OddTokensOnly()
    sampler = Sampler(Sampling(**options, seed=0), guide=guide)
    tokens = [sampler.next(random_logits(100, seed)).token_id for seed in range(30)]
    assert all(token % 2 for token in tokens)
    assert guide.committed == tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_k": 2}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(options: dict[str, Any], value: float) -> None:
    logits = random_logits(50, 0)
    logits[7] = value
    with pytest.raises(OnnxpressError, match="its output means nothing"):
        Sampler(Sampling(**options)).next(logits)
    with pytest.raises(OnnxpressError, match="its output means nothing"):
        greedy(np.stack([random_logits(50, 1), logits]))


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(OnnxpressError, match="no token is left"):
        Sampler(Sampling()).next(np.full(5, -np.inf, np.float32))


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 700]] = 0
    sampler = Sampler(Sampling(temperature=5.0, top_p=0.99, seed=0))
    assert {sampler.next(logits).token_id for _ in range(50)} == {3, 700}


def test_an_extreme_temperature_is_still_a_distribution() -> None:
    logits = random_logits(100, 0, spread=1e6)
    assert Sampler(Sampling(temperature=1e-6)).next(logits).token_id == int(logits.argmax())
    assert np.isfinite(Sampler(Sampling(temperature=1e4)).probabilities(logits)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give a whole number of at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5 of type float"),
        ({"max_new_tokens": True}, "max_new_tokens is True of type bool"),
        ({"temperature": -0.1}, r"temperature is -0.1; give 0 \(always the likeliest token\)"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"temperature": "hot"}, "temperature is 'hot' of type str"),
        ({"temperature": 10**400}, "temperature has more than 308 digits"),
        ({"top_k": -1}, "top_k is -1; give 0 to draw from all tokens"),
        ({"top_p": 0}, "top_p is 0; give 1 to draw from all"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.5}, "min_p is -0.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; give 1 for none"),
        ({"repetition_penalty": None}, "repetition_penalty is None of type NoneType"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty is -inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.0}, "seed is 1.0 of type float"),
        ({"stop": ""}, "stop text 0 is empty"),
        ({"stop": ["a", 5]}, "stop text 1 is of type int; give a str"),
        ({"stop": 5}, "stop is of type int; give a text or a list of texts"),
        ({"stop": {"a": 1}}, "stop is of type dict"),
        ({"stop": ["x" * 1001]}, "stop text 0 has 1,001 characters"),
        ({"stop": ["x"] * 65}, "stop has 65 texts"),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids\[0\] is 'a' of type str"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\] is -1"),
        ({"stop_token_ids": 1.5}, "stop_token_ids is of type float"),
        ({"ignore_eos": "no"}, "ignore_eos is 'no' of type str; give true or false"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": 10**6}, "logprobs is 1000000"),
        ({"n": 0}, "n is 0"),
        ({"n": 10**9}, "n is 1000000000; give a whole number of at least 1 and at most 128"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Sampling(**options)


def test_values_are_kept_as_plain_ones() -> None:
    sampling = Sampling(
        max_new_tokens=np.int64(5), temperature=np.float32(0.5), stop="end", stop_token_ids=np.array([1, 2]), top_p=1
    )
    assert sampling == Sampling(max_new_tokens=5, temperature=0.5, stop=("end",), stop_token_ids=(1, 2))
    assert type(sampling.max_new_tokens) is int
    assert type(sampling.temperature) is float
    assert hash(sampling) == hash(Sampling(max_new_tokens=5, temperature=0.5, stop=["end"], stop_token_ids=[1, 2]))


def test_what_a_caller_leaves_out_is_as_the_model_says() -> None:
    defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "eos_token_id": 2}
    assert Sampling.with_defaults(defaults) == Sampling(temperature=0.6, top_p=0.9)
    assert Sampling.with_defaults(defaults, temperature=0).greedy
    assert Sampling.with_defaults(defaults, top_p=1.0, max_new_tokens=3) == Sampling(max_new_tokens=3, temperature=0.6)
    assert Sampling.with_defaults(defaults, temperature=None, seed=None) == Sampling(temperature=0.6, top_p=0.9)


def test_a_model_without_sampling_is_greedy_until_a_caller_cuts() -> None:
    assert Sampling.with_defaults({"temperature": 0.6}).greedy
    assert Sampling.with_defaults({}, top_p=1, top_k=0, min_p=0.0).greedy
    assert Sampling.with_defaults({}, top_p=0.5).temperature == 1
    assert Sampling.with_defaults({"temperature": 0.6}, top_k=5).temperature == 0.6


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="unknown option 'top_q'; known are"):
        Sampling.with_defaults({}, top_q=1)


def test_a_choice_is_a_plain_tuple() -> None:
    assert Choice(3, -0.5, ((3, -0.5),)) == (3, -0.5, ((3, -0.5),))
