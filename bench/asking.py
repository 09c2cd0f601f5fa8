"""Asks an engine random requests from threads and an event loop, and keeps count of what became of them.

A part of bench/requests.py: what is asked is in random_requests.py, what an answer must be in answer_checks.py.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bench import common
from bench.answer_checks import AnswerChecks, wrong_error
from bench.random_requests import CONSTRAINTS, LOOP_WAYS, THREAD_WAYS, Asked, RandomRequests
from onnxpress.runtime.errors import OnnxpressError
from onnxpress.runtime.generation.requests import Generation, Request

if TYPE_CHECKING:
    from onnxpress.runtime.generation.generator import Generator

THREADS = 6
TASKS = 12
"""That ask at once in the event loop."""
BOUND_SECONDS = 60.0
"""A request that has not ended by then hangs; one takes seconds at most."""
_SAMPLE = 1000  # requests of which the greedy ones are asked again, alone
_SHOWN = 20
_LOOKS = 100  # at the resident memory
_THREAD = "onnxpress-generation"
_LARGEST = 4096  # tokens of the prompts of the warm-up
_COMMON = 10  # from here on, ids are of common tokens

Outcome = list[Generation] | str | Exception | None
"""Answers to the prompts, the text of one where there is no more, an error, or None for one that was left."""


@dataclasses.dataclass
class Tally:
    """What has become of the requests so far. Any thread may add to it."""

    asked: int = 0
    """Requests that have ended."""
    faults: int = 0
    shown: list[str] = dataclasses.field(default_factory=list)
    """The first faults, as sentences."""
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    tokens: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """What the engine counted in the end."""
    resident: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Resident memory in bytes, after so many requests."""
    compared: int = 0
    """Greedy answers that were asked again."""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def add(self, asked: Asked, outcome: str, faults: Sequence[str]) -> None:
        """A request has ended."""
        with self.lock:
            self.asked += 1
            self.outcomes[outcome] += 1
        for fault in faults:
            self.fault(f"request {asked.number} ({asked.way}, {asked.leaves}): {fault}")

    def fault(self, sentence: str) -> None:
        """Something was wrong."""
        with self.lock:
            self.faults += 1
            if len(self.shown) < _SHOWN:
                self.shown.append(sentence)

    def growth_bytes(self) -> float | None:
        """Of the resident memory, from the second fifth of the requests, when all is warm, to the last fifth: medians.
        None where it was not looked at often enough."""
        sizes = [size for _, size in self.resident]
        fifth = len(sizes) // 5
        if fifth < 2:
            return None
        return statistics.median(sizes[-fifth:]) - statistics.median(sizes[fifth : 2 * fifth])


def ask_all(generator: Generator, count: int, seed: int) -> Tally:
    """Ask `count` random requests and wait for the end of each; then ask some of the greedy ones again, alone."""
    warm_up(generator)
    asking = _Asking(generator, count, seed)
    tally = asking.tally
    threads = [threading.Thread(target=asking.in_a_thread, daemon=True) for _ in range(THREADS)]
    threads.append(threading.Thread(target=asking.in_a_loop, daemon=True))
    for thread in threads:
        thread.start()
    seen, changed = -1, time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
        if tally.asked != seen:
            seen, changed = tally.asked, time.monotonic()
        elif time.monotonic() - changed > 2 * BOUND_SECONDS:
            tally.fault(f"nothing has ended for {2 * BOUND_SECONDS:.0f} s; these hang: {sorted(asking.under_way)}")
            return tally
    for request in asking.abandoned:
        if not _ends(request):
            tally.fault("an abandoned request has not ended")
    _wait_for_rest(generator, tally)
    asking.ask_again()
    return tally


