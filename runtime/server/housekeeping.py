"""Gives back what requests have left behind.

A request leaves a few dozen objects that refer to each other in circles (FastAPI's and Starlette's, mostly), which Python
finds only when it has looked through all objects, and it looks seldom where those are many. So what is there at the start
is frozen: then the collector has only the requests' own to look at. What was freed lies in pages that the C library keeps,
so it is told to return them, from time to time while the process works, and so a last time soon after a burst.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator

from onnxpress.runtime.arenas import give_back_free_memory

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
