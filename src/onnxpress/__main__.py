"""``python -m onnxpress`` is the command ``onnxpress``."""

from __future__ import annotations

import sys

from onnxpress.cli import main

if __name__ == "__main__":
    sys.exit(main())
