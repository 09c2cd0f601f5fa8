"""runtime/server/{metrics,watching}.py: what /metrics says, in one process and in several."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.machine import resident_memory_bytes
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server import ServerSettings, create_app
from onnxpress.runtime.server.calls import AnswerReport
from onnxpress.runtime.server.metrics import Metrics
from onnxpress.runtime.server.registry import Models, ServedModel
from onnxpress.runtime.server.request_record import RequestRecord
from onnxpress.runtime.server.settings import Limits
from tests.gated_app import Samples, app, ask, embed, gated_app, samples, scrape, value
from tests.gated_graph import SECONDS, GatedGraph, graph
from tests.tiny_generator import make_bundle, opening
from tests.waiting import until

__all__ = ["app", "graph"]  # fixtures

ROOT = Path(__file__).parent.parent


def test_requests_are_counted_by_route_status_and_model(app: FastAPI) -> None:
    embed(app, ["w1 w2 w3", "w4"])
    embed(app, "w1")
    ask(app, "GET", "/v1/models/other")
    ask(app, "GET", "/nowhere")
    ask(app, "POST", "/v1/embeddings", json={"input": "w1", "model": "other"})
    found = scrape(app)
    requests = {labels: count for (name, labels), count in found.items() if name == "requests_total"}
    assert {tuple(dict(labels)[key] for key in ("route", "status", "model")): n for labels, n in requests.items()} == {
        ("/v1/embeddings", "200", "words"): 2,
        ("/v1/models/{name}", "404", "none"): 1,
        ("none", "404", "none"): 1,
        ("/v1/embeddings", "404", "none"): 1,
    }
    assert value(found, "request_seconds_count", route="/v1/embeddings", model="words") == 2
    assert value(found, "refusals_total", reason="model_not_found") == 2
    assert value(found, "sequences_total", model="words") == 3
    assert value(found, "tokens_in_total", model="words") == 5
    for name in ("tokenize", "wait", "run"):
        assert value(found, f"{name}_seconds_count", model="words") == 2
    assert value(found, "run_seconds_sum", model="words") > 0
    assert value(found, "requests_in_flight") == 1  # this one
    assert value(found, "queue_limit", model="words") == Limits().waiting
    labels = {"task": "feature-extraction", "variant": "fp32", "provider": "CPUExecutionProvider", "version": "0.2.0"}
    assert value(found, "model_info", model="words", **labels) == 1
    assert value(found, "newest_worker_start_seconds") > 1e9
    assert not [name for name, _ in found if name.endswith("_created")]


def hold(app: FastAPI, graph: GatedGraph, waiting: int) -> list[threading.Thread]:
    """One request runs, and so many wait."""
    graph.hold()
    threads = [threading.Thread(target=embed, args=(app, "w1")) for _ in range(1 + waiting)]
    threads[0].start()
    graph.wait_until_begun()
    for thread in threads[1:]:
        thread.start()
    until(lambda: value(scrape(app), "queue_waiting", model="words") == waiting)
    return threads


def release(graph: GatedGraph, threads: list[threading.Thread]) -> None:
    graph.open.set()
    for thread in threads:
        thread.join(SECONDS)


def test_what_waits_and_runs_is_seen(app: FastAPI, graph: GatedGraph) -> None:
    threads = hold(app, graph, waiting=2)
    found = scrape(app)
    assert value(found, "running", model="words") == 2  # the first, alone, has both workers
    assert value(found, "requests_in_flight") == 4
    release(graph, threads)
    found = scrape(app)
    assert value(found, "running", model="words") == value(found, "queue_waiting", model="words") == 0
    assert value(found, "requests_in_flight") == 1


def test_what_did_not_run_is_counted_as_refused(tmp_path: Path, graph: GatedGraph) -> None:
    app = gated_app(tmp_path, graph, most_waiting=1)
    threads = hold(app, graph, waiting=1)
    assert embed(app, "w2").status_code == 429
    release(graph, threads)
    found = scrape(app)
    assert value(found, "refusals_total", reason="queue_full") == 1
    assert value(found, "requests_total", route="/v1/embeddings", status="429", model="words") == 1
    assert value(found, "tokenize_seconds_count", model="words") == 2
    assert value(found, "run_seconds_count", model="words") == value(found, "tokens_in_total", model="words") == 2


def test_a_server_that_drains_is_not_ready(app: FastAPI) -> None:
    assert value(scrape(app), "ready_workers") == 1
    app.state.service.phase = "draining"
    assert value(scrape(app), "ready_workers") == 0


def test_a_server_looks_at_itself_while_it_runs(app: FastAPI) -> None:
    metrics = app.state.service.metrics

    async def run() -> Samples:
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
            return rendered(metrics)

    found = asyncio.run(run())
    assert value(found, "ready_workers") == 1
    assert value(found, "event_loop_delay_seconds") == 0  # not yet a second


@pytest.mark.skipif(resident_memory_bytes() is None, reason="the system does not tell what a process holds")
def test_memory_is_that_of_the_process(app: FastAPI) -> None:
    found = scrape(app)
    resident, peak = (value(found, "memory_bytes", kind=kind) for kind in ("resident", "peak"))
    assert 1e7 < resident <= peak
    block = bytes(50_000_000) + b"1"  # written, not only promised
    assert value(scrape(app), "memory_bytes", kind="resident") - resident > 0.8 * len(block)


def test_batches_are_counted_with_their_padding(tiny_bundle: Path) -> None:
    app = create_app(ServerSettings.of([f"tiny={tiny_bundle}"]))
    texts = ["a cat", "a cat " * 5]
    used = embed(app, texts).json()["usage"]["prompt_tokens"]
    found = scrape(app)
    assert value(found, "batch_tokens_total", model="tiny") == used
    runs = value(found, "batch_sequences_count", model="tiny")
    assert runs in (1, 2)  # together or side by side
    assert value(found, "batch_sequences_sum", model="tiny") == 2
    assert value(found, "batch_seconds_count", model="tiny") == runs
    assert (value(found, "padding_tokens_total", model="tiny") > 0) == (runs == 1)
    app.state.service.models.close()


def test_a_models_steps_and_cache_are_seen(tmp_path: Path) -> None:
    with opening(make_bundle(tmp_path)) as open_with:
        generator = open_with()
        generator.generate("before the server", max_new_tokens=3)
        runner = BatchingRunner(generator)
        served = ServedModel("writer", "text-generation", generator, runner, 0)
        app = create_app(ServerSettings.of(["writer=nowhere"]), Models([served]))
        before = runner.state.counts  # type: ignore[union-attr]
        answer = runner.generate("ab", max_new_tokens=5, temperature=0, ignore_eos=True)
        found = scrape(app)
        assert value(found, "chosen_tokens_total", model="writer") == len(answer.token_ids) == 5
        after = runner.state.counts  # type: ignore[union-attr]
        assert value(found, "decoding_steps_total", model="writer") == after.steps - before.steps
        rows = {state: value(found, "cache_rows", model="writer", state=state) for state in ("taken", "kept", "free")}
        assert sum(rows.values()) == runner.state.rows  # type: ignore[union-attr]
        assert rows["taken"] == 0
        assert value(found, "cache_bytes", model="writer") == runner.state.cache_bytes > 0  # type: ignore[union-attr]
        assert not [labels for name, labels in found if name.startswith("batch_") and ("model", "writer") in labels]
        runner.close()


def record(**others: Any) -> RequestRecord:
    return RequestRecord("id", "POST", "/v1/chat/completions", **{"status": 200, "seconds": 2.0, **others})


def rendered(metrics: Metrics) -> Samples:
    return samples(metrics.render()[0].decode())


def test_answers_are_counted_with_their_times() -> None:
    metrics = Metrics()
    answer = AnswerReport(40, 30, 4, "stop", first_token_seconds=0.2, between_token_seconds=[0.01, 0.02, 0.3])
    report = CallReport(1.0, 1, 40, 0.001, 0.1, 1.5)  # the prompt is in both
    metrics.request(record(model="writer", report=report, answer=answer))
    none = AnswerReport(0, 0, 0, "cancelled", None, [])
    metrics.request(record(model="writer", report=CallReport(), answer=none, disconnected=True))
    found = rendered(metrics)
    assert value(found, "tokens_in_total", model="writer") == 40
    assert value(found, "reused_tokens_total", model="writer") == 30
    assert value(found, "tokens_out_total", model="writer") == 4
    assert value(found, "first_token_seconds_count", model="writer") == 1
    assert value(found, "between_tokens_seconds_count", model="writer") == 3
    assert value(found, "between_tokens_seconds_sum", model="writer") == pytest.approx(0.33)
    assert value(found, "disconnects_total", route="/v1/chat/completions") == 1
    assert value(found, "sequences_total", model="writer") == value(found, "wait_seconds_count", model="writer") == 1
    assert value(found, "run_seconds_sum", model="writer") == 1.5


def test_decisions_of_guards_are_counted() -> None:
    metrics = Metrics()
    for blocked in (False, False, True):
        metrics.guard_decision("toxic", "output", blocked)
    metrics.guard_decision("toxic", "input", blocked=True, failed=True)
    found = rendered(metrics)
    assert value(found, "guard_decisions_total", guard="toxic", place="output", decision="passed") == 2
    assert value(found, "guard_decisions_total", guard="toxic", place="output", decision="blocked") == 1
    assert value(found, "guard_decisions_total", guard="toxic", place="input", decision="blocked") == 1
    assert value(found, "guard_failures_total", guard="toxic") == 1


def test_applications_of_one_process_do_not_meet(app: FastAPI, tmp_path: Path, graph: GatedGraph) -> None:
    other = gated_app(tmp_path, graph)
    embed(app)
    assert value(scrape(app), "sequences_total", model="words") == 1
    assert value(scrape(other), "sequences_total", model="words") == 0


def test_openmetrics_is_given_to_who_asks_for_it(app: FastAPI) -> None:
    response = ask(app, "GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


# The document


def exposed(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The type and the labels of each metric, by its name."""
    found = {}
    for family in metrics._registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = family.type
    collectors = {
        name: collector._labelnames
        for collector, names in metrics._registry._collector_to_names.items()
        for name in names
    }
    return {name: (kind, tuple(collectors[name.removesuffix("_total")])) for name, kind in found.items()}


def test_each_metric_is_documented_with_its_type_and_labels() -> None:
    rows = re.findall(
        r"^\| `(onnxpress_\w+)` \| (\w+) \| ([^|]*) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(documented) == len(rows)
    assert documented == exposed(Metrics())


def test_each_field_of_the_log_is_documented() -> None:
    section = (ROOT / "docs/metrics.md").read_text().partition("\n## Logs\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    report = CallReport(sequences=1, run_seconds=1.0)
    answer = AnswerReport(1, 0, 1, "stop", 0.1, [])
    full = record(error="x", disconnected=True, model="m", task="t", report=report, answer=answer, trace_id="1")
    always = {"time", "level", "logger", "message", "request_id", "exception"}
    assert documented == {*always, *full.fields()}
