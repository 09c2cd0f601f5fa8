"""Watches a stream of headlines, and says when a company's news turn bad.

    python -m examples.make_models --output examples-models
    python -m examples.news_sentiment                             # the headlines that come with it
    tail -f headlines.jsonl | python -m examples.news_sentiment -

Each line is an object with `time`, `company` and `text`. Lines are classified as they come, each in a call of its own:
the `BatchingRunner` runs together what waits, so a flood goes through in batches and a single headline at once. At most
`--in-flight` headlines are read ahead of what is classified. Then this stops reading, the pipe fills, and whoever
writes into it waits: that is the back pressure.

**The alert.** Of each company the share of negative headlines among the last N is compared with the share among the N
before, by the z-test of two proportions with a pooled share p:

    z = (last - before) / sqrt(p (1 - p) 2 / N)

At `--z` or above, the news have turned bad. A company that was always in bad news gives no alert, and neither does one
whose news get better. After an alert a company's headlines are counted anew, so that one jump is told once.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import math
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnxpress
from examples.command import DATA, bundle_of, make_parser, positive, run
from examples.rows import numbered_lines, parse_row
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.queue_counts import QueueCounts
from onnxpress.runtime.tasks.classification import Classification


@dataclasses.dataclass(frozen=True)
class Headline:
    """A line of the stream."""

    time: str
    company: str
    text: str


Work = tuple[Headline, "concurrent.futures.Future[Classification]"]


class Watch:
    """The negative share of each company."""

    def __init__(self, size: int, least_z: float) -> None:
        """
        Args:
            size: N above.
            least_z: of an alert.
        """
        self.size, self.least_z = size, least_z
        self.totals: collections.Counter[str] = collections.Counter()
        self.negatives: collections.Counter[str] = collections.Counter()
        self.alerts: collections.Counter[str] = collections.Counter()
        self._latest: dict[str, collections.deque[bool]] = {}

    def add(self, company: str, negative: bool) -> str | None:
        """Count a headline; an alert if there is one."""
        latest = self._latest.setdefault(company, collections.deque(maxlen=2 * self.size))
        latest.append(negative)
        self.totals[company] += 1
        self.negatives[company] += negative
        if len(latest) < 2 * self.size:
            return None
        values = list(latest)
        before, last = sum(values[: self.size]) / self.size, sum(values[self.size :]) / self.size
        if (z := z_of(before, last, self.size)) < self.least_z:
            return None
        self.alerts[company] += 1
        latest.clear()
        return (
            f"{company}: {last:.0%} of the last {self.size} headlines are negative, "
            f"of the {self.size} before {before:.0%} (z = {z:.1f})"
        )


def z_of(before: float, last: float, size: int) -> float:
    """By how many standard errors a share of `size` has grown; 0 where both are 0 or both are 1."""
    pooled = (before + last) / 2
    spread = math.sqrt(pooled * (1 - pooled) * 2 / size)
    return (last - before) / spread if spread else 0.0


class Monitor:
    """Classifies headlines, in their order, while more are read."""

    def __init__(self, model: onnxpress.BatchingRunner, watch: Watch, negative: str, verbose: bool) -> None:
        """
        Args:
            model: over a classifier.
            watch: is told each result.
            negative: the label that counts.
            verbose: print each headline.
        """
        self.model, self.watch, self.negative, self.verbose = model, watch, negative, verbose
        self.unread = 0

    def run(self, headlines: Iterable[Headline], in_flight: int) -> None:
        """Until the stream ends. One thread reads, another takes results; between them are `in_flight` at most."""
        work: queue.Queue[Work | None] = queue.Queue(maxsize=in_flight)
        ended = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(in_flight + 1) as threads:
            taking = threads.submit(self._take, work, ended)
            try:
                for headline in headlines:
                    if ended.is_set():
                        break
                    work.put((headline, threads.submit(self.model.classify, headline.text)))  # waits while it is full
            finally:
                work.put(None)
            taking.result()

    def _take(self, work: queue.Queue[Work | None], ended: threading.Event) -> None:
        try:
            while (item := work.get()) is not None:
                self._tell(item[0], item[1].result())
        except BaseException:
            ended.set()
            while work.get() is not None:  # so that nobody waits to put more
                pass
            raise

    def _tell(self, headline: Headline, found: Classification) -> None:
        if self.verbose:
            print(f"{headline.time} {found.label:>8} {found.score:.2f} {headline.text}", flush=True)
        alert = self.watch.add(headline.company, found.label == self.negative)
        if alert is not None:
            print(f"{headline.time} ALERT {alert}", flush=True)

    def parsed(self, lines: Iterable[tuple[str, str]]) -> Iterator[Headline]:
        """Headlines of lines; a line that is none is told and passed over, for the stream goes on."""
        for where, line in lines:
            try:
                row = parse_row(line, where, "time", "company", "text")
            except InvalidInputError as error:
                self.unread += 1
                print(f"news_sentiment: {error}", file=sys.stderr, flush=True)
            else:
                yield Headline(row["time"], row["company"], row["text"])


def summarise(watch: Watch, unread: int, counts: QueueCounts) -> None:
    """Print what there was."""
    print("\ncompany                headlines  negative  alerts")
    for company, total in sorted(watch.totals.items()):
        print(f"{company:22} {total:9} {watch.negatives[company] / total:9.0%} {watch.alerts[company]:7}")
    batch = counts.sequences / max(counts.batches, 1)
    print(f"{counts.sequences} headlines in {counts.batches} batches, {batch:.1f} in each on average")
    if unread:
        print(f"{unread} lines could not be read")


def monitor(options: argparse.Namespace) -> None:
    """Load the model, then watch."""
    lines: Iterable[tuple[str, str]]
    if options.file == Path("-"):
        lines = ((f"stdin, line {number}", line) for number, line in enumerate(sys.stdin, start=1) if line.strip())
    else:
        lines = numbered_lines(options.file)
    classifier = onnxpress.load(bundle_of(options, "classifier"), task="text-classification")
    if options.negative not in classifier.labels.names:
        there = ", ".join(classifier.labels.names)
        raise InvalidInputError(f"the classifier has no label {options.negative!r}; give one with --negative: {there}")
    watch = Watch(options.size, options.z)
    with onnxpress.BatchingRunner(classifier, most_waiting=options.in_flight) as runner:
        watching = Monitor(runner, watch, options.negative, options.verbose)
        try:
            watching.run(watching.parsed(lines), options.in_flight)
        finally:  # also after Ctrl-C, the usual end of a stream that has none
            counts = runner.state
            assert isinstance(counts, QueueCounts)  # a generator would have others
            summarise(watch, watching.unread, counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = make_parser("news_sentiment", __doc__, {"classifier": "text-classification"})
    parser.add_argument("file", nargs="?", type=Path, default=DATA / "headlines.jsonl", help="JSON lines; - for stdin")
    parser.add_argument("--negative", default="negative", metavar="LABEL", help="the classifier's label for bad news")
    parser.add_argument("--size", type=positive, default=12, metavar="N", help="headlines whose shares are compared")
    parser.add_argument("--z", type=float, default=2.5, help="of an alert")
    parser.add_argument("--in-flight", type=positive, default=32, help="headlines read ahead")
    parser.add_argument("--verbose", action="store_true", help="print each headline")
    options = parser.parse_args(arguments)
    return run(lambda: monitor(options), "news_sentiment")


if __name__ == "__main__":
    sys.exit(main())
