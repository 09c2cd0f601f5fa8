"""`onnxpress.load`: a bundle folder to an object that does the bundle's task. No torch, no transformers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.embedder import Embedder
from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError
from onnxpress.runtime.machine import usable_cores
from onnxpress.runtime.providers import choose_providers
from onnxpress.runtime.session import import_onnxruntime
from onnxpress.runtime.verifying import is_verified_here

# Where a new task is added: the task's name in the manifest, and the class that serves it.
TASKS = {"feature-extraction": Embedder}


def load(
    path: str | Path,
    variant: str | None = None,
    providers: str | Sequence[str] | None = None,
    threads: int | None = None,
    verify: bool = False,
) -> Embedder:
    """Open a bundle for serving.

    Args:
        path: the bundle folder; it may be read-only.
        variant: `fp32`, `int8`, ...; None for the bundle's default.
        providers: `cpu`, `cuda`, `tensorrt`, or onnxruntime's names, in order of preference. One that is named and
            cannot be used is an error. None: what the variant was made for, where this machine has it, else the CPU.
        threads: CPU threads to use; None for the cores this process may use.
        verify: hash every file first.

    Raises:
        InvalidBundleError: the bundle is broken, or has no such variant or task.
        InvalidInputError: `threads` is not a positive number.
        ProviderError: a provider that was named cannot be used; the text says why.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InvalidInputError(f"threads is {threads!r}; give a whole number of at least 1, or None")
    bundle = open_bundle(path, verify=verify)
    chosen = bundle.manifest.variant(variant)
    task = bundle.manifest.task
    if task not in TASKS or bundle.manifest.embedding is None:
        raise InvalidBundleError(
            f"the bundle's task is {task!r}, this onnxpress serves: {', '.join(TASKS)}; upgrade onnxpress"
        )
    import_onnxruntime()
    chosen_providers = choose_providers(providers, chosen.target)
    if chosen.status == "unverified" and not is_verified_here(bundle, chosen, chosen_providers[0]):
        warnings.warn(
            f"variant {chosen.name!r} is not verified on {chosen_providers[0]}; run `onnxpress verify {path}` here",
            stacklevel=2,
        )
    return TASKS[task](bundle, chosen, chosen_providers, threads or usable_cores())
