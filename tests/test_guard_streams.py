"""Answers that are looked at while they are written: nothing of what is stopped leaves, the rest leaves unchanged."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import BlockedError, GuardError
from onnxpress.runtime.guards import Guards, GuardSettings
from onnxpress.runtime.guards.calling import CallingGuard
from onnxpress.runtime.guards.checkpoints import Checkpoints
from tests.guard_texts import FILLER, LABELS, to_pass, to_stop

HOLD = 64
ALPHABET = "ab .。\n傻"


def calling(name: str, function: Callable[..., Any], **settings: Any) -> CallingGuard:
    return CallingGuard(GuardSettings(name, callable="a:b", hold_characters=HOLD, **settings), function)


def says(passage: str) -> Callable[[str], Any]:
    async def look(text: str) -> str | None:
        return "a passage" if passage in text else None

    return look


def pieces_of(text: str, seed: int = 0) -> Iterator[str]:
    """As a generator's tokens come: some characters at a time, sometimes none."""
    draw = random.Random(seed)
    place = 0
    while place < len(text):
        size = draw.choice((0, 1, 1, 2, 3, 5, 8))
        yield text[place : place + size]
        place += size


async def stream(guards: Guards, pieces: Iterator[str]) -> tuple[str, BlockedError | None]:
    """What left, and what stopped it."""
    watch = guards.watch()
    left = ""
    try:
        for piece in pieces:
            left += await watch.feed(piece)
            await asyncio.sleep(0)
        left += await watch.finish()
    except BlockedError as error:
        return left, error
    finally:
        watch.close()
    assert watch.released == len(left)
    return left, None


@pytest.fixture(scope="module")
def guards(guard_bundle: Path) -> Iterator[Guards]:
    thresholds = dict.fromkeys(LABELS[1:], 0.7)
    loaded = Guards.load([GuardSettings("harm", bundle=str(guard_bundle), thresholds=thresholds)], threads=1)
    yield loaded
    loaded.close()


# With a model


def answer_around(text: str, seed: int) -> tuple[str, str]:
    """A long answer with a text in it, and what of it is before the text."""
    draw = random.Random(seed)
    before = "".join(draw.choices([f"{filler} " for filler in FILLER], k=draw.randint(0, 12)))
    after = "".join(f" {filler}" for filler in draw.choices(FILLER, k=draw.randint(0, 12)))
    return f"{before}{text}{after}", before


def test_nothing_of_a_harmful_sentence_leaves(guards: Guards) -> None:
    async def main() -> None:
        answers = [answer_around(text, seed) for seed, (text, _) in enumerate(to_stop())]
        streams = (stream(guards, pieces_of(answer, seed)) for seed, (answer, _) in enumerate(answers))
        for (answer, before), (text, label), (left, error) in zip(
            answers, to_stop(), await asyncio.gather(*streams), strict=True
        ):
            assert error is not None, text
            assert (error.label, error.place) == (label, "output"), text
            assert answer.startswith(left)
            assert len(left) <= len(before), text

    asyncio.run(main())


def test_harmless_answers_leave_unchanged(guards: Guards) -> None:
    async def main() -> None:
        answers = [answer_around(text, seed)[0] for seed, text in enumerate(to_pass()[::3])]
        streams = (stream(guards, pieces_of(answer, seed)) for seed, answer in enumerate(answers))
        for answer, (left, error) in zip(answers, await asyncio.gather(*streams), strict=True):
            assert error is None
            assert left == answer

    asyncio.run(main())


def test_checks_of_many_streams_run_together(guards: Guards) -> None:
    (guard,) = guards
    runner: Any = guard._runner  # type: ignore[attr-defined]

    async def main() -> None:
        await asyncio.gather(*(stream(guards, pieces_of(" ".join(FILLER), seed)) for seed in range(8)))

    before = runner.state
    asyncio.run(main())
    after = runner.state
    calls = after.calls - before.calls
    assert calls >= 8 * 3
    assert after.batches - before.batches < (after.sequences - before.sequences) / 2


