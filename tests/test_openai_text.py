"""runtime/server/routes/{chat,completions}.py: answers through the official client, beside the generator's own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.requests import Generation
from onnxpress.runtime.server import Limits
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError
from tests.text_server import text_app

ASKED: Any = [{"role": "user", "content": "hi there"}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Generator]]:
    with text_app(tmp_path_factory.mktemp("bundle")) as both:
        yield both


@pytest.fixture
def app(served: tuple[Any, Generator]) -> Any:
    return served[0]


@pytest.fixture
def generator(served: tuple[Any, Generator]) -> Generator:
    return served[1]


def ask(app: Any, asking: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """What a function gets with a client of the application."""

    async def inside() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with openai.AsyncOpenAI(
            api_key="none",
            base_url="http://localhost/v1",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            return await asking(client)

    return asyncio.run(inside())


def chat(app: Any, **fields: Any) -> Any:
    """The answer to a chat, or the chunks of a stream."""

    async def asking(client: openai.AsyncOpenAI) -> Any:
        answer = await client.chat.completions.create(**{"model": "tiny", "messages": ASKED, **fields})
        return [chunk async for chunk in answer] if fields.get("stream") else answer

    return ask(app, asking)


def complete(app: Any, **fields: Any) -> Any:
    """The same for a completion."""

    async def asking(client: openai.AsyncOpenAI) -> Any:
        answer = await client.completions.create(**{"model": "tiny", "prompt": "Once upon", **fields})
        return [chunk async for chunk in answer] if fields.get("stream") else answer

    return ask(app, asking)


def post(app: Any, path: str, body: dict[str, Any]) -> httpx2.Response:
    """The response to a body that the client would not send."""

    async def inside() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
            content, kind = json.dumps(body), {"content-type": "application/json"}
            return await client.post(path, content=content, headers=kind)

    return asyncio.run(inside())


def all_of(answer: Generation) -> list[Generation]:
    return [answer, *answer.others]


def text_of(generator: Generator, token_ids: tuple[int, ...]) -> bytes:
    """The bytes of tokens, one after the other."""
    return b"".join(generator.preparing.detokenizer.token_text(token).raw or b"" for token in token_ids)


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


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        (CHAT, {"temprature": 1}, "temprature", "Extra inputs are not permitted"),
        (CHAT, {"messages": []}, "messages", "messages is empty"),
        (CHAT, {"messages": ASKED * 17}, "messages", "messages has 17; at most 16"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "Input should be 'system'"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "text only",
        ),
        (CHAT, {"tools": [{"type": "function"}]}, "tools", "calls no tools"),
        (CHAT, {"tool_choice": "auto"}, "tool_choice", "calls no tools"),
        (CHAT, {"logit_bias": {"5": 3}}, "logit_bias", "logits cannot be changed"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        (CHAT, {"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "differ"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (CHAT, {"stream_options": {}, "stream": False}, "stream_options", "set stream, too"),
        (CHAT, {"stop": [""]}, None, "stop text 0 is empty"),
        (CHAT, {"temperature": 1e9}, "temperature", "less than or equal to 10000"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "no json_schema"),
        (CHAT, {"structured_outputs": {"regex": "("}}, None, "the regular expression cannot be used"),
        (CHAT, {"structured_outputs": {}}, "structured_outputs", "has 0 of json"),
        (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "has 2 of json"),
        (TEXT, {"prompt": []}, "prompt", "prompt is empty"),
        (TEXT, {"prompt": ["a"] * 6, "n": 3}, "prompt", "prompt has 18; at most 16"),
        (TEXT, {"prompt": [5, 1000]}, None, "the token 1000"),
        (TEXT, {"prompt": "x" * 300}, "prompt", "the prompt has 301 tokens; the model's context is 256"),
        (TEXT, {"prompt": ["fine", "\ud800"]}, None, "prompt 1: the prompt has a lone surrogate"),
        (TEXT, {"prompt": ["a"] * 16, "max_tokens": 255}, None, "4,096 tokens together, 4,000 are allowed"),
        (TEXT, {"best_of": 3}, "best_of", "best_of is not supported"),
        (TEXT, {"suffix": "end"}, "suffix", "at the end only"),
        (TEXT, {"echo": True, "logprobs": 1}, "echo", "the prompt's own log probabilities"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_one_sentence(
    app: Any, path: str, fields: dict[str, Any], param: str | None, message: str, stream: bool
) -> None:
    body = {"messages": ASKED} if path == CHAT else {"prompt": "x"}
    response = post(app, path, {**body, "stream": stream, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"]


def test_errors_are_those_of_the_client(app: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'none'; there are: tiny") as missing:
        chat(app, model="none")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat(app, messages=[{"role": "user", "content": "x" * 300}])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    with text_app(tmp_path, chat_template=None) as (app, _):
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            chat(app)
        assert complete(app).choices


def held(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the engine's thread before each step until the event is set."""
    may_go = threading.Event()
    advance = generator.engine._scheduler.advance

    def hold() -> None:
        may_go.wait(10)
        advance()

    monkeypatch.setattr(generator.engine._scheduler, "advance", hold)
    return may_go


