"""`onnxpress chat` and `onnxpress run --prompt` as people use them: Ctrl-C, wrong options, conversations too long."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onnxpress.cli import main
from onnxpress.runtime.errors import InvalidInputError, OnnxpressError
from onnxpress.runtime.generation.constraints import Grammar, choice, json_object, json_schema, regex

LONGEST = 40  # characters that the model below takes


class Model:
    """Answers every message with its text in capitals, word by word; some words make it fail or be interrupted."""

    class settings:  # noqa: N801
        task = "text-generation"

    def __init__(self) -> None:
        self.seen: list[list[dict[str, str]]] = []
        self.stopped = 0
        self.options: dict[str, Any] = {}

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [1]

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Any]:
        assert not prompts
        if options.get("grammar") == regex("(a"):
            raise InvalidInputError("the regular expression cannot be used")
        return []

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        return self.stream_chat([{"role": "user", "content": prompt}], **options)

    def stream_chat(self, messages: list[dict[str, str]], **options: Any) -> Iterator[str]:
        self.seen.append(list(messages))
        self.options = options
        if sum(len(message["content"]) for message in messages) > LONGEST:
            raise InvalidInputError("the prompt is too long; shorten the prompt")
        return self._answer(messages[-1]["content"].split())

    def _answer(self, words: list[str]) -> Iterator[str]:
        try:
            for word in words:
                if word == "ctrl-c":
                    raise KeyboardInterrupt
                if word == "nan":
                    raise OnnxpressError("the model gave the logit nan")
                yield word.upper() + " "
        finally:
            self.stopped += 1


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    made = Model()
    monkeypatch.setattr("onnxpress.runtime.model.load", lambda *arguments, **options: made)
    return made


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Any:
    def said(*lines: Any) -> None:
        rest = iter(lines)

        def ask(prompt: str = "") -> str:
            line = next(rest, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", ask)

    return said


def test_a_conversation_goes_on_until_the_input_ends(
    model: Model, say: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    say("one", "", "two", "/clear", "three", "/exit", "four")
    assert main(["chat", "bundle", "--system", "be short"]) == 0
    assert capsys.readouterr().out == "ONE \nTWO \nTHREE \n"
    system, *_ = model.seen[0]
    assert system == {"role": "system", "content": "be short"}
    assert [message["content"] for message in model.seen[1]] == ["be short", "one", "ONE ", "two"]
    assert [message["content"] for message in model.seen[2]] == ["be short", "three"]


def test_ctrl_c_stops_an_answer_and_what_there_is_of_it_stays(
    model: Model, say: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    say("a b ctrl-c d", "ctrl-c", KeyboardInterrupt, "more")
    assert main(["chat", "bundle"]) == 0
    assert capsys.readouterr().out == "A B \n\n\nMORE \n"
    assert model.stopped == 3
    # The answer that was stopped before its first word is forgotten with its question.
    assert [message["content"] for message in model.seen[-1]] == ["a b ctrl-c d", "A B ", "more"]


def test_a_conversation_that_is_too_long_says_how_to_go_on(
    model: Model, say: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    say("x" * 50, "a b c d e f", "g h i j k l", "m" * 20, "/clear", "m" * 20)
    assert main(["chat", "bundle"]) == 0
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert errors[0] == "onnxpress: the prompt is too long; shorten the prompt"
    assert errors[1].endswith("shorten the prompt; /clear begins anew")
    assert captured.out.endswith("M" * 20 + " \n")


def test_an_answer_that_fails_does_not_end_the_conversation(
    model: Model, say: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    say("nan", "still here")
    assert main(["chat", "bundle"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "onnxpress: the model gave the logit nan\n"
    assert captured.out == "STILL HERE \n"


@pytest.mark.parametrize("command", [["chat", "bundle"], ["run", "bundle", "--prompt", "a"], ["run", "bundle"]])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--max-new-tokens", "0"], "max_new_tokens is 0; give a whole number of at least 1"),
        (["--max-new-tokens", "-3"], "max_new_tokens is -3"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top-p", "nan"], "top_p is nan"),
        (["--top-k", "-2"], "top_k is -2"),
        (["--stop", ""], "stop text 0 is empty"),
        (["--seed", "-1"], "seed is -1"),
        (["--min-p", "2"], "min_p is 2.0"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--presence-penalty", "nan"], "presence_penalty is nan"),
        (["--frequency-penalty", "1000"], "frequency_penalty is 1000.0"),
        (["--stop-token-id", "-1"], "stop_token_ids[0] is -1"),
        (["--choice", ""], "choice 0 is ''"),
        (["--regex", "(a"], "the regular expression cannot be used"),
        (["--json-schema", "missing.json"], "the schema missing.json cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_anything_is_read(
    model: Model, say: Any, command: list[str], option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say("hello")
    assert main([*command, *option]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"onnxpress: {message}")
    assert captured.err.count("\n") == 1
    assert not model.seen


@pytest.mark.parametrize("command", [["chat", "bundle"], ["run", "bundle", "--prompt", "a"]])
@pytest.mark.parametrize(
    ("option", "grammar"),
    [
        (["--json-object"], json_object()),
        (["--json-schema", "FILE"], json_schema({"type": "array"})),
        (["--regex", "[ab]+"], regex("[ab]+")),
        (["--choice", "yes", "--choice", "no"], choice(["yes", "no"])),
    ],
)
def test_an_answer_has_the_form_asked_for(
    model: Model, say: Any, command: list[str], option: list[str], grammar: Grammar, tmp_path: Path
) -> None:
    say("hello")
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array"}')
    assert main([*command, *(str(file) if each == "FILE" else each for each in option)]) == 0
    assert model.options == {"grammar": grammar}


def test_an_answer_has_one_form(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "bundle", "--prompt", "a", "--regex", "a", "--choice", "b"])
    assert "not allowed with argument --regex" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--input", "x.txt"], ["--output", "y.jsonl"], ["--format", "csv"]])
def test_a_prompt_is_not_silently_preferred_to_files(
    model: Model, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "bundle", "--prompt", "a", *option]) == 2
    assert f"leave out {option[0]}, or --prompt" in capsys.readouterr().err
    assert not model.seen


def test_ctrl_c_ends_a_single_answer_on_a_line_of_its_own(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "bundle", "--prompt", "a b ctrl-c d"]) == 130
    captured = capsys.readouterr()
    assert captured.out == "A B \n"
    assert captured.err == "onnxpress: interrupted\n"


SLOW_WRITER = """
import signal, sys, time
from tests.test_chat_command import Model
import onnxpress.cli, onnxpress.runtime.model

class Slow(Model):
    def _answer(self, words):
        for word in words * 1000:
            time.sleep(0.02)
            yield word.upper() + " "

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
onnxpress.runtime.model.load = lambda *arguments, **options: Slow()
sys.exit(onnxpress.cli.main(["chat", "bundle"]))
"""


def test_ctrl_c_in_a_terminal_stops_the_answer_and_not_the_program() -> None:
    ours, theirs = pty.openpty()
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER], stdin=theirs, stdout=theirs, stderr=theirs, cwd=root, env=environment
    )
    os.close(theirs)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert select.select([ours], [], [], max(0.0, end - time.monotonic()))[0], f"no {text!r} after {shown!r}"
            shown += os.read(ours, 4096).decode()
        shown = shown[shown.index(text) + len(text) :]

    try:
        wait_for("> ")
        os.write(ours, b"hello\n")
        wait_for("HELLO HELLO ")
        process.send_signal(signal.SIGINT)
        wait_for("> ")
        os.write(ours, b"again\n")
        wait_for("AGAIN AGAIN ")
        process.send_signal(signal.SIGINT)
        wait_for("> ")
        os.write(ours, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
