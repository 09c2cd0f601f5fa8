"""runtime/generation/generator.py: prompts in, text out, over the tiny graph with a tokenizer of single bytes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidInputError, ProviderError
from onnxpress.runtime.generation.cache import CacheMemoryError
from onnxpress.runtime.generation.constraints import json_schema, regex
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.options import BEYOND_SAMPLING, Options
from onnxpress.runtime.generation.sampling import Sampling
from onnxpress.runtime.providers import Provider
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_graph import TinyDecoder
from tests.tiny_generator import TINY, byte_tokenizer, make_bundle, opening
from tests.waiting import until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def load(bundle: Bundle) -> Iterator[Callable[..., Generator]]:
    with opening(bundle) as open_with:
        yield open_with


@pytest.fixture(scope="module")
def generator(load: Callable[..., Generator]) -> Generator:
    return load()


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text).ids)


def greedy(prompt: list[int], count: int) -> list[int]:
    """What the numpy model answers, up to the end token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(TINY.logits(tokens).argmax()))
        if tokens[-1] == 1:
            break
    return tokens[len(prompt) :]


def test_one_prompt_gives_one_answer_and_a_list_gives_a_list(generator: Generator) -> None:
    texts = ["Once upon", "a", "", "änderung 😀"]
    one = generator.generate(texts[0])
    many = generator.generate(texts)
    assert one.token_ids == many[0].token_ids
    assert [list(answer.token_ids) for answer in many] == [greedy(ids_of(text), 12) for text in texts]
    for answer, text in zip(many, texts, strict=True):
        assert answer.text == byte_tokenizer().decode(list(answer.token_ids))
        assert answer.prompt_tokens == len(ids_of(text))
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 1 else "length")
        assert answer.logprobs is None
    assert generator.generate([]) == []


def test_token_ids_are_prompts_too(generator: Generator) -> None:
    expected = generator.generate("abc").token_ids
    ids = ids_of("abc")
    assert generator.generate(ids).token_ids == expected
    assert generator.generate(np.array(ids)).token_ids == expected
    assert [answer.token_ids for answer in generator.generate([ids, "abc", tuple(ids)])] == [expected] * 3


def test_an_answer_is_as_long_as_asked_for_at_most(generator: Generator) -> None:
    for length in (1, 5, 30):
        answer = generator.generate("tell me", max_new_tokens=length, ignore_eos=True)
        assert (len(answer.token_ids), answer.finish_reason) == (length, "length")
    rest = generator.generate("tell me", max_new_tokens=10_000, ignore_eos=True)
    assert len(rest.token_ids) == TINY.context - rest.prompt_tokens


def test_a_stop_text_ends_an_answer_and_is_not_in_it(generator: Generator) -> None:
    whole = generator.generate("x", max_new_tokens=40, ignore_eos=True)
    place = next(place for place in range(4, 30) if whole.text[place : place + 2].isascii())
    stop = whole.text[place : place + 2]
    cut = generator.generate("x", max_new_tokens=40, ignore_eos=True, stop=["never there", stop])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert "".join(generator.stream("x", max_new_tokens=40, ignore_eos=True, stop=stop)) == cut.text


def test_drawn_answers_depend_on_the_seed_and_not_on_the_batch(generator: Generator) -> None:
    alone = generator.generate("roll", temperature=1.0, seed=7, logprobs=2, n=3)
    _, again, _ = generator.generate(["other", "roll", "more"], temperature=1.0, seed=7, logprobs=2, n=3)
    answers = [alone, *alone.others]
    assert len({answer.token_ids for answer in answers}) == 3
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in [again, *again.others]]
    assert alone.logprobs is not None
    assert [step.token_id for step in alone.logprobs] == list(alone.token_ids)
    assert all(len(step.alternatives) == 2 and step.logprob < 0 for step in alone.logprobs)
    best = TINY.logits(ids_of("roll"))
    assert alone.logprobs[0].alternatives[0][0] == int(best.argmax())
    expected = best.max() - np.log(np.exp(best.astype(np.float64)).sum())
    assert alone.logprobs[0].alternatives[0][1] == pytest.approx(expected, abs=1e-4)


