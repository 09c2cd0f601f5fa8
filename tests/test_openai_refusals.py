"""runtime/server/routes/{chat,completions}.py: what is refused, and how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest

from onnxpress.runtime.server import Limits
from tests.text_client import ASKED, CHAT, TEXT, chat, complete, held, post
from tests.text_server import app, generator, served, text_app

__all__ = ["app", "generator", "served"]  # fixtures


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        (CHAT, {"temprature": 1}, "temprature", "temprature"),
        (CHAT, {"messages": []}, "messages", "messages"),
        (CHAT, {"messages": ASKED * 17}, "messages", "messages has 17; at most 16"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'system', 'developer'"),
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
        (CHAT, {"top_logprobs": 21, "logprobs": True}, "top_logprobs", "top_logprobs"),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "differ"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "max_tokens"),
        (CHAT, {"stream_options": {}, "stream": False}, "stream_options", "set stream, too"),
        (CHAT, {"stop": [""]}, None, "stop text 0 is empty"),
        (CHAT, {"temperature": 1e9}, "temperature", "temperature"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "no json_schema"),
        (CHAT, {"structured_outputs": {"regex": "("}}, None, "the regular expression cannot be used"),
        (CHAT, {"structured_outputs": {}}, "structured_outputs", "has 0 of json"),
        (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "has 2 of json"),
        (TEXT, {"prompt": []}, None, "prompt"),
        (TEXT, {"prompt": ["a"] * 6, "n": 3}, "prompt", "prompt has 18; at most 16"),
        (TEXT, {"prompt": [5, 1000]}, None, "the token 1000"),
        (TEXT, {"prompt": "x" * 300}, "prompt", "the prompt has 301 tokens; the model's context is 256"),
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
    if param is not None:
        assert re.sub(r"\.(\d+)", r"[\1]", error["param"]) == param
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
