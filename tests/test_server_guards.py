"""Guards in the server: which texts they look at, what a client is told, every byte that leaves a blocked answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.guards import Decision, GuardSettings
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server import ServerSettings, create_app
from onnxpress.runtime.server.registry import Models, ServedModel
from tests.decoder_graph import TinyDecoder
from tests.guard_texts import LABELS, to_pass, to_stop
from tests.tiny_generator import SPECIAL, make_bundle, opening

CONTEXT = 1024
BEFORE = "Thank you for your call. 我们的店九点开门。 We are happy to help with your order. "
AFTER = " 谢谢您的来电。"
HOLD = 48

MakeApp = Callable[..., Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """A generator of single bytes, "writer", that writes what a choice makes it write."""
    decoder = TinyDecoder(vocabulary=256 + len(SPECIAL), seed=4, context=CONTEXT)
    with opening(make_bundle(tmp_path_factory.mktemp("bundle"), decoder)) as open_with:
        generator = open_with({"context": CONTEXT})
        runner = BatchingRunner(generator, seconds=120)
        yield Models([ServedModel("writer", "text-generation", generator, runner, 0)])


@pytest.fixture(scope="module")
def make_app(models: Models) -> Iterator[MakeApp]:
    made = []

    def make(*guards: GuardSettings) -> Any:
        made.append(create_app(ServerSettings.of(["writer"], guards=guards), models))
        return made[-1]

    yield make
    for app in made:
        app.state.service.guards.close()


@pytest.fixture(scope="module")
def harm(guard_bundle: Path) -> Callable[..., GuardSettings]:
    def make(**settings: Any) -> GuardSettings:
        thresholds = dict.fromkeys(LABELS[1:], 0.7)
        given = {"bundle": str(guard_bundle), "thresholds": thresholds, "hold_characters": HOLD, **settings}
        return GuardSettings("harm", **given)

    return make


@pytest.fixture(scope="module")
def watched(make_app: MakeApp, harm: Callable[..., GuardSettings]) -> Any:
    """An application whose answers are watched."""
    return make_app(harm(on=("output",)))


def post(app: Any, bodies: list[dict[str, Any]], path: str = "/v1/completions") -> list[httpx2.Response]:
    """The answers to requests that are made at the same time."""

    async def main() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as client:
            return await asyncio.gather(*(client.post(path, json=body) for body in bodies))

    return asyncio.run(main())


def writing(text: str, **fields: Any) -> dict[str, Any]:
    """A request that makes the model write a text."""
    return {"prompt": "a", "structured_outputs": {"choice": [text]}, "max_tokens": CONTEXT - 8, "seed": 1, **fields}


def events(response: httpx2.Response) -> list[Any]:
    """What came of a stream; where it was stopped before anything left, the error alone. None for its proper end."""
    if response.status_code != 200:
        return [response.json()]
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) if line != "data: [DONE]" else None for line in lines]


def refusal(label: str, place: str = "output") -> dict[str, Any]:
    return {
        "message": f"the guard 'harm' stopped the {place}: {label}",
        "type": "content_filter_error",
        "param": None,
        "code": f"{place}_blocked",
    }


STOPPED = to_stop()[::4]
PASSED = to_pass()[::12]


def test_a_blocked_answer_does_not_leave(watched: Any) -> None:
    responses = post(watched, [writing(BEFORE + text + AFTER, logprobs=2) for text, _ in STOPPED])
    for (_, label), response in zip(STOPPED, responses, strict=True):
        assert response.status_code == 400
        # Every byte of it: the error, and nothing else.
        assert response.json() == {"error": refusal(label)}


def test_nothing_of_what_is_stopped_leaves_in_a_stream(watched: Any) -> None:
    asked = [writing(BEFORE * 2 + text + AFTER, stream=True, logprobs=2) for text, _ in STOPPED]
    for (text, label), response in zip(STOPPED, post(watched, asked), strict=True):
        *chunks, last = events(response)
        assert last == {"error": refusal(label)}
        left = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert (BEFORE * 2).startswith(left), text
        # What left besides the text: the tokens of it, byte by byte, and no more.
        logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        tokens = [token for each in logprobs if each for token in each["tokens"]]
        assert len(tokens) <= len(left.encode())
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)


def test_a_whole_answer_is_looked_at_first_where_that_is_asked(
    make_app: MakeApp, harm: Callable[..., GuardSettings]
) -> None:
    app = make_app(harm(on=("output",), stream="whole"))
    text, label = to_stop()[0]
    blocked, passed = post(app, [writing(part + BEFORE * 2, stream=True) for part in (text, to_pass()[0])])
    *chunks, last = events(blocked)
    assert last == {"error": refusal(label)}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ""
    assert "".join(chunk["choices"][0]["text"] for chunk in events(passed)[:-1]) == to_pass()[0] + BEFORE * 2


def test_harmless_answers_leave_unchanged(watched: Any) -> None:
    asked = [writing(BEFORE + text + AFTER, stream=stream) for text in PASSED for stream in (False, True)]
    responses = post(watched, asked)
    for text, plain, streamed in zip(PASSED, responses[::2], responses[1::2], strict=True):
        assert plain.json()["choices"][0]["text"] == BEFORE + text + AFTER
        *chunks, end = events(streamed)
        assert end is None
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == BEFORE + text + AFTER


def test_each_of_several_answers_is_watched(watched: Any) -> None:
    (good, (bad, label)) = (to_pass()[0], to_stop()[0])
    (response,) = post(watched, [writing("a", structured_outputs={"choice": [good, bad]}, n=8, temperature=2.0)])
    assert response.json() == {"error": refusal(label)}
    chat = {"messages": [{"role": "user", "content": "a"}]}
    asked = {**chat, **writing(bad, n=2, stream=True)}
    del asked["prompt"]
    (response,) = post(watched, [asked], "/v1/chat/completions")
    *chunks, last = events(response)
    assert last == {"error": refusal(label)}
    assert "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]) == ""


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_client_says_what_happened(watched: Any, stream: bool) -> None:
    bad, label = to_stop()[0]

    async def main() -> None:
        transport = httpx2.ASGITransport(app=watched)
        async with openai.AsyncOpenAI(
            api_key="none",
            base_url="http://localhost/v1",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            answer: Any = await client.chat.completions.create(
                model="writer",
                messages=[{"role": "user", "content": "a"}],
                stream=stream,
                max_tokens=200,
                extra_body={"structured_outputs": {"choice": [bad]}},
            )
            async for chunk in answer:
                assert not chunk.choices[0].delta.content

    with pytest.raises(openai.APIError) as stopped:
        asyncio.run(main())
    assert (stopped.value.code, stopped.value.type) == ("output_blocked", "content_filter_error")
    assert f"stopped the output: {label}" in stopped.value.message


# What comes in


def test_all_that_a_model_reads_is_looked_at(make_app: MakeApp, harm: Callable[..., GuardSettings]) -> None:
    app = make_app(harm(on=("input",)))
    bad, label = to_stop()[0]
    fine = {"role": "user", "content": "The weather is fine today."}
    chats = [
        [{"role": "system", "content": bad}, fine],
        [{"role": "developer", "content": bad}, fine],
        [{"role": "assistant", "content": bad}, fine],
        [fine, {"role": "assistant", "content": "a"}, {"role": "user", "content": bad}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": bad}]}],
    ]
    bodies = [{"messages": messages, "max_tokens": 2} for messages in [*chats, [fine]]]
    *blocked, passed = post(app, bodies, "/v1/chat/completions")
    assert passed.status_code == 200
    for response in blocked:
        assert (response.status_code, response.json()) == (400, {"error": refusal(label, "input")})
    ids = [len(SPECIAL) + token for token in range(3)]
    assert post(app, [{"prompt": [ids], "max_tokens": 2}])[0].status_code == 200
    tokens = app.state.service.models.find("writer", "text-generation").generator.tokenizer.backend.encode(bad).ids
    for prompt in (bad, ["a", bad], tokens, [ids, tokens]):
        (response,) = post(app, [{"prompt": prompt, "max_tokens": 2}])
        assert (response.status_code, response.json()) == (400, {"error": refusal(label, "input")}), prompt
    # Answers are not this guard's affair.
    assert post(app, [writing(bad)])[0].json()["choices"][0]["text"] == bad


def test_a_guard_watches_the_models_it_is_for(make_app: MakeApp) -> None:
    digits = GuardSettings("digits", callable="tests.guard_callables:no_digits", models=("writer",))
    shouting = GuardSettings("shouting", callable="tests.guard_callables:no_shouting", on=("input",))
    app = make_app(digits, shouting)
    answers = post(app, [{"prompt": prompt, "max_tokens": 1} for prompt in ("Room 101", "NO", "NO 1", "no")])
    codes = [response.json().get("error", {}).get("message", "") for response in answers]
    assert codes[:3] == [
        "the guard 'digits' stopped the input: digits",
        "the guard 'shouting' stopped the input: shouting",
        "the guard 'digits' stopped the input: digits",
    ]
    counts = app.state.service.guards.counts
    assert counts[Decision("digits", "input", blocked=True, failed=False)] == 2
    with pytest.raises(InvalidInputError, match="'g' watches 'reader', which is not served; there are: writer"):
        make_app(GuardSettings("g", callable="tests.guard_callables:no_digits", models=("reader",)))


def test_a_guard_that_fails_is_told_without_what_it_looked_at(make_app: MakeApp) -> None:
    app = make_app(GuardSettings("own", callable="tests.guard_callables:broken"))
    (response,) = post(app, [{"prompt": "a secret", "max_tokens": 1}])
    assert response.status_code == 503
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "guard_failed")
    assert error["message"].startswith("the guard 'own' failed")
    assert "secret" not in response.text


def test_guards_of_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(
        '[[bundles]]\npath = "writer"\n'
        '[[guards]]\nname = "harm"\nbundle = "toxicity"\non = ["output"]\nstream = "whole"\nhold_characters = 100\n'
        '[guards.thresholds]\ninsult = 0.8\n"a label" = 1\n'
        '[[guards]]\nname = "own"\ncallable = "a:b"\nmodels = ["writer"]\non_failure = "pass"\nseconds = 5\n'
    )
    first, second = ServerSettings.read(path).guards
    assert first == GuardSettings(
        "harm",
        bundle="toxicity",
        thresholds={"insult": 0.8, "a label": 1.0},
        on=("output",),
        stream="whole",
        hold_characters=100,
    )
    assert second == GuardSettings("own", callable="a:b", models=("writer",), on_failure="pass", seconds=5.0)
    path.write_text('[[bundles]]\npath = "writer"\n[[guards]]\nname = "g"\ncallable = "a:b"\non = ["both"]\n')
    with pytest.raises(InvalidInputError, match=r"guards\[0\].on\[0\]: expected 'input' or 'output', got 'both'"):
        ServerSettings.read(path)
