"""How fast this processor reads memory: the sum of an array larger than its caches, on as many threads as the engines.

`python -m bench.generating.bandwidth '{"threads": 2}'`. numpy sums in vector registers and leaves Python's lock.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 2**29
_TRIES = 5


def main() -> None:
    """Print the best rate."""
    threads = json.loads(sys.argv[1])["threads"]
    parts = [np.ones(_BYTES // threads // 4, np.float32) for _ in range(threads)]
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    print(json.dumps({"bytes_per_second": _BYTES / best}))


if __name__ == "__main__":
    main()
