"""Four times as many requests as the server can answer: what becomes of each, and of the server's memory.

A request has so many words that the server answers about 100 of them a second; that is found first. Memory is what
all processes of the server have resident (/proc). The level after warm-up is taken when the server has rested after a
closed loop of the same requests; `afterwards`, when it has rested after the last answer.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench import common
from bench.batching import mixed_texts
from bench.serving.servers import Server, resident_mb
from bench.serving.setting import Setting

MOST_DURING, MOST_AFTERWARDS = 1.3, 1.15
REQUESTS_PER_SECOND = 100.0
TIMES = 4
_WORDS_OF_A_TEXT = 150  # MiniLM reads 256 tokens
_LEAST_WORDS = 8
_CLIENTS = 16
_REST_SECONDS = 8.0
_DIFFERENT = 256

Figures = dict[str, Any]


def overload(setting: Setting, ours: Server, seconds: float) -> Figures:
    """Calibrate, warm up, overload, rest."""
    words = setting.options.overload_words or calibrate(setting, ours)
    bodies = requests_of(setting, words)
    clients = setting.options.clients
    warm = setting.load(ours, bodies, clients=clients, seconds=max(5.0, seconds / 6), warm_seconds=2.0)
    rate = warm["answers_per_second"]
    time.sleep(_REST_SECONDS)
    level = resident_mb(ours.pid)
    print(f"  requests of {words} words: {rate:.0f} a second; resident after warm-up: {level:.0f} MB", flush=True)
    found = setting.load(ours, bodies, rate=TIMES * rate, seconds=seconds, wait_seconds=90)
    time.sleep(_REST_SECONDS)
    afterwards = resident_mb(ours.pid)
    outcomes = found["outcomes"]
    fine = sum(outcomes.get(status, 0) for status in ("200", "429", "503"))
    return {
        "overload_words": words,
        "overload_limit_per_second": rate,
        "overload_sent_per_second": found["sent"] / seconds,
        "overload_answered_per_second": found["answers_per_second"],
        "overload_sent": found["sent"],
        "overload_outcomes": outcomes,
        "overload_not_answered_nor_refused": found["sent"] - fine,
        "overload_refused_without_retry_after": found["refused_without_retry_after"],
        "overload_latency_ms": found["latency_ms"],
        "overload_most_connections": found["most_connections"],
        "overload_client_cpu_share": found["own_cpu_share"],
        "overload_client_late_ms": found["late_ms"],
        "warm_mb": level,
        "overload_peak_mb": found["server_peak_mb"],
        "overload_mb": found["server_mb"][:: max(1, len(found["server_mb"]) // 30)],
        "afterwards_mb": afterwards,
        "overload_peak_of_warm": found["server_peak_mb"] / level,
        "afterwards_of_warm": afterwards / level,
    }


def calibrate(setting: Setting, ours: Server) -> int:
    """Words of a request of which the server answers `REQUESTS_PER_SECOND`."""
    words = _WORDS_OF_A_TEXT
    for _ in range(4):
        answer = setting.load(ours, requests_of(setting, words), clients=_CLIENTS, seconds=3.0, warm_seconds=1.0)
        excess = answer["answers_per_second"] / REQUESTS_PER_SECOND
        if abs(excess - 1) < 0.1:
            break
        words = max(_LEAST_WORDS, round(words * excess))
    return words


def requests_of(setting: Setting, words: int) -> str:
    """Bodies of so many words each, in texts that the model reads to their ends."""
    count = -(-words // _WORDS_OF_A_TEXT)
    each = -(-words // count)
    texts = mixed_texts(_DIFFERENT * count, each, each)
    return setting.bodies([texts[start : start + count] for start in range(0, len(texts), count)])


def limits(figures: Figures) -> list[common.Limit]:
    """Of what was measured."""
    return [
        common.Limit("requests lost, hung or failed", figures["overload_not_answered_nor_refused"], 0),
        common.Limit("refusals without Retry-After", figures["overload_refused_without_retry_after"], 0),
        common.Limit("memory in overload / after warm-up", figures["overload_peak_of_warm"], MOST_DURING),
        common.Limit("memory afterwards / after warm-up", figures["afterwards_of_warm"], MOST_AFTERWARDS),
    ]


def show(figures: Figures) -> None:
    """For people."""
    print(
        f"\noverload: {figures['overload_sent']:,} requests, {figures['overload_sent_per_second']:.0f} a second where "
        f"{figures['overload_limit_per_second']:.0f} is the limit; {figures['overload_answered_per_second']:.0f} a "
        f"second answered, {figures['overload_most_connections']:,} connections at most"
    )
    for outcome, count in sorted(figures["overload_outcomes"].items()):
        times = figures["overload_latency_ms"].get(outcome)
        shown = f"; p50 {times['p50']:,.0f} ms, p99 {times['p99']:,.0f}, most {times['most']:,.0f}" if times else ""
        print(f"  {outcome}: {count:,}{shown}")
    middle = statistics.median(figures["overload_mb"])
    print(
        f"  resident: {figures['warm_mb']:.0f} MB after warm-up, in overload {middle:.0f} (at most "
        f"{figures['overload_peak_mb']:.0f}), {figures['afterwards_mb']:.0f} afterwards"
    )
