"""How a loaded model uses the machine: threads, spinning, batches and memory. Plain data and what it may be; what
onnxruntime is told of it is in session.py, and `onnxpress tune` (tuning.py) finds settings for one machine.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, Literal

from onnxpress.runtime.batching import TOKENS_PER_BATCH
from onnxpress.runtime.errors import InvalidInputError, require_types, require_whole
from onnxpress.runtime.machine import usable_cores

Preset = Literal["latency", "balanced", "small", "server"]
Extend = Literal["power_of_two", "as_requested"]
Shrink = Literal["never", "after_run", "when_idle"]


_THREADS_OF_EACH = 4  # for each processor of the machine; nothing is faster with more than one
_THREADS_ANYWHERE = 16
"""Threads that are allowed on any machine, so that what was written for another one goes on working: even on two cores
sixteen start in seconds; thousands take so long that loading seems to hang."""


def require_threads(threads: int | None) -> None:
    """
    Args:
        threads: to compute with; None for what stands for it.

    Raises:
        InvalidInputError: it is no positive number, or so many that they would wait for each other rather than work:
            above four for each processor of the machine, and above 16.
    """
    require_whole("threads", threads, or_none=True)
    most = max(_THREADS_ANYWHERE, _THREADS_OF_EACH * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise InvalidInputError(
            f"threads is {threads}, and this process may use {usable_cores()} cores; more than {most} threads would "
            "only wait for each other: give about as many as cores, or None"
        )


_MOST_BYTES = {"initial_bytes": 2**31 - 1, "growth_bytes": 2**31 - 1, "max_bytes": 2**63 - 1}
"""That onnxruntime can be told: it keeps the first two in 32 bits."""


@dataclasses.dataclass(frozen=True)
class Arena:
    """onnxruntime's pool of CPU memory for what a run computes. It grows to what the largest run needed, and keeps it
    unless told to shrink.

    onnxruntime has one configuration for all shared arenas of a process and none for the others, so `extend`,
    `initial_bytes`, `growth_bytes` and `max_bytes` need `shared`.
    """

    enabled: bool = True
    """False: memory is asked of the system for each value a run computes, and given back when nothing needs it."""
    shared: bool = False
    """One arena for all sessions of this process that share, instead of one each."""
    extend: Extend = "power_of_two"
    """By how much it grows when it is full: to twice what it grew by before, or by what is asked for."""
    initial_bytes: int | None = None
    """What it takes first; it never shrinks below. None: 1 MiB."""
    growth_bytes: int | None = None
    """What it grows by first after it has shrunk. None: 2 MiB."""
    max_bytes: int | None = None
    """What it may take; a run that needs more fails. Weights count, and onnxruntime forgets a limit that they alone
    exceed. None: no limit."""
    shrink: Shrink = "never"
    """When what no run is using goes back to the system: after each run, or when there was none for a while."""
    idle_seconds: float = 2.0
    """Time without a run after which an arena shrinks, for `when_idle`."""
    weights_inside: bool = True
    """False: weights are kept outside. Where they lie beside what runs compute, an arena cannot give their chunks
    back."""
    memory_pattern: bool = False
    """Plan the memory of a run once for each shape of inputs. Pays only where shapes repeat: every shape is kept."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be, or contradicts another.
        """
        for name, most in _MOST_BYTES.items():
            require_whole(name, size := getattr(self, name), or_none=True)
            if size is not None and size > most:
                raise InvalidInputError(f"{name} is {size}; onnxruntime takes {most} at most")
        require_types(self)
        if not 0 < self.idle_seconds <= 86400:
            raise InvalidInputError(f"idle_seconds is {self.idle_seconds}; give a number of seconds up to 86400")
        if not self.enabled and (self.shared or self.is_configured):
            raise InvalidInputError(
                "the arena is off, so it can be neither shared nor configured: switch it on, or leave the rest out"
            )
        if self.is_configured and not self.shared:
            raise InvalidInputError(
                "onnxruntime has these settings for shared arenas only: set shared=True, or leave extend, "
                "initial_bytes, growth_bytes and max_bytes out"
            )

    @property
    def is_configured(self) -> bool:
        """Whether it differs from what onnxruntime does by itself in what only shared arenas can be told."""
        sizes = (self.initial_bytes, self.growth_bytes, self.max_bytes)
        return self.extend != "power_of_two" or any(size is not None for size in sizes)


@dataclasses.dataclass(frozen=True)
class ServingSettings:
    """How a loaded model uses the machine. The same results, bit for bit or nearly so, at another cost."""

    threads: int | None = None
    """CPU threads; None for the cores this process may use: its affinity and its cgroup's quota."""
    spinning: bool = True
    """Threads that wait for work keep a core busy for a while, which makes the next operator start sooner."""
    arena: Arena = Arena()
    tokens_per_batch: int = TOKENS_PER_BATCH
    """Tokens that an encoder computes at once on one thread, at most; a longer text is a batch of its own."""
    sessions: Literal["two", "one"] = "two"
    """Of an encoder: one with all threads for a text alone and one with a thread for each batch where there are many,
    or a single one for both, which needs half of the memory for weights."""
    prepacking: bool = True
    """Rearrange the weights for the kernels once, into copies in memory of this process; False: at each run."""
    share_weights: bool = False
    """Rearrange them once for all processes, into a file in the user's cache that each of them maps. Takes some 2.3
    times the variant's disk space; where that cannot be had, which is logged, the weights stay in this process. In no
    preset: a process that is alone gains nothing."""
    huge_pages: bool = True
    """Of a decoder: move its weights into pages of 2 MB where the system has them, which makes each step faster."""
    library_pages: Literal["keep", "drop"] = "keep"
    """Pages of program files that only starting and loading needed: `drop` takes them out of this process around
    loading, some 25 MB, for a first run that takes some milliseconds more. On Linux."""
    warm_up: bool = False
    """Open every session and run it once while loading, so that the first request is not slower than others."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be.
        """
        require_threads(self.threads)
        require_whole("tokens_per_batch", self.tokens_per_batch)
        require_types(self)

    @functools.cached_property
    def thread_count(self) -> int:
        """`threads`, or what stands for None on this machine."""
        return self.threads or usable_cores()

    def describe(self) -> str:
        """What differs from the default settings, for a person."""
        return ", ".join(_differences(self, ServingSettings())) or "the default settings"

    def with_threads(self, threads: int | None) -> ServingSettings:
        """The same with another number of threads; None leaves them.

        Raises:
            InvalidInputError: it is not a positive number, or far more than there are cores.
        """
        return self if threads is None else dataclasses.replace(self, threads=threads)


