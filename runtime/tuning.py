"""`onnxpress tune`: finds serving settings for one bundle, machine and kind of traffic.

Settings that differ from the default in one thing are measured first, in processes of their own that take turns with
one that has the default; then the best of each thing together. What wins is confirmed in pairs against the default,
and the default stays unless the gain is clearly more than the noise of those pairs.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.machine import usable_cores
from onnxpress.runtime.manifest import Variant
from onnxpress.runtime.measuring import Worker, measuring_alone
from onnxpress.runtime.settings import PRESETS, Arena, ServingSettings
from onnxpress.runtime.tuned import Tuned

Goal = Literal["latency", "throughput", "memory"]
Progress = Callable[[str, float], None]
DEFAULT = "default"
LEAST_RATE = 0.8
"""Of the default's, where memory is the goal."""
_CLEARLY = 0.02
_PAIRS = 9
_ROUNDS = 3
_FEWEST = 2  # rounds
_GROUP = 4  # processes beside the default's that are alive at once
_MOST_TEXTS = 512


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a service is asked."""

    texts: Sequence[str]
    """Of decoders: prompts."""
    batch: int
    """Texts in a call; of decoders: requests at once."""
    described: str
    new_tokens: int | None = None
    """Of decoders: to write for each prompt."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """What became of settings: ratios to the default's figures, measured in turn with it."""

    name: str
    settings: ServingSettings
    rate: float
    """Texts, or new tokens, a second."""
    rate_ratio: float
    peak_memory_bytes: int
    memory_ratio: float

    def gain(self, goal: Goal) -> float:
        """How many times as good as the default."""
        if goal == "memory":
            return 1 / self.memory_ratio if self.rate_ratio >= LEAST_RATE else 0.0
        return self.rate_ratio


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What was tried, and what came of it."""

    tried: tuple[Tried, ...]
    confirmed: Tried | None
    """The best one, measured again in pairs with the default; None: nothing was better at first sight."""
    winner: Tuned | None
    """None: there is nothing to gain."""


def candidates(cores: int, is_decoder: bool) -> dict[str, dict[str, Any]]:
    """What is tried, by name: fields of `ServingSettings` that differ from the default. The part of a name before the
    first space is the thing it is about.

    Args:
        cores: that may be used.
        is_decoder: there are no batches of tokens and one session only.
    """
    threads = sorted({1, max(1, cores // 2), max(1, cores - 1)} - {cores})
    found: dict[str, dict[str, Any]] = {f"threads {count}": {"threads": count} for count in threads}
    found["spinning off"] = {"spinning": False}
    found["arena off"] = {"arena": Arena(enabled=False)}
    if is_decoder:
        return found
    found |= {f"batch-tokens {count}": {"tokens_per_batch": count} for count in (256, 1024)}
    found["sessions one"] = {"sessions": "one", "spinning": False}
    small = PRESETS["small"]
    found["preset small"] = {field.name: getattr(small, field.name) for field in dataclasses.fields(small)}
    return found


def tune(bundle: Bundle, variant: Variant, traffic: Traffic, goal: Goal, seconds: float, progress: Progress) -> Tuning:
    """Find the best settings. Keeps nothing (tuned.py).

    Args:
        bundle: an opened bundle.
        variant: of the bundle, for the CPU.
        traffic: to measure on.
        goal: what is best.
        seconds: about how long it may take; starting the processes comes on top.
        progress: called with what is being done and the fraction done.

    Raises:
        InvalidInputError: the cache, where a lock lies, cannot be written.
        OnnxpressError: a measuring process failed.
    """
    measure = _Measure(bundle, variant, traffic, progress)
    with measuring_alone():
        tries = candidates(usable_cores(), traffic.new_tokens is not None)
        names = list(tries)
        groups = [names[start : start + _GROUP] for start in range(0, len(names), _GROUP)]
        tried: list[Tried] = []
        for number, group in enumerate(groups):
            these = {name: ServingSettings(**tries[name]) for name in group}
            share = (0.55 * number / len(groups), 0.55 * (number + 1) / len(groups))
            tried += measure.against_default(these, seconds, share)
        if (together := _together(tried, tries, goal)) is not None:
            tried += measure.against_default({"together": together}, seconds, (0.55, 0.7))
        best = max(tried, key=lambda one: one.gain(goal))
        if best.gain(goal) <= 1:
            return Tuning(tuple(tried), None, None)
        confirmed, is_clear = measure.confirm(best, goal, 0.3 * seconds)
    if not is_clear:
        return Tuning(tuple(tried), confirmed, None)
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    gain = round(confirmed.gain(goal), 3)
    tuned = Tuned(variant.name, goal, traffic.described, gain, created, best.settings)
    return Tuning(tuple(tried), confirmed, tuned)


def is_clear_gain(ratios: Sequence[float]) -> bool:
    """Whether ratios of pairs are above 1 by more than 2 percent beyond two standard errors of their mean, in
    logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return statistics.fmean(logs) - 2 * error > math.log1p(_CLEARLY)