# What is guaranteed


@given(
    before=st.text(ALPHABET, max_size=300),
    passage=st.text(ALPHABET, min_size=1, max_size=HOLD - 2).map(lambda text: f"x{text}y"),
    after=st.text(ALPHABET, max_size=200),
    seed=st.integers(0, 1000),
    slow=st.booleans(),
)
def test_nothing_of_a_passage_within_the_window_leaves(
    before: str, passage: str, after: str, seed: int, slow: bool
) -> None:
    async def look(text: str) -> str | None:
        for _ in range(20 if slow else 0):
            await asyncio.sleep(0)
        return "a passage" if passage in text else None

    async def main() -> None:
        guards = Guards([calling("own", look)])
        left, error = await stream(guards, pieces_of(before + passage + after, seed))
        assert error is not None
        assert before.startswith(left)
        left, error = await stream(guards, pieces_of(before + passage[:-1] + after, seed))
        assert (left, error) == (before + passage[:-1] + after, None)

    asyncio.run(main())


@given(text=st.text(ALPHABET, max_size=600), seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)))
def test_where_a_text_is_looked_at_is_a_matter_of_the_text_alone(text: str, seeds: tuple[int, int]) -> None:
    def points(seed: int) -> list[int]:
        found = Checkpoints(16)
        return [point for piece in pieces_of(text, seed) for point in found.feed(piece)]

    one = points(seeds[0])
    assert one == points(seeds[1])
    gaps = [after - before for before, after in zip([0, *one], [*one, len(text)], strict=True)]
    assert all(16 <= gap <= 32 for gap in gaps[:-1])
    assert gaps[-1] < 48


def test_checks_are_at_ends_of_sentences() -> None:
    text = "One sentence is here. Another one is here! 这里有一个句子，不太长也不太短。"
    text += "And then there are words without any end"
    points = Checkpoints(16).feed(text)
    parts = [text[start:end] for start, end in zip([0, *points], [*points, None], strict=True)]
    assert parts == [
        "One sentence is here.",
        " Another one is here!",
        " 这里有一个句子，不太长也不太短。",
        "And then there are words ",
        "without any end",
    ]


