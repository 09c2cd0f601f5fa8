"""Serving settings: what they may be, what onnxruntime is told of them, and that answers stay the same."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxpress
from onnxpress.runtime.arenas import IdleTimer, arena_config, smallest_feeds
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.errors import InferenceError, InvalidInputError
from onnxpress.runtime.malloc import give_back_free_memory
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.paths import user_cache
from onnxpress.runtime.session import make_session, runner
from onnxpress.runtime.settings import PRESETS, Arena, ServingSettings, settings_of
from onnxpress.runtime.tuned import Tuned, _path, forget_tuned, keep_tuned, read_tuned
from tests.decoder_graph import TinyDecoder
from tests.waiting import no_thread

TEXTS = ["a short one", "the order was sent to the old address and came back", "", "again " * 40, "x y z"] * 6
WAIT = 30.0  # seconds until a test gives up


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Arena(extend="twice"), "extend is 'twice'; give 'power_of_two' or 'as_requested'"),
        (lambda: Arena(shrink="sometimes"), "shrink is 'sometimes'"),
        (lambda: Arena(shared=True, initial_bytes=0), "initial_bytes is 0; give a whole number"),
        (lambda: Arena(shared=True, growth_bytes=2**31), "growth_bytes is 2147483648; onnxruntime takes"),
        (lambda: Arena(shared=True, max_bytes=2**64), "max_bytes is 18446744073709551616; onnxruntime takes"),
        (lambda: Arena(idle_seconds=0), "idle_seconds is 0"),
        (lambda: Arena(idle_seconds="2"), "idle_seconds is '2'; give a number"),
        (lambda: Arena(enabled="no"), "enabled is 'no'; give True or False"),
        (lambda: Arena(max_bytes=1 << 30), "set shared=True"),
        (lambda: Arena(enabled=False, shared=True), "the arena is off"),
        (lambda: ServingSettings(threads=True), "threads is True"),
        (lambda: ServingSettings(threads=0), "threads is 0"),
        (lambda: ServingSettings(tokens_per_batch=-1), "tokens_per_batch is -1"),
        (lambda: ServingSettings(tokens_per_batch=None), "tokens_per_batch is None; give a whole number"),
        (lambda: ServingSettings(arena=None), "arena is None; give Arena(...)"),
        (lambda: ServingSettings(spinning="no"), "spinning is 'no'; give True or False"),
        (lambda: ServingSettings(warm_up=1), "warm_up is 1; give True or False"),
        (lambda: ServingSettings(sessions="three"), "sessions is 'three'"),
        (
            lambda: settings_of("tiny"),
            "settings is 'tiny'; give ServingSettings, or one of: latency, balanced, small, server",
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(make: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match="^" + said.split(";")[0].replace("(", r"\(") if ";" in said else said):
        make()


def test_settings_say_what_differs_from_the_default() -> None:
    assert ServingSettings().describe() == "the default settings"
    given = ServingSettings(threads=3, arena=Arena(shrink="when_idle"))
    assert given.describe() == "threads=3, arena.shrink=when_idle"


def test_threads_that_are_named_overrule_the_settings() -> None:
    assert ServingSettings(threads=3).with_threads(2).thread_count == 2
    assert ServingSettings(threads=3).with_threads(None).thread_count == 3


@pytest.mark.parametrize(("processors", "most"), [(1, 16), (2, 16), (96, 384), (None, 16)])
def test_threads_are_bounded_by_the_machine(monkeypatch: pytest.MonkeyPatch, processors: int | None, most: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    assert ServingSettings(threads=most).thread_count == most
    with pytest.raises(InvalidInputError, match=f"threads is {most + 1}, and this .* more than {most} threads"):
        ServingSettings(threads=most + 1)


def test_an_arena_is_configured_by_the_names_that_onnxruntime_documents() -> None:
    arena = Arena(shared=True, extend="as_requested", initial_bytes=1, growth_bytes=2, max_bytes=3)
    assert arena_config(arena) == {
        "arena_extend_strategy": 1,
        "initial_chunk_size_bytes": 1,
        "initial_growth_chunk_size_bytes": 2,
        "max_mem": 3,
    }
    assert arena_config(Arena(shared=True)) == {"arena_extend_strategy": 0}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return TinyDecoder(vocabulary=20, seed=1).save(tmp_path / "model.onnx")


def test_onnxruntime_is_told_of_the_settings(graph: Path) -> None:
    settings = ServingSettings(
        threads=1, spinning=False, prepacking=False, arena=Arena(enabled=False, weights_inside=False)
    )
    options = make_session(graph, SessionSettings(), settings=settings).get_session_options()
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    usual = make_session(graph, SessionSettings(), settings=ServingSettings(1)).get_session_options()
    assert usual.enable_cpu_mem_arena
    with pytest.raises(RuntimeError):
        usual.get_session_config_entry("session.use_device_allocator_for_initializers")


@pytest.mark.parametrize(
    "settings",
    [
        *PRESETS,
        ServingSettings(threads=2, tokens_per_batch=64, arena=Arena(shrink="after_run", weights_inside=False)),
        ServingSettings(threads=2, arena=Arena(enabled=False, shrink="when_idle")),
        ServingSettings(threads=2, sessions="one", prepacking=False, spinning=False),
        ServingSettings(threads=2, arena=Arena(memory_pattern=True)),
    ],
    ids=str,
)
def test_answers_are_the_same_with_any_settings(tiny_bundle: Path, settings: Any) -> None:
    expected = onnxpress.load(tiny_bundle, variant="fp32", threads=1).embed(TEXTS)
    model = onnxpress.load(tiny_bundle, variant="fp32", threads=2, settings=settings)
    try:
        np.testing.assert_allclose(model.embed(TEXTS), expected, atol=1e-5)
        np.testing.assert_allclose(model.embed(TEXTS[:1]), expected[:1], atol=1e-5)
    finally:
        model.close()


def test_an_idle_model_shrinks_and_goes_on(tiny_bundle: Path) -> None:
    settings = ServingSettings(threads=2, arena=Arena(shrink="when_idle", idle_seconds=0.05))
    model = onnxpress.load(tiny_bundle, variant="fp32", settings=settings, task="feature-extraction")
    session = model.encoder.graph._wide  # type: ignore[attr-defined]
    shrunk = threading.Event()
    timer = session.idle_timer
    shrink, timer._function = timer._function, lambda: (shrink(), shrunk.set())
    before = model.embed(TEXTS[:1])
    assert shrunk.wait(WAIT)
    np.testing.assert_array_equal(model.embed(TEXTS[:1]), before)
    model.close()
    assert timer._thread is None


def test_closing_ends_the_thread_that_waits(tiny_bundle: Path) -> None:
    settings = ServingSettings(threads=2, arena=Arena(shrink="when_idle", idle_seconds=1000))
    model = onnxpress.load(tiny_bundle, variant="fp32", settings=settings)
    model.embed(TEXTS)
    timer = model.encoder.graph._narrow.idle_timer
    assert timer._thread.is_alive()
    model.close()
    assert timer._thread is None
    model.embed(TEXTS)  # it may be used again
    assert timer._thread is not None
    thread = timer._thread
    del model, timer
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_a_decoder_shrinks(graph: Path) -> None:
    settings = ServingSettings(threads=1, arena=Arena(shrink="when_idle", idle_seconds=1000))
    session: Any = make_session(graph, SessionSettings(), settings=settings)
    feeds = smallest_feeds(session)
    before = session.run(None, feeds)
    session.shrink()
    for one, other in zip(session.run(None, feeds), before, strict=True):
        np.testing.assert_array_equal(one, other)
    session.idle_timer.stop()


def test_the_timer_waits_for_the_last_touch_and_starts_anew() -> None:
    called = threading.Semaphore(0)
    timer = IdleTimer(0.02, called.release)
    for _ in range(3):
        timer.touch()
    assert called.acquire(timeout=WAIT)
    timer.touch()
    assert called.acquire(timeout=WAIT)
    timer.stop()
    assert timer._thread is None


def test_the_timer_that_is_stopped_calls_nothing() -> None:
    called = threading.Event()
    timer = IdleTimer(1000, called.set)
    timer.touch()
    thread = timer._thread
    timer.stop()
    assert thread is not None
    assert not thread.is_alive()
    assert not called.is_set()


def test_giving_memory_back_says_whether_it_could() -> None:
    assert give_back_free_memory() in (True, False)


def test_what_fails_in_a_run_is_raised_and_not_written(graph: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = make_session(graph, SessionSettings(), settings=ServingSettings(1))
    feeds = smallest_feeds(session)
    with pytest.raises(InferenceError, match="out of data bounds"):
        runner(session, ["logits"])(feeds | {"input_ids": feeds["input_ids"] + 99})
    assert capfd.readouterr() == ("", "")


def test_a_process_has_one_shared_arena(graph: Path) -> None:
    code = f"""
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import Arena, ServingSettings
def make(**more):
    settings = ServingSettings(1, arena=Arena(shared=True, shrink="after_run", **more))
    return make_session({str(graph)!r}, SessionSettings(), settings=settings)