def test_several_answers_to_a_prompt_compute_it_once(load: Callable[..., Generator]) -> None:
    generator = load()
    answer = generator.generate("a prompt that is long enough to share", n=4, temperature=1.0, seed=1)
    assert [other.reused_tokens for other in [answer, *answer.others]] == [0, *[answer.prompt_tokens - 1] * 3]


def test_streamed_texts_are_the_answer_in_whole_characters(generator: Generator) -> None:
    for seed in range(5):
        options: Options = {"temperature": 2.0, "seed": seed, "max_new_tokens": 40, "ignore_eos": True}
        whole = generator.generate("é", **options).text
        pieces = list(generator.stream("é", **options))
        assert "".join(pieces) == whole
        assert len(pieces) > 5


def test_a_stream_that_is_left_stops_its_request(generator: Generator) -> None:
    stream = generator.stream("on and on", max_new_tokens=200, ignore_eos=True)
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert generator.generate("next").finish_reason in ("length", "stop")
    until(lambda: generator.engine.state.running == 0)  # the answer is handed out before its row is free


def test_streams_of_tokens_end_with_the_whole_answer(generator: Generator) -> None:
    with generator.open_stream("abc") as stream:
        tokens = [delta.token_id for delta in stream if delta.token_id is not None]
    assert stream.result() == dataclasses.replace(
        generator.generate("abc"), reused_tokens=stream.result().reused_tokens
    )
    assert tokens == list(stream.result().token_ids)


def test_event_loops_get_the_same_answers(generator: Generator) -> None:
    async def both() -> list[Any]:
        async def streamed() -> str:
            return "".join([delta.text async for delta in generator.open_async_stream("second")])

        return await asyncio.gather(generator.generate_async("first"), streamed())

    first, second = asyncio.run(both())
    assert first.token_ids == generator.generate("first").token_ids
    assert second == generator.generate("second").text


def test_a_chat_is_its_rendered_template(generator: Generator) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
    ]
    text = "<s><user>hi<assistant>hello</s><user>and?<assistant>"
    ids = byte_tokenizer().encode(text, add_special_tokens=False).ids
    assert generator.chat_prompt(messages) == ids
    assert ids.count(0) == 1  # the template's own, and none besides
    answer = generator.chat(messages)
    assert list(answer.token_ids) == greedy(ids, 12)
    assert "".join(generator.stream_chat(messages)) == answer.text


def test_the_next_turn_of_a_chat_takes_over_what_was_computed(load: Callable[..., Generator]) -> None:
    generator = load()
    messages = [{"role": "user", "content": "a first question of some length"}]
    first = generator.chat(messages)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and another"}]
    second = generator.chat(messages)
    assert second.reused_tokens >= first.prompt_tokens
    assert list(second.token_ids) == greedy(generator.chat_prompt(messages), 12)