def warm_up(generator: Generator) -> None:
    """Have the cache grow to its limit, and the largest runs of prompts: what they take stays, and random requests may
    come to it late."""
    context = generator.engine.context
    for length in (context - 1, context // 8):
        prompts = [[_COMMON + (row + place) % 50 for place in range(length)] for row in range(_LARGEST // length)]
        generator.generate(prompts, max_new_tokens=1, temperature=0.0)


def close(generator: Generator, tally: Tally) -> None:
    """Close the engine: its thread must end and its memory be given back."""
    counts = generator.engine.state.counts
    tally.tokens.update(dataclasses.asdict(counts))
    generator.close()
    if [thread for thread in threading.enumerate() if thread.name == _THREAD]:
        tally.fault("the engine's thread goes on after close")
    if generator.engine.state.cache_bytes:
        tally.fault(f"{generator.engine.state.cache_bytes} bytes of cache are there after close")


def _wait_for_rest(generator: Generator, tally: Tally) -> None:
    """When all have ended, nobody may wait for a row or have one."""
    end = time.monotonic() + BOUND_SECONDS
    while (state := generator.engine.state).waiting or state.running or state.taken_rows:
        if time.monotonic() > end:
            tally.fault(f"all have ended, and {state.waiting} wait, {state.running} run, {state.taken_rows} have rows")
            return
        time.sleep(0.01)


class _Asking:
    """All who ask, over one generator."""

    def __init__(self, generator: Generator, count: int, seed: int) -> None:
        self._generator = generator
        self._random = RandomRequests(generator, seed, _can_be_constrained(generator))
        self._checks = AnswerChecks(generator)
        self._numbers = iter(range(count))
        self._count = count
        self._greedy: list[tuple[list[int], Generation]] = []
        self.tally = Tally()
        self.abandoned: list[Request] = []
        self.under_way: dict[int, Asked] = {}

    def in_a_thread(self) -> None:
        """Ask one after the other, until all are asked."""
        for asked in self._next(THREAD_WAYS):
            try:
                outcome: Outcome = self._ask(asked)
            # What it may be is judged below.
            except Exception as error:  # noqa: BLE001
                outcome = error
            self._judge(asked, outcome)

    def in_a_loop(self) -> None:
        """The same from several tasks of an event loop."""

        async def one_after_the_other() -> None:
            for asked in self._next(LOOP_WAYS):
                try:
                    outcome: Outcome = await asyncio.wait_for(self._ask_in_loop(asked), BOUND_SECONDS)
                # As above.
                except Exception as error:  # noqa: BLE001
                    outcome = error
                self._judge(asked, outcome)

        async def all_at_once() -> None:
            await asyncio.gather(*(one_after_the_other() for _ in range(TASKS)))

        asyncio.run(all_at_once())

    def ask_again(self) -> None:
        """Greedy answers must be what they are alone."""
        for prompt, answer in self._greedy:
            self.tally.compared += 1
            if (wrong := self._checks.differs_from_alone(prompt, answer.token_ids)) is not None:
                self.tally.fault(wrong)

    def _next(self, ways: Mapping[str, int]) -> Iterator[Asked]:
        while True:
            with self.tally.lock:
                number = next(self._numbers, None)
                if number is None:
                    return
                if number % max(1, self._count // _LOOKS) == 0:
                    self.tally.resident.append((number, common.memory_bytes()))
                    self.abandoned = [request for request in self.abandoned if not request.done]
                asked = self._random.make(number, ways)
                self.under_way[number] = asked
            yield asked

    # From a thread

    def _ask(self, asked: Asked) -> Outcome:
        if asked.way == "generate":
            answers: list[Generation] = self._generator.generate(asked.prompts, **asked.options)
            return answers
        if asked.way == "texts":
            return self._ask_for_text(asked)
        stream = self._generator.open_stream(asked.prompts[0], **asked.options)
        if asked.leaves == "while it waits":
            time.sleep(asked.patience)
        text = ""
        if listens(asked):
            for place, delta in enumerate(stream, 1):
                text += delta.text
                if place >= asked.most_pieces:
                    break
        if asked.leaves == "abandons":
            self.abandoned.append(stream.request)
            return None
        if asked.leaves != "stays":
            stream.close()
        return [_continues(text, stream.request.result(BOUND_SECONDS))]

    def _ask_for_text(self, asked: Asked) -> str | None:
        pieces = self._generator.stream(asked.prompts[0], **asked.options)
        if asked.leaves in ("at once", "while it waits"):
            return None  # before it has begun
        text = ""
        for place, piece in enumerate(pieces, 1):
            text += piece
            if place >= asked.most_pieces:
                break  # nobody has the iterator any more then, which closes it
        return text

    # From an event loop

    async def _ask_in_loop(self, asked: Asked) -> Outcome:
        if asked.way == "async":
            return await self._ask_for_answer(asked)
        stream = self._generator.open_async_stream(asked.prompts[0], **asked.options)
        if asked.leaves == "while it waits":
            await asyncio.sleep(asked.patience)
        text, place = "", 0
        if listens(asked):
            async for delta in stream:
                text, place = text + delta.text, place + 1
                if place >= asked.most_pieces:
                    break
        if asked.leaves == "abandons":
            self.abandoned.append(stream.request)
            return None
        if asked.leaves != "stays":
            stream.cancel()
        return [_continues(text, await stream.result())]

    async def _ask_for_answer(self, asked: Asked) -> Outcome:
        task = asyncio.ensure_future(self._generator.generate_async(asked.prompts[0], **asked.options))
        if asked.leaves == "while it waits":
            await asyncio.sleep(asked.patience)
        if asked.leaves != "stays":
            task.cancel()
        await asyncio.wait({task})
        return None if task.cancelled() else [task.result()]

    # What came of it

    def _judge(self, asked: Asked, outcome: Outcome) -> None:
        self.under_way.pop(asked.number, None)
        if isinstance(outcome, Exception):
            wrong = wrong_error(outcome)
            if asked.bad is None:
                wrong = f"an error where nothing is wrong: {wrong or outcome}"
            self.tally.add(asked, "refused", [] if wrong is None else [f"{asked.bad}: {wrong}"])
        elif asked.bad is not None and not (outcome is None and asked.leaves == "at once"):
            self.tally.add(asked, "answered", [f"{asked.bad}: was answered"])
        elif outcome is None:
            self.tally.add(asked, "left", [])
        elif isinstance(outcome, str):
            self.tally.add(asked, "streamed", list(self._checks.faults_of_text(asked, outcome)))
        else:
            self._judge_answers(asked, outcome)

    def _judge_answers(self, asked: Asked, answers: Sequence[Generation]) -> None:
        faults = (
            [] if len(answers) == len(asked.prompts) else [f"{len(answers)} answers to {len(asked.prompts)} prompts"]
        )
        for given, answer in zip(asked.prompts, answers, strict=False):
            prompt = self._checks.encode(given)
            if len(answer.others) != asked.options.get("n", 1) - 1:
                faults.append(f"{len(answer.others)} other answers where n is {asked.options.get('n', 1)}")
            for each in (answer, *answer.others):
                faults += self._checks.faults(asked, prompt, each)
            if answer.token_ids and greedy(asked) and asked.number % max(1, self._count // _SAMPLE) == 0:
                self._greedy.append((prompt, answer))
        self.tally.add(asked, answers[0].finish_reason if answers else "nothing", faults)


def listens(asked: Asked) -> bool:
    """Whether who asks reads a stream at all."""
    return asked.leaves not in ("at once", "while it waits")


def greedy(asked: Asked) -> bool:
    """Whether a request's tokens are those with the best logits."""
    changing = ("repetition_penalty", "presence_penalty", "frequency_penalty", "grammar")
    return asked.options["temperature"] == 0 and not any(name in asked.options for name in changing)


def _continues(text: str, answer: Generation) -> Generation:
    """The answer, whose text must begin with what was streamed of it."""
    if not answer.text.startswith(text):
        raise AssertionError(f"{text!r} was streamed of {answer.text!r}")
    return answer


def _ends(request: Request) -> bool:
    try:
        request.result(BOUND_SECONDS)
    except TimeoutError:
        return False
    except OnnxpressError:
        pass
    return True


def _can_be_constrained(generator: Generator) -> bool:
    try:
        generator.generate([1], grammar=CONSTRAINTS[0][1], max_new_tokens=1)
    except OnnxpressError:
        return False
    return True
