"""Where a variant's nodes run and whether it computes what PyTorch did, in a process of its own.

`python -m bench.gpus.checking '{"bundle": ..., "variant": ..., "device": "cuda"}'`. That nothing is computed on the CPU
is onnxruntime's own verdict: it opens a session for CUDA graphs only where no value travels between CPU and GPU inside
the graph, and nodes on the CPU then only work on shapes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bench.gpus.sessions import open_session, placement


def check(options: dict[str, Any]) -> dict[str, Any]:
    """`nodes` by provider and operator; `captures`: empty, or why no session for CUDA graphs opens; `passed` and
    `sentence`: what the gate says of the variant on the device."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.errors import first_line
    from onnxpress.runtime.verification import CASES_FILE, check_parity, load_cases
    from onnxpress.runtime.verifying import run_of

    session = open_session(options)
    captures = ""
    if options["device"] == "cuda":
        try:
            open_session({**options, "graphs": True})
        # onnxruntime's exception classes have no common base but Exception.
        except Exception as error:  # noqa: BLE001
            captures = first_line(error)
    bundle = open_bundle(options["bundle"])
    variant = bundle.manifest.variant(options["variant"])
    run, compared = run_of(session, bundle.manifest.settings, bundle.manifest.outputs)
    cases = load_cases(bundle.path_of(CASES_FILE))
    parity = check_parity(run, cases, compared, variant.parity_kind, variant.parity_threshold)
    return {
        "nodes": placement(session),
        "captures": captures,
        "passed": parity.passed,
        "sentence": parity.failure() or "passed",
        "kind": parity.kind,
        "bound": parity.threshold,
        "min_cosine": parity.min_cosine,
        "rms_error": parity.rms_error,
        "cases": len(cases),
    }


if __name__ == "__main__":
    print(json.dumps(check(json.loads(sys.argv[1]))))
