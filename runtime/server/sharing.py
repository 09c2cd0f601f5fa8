"""What the workers of a server have in common: the cores of the machine, and the weights of large models."""

from __future__ import annotations

import dataclasses

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.machine import usable_cores
from onnxpress.runtime.server.settings import ServedBundle, ServerSettings
from onnxpress.runtime.settings import ServingSettings, settings_of
from onnxpress.runtime.tuned import tuned_settings

SHARED_BYTES = 100_000_000
"""Of a variant on disk, from which on several workers share its weights unless told. Below, what a worker takes besides
is more than what sharing saves, and huge pages, which a shared file mostly cannot have, make steps of a decoder faster
(docs/workers.md)."""


def for_each_worker(settings: ServerSettings) -> ServerSettings:
    """The settings for one of the workers: bundles that leave it open get their part of the cores, and share weights
    where that pays.

    Raises:
        InvalidBundleError: a bundle cannot be opened, or has no such variant.
    """
    if settings.workers == 1:
        return settings
    return dataclasses.replace(
        settings, bundles=tuple(_divide(bundle, settings.workers) for bundle in settings.bundles)
    )


def threads_of_each(workers: int) -> int | None:
    """A worker's part of the cores; None, for all that the process may use, where it is alone."""
    return max(1, usable_cores() // workers) if workers > 1 else None


def _divide(bundle: ServedBundle, workers: int) -> ServedBundle:
    threads = bundle.threads or threads_of_each(workers)
    share = bundle.share_weights
    if share is None:
        share = open_bundle(bundle.path).manifest.variant(bundle.variant).size_bytes >= SHARED_BYTES
    return dataclasses.replace(bundle, threads=threads, share_weights=share)


def serving_settings(bundle: ServedBundle) -> ServingSettings:
    """How a bundle uses the machine: the preset that is named, else what `onnxpress tune` kept, else `server`.

    Raises:
        InvalidInputError: there is no such preset.
        InvalidBundleError: as of `for_each_worker`.
    """
    if bundle.settings is not None:
        found = settings_of(bundle.settings)
    else:
        opened = open_bundle(bundle.path)
        found = tuned_settings(opened, opened.manifest.variant(bundle.variant)) or settings_of("server")
    return dataclasses.replace(found, share_weights=True) if bundle.share_weights else found
