"""Gives back what requests have left behind.

What a request is made of refers to itself in circles here and there, in libraries as well. Python finds those only when
it looks through all objects, and where there are many, as here after everything is imported, it does so seldom. So what
is there at the start is frozen, and the collector has only the objects of requests to look through. What was freed lies
in pages that the C library keeps; it is told to return them, every few seconds while the process works, and so a last
time soon after a burst.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator

from onnxpress.runtime.malloc import give_back_free_memory

_SECONDS = 5.0
_WORKED_SECONDS = 0.1
"""Of the processor: below, there is nothing to tidy up."""


@contextlib.asynccontextmanager
async def keeping_house() -> AsyncIterator[None]:
    """Do so while the block runs, in the event loop's thread, in which what belongs to the loop must be collected."""
    gc.collect()
    gc.freeze()
    task = asyncio.create_task(_keep_house())
    try:
        yield
    finally:
        task.cancel()
        gc.unfreeze()


async def _keep_house() -> None:
    tidied = time.process_time()
    while True:
        await asyncio.sleep(_SECONDS)
        if time.process_time() - tidied > _WORKED_SECONDS:
            gc.collect()
            await asyncio.to_thread(give_back_free_memory)
            tidied = time.process_time()
