"""The main job from end to end: press all-MiniLM-L6-v2 into a bundle, embed a few sentences, show what is alike.

Run as `make demo`, which installs what it needs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BUNDLE = Path("demo-bundle")
SENTENCES = [
    "My parcel has not arrived yet.",
    "Where is the order I placed last week?",
    "The recipe needs two eggs and a cup of flour.",
]


def main() -> None:
    """Export, then serve from the bundle."""
    command = [
        sys.executable,
        "-m",
        "onnxpress",
        "export",
        "all-MiniLM-L6-v2",
        "--output",
        str(BUNDLE),
        "--force",
    ]
    print("$ onnxpress", *command[3:], flush=True)
    start = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"exported in {time.perf_counter() - start:.0f} s\n")

    import onnxpress

    model = onnxpress.load(BUNDLE)
    vectors = model.embed(SENTENCES)
    print(f"model.embed(sentences): {vectors.dtype} {list(vectors.shape)}, variant {model.variant.name}")
    for first, second in ((0, 1), (0, 2)):
        similarity = float(vectors[first] @ vectors[second])
        print(f"  {similarity:.2f}  {SENTENCES[first]!r} and {SENTENCES[second]!r}")
    print(f"\nThe report is at {(BUNDLE / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