def test_a_grammar_holds_whatever_the_model_wants(generator: Generator) -> None:
    pattern = regex("(ab|cd){2}-[0-9]")
    for answer in generator.generate(["x", "y"], grammar=pattern, temperature=1.0, seed=0, n=2):
        for each in [answer, *answer.others]:
            assert len(each.text) == 6
            assert set(each.text[:4]) <= set("abcd")
            assert each.finish_reason == "stop"
    schema = json_schema({"enum": [{"a": 1}, {"a": 2}]})
    assert json.loads(generator.generate("x", grammar=schema, max_new_tokens=220).text)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("x" * 256, {}, "the prompt has 257 tokens; the model's context is 256"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("x", {"max_new_tokens": -1}, "max_new_tokens is -1"),
        ("x", {"stop": 3}, "stop is of type int"),
        ("x", {"temprature": 1}, "unknown option 'temprature'; known are early_stopping, frequency_penalty, grammar"),
        ("x", {"timeout_seconds": -1}, "timeout_seconds is -1"),
        ("x", {"grammar": "[a-z]+"}, "the grammar is of type str; make one with json_schema"),
        ("x", {"grammar": {"type": "object"}}, "the grammar is of type dict"),
        ("x", {"grammar": regex("(")}, "the regular expression cannot be used"),
        ("x", {"grammar": json_schema({"type": "nothing"})}, "the JSON schema cannot be used"),
        ("x \ud800", {}, "a lone surrogate at position 2"),
        ("x" * 600_000, {}, "600,000 characters, the limit is 500,000"),
        (3, {}, "prompts are of type int"),
        ([5, "a"], {}, "the prompt has 'a' of type str at place 1"),
        ([5, 1000], {}, "the token 1000; the model knows 0 to 260"),
        (["fine", None], {}, "prompt 1: a prompt is of type NoneType"),
        (["fine", [True]], {}, "prompt 1: the prompt has True of type bool"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence_and_the_engine_goes_on(
    generator: Generator, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        generator.generate(prompt, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(generator.generate("abc").token_ids) == greedy(ids_of("abc"), 12)


def test_options_of_a_stream_are_checked_before_it_is_read(generator: Generator) -> None:
    with pytest.raises(InvalidInputError, match="max_new_tokens is 0"):
        generator.stream("x", max_new_tokens=0)
    with pytest.raises(InvalidInputError, match="n is 2; a stream is one answer"):
        generator.stream("x", n=2)


def test_an_empty_prompt_needs_a_first_token(load: Callable[..., Generator]) -> None:
    without = load({"bos_id": None})
    with pytest.raises(InvalidInputError, match="the prompt is empty, and the model has no token to begin"):
        without.generate([[], "x"])
    assert list(load().generate([[]])[0].token_ids) == greedy([0], 12)


def test_a_chat_without_a_template_says_so(load: Callable[..., Generator]) -> None:
    with pytest.raises(InvalidInputError, match="has no chat template"):
        load({"chat_template": None}).chat([{"role": "user", "content": "hi"}])


def test_templates_get_the_tokenizers_special_tokens_and_are_chosen_by_name(load: Callable[..., Generator]) -> None:
    templates = {
        "chat_template": "{{ unk_token }}{{ eos_token }}",
        "special_tokens": {"unk_token": "U", "eos_token": "</s>"},
        "eos_ids": (7, 1),
        "other_chat_templates": {"tool_use": "{{ tools|length }}"},
    }
    generator, tokenizer = load(templates), byte_tokenizer()
    said = [{"role": "user", "content": "hi"}]
    assert generator.chat_prompt(said) == tokenizer.encode("U</s>", add_special_tokens=False).ids
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert generator.chat_prompt(said, tools) == tokenizer.encode("1", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"messages": []}, "template_variables cannot have messages; give messages as an argument of its own"),
        ({"tools": None}, "template_variables cannot have tools"),
        ({"continue_final_message": True}, "template_variables cannot have continue_final_message"),
        ({"template": "x"}, "template_variables cannot have template; the template is the model's own"),
        ({5: 1}, "template_variables has the name 5, which is no text"),
        (5, "template_variables are of type int; give a mapping"),
        (["x"], "template_variables are of type list; give a mapping"),
    ],
)
def test_template_variables_that_cannot_be_used_are_one_sentence(
    generator: Generator, variables: Any, message: str
) -> None:
    for ask in (generator.chat, generator.stream_chat):
        with pytest.raises(InvalidInputError) as caught:
            ask([{"role": "user", "content": "hi"}], template_variables=variables)
        assert message in str(caught.value)


def test_variables_that_only_a_template_reads_may_be_given(generator: Generator) -> None:
    messages = [{"role": "user", "content": "hi"}]
    variables = {"add_generation_prompt": False, "documents": [{"title": "a"}], "enable_thinking": True}
    ids = generator.chat_prompt(messages, template_variables=variables)
    assert ids == byte_tokenizer().encode("<s><user>hi", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("encode", "The", "prompts are of type str; give a list of them"),
        ("encode", None, "prompts are of type NoneType; give a list of them"),
        ("decode", "x", "token_ids are of type str; give a list of token ids"),
        ("decode", 5, "token_ids are of type int"),
        ("decode", [5, -1], "the token -1 at place 1 is none of the model's; give ids from 0 to 260"),
        ("decode", [10**9], "the token 1000000000 at place 0 is none"),
        ("decode", [True], "the token True at place 0 is none"),
        ("decode", np.array(5), "token_ids are of type ndarray"),
        ("decode", ["a"], "the token 'a' at place 0 is none"),
        ("perplexity", None, "texts are of type NoneType; give a text or a list of them"),
        ("perplexity", ["fine", 5], "text 1 is of type int; give a str"),
        ("perplexity", ["x \ud800"], "text 0 has a lone surrogate at position 2"),
        ("perplexity", "", "at least two tokens"),
    ],
)
def test_what_is_no_list_of_texts_or_tokens_is_one_sentence(
    generator: Generator, method: str, given: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        getattr(generator, method)(given)
    assert message in str(caught.value)


def test_token_ids_of_any_kind_are_decoded(generator: Generator) -> None:
    ids = ids_of("abc")
    assert [generator.decode(given) for given in (ids, tuple(ids), np.array(ids))] == ["abc"] * 3  # type: ignore[arg-type]


def test_perplexity_is_of_one_text_or_of_several(generator: Generator) -> None:
    assert generator.perplexity("Once upon a time") == generator.perplexity(["Once upon a time"])


def test_a_text_with_a_token_that_the_model_does_not_know_has_no_perplexity(tmp_path: Path) -> None:
    known = TINY.vocabulary - 1
    with opening(make_bundle(tmp_path, TinyDecoder(vocabulary=known, seed=4))) as load:
        generator = load({"vocabulary": known})
        last = generator.tokenizer.backend.id_to_token(known)
        with pytest.raises(InvalidInputError, match=rf"text 1 has the token {known} \('{last}'\); the model"):
            generator.perplexity(["fine", "soft\xad"])


def test_an_answer_that_does_not_fit_the_memory_allowed_is_refused(load: Callable[..., Generator]) -> None:
    small = load(cache_bytes=TINY.layout.size_bytes(1, 40))
    with pytest.raises(CacheMemoryError, match="allow the cache more memory"):
        small.generate("x", max_new_tokens=100)
    answers = small.generate(["one", "two", "three"], max_new_tokens=10)
    assert [list(answer.token_ids) for answer in answers] == [greedy(ids_of(t), 10) for t in ("one", "two", "three")]
    assert small.engine.state.cache_bytes <= TINY.layout.size_bytes(1, 40)


def test_a_deadline_gives_what_is_there(generator: Generator) -> None:
    answer = generator.generate("x", timeout_seconds=0)
    assert (answer.finish_reason, answer.token_ids) == ("timeout", ())


def test_other_providers_than_the_cpu_and_cuda_are_refused(bundle: Bundle) -> None:
    tensorrt = Provider("TensorrtExecutionProvider")
    with pytest.raises(ProviderError, match=r"CPUExecutionProvider or CUDA.*, not TensorrtExecutionProvider"):
        Generator.open(bundle, bundle.manifest.variant(None), [tensorrt], ServingSettings(threads=1))


def test_the_options_are_those_of_sampling_and_some_more() -> None:
    names = {field.name for field in dataclasses.fields(Sampling)}
    assert not names & set(BEYOND_SAMPLING)
    assert set(Options.__annotations__) == names | set(BEYOND_SAMPLING)


def test_a_generator_says_what_it_was_loaded_from(generator: Generator, bundle: Bundle) -> None:
    assert generator.variant == bundle.manifest.variant(None)
    assert generator.providers == ("CPUExecutionProvider",)
    assert generator.threads == 1
    assert Path(generator.bundle.folder) == bundle.folder
