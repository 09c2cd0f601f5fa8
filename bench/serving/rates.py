"""How many texts a second go through HTTP, against the offline rate and a plain server; and how long they take at half
of that load. Contenders take turns; each ratio is formed with the offline rates before and after it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench import common
from bench.batching import mixed_texts
from bench.serving.servers import Server
from bench.serving.setting import Setting, require_answers

LEAST_ONE, LEAST_EIGHT, LEAST_PLAIN = 0.65, 0.85, 3.0
MOST_P99_MS = 150.0
EIGHT = 8
_TEXTS = 1280
_WARM_SECONDS = 2.0

Figures = dict[str, Any]


def throughput(setting: Setting, ours: Server, plain: Server | None, seconds: float, rounds: int) -> Figures:
    """Rounds of: offline, one text a request, offline, eight texts a request, and the plain server if there is one.

    Args:
        setting: of the run.
        ours: the server under test.
        plain: the one to compare with.
        seconds: of each contender, over all rounds.
        rounds: of at least a second each.
    """
    texts = mixed_texts(_TEXTS, *setting.options.words)
    ones = setting.bodies(texts)
    eights = setting.bodies([texts[start : start + EIGHT] for start in range(0, len(texts), EIGHT)])
    each = max(1.0, seconds / rounds)
    found: dict[str, list[Figures]] = {"offline": [], "one": [], "eight": [], "plain": []}

    def closed(server: Server, file: str) -> Callable[[], Figures]:
        options = {"clients": setting.options.clients, "seconds": each, "warm_seconds": _WARM_SECONDS}
        return lambda: require_answers(setting.load(server, file, **options))

    offline = offline_rate(setting, texts)
    turns: list[tuple[str, Callable[[], Figures]]] = [
        *(("offline", offline), ("one", closed(ours, ones)), ("offline", offline), ("eight", closed(ours, eights))),
    ]
    if plain is not None:
        turns += [("offline", offline), ("plain", closed(plain, ones))]
    for number in range(rounds):
        for name, measure in turns:
            found[name].append(measure())
            print(f"  round {number + 1}, {name}: {_shown(found[name][-1])}", flush=True)
    found["offline"].append(offline())
    return summarize(found, len(turns) // 2)


def offline_rate(setting: Setting, texts: Sequence[str]) -> Callable[[], Figures]:
    """Measures one call with all texts, in a process of its own."""
    options = setting.options
    asked = {
        "contender": "offline",
        "folder": str(setting.bundle),
        "variant": options.variant,
        "threads": options.threads,
        "settings": options.settings,
        "callers": 1,
        "texts_file": setting.file(list(texts)),
    }
    return lambda: common.run_json("bench.batched", asked, setting.environment)


def summarize(found: dict[str, list[Figures]], offlines: int) -> Figures:
    """Medians over the rounds, of rates, ratios and processor time.

    Args:
        found: what each contender said in each round, and one more of `offline`.
        offlines: of a round.
    """
    base = [answer["texts"] / answer["seconds"] for answer in found["offline"]]
    cpu_ms = [1000 * answer["cpu_seconds"] / answer["texts"] for answer in found["offline"]]
    figures: Figures = {
        "offline_texts_per_second": statistics.median(base),
        "offline_texts_per_second_range": [min(base), max(base)],
        "offline_cpu_ms_per_text": statistics.median(cpu_ms),
    }
    texts_of = {"one": 1, "eight": EIGHT, "plain": 1}
    for place, name in enumerate(name for name in texts_of if found[name]):
        answers = found[name]
        rates = [answer["answers_per_second"] * texts_of[name] for answer in answers]
        around = [(base[place + offlines * turn] + base[place + offlines * turn + 1]) / 2 for turn in range(len(rates))]
        ratios = [rate / offline for rate, offline in zip(rates, around, strict=True)]
        figures |= {
            f"{name}_texts_per_second": statistics.median(rates),
            f"{name}_texts_per_second_range": [min(rates), max(rates)],
            f"{name}_of_offline": statistics.median(ratios),
            f"{name}_of_offline_range": [min(ratios), max(ratios)],
            f"{name}_cpu_ms_per_request": statistics.median(
                1000 * answer["server_cpu_seconds"] / max(1.0, answer["answers_per_second"] * answer["seconds"])
                for answer in answers
            ),
            f"{name}_latency_ms": {
                key: statistics.median(answer["latency_ms"]["200"][key] for answer in answers)
                for key in ("p50", "p99", "most")
            },
            f"{name}_client_cpu_share": statistics.median(answer["own_cpu_share"] for answer in answers),
        }
    if found["plain"]:
        figures["one_of_plain"] = statistics.median(
            one["answers_per_second"] / plain["answers_per_second"]
            for one, plain in zip(found["one"], found["plain"], strict=True)
        )
    return figures


def half(setting: Setting, ours: Server, rate: float, seconds: float) -> Figures:
    """Latencies of one text a request, sent at random times at half of a rate."""
    low, high = setting.options.words
    bodies = setting.bodies(mixed_texts(_TEXTS, low, high, seed=1))
    answer = require_answers(setting.load(ours, bodies, rate=rate / 2, seconds=seconds, warm_seconds=_WARM_SECONDS))
    print(f"  half the load: {_shown(answer)}", flush=True)
    return {
        "half_requests_per_second": rate / 2,
        "half_latency_ms": answer["latency_ms"]["200"],
        "half_cpu_ms_per_request": 1000 * answer["server_cpu_seconds"] / max(1, answer["sent"]),
        "half_client_cpu_share": answer["own_cpu_share"],
        "half_client_late_ms": answer["late_ms"],
    }


def limits(figures: Figures) -> list[common.Limit]:
    """Of what was measured."""
    bounds = (("one_of_offline", "one text a request / offline", LEAST_ONE),
              ("eight_of_offline", "eight texts a request / offline", LEAST_EIGHT),
              ("one_of_plain", "one text a request / plain server", LEAST_PLAIN))  # fmt: skip
    found = [common.Limit(what, figures[key], least, at_least=True) for key, what, least in bounds if key in figures]
    if "half_latency_ms" in figures:
        found.append(common.Limit("p99 at half the load, ms", figures["half_latency_ms"]["p99"], MOST_P99_MS))
    return found


def show(figures: Figures) -> None:
    """As a table."""
    print("\ncontender  texts/s, median [range]     of offline   CPU ms a request   p50, p99 ms      client's CPU")
    names = [name for name in ("offline", "one", "eight", "plain") if f"{name}_texts_per_second" in figures]
    for name in names:
        spread = common.Spread(figures[f"{name}_texts_per_second"], *figures[f"{name}_texts_per_second_range"])
        if name == "offline":
            print(f"{name:<9}  {spread.show(',.0f'):<26}  {'':<11}  {figures['offline_cpu_ms_per_text']:<.2f} (a text)")
            continue
        latency = figures[f"{name}_latency_ms"]
        print(
            f"{name:<9}  {spread.show(',.0f'):<26}  {figures[f'{name}_of_offline']:<11.3f}  "
            f"{figures[f'{name}_cpu_ms_per_request']:<17.2f}  {latency['p50']:>6.1f}, {latency['p99']:>6.1f}    "
            f"{figures[f'{name}_client_cpu_share']:.1%} of a core"
        )
    if "half_latency_ms" in figures:
        times = figures["half_latency_ms"]
        print(
            f"at {figures['half_requests_per_second']:,.0f} requests a second: p50 {times['p50']:.1f} ms, p90 "
            f"{times['p90']:.1f}, p99 {times['p99']:.1f}, p99.9 {times['p999']:.1f}, most {times['most']:.1f}; "
            f"{figures['half_cpu_ms_per_request']:.2f} ms of the processor each"
        )


def _shown(answer: Figures) -> str:
    if "texts" in answer:
        return f"{answer['texts'] / answer['seconds']:,.0f} texts/s"
    times = answer["latency_ms"]["200"]
    return (
        f"{answer['answers_per_second']:,.1f} answers/s, p50 {times['p50']:.1f} ms, p99 {times['p99']:.1f} ms, the "
        f"client took {answer['own_cpu_share']:.1%} of a core"
    )