def _together(tried: Sequence[Tried], tries: Mapping[str, dict[str, Any]], goal: Goal) -> ServingSettings | None:
    """The best of each thing that helped; None where fewer than two did, or they are one preset."""
    best: dict[str, Tried] = {}
    for one in tried:
        thing = one.name.split(" ", 1)[0]
        if thing != "preset" and one.gain(goal) > max(1.0, best[thing].gain(goal) if thing in best else 1.0):
            best[thing] = one
    if len(best) < 2:
        return None
    fields: dict[str, Any] = {}
    for one in sorted(best.values(), key=lambda one: one.gain(goal)):
        fields |= tries[one.name]
    return ServingSettings(**fields)


class _Measure:
    """Measures settings against the default in turn."""

    def __init__(self, bundle: Bundle, variant: Variant, traffic: Traffic, progress: Progress) -> None:
        self._bundle = bundle
        self._variant = variant
        self._traffic = traffic
        self._progress = progress
        self._texts: list[str] = []

    def against_default(
        self, group: Mapping[str, ServingSettings], seconds: float, share: tuple[float, float]
    ) -> list[Tried]:
        """Each of a group; the median of its ratios over the rounds.

        Args:
            group: settings by name.
            seconds: of the whole tuning.
            share: which part of them this is; also the fractions done before and after.
        """
        with self._workers({DEFAULT: ServingSettings(), **group}) as workers:
            rates = self._take_turns(workers, _ROUNDS, seconds * (share[1] - share[0]), share)
            peaks = _peaks(workers)
        return [
            _tried(name, settings, rates[name], rates[DEFAULT], peaks[name], peaks[DEFAULT])
            for name, settings in group.items()
        ]

    def confirm(self, best: Tried, goal: Goal, seconds: float) -> tuple[Tried, bool]:
        """The best one again, in pairs, and whether it is clearly better."""
        with self._workers({DEFAULT: ServingSettings(), best.name: best.settings}) as workers:
            rates = self._take_turns(workers, _PAIRS, seconds, (0.7, 1.0))
            peaks = _peaks(workers)
        own, default = rates[best.name], rates[DEFAULT]
        found = _tried(best.name, best.settings, own, default, peaks[best.name], peaks[DEFAULT])
        if goal == "memory":
            return found, found.gain(goal) > 1 + _CLEARLY
        return found, is_clear_gain([one / other for one, other in zip(own, default, strict=True)])

    def _take_turns(
        self, workers: Mapping[str, Worker], rounds: int, seconds: float, share: tuple[float, float]
    ) -> dict[str, list[float]]:
        """Rates of each in each round, whose order alternates. On a slow machine there are fewer rounds."""
        rates: dict[str, list[float]] = {name: [] for name in workers}
        end = time.monotonic() + seconds
        for number in range(rounds):
            if number >= _FEWEST and time.monotonic() > end:
                break
            for name in list(workers)[:: -1 if number % 2 else 1]:
                self._progress(name, share[0] + (share[1] - share[0]) * number / rounds)
                rates[name].append(self._rate(workers[name], seconds / (rounds * len(workers))))
        return rates

    @contextmanager
    def _workers(self, settings: Mapping[str, ServingSettings]) -> Iterator[dict[str, Worker]]:
        with ExitStack() as stack:
            workers = {}
            for name, each in settings.items():
                workers[name] = Worker(name, settings_command(self._bundle, self._variant, each))
                stack.callback(workers[name].close)
            yield workers

    def _rate(self, worker: Worker, seconds: float) -> float:
        traffic = self._traffic
        if traffic.new_tokens is not None:
            return float(
                worker.ask(
                    do="decoding",
                    prompts=list(traffic.texts),
                    batch=traffic.batch,
                    new_tokens=traffic.new_tokens,
                    seconds=seconds,
                )
            )
        if not self._texts:
            self._texts = self._enough_texts(worker, seconds)
        return float(worker.ask(do="throughput", texts=self._texts, batch=traffic.batch, seconds=seconds))

    def _enough_texts(self, worker: Worker, seconds: float) -> list[str]:
        """As many texts as the default takes about half of the time for, for every measurement is of whole passes."""
        texts, batch = self._traffic.texts, self._traffic.batch
        rate = float(worker.ask(do="throughput", texts=list(texts[:batch]), batch=batch, seconds=0))
        return list(texts[: max(batch, int(rate * seconds / 2))])


