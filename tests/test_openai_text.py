"""runtime/server/routes/{chat,completions}.py: answers through the official client, beside the generator's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.requests import Generation
from tests.text_client import ASKED, chat, complete, post, text_of
from tests.text_server import app, generator, served, text_app

__all__ = ["app", "generator", "served"]  # fixtures

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


def all_of(answer: Generation) -> list[Generation]:
    return [answer, *answer.others]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "max_tokens": 20},
        {"temperature": 1, "top_p": 1e-9, "max_tokens": 20},
        {"temperature": 1.5, "seed": 7, "max_tokens": 20, "n": 3},
        {"temperature": 1, "top_p": 0.9, "seed": 1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"temperature": 1, "seed": 3, "stop": ["e", "\n"], "max_tokens": 60},
    ],
)
def test_answers_are_the_generators_own_whole_and_streamed(
    app: Any, generator: Generator, fields: dict[str, Any]
) -> None:
    options = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in fields.items()}
    for asking, own in (
        (chat, generator.chat(ASKED, **options)),
        (complete, generator.generate("Once upon", **options)),
    ):
        expected = {index: (each.text, each.finish_reason) for index, each in enumerate(all_of(own))}
        answer = asking(app, **fields)
        assert {
            choice.index: (choice.message.content if asking is chat else choice.text, choice.finish_reason)
            for choice in answer.choices
        } == expected
        texts, reasons = dict.fromkeys(expected, ""), {}
        for chunk in asking(app, stream=True, **fields):
            for choice in chunk.choices:
                texts[choice.index] += (choice.delta.content if asking is chat else choice.text) or ""
                reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
        assert {index: (text, reasons[index]) for index, text in texts.items()} == expected


def test_extensions_reach_the_generator(app: Any, generator: Generator) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "ignore_eos": True,
        "stop_token_ids": [70],
        "prompt_lookup": 4,
    }
    own = generator.generate("Once upon", temperature=0.8, seed=5, max_new_tokens=50, **extra)  # type: ignore[call-overload]
    answer = complete(app, temperature=0.8, seed=5, max_tokens=50, extra_body=extra)
    assert answer.choices[0].text == own.text
    assert answer.usage.completion_tokens == len(own.token_ids)


def test_seeds_of_any_sign_repeat_an_answer(app: Any) -> None:
    texts = {seed: complete(app, temperature=2, seed=seed).choices[0].text for seed in (-1, 0, 1)}
    assert len(set(texts.values())) == 3
    assert complete(app, temperature=2, seed=-1).choices[0].text == texts[-1]


def test_several_prompts_and_answers_come_in_order(app: Any, generator: Generator) -> None:
    own = generator.generate(["one", "two"], temperature=1, seed=2, n=2)
    answer = complete(app, prompt=["one", "two"], temperature=1, seed=2, n=2)
    assert [choice.text for choice in answer.choices] == [each.text for first in own for each in all_of(first)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 8  # each prompt counts once
    ids = generator.encode(["one", "two"])
    assert complete(app, prompt=ids, temperature=1, seed=2, n=2).choices == answer.choices
    assert complete(app, prompt=ids[0], temperature=1, seed=2).choices[0].text == own[0].text


def test_an_echo_begins_with_the_prompt(app: Any, generator: Generator) -> None:
    own = generator.generate("Once upon").text
    assert complete(app, echo=True).choices[0].text == "Once upon" + own
    assert complete(app, echo=True, prompt=generator.encode(["Once upon"])).choices[0].text == "Once upon" + own
    assert "".join(chunk.choices[0].text for chunk in complete(app, echo=True, stream=True)) == "Once upon" + own


def test_a_stream_has_the_form_of_the_api(app: Any) -> None:
    body = {"messages": ASKED, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
    response = post(app, "/v1/chat/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert chunks[-1]["usage"]["total_tokens"] == 5 + chunks[-1]["usage"]["prompt_tokens"]


def test_usage_tells_what_was_taken_over(app: Any) -> None:
    messages = [{"role": "user", "content": "a question that is long enough to be kept for the next turn"}]
    first = chat(app, messages=messages)
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, ASKED[0]]
    second = chat(app, messages=messages)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


@pytest.mark.parametrize("stop", [None, "e"])
def test_log_probabilities_are_those_of_the_text(app: Any, generator: Generator, stop: str | None) -> None:
    options: Any = {"temperature": 1.5, "seed": 4}
    own = generator.chat(ASKED, logprobs=2, max_new_tokens=40, stop=stop, **options)
    assert own.logprobs is not None
    answer = chat(app, logprobs=True, top_logprobs=2, max_tokens=40, stop=stop, **options)
    tokens = answer.choices[0].logprobs.content
    raw = b"".join(bytes(token.bytes) for token in tokens)
    assert raw.decode(errors="replace").startswith(own.text)
    assert [token.logprob for token in tokens] == [each.logprob for each in own.logprobs][: len(tokens)]
    # The end, and what would begin behind the text, is left out.
    assert len(text_of(generator, own.token_ids[: len(tokens)][:-1]).decode(errors="replace")) < len(own.text)
    assert len(tokens) == len(own.token_ids) - (own.finish_reason == "stop")
    assert [[top.logprob for top in token.top_logprobs] for token in tokens] == [
        [value for _, value in each.alternatives] for each in own.logprobs[: len(tokens)]
    ]
    chunks = chat(app, logprobs=True, top_logprobs=2, max_tokens=40, stop=stop, stream=True, **options)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for part in parts if part is not None for token in part.content] == tokens


def test_log_probabilities_of_completions_have_the_older_form(app: Any, generator: Generator) -> None:
    fields: Any = {"logprobs": 2, "max_tokens": 30, "temperature": 1.5, "seed": 11}
    choice = complete(app, **fields).choices[0]
    found = choice.logprobs
    own = generator.generate("Once upon", logprobs=2, max_new_tokens=30, temperature=1.5, seed=11)
    assert own.logprobs is not None
    assert found.token_logprobs == [each.logprob for each in own.logprobs][: len(found.tokens)]
    for token, offset, logprob, top in zip(
        found.tokens, found.text_offset, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert token.startswith("bytes:\\x") or choice.text[offset:].startswith(token)
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
        assert logprob <= max(top.values()) <= 0
    offsets = [
        offset
        for chunk in complete(app, stream=True, **fields)
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset
    ]
    assert offsets == found.text_offset
    assert complete(app, logprobs=0).choices[0].logprobs.top_logprobs is None


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            lambda text: json.loads(text)["kind"] in "ab" and json.loads(text)["count"] <= 99,
        ),
        ({"extra_body": {"structured_outputs": {"regex": "[ab]{3}"}}}, lambda text: set(text) <= {"a", "b"}),
        ({"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}}, lambda text: text in ("yes", "no")),
        ({"extra_body": {"structured_outputs": {"json": {"enum": [1, 2]}}}}, lambda text: json.loads(text) in (1, 2)),
        ({"extra_body": {"structured_outputs": {"grammar": 'start: "x" "y"'}}}, lambda text: text == "xy"),
    ],
)
def test_structured_answers_are_what_was_asked_for(
    app: Any, fields: dict[str, Any], is_right: Callable[[str], bool]
) -> None:
    # Drawn and cold, so that the random model does not fill the context with digits and spaces.
    choice = chat(app, temperature=0.3, seed=0, max_tokens=200, **fields).choices[0]
    if choice.finish_reason == "stop":
        assert is_right(choice.message.content)
    else:
        assert fields["response_format"]["type"] == "json_object"  # which has no end of its own


def test_parts_of_a_message_are_one_text_and_roles_are_the_templates(app: Any, generator: Generator) -> None:
    messages = [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    plain = [{"role": "system", "content": "short"}, {"role": "user", "content": "a\nb"}]
    assert chat(app, messages=messages).choices[0].message.content == generator.chat(plain).text


def test_answers_may_be_sent_back_and_continued(app: Any, generator: Generator) -> None:
    message = chat(app).choices[0].message
    answer = chat(app, messages=[*ASKED, message], extra_body={"continue_final_message": True})
    turns = [*ASKED, {"role": "assistant", "content": message.content}]
    assert answer.choices[0].message.content == generator.chat(turns, continue_final_message=True).text


def test_what_a_template_uses_may_be_given(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ tone }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with text_app(tmp_path, chat_template=template) as (app, generator):
        answer = chat(app, extra_body={"chat_template_kwargs": {"tone": "calm"}})
        assert answer.choices[0].message.content == generator.generate("calmhi there").text
        with pytest.raises(openai.BadRequestError, match=r"chat_template_kwargs\.messages is not supported"):
            chat(app, extra_body={"chat_template_kwargs": {"messages": []}})