def test_each_check_sees_what_came_before() -> None:
    seen: list[str] = []

    async def look(text: str) -> None:
        seen.append(text)

    text = "".join(f"Sentence number {number} of them. " for number in range(40))
    asyncio.run(stream(Guards([calling("own", look)]), pieces_of(text)))
    plain = re.compile(r"[A-Z]")
    checks = [part for part in seen if plain.search(part)]
    assert len(checks) == pytest.approx(len(text) / 27, rel=0.4)
    for earlier, later in itertools.pairwise(checks):
        assert later.startswith(earlier[-2 * HOLD :])
    assert max(map(len, checks)) <= 2 * HOLD + 2 * (HOLD // 4) + 1


def test_a_whole_answer_is_looked_at_before_any_of_it_leaves() -> None:
    async def main() -> None:
        text = "x" + "a b. " * 100 + "y"
        both = Guards([calling("own", says(text), stream="whole")])
        left, error = await stream(both, pieces_of(text))
        assert (left, error is None) == ("", False)
        left, error = await stream(both, pieces_of(text[:-1]))
        assert (left, error) == (text[:-1], None)
        # Longer than the window, so one that looks at windows cannot know it.
        windows = Guards([calling("own", says(text))])
        assert await stream(windows, pieces_of(text)) == (text, None)

    asyncio.run(main())


def test_beside_one_for_whole_answers_the_others_still_stop_early() -> None:
    async def main() -> None:
        guards = Guards([calling("whole", says("never"), stream="whole"), calling("window", says("bad"))])
        pieces = pieces_of("bad. " + "a b. " * 1000)
        left, error = await stream(guards, pieces)
        assert left == ""
        assert error is not None
        assert error.guard == "window"
        assert len(list(pieces)) > 1000  # that it did not take any more

    asyncio.run(main())


def test_the_first_one_configured_is_named_at_the_end_of_an_answer() -> None:
    async def main() -> None:
        for first, second in (("whole", "window"), ("window", "whole")):
            guards = Guards([calling("one", says("bad"), stream=first), calling("two", says("bad"), stream=second)])
            _, error = await stream(guards, iter(["this is bad"]))
            assert error is not None
            assert error.guard == "one"

    asyncio.run(main())


def test_a_slow_guard_bounds_what_waits_and_loses_nothing() -> None:
    free = asyncio.Event()

    async def look(text: str) -> None:
        await free.wait()

    async def main() -> None:
        watch = Guards([calling("slow", look)]).watch()
        taken = 0

        async def write() -> str:
            nonlocal taken
            left = ""
            for _ in range(4000):
                left += await watch.feed("a b. ")
                taken += 1
            return left + await watch.finish()

        writing = asyncio.create_task(write())
        for _ in range(1000):
            await asyncio.sleep(0)
        # It goes on while a check runs, but only so far.
        assert 20 < taken < 100
        assert watch.released == 0
        free.set()
        assert await writing == "a b. " * 4000

    asyncio.run(main())


def test_short_answers_are_looked_at_once() -> None:
    seen: list[str] = []

    async def look(text: str) -> None:
        seen.append(text)

    assert asyncio.run(stream(Guards([calling("own", look)]), iter(["ab ", "cd"]))) == ("ab cd", None)
    assert seen == ["ab cd"]
    assert asyncio.run(stream(Guards([calling("own", look)]), iter(["", ""]))) == ("", None)
    assert seen == ["ab cd"]


def test_without_guards_text_leaves_at_once() -> None:
    async def main() -> None:
        watch = Guards([calling("in", says("a"), on=("input",))]).watch()
        assert [await watch.feed(piece) for piece in ("a", "", "b")] == ["a", "", "b"]
        assert await watch.finish() == ""
        assert watch.released == 2

    asyncio.run(main())


def test_a_guard_that_fails_ends_the_stream() -> None:
    async def look(text: str) -> str | None:
        raise ValueError(text)

    async def main() -> None:
        watch = Guards([calling("own", look)]).watch()
        assert await watch.feed("a b. " * 10) == ""
        while not watch.failed:
            await asyncio.sleep(0)
        # It is over: nothing more leaves.
        for again in (watch.feed("more"), watch.finish()):
            with pytest.raises(GuardError):
                await again

    asyncio.run(main())


def test_a_client_that_leaves_ends_the_checks() -> None:
    cancelled = asyncio.Event()

    async def look(text: str) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def main() -> None:
        watch = Guards([calling("own", look)]).watch()
        await watch.feed("a b. " * 10)
        await asyncio.sleep(0)
        finishing = asyncio.create_task(watch.finish())
        await asyncio.sleep(0.01)
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        await asyncio.wait_for(cancelled.wait(), 30)

    asyncio.run(main())


# In process


def test_text_of_a_generator_can_be_watched_in_threads_and_loops() -> None:
    guards = Guards([calling("own", says("bad thing"))])
    text = "a b. " * 40
    assert "".join(guards.watched(pieces_of(text))) == text

    class Writer:
        closed = False

        def __iter__(self) -> Iterator[str]:
            yield from pieces_of(text + "bad thing" + text)

        def close(self) -> None:
            self.closed = True

    writer = Writer()
    left: list[str] = []
    with pytest.raises(BlockedError):
        left.extend(guards.watched(writer))
    assert left
    assert text.startswith("".join(left))
    assert writer.closed

    async def write(text: str) -> AsyncIterator[str]:
        for piece in pieces_of(text):
            yield piece
            await asyncio.sleep(0)

    async def main() -> None:
        assert [piece async for piece in guards.watched_async(write(text))]
        with pytest.raises(BlockedError):
            assert "bad" not in "".join([piece async for piece in guards.watched_async(write("a bad thing"))])

    asyncio.run(main())
    guards.close()
