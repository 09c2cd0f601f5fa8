"""Guards over texts: what they stop, what they let pass, what becomes of those that fail, and in which order."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxpress.runtime.encoder import Encoder
from onnxpress.runtime.errors import (
    BlockedError,
    ClosedError,
    GuardError,
    InvalidInputError,
    OnnxpressError,
    QueueFullError,
)
from onnxpress.runtime.guards import Decision, Guards, GuardSettings, classifying
from onnxpress.runtime.guards.calling import CallingGuard
from onnxpress.runtime.guards.classifying import ClassifyingGuard
from onnxpress.runtime.guards.loop_thread import LoopThread
from onnxpress.runtime.guards.normalising import forms, sentences
from tests.guard_texts import FILLER, LABELS, to_pass, to_stop
from tests.waiting import LONGEST, no_thread

THRESHOLDS = dict.fromkeys(LABELS[1:], 0.85)


@pytest.fixture(scope="module")
def guards(guard_bundle: Path) -> Iterator[Guards]:
    loaded = Guards.load([GuardSettings("harm", bundle=str(guard_bundle), thresholds=THRESHOLDS)], threads=1)
    yield loaded
    loaded.close()


def calling(name: str, function: Callable[..., Any], **settings: Any) -> CallingGuard:
    return CallingGuard(GuardSettings(name, callable="a:b", **settings), function)


def says(word: str) -> Callable[[str], str | None]:
    """A function that stops texts with a word."""
    return lambda text: "a word" if word in text else None


# What is stopped, and what is not


def test_what_must_be_stopped_is_stopped_and_named(guards: Guards) -> None:
    for text, label in to_stop():
        with pytest.raises(BlockedError) as stopped:
            guards.check(text, "input")
        error = stopped.value
        assert (error.guard, error.label, error.place, error.index) == ("harm", label, "input", 0), text
        assert error.score is not None
        assert error.score >= 0.85
        assert str(error) == f"the guard 'harm' stopped the input: {label}"


def test_harmless_texts_that_look_alike_pass(guards: Guards) -> None:
    for text in to_pass():
        guards.check(text, "output")
    guards.check([], "input")
    guards.check(["", "  \n\u200b "], "input")


@pytest.mark.parametrize("place", ["beginning", "middle", "end"])
@pytest.mark.parametrize(("text", "label"), [to_stop()[0], to_stop()[4], to_stop()[-1]])
def test_nothing_of_a_very_long_text_is_passed_over(guards: Guards, text: str, label: str, place: str) -> None:
    many = [*FILLER] * 30  # about fifty times what the model reads at once
    where = {"beginning": 0, "middle": len(many) // 2, "end": len(many)}[place]
    guards.check(" ".join(many), "input")
    with pytest.raises(BlockedError, match=label):
        guards.check(" ".join([*many[:where], text, *many[where:]]), "input")


@pytest.mark.parametrize(
    "text",
    [
        "YOU ARE A IDIOT.",
        "yOu ArE a iDiOt.",
        "ｙｏｕ ａｒｅ ａ ｉｄｉｏｔ．",
        "you are a i\u200bd\u200bi\u2060o\u00adt.",
        "you are a 𝐢𝐝𝐢𝐨𝐭.",
        "you are a ìdïö\u0336t\u0335.",
        "you are a i d i o t.",
        "you are a i.d.i.o.t",
        "you are a i - d - i - o - t",
        "y o u   a r e   a   i d i o t",
        "你 真 是 笨 蛋！",
        "你·真·是·笨\u200b蛋！",
        "你-真-是-笨-蛋",
    ],
)
def test_simple_disguises_do_not_help(guards: Guards, text: str) -> None:
    with pytest.raises(BlockedError, match="insult"):
        guards.check(text, "input")


def test_the_first_text_that_is_stopped_is_told(guards: Guards) -> None:
    (bad, label), (worse, _) = to_stop()[0], to_stop()[-1]
    with pytest.raises(BlockedError) as stopped:
        guards.check([FILLER[0], bad, worse], "input")
    assert (stopped.value.index, stopped.value.label) == (1, label)


def test_a_threshold_is_a_probability_of_its_label(guard_bundle: Path) -> None:
    text, label = to_stop()[0]

    def found(**thresholds: float) -> str | None:
        loaded = Guards.load([GuardSettings("harm", bundle=str(guard_bundle), thresholds=thresholds)], threads=1)
        try:
            loaded.check(text, "input")
        except BlockedError as error:
            return error.label
        finally:
            loaded.close()
        return None

    assert found(**{label: 0.6}) == label
    assert found(**{label: 1.0}) is None
    assert found(weapon=0.6) is None
    # Both are above their thresholds; it is most above that of its own label.
    assert found(weapon=1e-6, **{label: 0.6}) == label


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain", ["plain"]),
        ("Upper", ["Upper", "upper"]),
        ("Ｗｉｄｅ", ["Ｗｉｄｅ", "wide"]),
        ("a\u0308 \u200bb", ["a\u0308 \u200bb", "a b"]),
        ("n o   w a y", ["n o   w a y", "n o   way"]),
        ("x.y.z", ["x.y.z", "xyz"]),
        ("see a b c", ["see a b c", "see abc", "see a bc"]),
        ("1-2-3 or 1.2-3", ["1-2-3 or 1.2-3", "123 or 1.2-3"]),
        ("你 好", ["你 好", "你好"]),
        ("가나다 が", ["가나다 が"]),
        ("\u200b\n", []),
    ],
)
def test_forms_of_a_text(text: str, found: list[str]) -> None:
    assert forms(text) == found


def test_sentences_of_a_text() -> None:
    assert sentences("Only one sentence.") == []
    assert sentences("One sentence is here. 这里有一个句子，不太长也不太短。Version 3.14 is out!\nA line") == [
        "One sentence is here.",
        "这里有一个句子，不太长也不太短。",
        "Version 3.14 is out!",
        "A line",
    ]
    assert sentences("No. No. Not at all. Not for any money.") == ["No. No. Not at all.", "Not for any money."]


# Callables


def test_a_callable_is_found_by_its_name() -> None:
    guards = Guards.load([GuardSettings("own", callable="tests.guard_callables:no_digits")])
    guards.check("no number", "input")
    with pytest.raises(BlockedError, match="the guard 'own' stopped the output: digits") as stopped:
        guards.check("room 101", "output")
    assert stopped.value.score is None
    guards.close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.guard_callables", "give package.module:name"),
        ("tests.missing_module:f", "there is no module 'tests.missing_module'"),
        ("tests.guard_callables:missing", "no 'missing'"),
        ("tests.guard_callables:NUMBER", "is of type int"),
        ("tests.guard_callables_broken:f", "importing its callable tests.guard_callables_broken:f failed: too early"),
    ],
)
def test_a_callable_that_cannot_be_used_is_told(path: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"the guard 'own': .*{message}"):
        Guards.load([GuardSettings("own", callable=path)])


def test_sync_and_async_functions_and_objects_are_asked(caplog: pytest.LogCaptureFixture) -> None:
    async def later(text: str) -> str | None:
        await asyncio.sleep(0)
        return "later" if "x" in text else None

    class Both:
        async def __call__(self, text: str) -> str | None:
            return await later(text)

    class Sync:
        def __call__(self, text: str) -> str | None:
            return "later" if "x" in text else None

    for function in (later, Both(), Sync()):
        guards = Guards([calling("own", function)])
        guards.check("a", "input")
        with pytest.raises(BlockedError, match="later"):
            guards.check("ax", "input")
        guards.close()


def test_a_callable_sees_a_text_and_its_plain_form() -> None:
    seen: list[str] = []
    guards = Guards([calling("own", seen.append)])
    guards.check(["Ｂ\u200bad", "plain"], "input")
    assert seen == ["Ｂ\u200bad", "bad", "plain"]
    guards.close()


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("a category", "a category"),
        ("it says 'meet me at the old bridge'", "stopped"),
        ("Meet me at THE OLD bridge tonight", "stopped"),
        ("  two\nlines ", "two lines"),
        ("", "stopped"),
    ],
)
def test_a_reason_does_not_carry_the_text_out(reason: str, shown: str) -> None:
    guards = Guards([calling("own", lambda text: reason)])
    with pytest.raises(BlockedError) as stopped:
        guards.check("Come and meet me at the old bridge tonight", "output")
    assert stopped.value.label == shown
    assert "bridge" not in str(stopped.value)
    guards.close()


# Failures


def failing(text: str) -> str | None:
    raise ValueError(f"cannot read {text}")


@pytest.mark.parametrize("function", [failing, lambda text: True, lambda text: False, lambda text: 1])
def test_a_guard_that_fails_stops_the_request(function: Any, caplog: pytest.LogCaptureFixture) -> None:
    decisions: list[Decision] = []
    guards = Guards([calling("own", function)], on_decision=decisions.append)
    with pytest.raises(GuardError, match="the guard 'own' failed, so the output was stopped unseen"):
        guards.check("a secret", "output")
    assert decisions == [Decision("own", "output", blocked=True, failed=True)]
    assert guards.counts == {decisions[0]: 1}
    (record,) = (record for record in caplog.records if record.name == "onnxpress.guards")
    assert record.levelno == logging.ERROR
    assert "own" in record.message
    assert "secret" not in caplog.text
    guards.close()


def test_a_guard_that_may_fail_lets_texts_pass(caplog: pytest.LogCaptureFixture) -> None:
    guards = Guards([calling("own", failing, on_failure="pass")])
    guards.check("a secret", "input")
    assert guards.counts == {Decision("own", "input", blocked=False, failed=True): 1}
    assert "the input was passed" in caplog.text
    assert "secret" not in caplog.text
    guards.close()


def test_a_guard_that_takes_too_long_stops_the_request() -> None:
    free = threading.Event()

    def blocking(text: str) -> None:
        free.wait()

    async def never(text: str) -> None:
        await asyncio.sleep(3600)

    for function in (blocking, never):
        guards = Guards([calling("slow", function, seconds=0.05)])
        with pytest.raises(GuardError, match=r"gave no answer within 0\.05 seconds"):
            guards.check("a", "input")
        guards.close()
    free.set()


def test_calls_that_never_return_do_not_pile_up() -> None:
    free = threading.Event()
    guards = Guards([calling("stuck", lambda text: free.wait() and None, seconds=0.1)])

    async def many() -> list[BaseException | None]:
        return await asyncio.gather(*(guards.check_async("a", "input") for _ in range(400)), return_exceptions=True)

    before = threading.active_count()
    outcomes = asyncio.run(many())
    assert {type(outcome) for outcome in outcomes} == {GuardError}
    assert threading.active_count() - before <= 16
    free.set()
    guards.close()


def test_a_text_that_cannot_be_looked_at_is_refused(guard_bundle: Path) -> None:
    settings = GuardSettings("harm", bundle=str(guard_bundle), thresholds=THRESHOLDS, on_failure="pass")
    guards = Guards.load([settings], threads=1, most_tokens=100)
    # Whoever sends it is told; that a guard may fail is no way around it.
    with pytest.raises(InvalidInputError, match="lone surrogate"):
        guards.check("a \ud800", "input")
    with pytest.raises(InvalidInputError, match="tokens together, 100 are allowed"):
        guards.check("a word " * 200, "input")
    # A client is not to blame for what a model wrote.
    with pytest.raises(GuardError, match="the output was stopped"):
        guards.check("a word " * 200, "output")
    guards.close()


def test_a_full_queue_is_told_as_it_is(guard_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GuardSettings("harm", bundle=str(guard_bundle), thresholds=THRESHOLDS, on_failure="pass")
    guards = Guards.load([settings], threads=1, most_waiting=4)
    full = threading.Event()
    run_batch = Encoder.run_batch

    def held(*arguments: Any, **options: Any) -> Any:
        full.wait(LONGEST)
        return run_batch(*arguments, **options)

    monkeypatch.setattr(Encoder, "run_batch", held)

    async def many() -> list[BaseException | None]:
        calls = [asyncio.ensure_future(guards.check_async(f"a text {number}", "input")) for number in range(100)]
        while not any(call.done() for call in calls):
            await asyncio.sleep(0.005)
        full.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert {type(outcome) for outcome in asyncio.run(many())} == {type(None), QueueFullError}
    guards.close()


def test_probabilities_that_are_no_numbers_are_a_failure(guards: Guards, monkeypatch: pytest.MonkeyPatch) -> None:
    (guard,) = guards
    assert isinstance(guard, ClassifyingGuard)

    async def broken(texts: list[str]) -> list[dict[str, float]]:
        return [dict.fromkeys(LABELS, float("nan")) for _ in texts]

    monkeypatch.setattr(guard._runner.asynchronous, "highest_scores", broken)
    with pytest.raises(GuardError):
        guards.check("a", "input")


# Several


def test_the_first_one_configured_that_stops_a_text_is_named() -> None:
    async def slow(text: str) -> str | None:
        await asyncio.sleep(0.05)
        return "slow" if "x" in text else None

    guards = Guards([calling("slow", slow), calling("fast", says("x")), calling("broken", failing)])
    for _ in range(3):
        with pytest.raises(BlockedError, match="'slow'"):
            guards.check("x", "input")
    with pytest.raises(GuardError, match="'broken'"):
        guards.check("y", "input")
    guards.close()
    # That it is stopped is known; that the first one failed does not matter then.
    guards = Guards([calling("broken", failing), calling("fast", says("x"))])
    with pytest.raises(BlockedError, match="'fast'"):
        guards.check("x", "input")
    guards.close()


def test_guards_look_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(text: str) -> None:
        both.wait()

    guards = Guards([calling("one", meet), calling("two", meet)])
    guards.check("a", "input")
    guards.close()


def test_guards_watch_the_places_and_models_they_are_for() -> None:
    guards = Guards(
        [
            calling("in", says("x"), on=("input",)),
            calling("out", says("x"), on=("output",), models=("writer",)),
        ]
    )
    for place, model, name in (("input", "reader", "in"), ("output", "writer", "out"), ("output", None, "out")):
        with pytest.raises(BlockedError, match=f"'{name}'"):
            guards.check("x", place, model)
    guards.check("x", "output", "reader")
    guards.close()


def test_checks_of_many_threads_run_together(guards: Guards) -> None:
    (guard,) = guards
    assert isinstance(guard, ClassifyingGuard)
    before = guard._runner.state
    bad, label = to_stop()[0]
    texts = [*FILLER, bad] * 4
    outcomes: list[str] = []

    def look(text: str) -> None:
        try:
            guards.check(text, "input")
            outcomes.append("")
        except BlockedError as error:
            outcomes.append(error.label)

    threads = [threading.Thread(target=look, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == sorted([""] * 64 + [label] * 4)
    after = guard._runner.state
    assert after.batches - before.batches < after.sequences - before.sequences  # type: ignore[union-attr]


def test_closed_guards_say_so(guard_bundle: Path) -> None:
    guards = Guards.load([GuardSettings("harm", bundle=str(guard_bundle), thresholds=THRESHOLDS)], threads=1)
    guards.check("a", "input")
    guards.close()
    with pytest.raises(ClosedError):
        guards.check("a", "input")
    with pytest.raises(ClosedError):
        asyncio.run(guards.check_async("a", "input"))


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "has no name"),
        ({}, "either a bundle or a callable"),
        ({"bundle": "b", "callable": "a:b", "thresholds": {"x": 0.5}}, "either a bundle or a callable"),
        ({"bundle": "b"}, "has no thresholds"),
        ({"callable": "a:b", "thresholds": {"x": 0.5}}, "belong to a bundle"),
        ({"bundle": "b", "thresholds": {"x": 0.0}}, "threshold of 'x' is 0.0"),
        ({"bundle": "b", "thresholds": {"x": 1.1}}, "threshold of 'x' is 1.1"),
        ({"bundle": "b", "thresholds": {"x": True}}, "threshold of 'x' is True"),
        ({"bundle": "b", "thresholds": {"x": float("nan")}}, "threshold of 'x' is nan"),
        ({"callable": "a:b", "on": ()}, "is on nothing"),
        ({"callable": "a:b", "on": ("inputs",)}, "is on inputs"),
        ({"callable": "a:b", "on_failure": "ignore"}, "on_failure is 'ignore'"),
        ({"callable": "a:b", "stream": "none"}, "stream is 'none'"),
        ({"callable": "a:b", "seconds": 0}, "seconds is 0"),
        ({"callable": "a:b", "hold_characters": 2}, "hold_characters is 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        GuardSettings(**{"name": "g", **settings})


def test_two_guards_need_two_names() -> None:
    with pytest.raises(InvalidInputError, match="two guards are called 'g'"):
        Guards([calling("g", failing), calling("g", failing)])


def test_bundles_that_are_of_no_use_are_told(
    guard_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, label: str) -> str:
        with pytest.raises(OnnxpressError) as error:
            Guards.load([GuardSettings("g", bundle=str(path), thresholds={label: 0.5})])
        return str(error.value)

    start = f"the guard 'g': it has no label 'rude'; its labels are: {', '.join(LABELS)}"
    assert refused(guard_bundle, "rude") == start
    assert refused(tmp_path, "rude").startswith(f"the guard 'g': {tmp_path}")
    embedder = SimpleNamespace(settings=SimpleNamespace(task="feature-extraction"))
    monkeypatch.setattr(classifying, "load", lambda *arguments, **options: embedder)
    assert refused(tmp_path, "rude").endswith("is for feature-extraction; a guard needs one for text-classification")


def test_a_slow_check_does_not_hold_up_the_loop() -> None:
    free = threading.Event()
    guards = Guards([calling("slow", lambda text: free.wait(30) and None)])

    async def main() -> float:
        task = asyncio.create_task(guards.check_async("a", "input"))
        started = time.monotonic()
        for _ in range(5):
            await asyncio.sleep(0)
        free.set()
        await task
        return time.monotonic() - started

    assert asyncio.run(main()) < 25
    guards.close()


def test_a_thread_that_the_system_does_not_give_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer() -> int:
        return 3

    loop = LoopThread()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            loop.run(answer())
    assert loop.run(answer()) == 3
    loop.close()
