"""The gate on the machine that will serve: no torch, because PyTorch's outputs travel in the bundle.

A bundle is sealed, so the verdict goes to the user's cache, keyed by bundle, machine and onnxruntime's version;
`onnxpress.load` looks there before it serves a variant that was not verified where it was made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import TaskSettings, Tensor, Variant
from onnxpress.runtime.paths import user_cache, write_atomically
from onnxpress.runtime.providers import Asked, choose_providers, graph_of
from onnxpress.runtime.session import make_session, runner
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import CASES_FILE, Run, check_parity, load_cases

if TYPE_CHECKING:
    import onnxruntime


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the gate says of a variant on this machine."""

    passed: bool
    sentence: str
    provider: str


def verify_variant(bundle: Bundle, variant: Variant, providers: Asked = None, threads: int | None = None) -> Verdict:
    """Run a variant on its verification inputs and remember the verdict.

    Args:
        bundle: an opened bundle.
        variant: one of its variants.
        providers: as `onnxpress.load` takes them, or None for the variant's target, which must then be usable here.
        threads: CPU threads; None for the cores this process may use.

    Raises:
        ProviderError: the provider cannot be used on this machine.
        InvalidBundleError: the variant does not load, or the bundle has no verification inputs.
        InvalidInputError: the user's cache cannot be written; the text has the verdict.
    """
    chosen = choose_providers(providers or variant.target, graph_of(bundle, variant))
    session = make_session(
        bundle.model_path(variant), variant.session, settings=ServingSettings(threads), providers=chosen
    )
    cases = load_cases(bundle.path_of(CASES_FILE))
    run, compared = run_of(session, bundle.manifest.settings, bundle.manifest.outputs)
    parity = check_parity(run, cases, compared, variant.parity_kind, variant.parity_threshold)
    sentence = parity.failure() or (
        f"passed on {chosen[0].name}: largest difference {parity.max_abs_difference:.2g}, lowest cosine similarity "
        f"{parity.min_cosine:.5f} over {len(cases)} inputs"
    )
    verdict = Verdict(parity.passed, sentence, chosen[0].name)
    path = _verdict_path(bundle, variant)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(verdict)).encode())
    except OSError as error:
        raise InvalidInputError(
            f"variant {variant.name!r}: {sentence}; but this cannot be kept in {path.parent}: {error.strerror}; set "
            "ONNXPRESS_CACHE to a folder that can be written"
        ) from error
    return verdict


def run_of(
    session: onnxruntime.InferenceSession, settings: TaskSettings, outputs: Sequence[Tensor]
) -> tuple[Run, Sequence[Tensor]]:
    """How the gate runs a graph, and what it compares of it.

    Args:
        session: of the graph.
        settings: of the model's task.
        outputs: of the graph.
    """
    if settings.generation is not None:
        from onnxpress.runtime.generation.replay import COMPARED, replay_run

        return replay_run(session, settings.generation), COMPARED
    return runner(session, [tensor.name for tensor in outputs]), outputs


def is_verified_here(bundle: Bundle, variant: Variant, provider: str) -> bool:
    """Whether the gate has passed on this machine, with this onnxruntime and this provider."""
    try:
        verdict = json.loads(_verdict_path(bundle, variant).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(verdict, dict):
        return False
    return verdict.get("passed") is True and verdict.get("provider") == provider


def _verdict_path(bundle: Bundle, variant: Variant) -> Path:
    import onnxruntime

    machine = f"{describe_machine().key()}-ort{onnxruntime.__version__}"
    return user_cache() / "verified" / bundle.manifest_sha256[:32] / machine / f"{variant.name}.json"
