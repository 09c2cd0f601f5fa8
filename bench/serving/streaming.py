"""Answers that are written while they are read: tokens a second through HTTP, against the same without it, in turn."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench import common
from bench.batching import mixed_texts
from bench.serving.setting import Setting

LEAST = 0.9
NEW_TOKENS = 64
_PROMPT_WORDS = (10, 40)
_PROMPTS = 64
_STREAMS = "bench.serving.streams"

Figures = dict[str, Any]


def streams(setting: Setting, decoder: Path, seconds: float, rounds: int) -> Figures:
    """Rounds of: without HTTP, through HTTP; as many answers in each as take about the time allowed.

    Args:
        setting: of the run.
        decoder: a bundle for text generation.
        seconds: of each contender, over all rounds.
        rounds: at least one.
    """
    options = setting.options
    asked = {
        "streams": options.streams,
        "new_tokens": NEW_TOKENS,
        "prompts_file": setting.file(mixed_texts(_PROMPTS, *_PROMPT_WORDS)),
    }
    model = {
        "folder": str(decoder),
        "variant": options.decoder_variant,
        "threads": options.threads,
        "settings": options.settings,
    }
    first = common.run_json(_STREAMS, {**asked, **model, "answers": 1}, setting.environment)
    answers = max(1, round(seconds / rounds / first["seconds"]))
    found: dict[str, list[Figures]] = {"direct": [], "http": []}
    for number in range(rounds):
        direct = common.run_json(_STREAMS, {**asked, **model, "answers": answers}, setting.environment)
        # A server for each round, so that no other model takes memory while one is measured without it.
        with setting.ours(decoder, options.decoder_variant) as server:
            http = common.run_json(_STREAMS, {**asked, "port": server.port, "answers": answers}, setting.environment)
        for name, answer in (("direct", direct), ("http", http)):
            found[name].append(answer)
            print(f"  round {number + 1}, streams, {name}: {_shown(answer)}", flush=True)
    return summarize(found, options.streams)


def summarize(found: dict[str, list[Figures]], count: int) -> Figures:
    """Medians over the rounds."""
    figures: Figures = {"streams": count}
    for name, answers in found.items():
        figures[f"streams_{name}_tokens_per_second"] = statistics.median(each["tokens_per_second"] for each in answers)
        figures[f"streams_{name}_first_token_ms"] = {
            key: statistics.median(each["first_token_ms"][key] for each in answers) for key in ("p50", "p99")
        }
    figures["streams_client_cpu_share"] = statistics.median(each["own_cpu_share"] for each in found["http"])
    figures["streams_of_direct"] = statistics.median(
        http["tokens_per_second"] / direct["tokens_per_second"]
        for http, direct in zip(found["http"], found["direct"], strict=True)
    )
    return figures


def limits(figures: Figures) -> list[common.Limit]:
    """Of what was measured."""
    return [common.Limit("tokens of streams / without HTTP", figures["streams_of_direct"], LEAST, at_least=True)]


def show(figures: Figures) -> None:
    """For people."""
    print(f"\n{figures['streams']} streams at once  tokens/s   first token: p50, p99 ms")
    for name in ("direct", "http"):
        first = figures[f"streams_{name}_first_token_ms"]
        rate = figures[f"streams_{name}_tokens_per_second"]
        print(f"{name:<18}  {rate:>8,.1f}   {first['p50']:,.0f}, {first['p99']:,.0f}")
    print(f"the client of the streams took {figures['streams_client_cpu_share']:.1%} of a core")


def _shown(answer: Figures) -> str:
    first = answer["first_token_ms"]
    return (
        f"{answer['tokens_per_second']:,.1f} tokens/s, first token p50 {first['p50']:.0f} ms, p99 {first['p99']:.0f} ms"
    )