from onnxpress.runtime.arenas import smallest_feeds
for session in (make(extend="as_requested"), make(extend="as_requested")):
    session.run(None, smallest_feeds(session))
    session.shrink()
try:
    make()
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "this process has a shared arena with {'arena_extend_strategy': 1} already" in done.stdout


# --- settings that were kept ---


def tuned_of(**settings: Any) -> Tuned:
    return Tuned("fp32", "throughput", "sentences", 1.2, "2026-01-01T00:00:00Z", ServingSettings(**settings))


def test_load_uses_what_was_kept(bundle_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = open_bundle(bundle_copy)
    kept = tuned_of(threads=3, tokens_per_batch=99, arena=Arena(shrink="when_idle", max_bytes=10, shared=True))
    keep_tuned(bundle, kept)
    try:
        assert read_tuned(bundle).variants == (kept,)
        keep_tuned(bundle, tuned_of(tokens_per_batch=99))
        with caplog.at_level(logging.INFO, "onnxpress"):
            model = onnxpress.load(bundle_copy, variant="fp32")
        assert "with the settings that onnxpress tune found for throughput" in caplog.text
        assert model.encoder.graph.settings.tokens_per_batch == 99
        assert onnxpress.load(bundle_copy, variant="fp32", threads=1).threads == 1
        assert onnxpress.load(bundle_copy, "fp32", settings="balanced").encoder.graph.settings == ServingSettings()
        assert onnxpress.load(bundle_copy, variant="int8").encoder.graph.settings == ServingSettings()
        assert forget_tuned(bundle, "fp32")
        assert not forget_tuned(bundle, "fp32")
        assert onnxpress.load(bundle_copy, variant="fp32").encoder.graph.settings == ServingSettings()
    finally:
        forget_tuned(bundle)


def test_a_user_without_a_home_is_served(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "ONNXPRESS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # which the system does not know
    assert user_cache() == Path("/.cache/onnxpress")
    assert onnxpress.load(tiny_bundle, "fp32").encoder.graph.settings == ServingSettings()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"schema_version": 99}',
        json.dumps({"schema_version": 1, "variants": [{"variant": "fp32"}]}),
        '{"schema_version": 1, "variants": []' + "[" * 100_000,
        json.dumps(
            {
                "schema_version": 1,
                "variants": [
                    {"variant": "fp32", "goal": "latency", "traffic": "", "gain": 1.0, "created": ""}
                    | {"settings": {"threads": 0}}
                ],
            }
        ),
    ],
    ids=range(6),
)
def test_a_broken_file_is_ignored_with_a_warning(
    bundle_copy: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = _path(open_bundle(bundle_copy))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    try:
        with caplog.at_level(logging.WARNING, "onnxpress"):
            model = onnxpress.load(bundle_copy, variant="fp32")
        assert "cannot be used and is ignored" in caplog.text
        assert model.encoder.graph.settings == ServingSettings()
    finally:
        path.unlink()


def test_the_timer_does_without_a_thread_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    called = threading.Event()
    timer = IdleTimer(0.02, called.set)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        timer.touch()
        timer.stop()
    timer.touch()
    assert called.wait(WAIT)
    timer.stop()


def test_a_fork_does_not_wait_for_the_timers_lock_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = IdleTimer(1000, lambda: None)
    another = os.getpid() + 1
    with timer._changed, monkeypatch.context() as patch:
        patch.setattr("onnxpress.runtime.processes.os.getpid", lambda: another)
        thread = threading.Thread(target=timer.stop, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
