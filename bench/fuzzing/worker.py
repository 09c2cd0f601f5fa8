"""Opens spoiled bundles and uses them as a service would: one folder a line in, how it ended a line out.

A process of its own, because what is looked for are crashes and calls that never return. Its memory is limited, so that
a bundle which asks for too much fails here and not on the machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any

import onnxpress
from onnxpress.cli import main
from onnxpress.runtime.errors import OnnxpressError, first_line

TEXTS = ["the cat sat", "", "a much longer text, with ümlauts and 東京 and 😀 " * 8]
MESSAGES = [{"role": "user", "content": "hello"}]
LONGEST_SENTENCE = 2000  # characters of an error


def use(folder: str) -> None:
    """Load the bundle and do its task, whatever that is."""
    model = onnxpress.load(folder)
    try:
        _USES[type(model).__name__](model)
    finally:
        model.close()


def _write(model: Any) -> None:
    model.generate("hello", max_new_tokens=6)
    model.generate(["the cat", "a dog " * 20], max_new_tokens=4, seed=0, n=2)
    "".join(model.stream("the", max_new_tokens=4, stop=["xyz"]))
    model.generate("tell", max_new_tokens=4, num_beams=2)
    model.perplexity(["the cat sat on the mat"])
    if model.settings.generation.chat_template is not None:
        model.chat(MESSAGES, max_new_tokens=4)


def _embed(model: Any) -> None:
    model.embed(TEXTS)
    for name in list(model.embedding.prompts)[:2]:
        model.embed(TEXTS[0], prompt_name=name)


_USES: dict[str, Callable[[Any], object]] = {
    "Embedder": _embed,
    "Classifier": lambda model: model.classify(TEXTS),
    "Reranker": lambda model: model.rank("the cat", TEXTS),
    "Tagger": lambda model: model.tag(TEXTS),
    "Reader": lambda model: model.answer("who?", TEXTS[2]),
    "Filler": lambda model: model.fill(f"the {model.settings.mask.token} sat"),
    "Generator": _write,
}


def look(folder: str) -> None:
    """What the commands make of the bundle: they end with a status, and what they say on stderr is sentences."""
    for command in ("inspect", "verify", "report"):
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main([command, folder])
        if "Traceback" in said.getvalue():
            raise RuntimeError(said.getvalue())


def outcome(folder: str) -> dict[str, str]:
    """`fine`, `refused` with the sentence, or `bug` with the traceback."""
    said = ""
    for job in (use, look):
        try:
            job(folder)
        except OnnxpressError as error:
            said = said or str(error)
        except BaseException:  # noqa: BLE001 - whatever else it is, it is what is looked for
            return {"outcome": "bug", "what": traceback.format_exc()}
        if "\n" in said.strip() or len(said) > LONGEST_SENTENCE:
            return {"outcome": "bug", "what": f"not one sentence: {said[:3000]}"}
    return {"outcome": "refused" if said else "fine", "what": said}


def serve(memory_bytes: int, cache: str) -> None:
    """Answer lines until there are no more."""
    os.environ["ONNXPRESS_CACHE"] = cache
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    for line in sys.stdin:
        try:
            answer = outcome(json.loads(line)["folder"])
        except MemoryError:
            answer = {"outcome": "bug", "what": first_line(MemoryError())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
