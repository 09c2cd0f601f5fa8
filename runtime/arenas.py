"""Tells onnxruntime of an `Arena` (settings.py), and makes sessions give memory back.

Three things keep memory after a run: onnxruntime's arena, which shrinks only at the end of a run; what a run answers,
which lies in the arena until it is copied; and the C library, which keeps what is freed. So a session that has been
idle runs the smallest input there is, with its answers bound to memory elsewhere, and then asks glibc to trim. glibc
trims the top of its first heap only, and runs take their memory in many threads, so what is large must not lie in
heaps at all (malloc.py).
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.malloc import give_back_free_memory, keep_large_blocks_out_of_heaps
from onnxpress.runtime.processes import HomeProcess
from onnxpress.runtime.settings import Arena

if TYPE_CHECKING:
    import onnxruntime

SHRINK = "memory.enable_memory_arena_shrinkage"
"""onnxruntime's option of a run that names the arenas to shrink after it."""
_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
_ONES = ("attention_mask", "total_sequence_length")  # inputs that say how much there is

_registered: list[Arena] = []
_registering = threading.Lock()


def apply_arena(options: onnxruntime.SessionOptions, arena: Arena) -> None:
    """Write an arena's settings into the options of a session.

    Raises:
        InvalidInputError: the process has a shared arena with other settings.
    """
    options.enable_cpu_mem_arena = arena.enabled
    # Texts differ in length from run to run; the memory plan onnxruntime would keep for each shape never pays then.
    options.enable_mem_pattern = arena.memory_pattern
    if not arena.weights_inside:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if arena.shared:
        _register(arena)
        options.add_session_config_entry("session.use_env_allocators", "1")


def arena_config(arena: Arena) -> dict[str, int]:
    """The settings of a shared arena, by the names that onnxruntime documents for `OrtArenaCfg`."""
    config = {"arena_extend_strategy": 0 if arena.extend == "power_of_two" else 1}
    sizes = {
        "initial_chunk_size_bytes": arena.initial_bytes,
        "initial_growth_chunk_size_bytes": arena.growth_bytes,
        "max_mem": arena.max_bytes,
    }
    return config | {name: size for name, size in sizes.items() if size is not None}


def rest(session: onnxruntime.InferenceSession) -> None:
    """End the thread in which a session waits to shrink, if it has one; a later run starts another."""
    timer: IdleTimer | None = getattr(session, "idle_timer", None)
    if timer is not None:
        timer.stop()


def _register(arena: Arena) -> None:
    """Make the shared arena of this process, once: onnxruntime has one for all sessions."""
    import onnxruntime

    with _registering:
        if not _registered:
            place = onnxruntime.OrtMemoryInfo(
                "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
            )
            onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(arena_config(arena)))
            _registered.append(arena)
        elif arena_config(_registered[0]) != arena_config(arena):
            raise InvalidInputError(
                f"this process has a shared arena with {arena_config(_registered[0])} already, and there cannot be "
                f"another with {arena_config(arena)}: give all models the same settings, or leave `shared` out"
            )


class IdleTimer:
    """Calls a function once nothing has touched it for a while. Its thread lives from a touch to that call."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self._seconds = seconds
        self._function = function
        self._home = HomeProcess()
        self._changed = threading.Condition()
        self._last = 0.0
        self._thread: threading.Thread | None = None

    def touch(self) -> None:
        """Begin to wait anew."""
        with self._changed:
            self._last = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="onnxpress-idle", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the system has no more of them now; a later touch asks again
                    self._thread = None

    def stop(self) -> None:
        """End the thread; without a call, unless that has begun. A later touch starts another. In a fork, nothing: the
        lock may be held there for ever."""
        if not self._home.is_this:
            return
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wait(self) -> None:
        while self._is_due():
            self._function()
            with self._changed:
                if self._thread is not threading.current_thread():
                    return
                if self._last + self._seconds <= time.monotonic():  # not touched meanwhile
                    self._thread = None
                    return

    def _is_due(self) -> bool:
        """Wait. False when it was stopped."""
        with self._changed:
            while self._thread is threading.current_thread():
                left = self._last + self._seconds - time.monotonic()
                if left <= 0:
                    return True
                self._changed.wait(left)
            return False


@functools.cache
def shrinking_session() -> Callable[..., onnxruntime.InferenceSession]:
    """`onnxruntime.InferenceSession` with an argument `arena`, as whose `shrink` says it gives memory back. Made when
    first needed, for onnxruntime is slow to import."""
    import onnxruntime

    class ShrinkingSession(onnxruntime.InferenceSession):
        """See `shrinking_session`."""

        def __init__(self, path: str, options: onnxruntime.SessionOptions, *, arena: Arena, **more: Any) -> None:
            keep_large_blocks_out_of_heaps()
            super().__init__(path, options, **more)
            self._shrinking = onnxruntime.RunOptions()
            if arena.enabled:  # else there is nothing to shrink, and asking would be an error
                self._shrinking.add_run_config_entry(SHRINK, "cpu:0")
            self._each_run = self._shrinking if arena.shrink == "after_run" else None
            self.idle_timer: IdleTimer | None = None
            if arena.shrink == "when_idle":
                self.idle_timer = IdleTimer(arena.idle_seconds, functools.partial(_shrink, weakref.ref(self)))
                # Also when the interpreter ends: a thread in the middle of a run would crash it.
                weakref.finalize(self, self.idle_timer.stop)

        def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
            """As of the class it extends."""
            try:
                return super().run(output_names, input_feed, run_options or self._each_run)
            finally:
                self._has_run()

        def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
            """As of the class it extends."""
            try:
                super().run_with_iobinding(iobinding, run_options or self._each_run)
            finally:
                self._has_run()

        def shrink(self) -> None:
            """Give back what no run is using."""
            feeds = smallest_feeds(self)
            answers = [np.empty_like(value) for value in super().run(None, feeds)]
            binding = self.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for node, value in zip(self.get_outputs(), answers, strict=True):
                binding.bind_output(node.name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
            super().run_with_iobinding(binding, self._shrinking)
            give_back_free_memory()

        def _has_run(self) -> None:
            if self.idle_timer is not None:
                self.idle_timer.touch()
            else:
                give_back_free_memory()

    return ShrinkingSession


def _shrink(reference: weakref.ref[Any]) -> None:
    session = reference()
    if session is not None:
        session.shrink()


def smallest_feeds(session: onnxruntime.InferenceSession) -> dict[str, npt.NDArray[Any]]:
    """Inputs of one row and one token."""
    feeds: dict[str, npt.NDArray[Any]] = {}
    for node in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in node.shape]
        feeds[node.name] = np.full(shape, 1 if node.name in _ONES else 0, _TYPES[node.type])
    return feeds
