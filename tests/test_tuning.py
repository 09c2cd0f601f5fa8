"""`onnxpress tune`, with processes that answer as told."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from onnxpress.cli import main
from onnxpress.runtime import tuning
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.errors import OnnxpressError
from onnxpress.runtime.measuring import Worker
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.tuned import Tuned, keep_tuned, read_tuned
from onnxpress.runtime.tuning import Goal, Tuning, candidates, is_clear_gain, make_traffic, tune

BASE = 100.0


class Told:
    """A measuring process whose rate is a function of its settings."""

    gains: dict[str, float]
    noise: float

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.settings = json.loads(command[-1])
        self.asked = 0

    def ask(self, **command: Any) -> float:
        if command["do"] == "memory":
            return 200e6 if self.settings["sessions"] == "two" else 100e6
        self.asked += 1
        rate = BASE * (1 + self.noise * (-1) ** self.asked)
        if not self.settings["spinning"]:
            rate *= self.gains.get("spinning", 1.0)
        if self.settings["tokens_per_batch"] == 1024:
            rate *= self.gains.get("batch", 1.0)
        if self.settings["sessions"] == "one":
            rate *= self.gains.get("one", 1.0)
        return rate

    def close(self) -> None: ...


@pytest.fixture
def found(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tuning, "Worker", Told)

    def run(gains: dict[str, float], goal: Goal = "throughput", noise: float = 0.0) -> Tuning:
        monkeypatch.setattr(Told, "gains", gains, raising=False)
        monkeypatch.setattr(Told, "noise", noise, raising=False)
        bundle = open_bundle(tiny_bundle)
        traffic = make_traffic(bundle, goal, None, (4, 12), None)
        return tune(bundle, bundle.manifest.variant("fp32"), traffic, goal, 5, lambda name, fraction: None)

    return run


def test_what_helps_is_found_and_put_together(found: Any) -> None:
    result = found({"spinning": 1.2, "batch": 1.1, "one": 0.5})
    assert result.winner.settings == ServingSettings(spinning=False, tokens_per_batch=1024)
    assert result.winner.gain == pytest.approx(1.32)


def test_nothing_is_kept_where_there_is_nothing_to_gain(found: Any) -> None:
    assert found({"one": 0.5}).winner is None


def test_a_gain_within_the_noise_is_none(found: Any) -> None:
    result = found({"spinning": 1.03, "one": 0.5}, noise=0.2)
    assert result.winner is None


def test_less_memory_counts_where_the_rate_holds(found: Any) -> None:
    assert found({"one": 0.9}, "memory").winner.settings.sessions == "one"
    assert found({"one": 0.7}, "memory").winner is None


def test_pairs_must_be_clearly_above_one() -> None:
    assert is_clear_gain([1.1, 1.12, 1.09, 1.1])
    assert not is_clear_gain([1.01, 1.012, 1.009, 1.01])
    assert not is_clear_gain([1.5, 0.8, 1.4, 0.7])


def test_a_decoder_is_tuned_in_what_applies() -> None:
    assert set(candidates(4, is_decoder=True)) == {"threads 1", "threads 2", "threads 3", "spinning off", "arena off"}
    assert {"sessions one", "preset small", "batch-tokens 256"} <= set(candidates(1, is_decoder=False))
    for fields in candidates(8, is_decoder=False).values():
        assert ServingSettings(**fields) != ServingSettings()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "9-4"], "--lengths is '9-4'; give two numbers of tokens such as 8-128"),
        (["--lengths", "x"], "--lengths is 'x'"),
        (["--batch", "0"], "--batch is 0; give at least 1"),
        (["--seconds", "1"], "--seconds is 1; give 5 to 3600"),
        (["--texts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--texts", "a", "--lengths", "4-8"], "give --texts or --lengths, not both"),
        (["--variant", "int3"], "int3"),
    ],
)
def test_bad_options_are_a_sentence(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["tune", str(tiny_bundle), *options]) == 2
    assert said in capsys.readouterr().err


def test_the_command_keeps_and_forgets(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "Worker", Told)
    monkeypatch.setattr(Told, "gains", {"spinning": 1.5, "one": 0.5}, raising=False)
    monkeypatch.setattr(Told, "noise", 0.0, raising=False)
    command = ["tune", str(bundle_copy), "--variant", "fp32", "--lengths", "4-8", "--seconds", "5"]
    assert main(command) == 0
    assert "kept, 1.50x as good as the default: spinning=False" in capsys.readouterr().out
    bundle = open_bundle(bundle_copy)
    assert [one.settings.spinning for one in read_tuned(bundle).variants] == [False]
    assert main(["tune", str(bundle_copy), "--forget"]) == 0
    assert main(["tune", str(bundle_copy), "--forget"]) == 0
    assert "dropped" in capsys.readouterr().out
    keep_tuned(bundle, Tuned("fp32", "latency", "sentences", 1.2, "2026-01-01T00:00:00Z", ServingSettings()))
    for dropped in (True, False):
        assert main(["tune", str(bundle_copy), "--forget", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"dropped": dropped}
    monkeypatch.setattr(Told, "gains", {"one": 0.5})
    assert main(command) == 0
    assert "nothing to gain" in capsys.readouterr().out
    assert read_tuned(bundle).variants == ()


@pytest.mark.slow
def test_real_processes(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tiny_bundle), "--lengths", "4-12", "--seconds", "5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"threads 1", "preset small"} <= {one["name"] for one in answer["tried"]} | {"threads 1"}
    main(["tune", str(tiny_bundle), "--forget"])


@pytest.mark.filterwarnings("error")
def test_a_process_that_ends_while_it_starts_leaves_nothing_open() -> None:
    def open_files() -> set[str]:
        gc.collect()  # what other tests have left as well
        return {path.name for path in Path("/dev/fd").iterdir()}

    before = open_files()
    with pytest.raises(OnnxpressError, match="the process that measures int8 ended early: no such model"):
        Worker("int8", [sys.executable, "-c", "raise SystemExit('no such model')"])
    assert open_files() <= before


def test_a_process_that_has_ended_is_a_sentence_and_can_be_closed() -> None:
    worker = Worker("int8", [sys.executable, "-c", "print('{}')"])
    worker._process.wait()
    with pytest.raises(OnnxpressError, match="the process that measures int8 ended early: no output"):
        worker.ask(do="memory")
    worker.close()