async def until(condition: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


LONG: Any = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_server_cuts_off_is_an_error(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    may_go = held(generator, monkeypatch)

    async def asking(client: openai.AsyncOpenAI) -> None:
        async def answer() -> None:
            created: Any = await client.chat.completions.create(model="tiny", messages=ASKED, stream=stream, **LONG)
            if stream:
                async for _ in created:
                    pass

        task = asyncio.create_task(answer())
        await until(lambda: bool(generator.engine.state.running + generator.engine.state.waiting))
        threading.Timer(0.1, may_go.set).start()
        await asyncio.to_thread(generator.engine.close)
        await task

    with pytest.raises(openai.APIError, match="has cut this answer off") as caught:
        ask(app, asking)
    assert caught.value.code == "shutting_down"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_cancelled_gives_its_row_back(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    may_go = held(generator, monkeypatch)
    done = generator.engine.state.counts.new_tokens

    async def asking(client: openai.AsyncOpenAI) -> None:
        asked: Any = client.chat.completions.create(model="tiny", messages=ASKED, stream=stream, n=3, **LONG)
        task = asyncio.create_task(asked)
        await until(lambda: generator.engine.state.running + generator.engine.state.waiting == 3)
        task.cancel()
        await asyncio.wait([task])
        may_go.set()
        await until(lambda: not generator.engine.state.running + generator.engine.state.waiting)

    ask(app, asking)
    assert generator.engine.state.counts.new_tokens - done < 50
    assert generator.engine.state.taken_rows == 0
    assert app.state.service.streams == 0


@pytest.mark.parametrize("stream", [False, True])
def test_limits_refuse_with_429_and_504(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    with text_app(tmp_path, Limits(waiting=2, seconds=0.01)) as (app, generator):
        may_go = held(generator, monkeypatch)
        with pytest.raises(openai.RateLimitError, match="requests are waiting, which is the limit") as full:
            chat(app, stream=stream, n=4)
        assert full.value.code == "queue_full"
        assert full.value.response.headers["retry-after"]
        may_go.set()
    with text_app(tmp_path, Limits(seconds=1e-6)) as (app, _):
        with pytest.raises(openai.InternalServerError, match="no complete answer within 1e-06 seconds") as late:
            chat(app, stream=stream)
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        assert app.state.service.streams == 0


class _Holding:
    """Lets text leave once 5 more characters are there, and stops one with a certain letter."""

    def __init__(self, stopped: str = "") -> None:
        self._held, self._stopped = "", stopped

    async def feed(self, text: str) -> str:
        self._held += text
        if self._stopped and self._stopped in self._held:
            raise RequestError(400, "it was stopped", kind="content_filter_error", code="output_blocked")
        ready, self._held = self._held[:-5], self._held[-5:]
        return ready

    async def finish(self) -> str:
        return self._held

    def close(self) -> None:
        pass


def test_text_and_tokens_wait_for_what_watches_them(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Call, "watch_output", lambda self: _Holding())
    own = generator.chat(ASKED, max_new_tokens=40, temperature=1, seed=3)
    shown, tokens = "", b""
    chunks = chat(app, max_tokens=40, temperature=1, seed=3, logprobs=True, stream=True)
    for chunk in chunks:
        choice = chunk.choices[0]
        shown += choice.delta.content or ""
        tokens += b"".join(bytes(each.bytes or ()) for each in (choice.logprobs.content if choice.logprobs else ()))
        if choice is not chunks[-1].choices[0]:
            assert len(tokens.decode(errors="ignore")) <= len(shown)
    assert shown == own.text
    assert tokens == text_of(
        generator, own.token_ids[: own.token_ids.index(1)] if 1 in own.token_ids else own.token_ids
    )


def test_what_is_stopped_ends_a_stream_with_an_error(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = generator.chat(ASKED, max_new_tokens=40, temperature=1, seed=3).text
    monkeypatch.setattr(Call, "watch_output", lambda self: _Holding(text[20]))
    body = {"messages": ASKED, "max_tokens": 40, "temperature": 1, "seed": 3, "stream": True}
    response = post(app, CHAT, body)
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n") if event]
    assert events[-1]["error"]["code"] == "output_blocked"
    assert text[20] not in "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert app.state.service.streams == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_says_what_it_took(app: Any, stream: bool) -> None:
    calls: list[Call] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        calls.append(scope["state"]["call"])

    post(watched, CHAT, {"messages": ASKED, "stream": stream, "max_tokens": 9, "ignore_eos": True, "n": 2})
    (call,) = calls
    answer, report = call.answer, call.report
    assert answer is not None
    assert (answer.new_tokens, answer.finish_reason, len(answer.between_token_seconds)) == (18, "length", 16)
    assert answer.prompt_tokens * 2 == report.tokens
    assert report.sequences == 2
    assert answer.first_token_seconds is not None
    assert 0 < report.tokenize_seconds < answer.first_token_seconds < report.wait_seconds + report.run_seconds + 60
    assert report.run_seconds > sum(answer.between_token_seconds) / 4