def _tried(
    name: str,
    settings: ServingSettings,
    rates: Sequence[float],
    default_rates: Sequence[float],
    peak: int,
    default_peak: int,
) -> Tried:
    ratio = statistics.median(one / other for one, other in zip(rates, default_rates, strict=True))
    memory_ratio = peak / default_peak if default_peak else 1.0
    return Tried(name, settings, statistics.median(rates), ratio, peak, memory_ratio)


def _peaks(workers: Mapping[str, Worker]) -> dict[str, int]:
    return {name: int(worker.ask(do="memory") or 0) for name, worker in workers.items()}


def settings_command(bundle: Bundle, variant: Variant, settings: ServingSettings) -> list[str]:
    """Command line of a process that measures a variant with settings (workers.py)."""
    command = [sys.executable, "-m", "onnxpress.runtime.workers", os.fspath(bundle.folder), variant.name]
    return [*command, str(settings.thread_count), json.dumps(dataclasses.asdict(settings))]


def make_traffic(
    bundle: Bundle, goal: Goal, batch: int | None, lengths: tuple[int, int] | None, texts: Sequence[str] | None
) -> Traffic:
    """What to measure on.

    Args:
        bundle: an opened bundle.
        goal: for the default of `batch`.
        batch: texts in a call; None: 1 for latency, else 32, of decoders 8.
        lengths: the least and the most tokens of a text, any number between them being as likely as another; None: as
            the sentences that this project ships, of decoders 128.
        texts: of the service; None: made of filler.

    Raises:
        InvalidInputError: there are no texts, or a length cannot be.
    """
    from onnxpress.runtime.timed_texts import own_texts, prompts_of, text_of
    from onnxpress.runtime.tokenizer import Tokenizer

    settings = bundle.manifest.settings
    is_decoder, longest = settings.generation is not None, settings.tokenizer.max_length
    batch = batch or (1 if goal == "latency" else 8 if is_decoder else 32)
    tokenizer = Tokenizer(bundle.path_of(settings.tokenizer.file), settings.tokenizer)
    if texts is not None:
        chosen, described = [text for text in texts if text.strip()], "texts given"
    elif is_decoder:
        low, high = lengths or (min(128, longest // 2),) * 2
        sizes = sorted({low, (low + high) // 2, high})
        chosen, described = [text for made in prompts_of(tokenizer, sizes) for text in made], f"prompts of {low}-{high}"
    elif lengths is not None:
        draw = random.Random(0)
        made = {size: text_of(tokenizer, size) for size in range(lengths[0], lengths[1] + 1)}
        chosen = [made[draw.randint(*lengths)] for _ in range(_MOST_TEXTS)]
        described = f"texts of {lengths[0]}-{lengths[1]} tokens"
    else:
        chosen, described = own_texts(), "sentences"
    if not chosen:
        raise InvalidInputError("there are no texts to measure on")
    random.Random(0).shuffle(chosen)
    new_tokens = min(32, longest // 4) if is_decoder else None
    return Traffic(chosen[:_MOST_TEXTS], batch, f"{described}, {batch} at a time", new_tokens)