def _differences(given: Any, default: Any) -> Iterator[str]:
    for field in dataclasses.fields(given):
        value, usual = getattr(given, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{text}" for text in _differences(value, usual))
        elif value != usual:
            yield f"{field.name}={value}"


PRESETS: dict[str, ServingSettings] = {
    "latency": ServingSettings(warm_up=True),
    "balanced": ServingSettings(),
    # A session whose threads share every operator waits so often that spinning takes the cores from those that work.
    "small": ServingSettings(
        sessions="one",
        spinning=False,
        arena=Arena(shrink="when_idle"),
        tokens_per_batch=256,
        huge_pages=False,
        library_pages="drop",
    ),
    # The threads that read requests and write answers need the cores on which others would spin.
    "server": ServingSettings(spinning=False, warm_up=True),
}
"""Settings by name: the fastest answer to a text alone; a good one and a high rate; little memory; many requests that
come over a network."""


def settings_of(given: ServingSettings | str | None) -> ServingSettings:
    """Settings from what a caller gave: an object, the name of a preset, or None for `balanced`.

    Raises:
        InvalidInputError: there is no such preset.
    """
    if isinstance(given, ServingSettings):
        return given
    name = "balanced" if given is None else given
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidInputError(f"settings is {given!r}; give ServingSettings, or one of: {', '.join(PRESETS)}")
    return PRESETS[name]
