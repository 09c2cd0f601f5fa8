"""What of a bundle's variant the choice and the options of providers depend on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.runtime.bundle import Bundle
    from onnxpress.runtime.manifest import Tensor, Variant


@dataclasses.dataclass(frozen=True)
class ServedGraph:
    """A variant, as providers see it."""

    variant: str
    """Its name; empty: any variant for the target."""
    target: str
    """cpu, cuda or tensorrt: what it was made and verified for."""
    precision: str
    is_decoder: bool
    sha256: str
    """Of all its files."""
    inputs: tuple[Tensor, ...]
    max_tokens: int
    """Tokens of a text at most."""


def graph_of(bundle: Bundle, variant: Variant) -> ServedGraph:
    """Describe a variant; its files were hashed when the bundle was sealed."""
    hashes = {record.path: record.sha256 for record in bundle.manifest.files}
    joined = "".join(hashes.get(path, "") for path in sorted(variant.files))
    return ServedGraph(
        variant=variant.name,
        target=variant.target,
        precision=variant.precision,
        is_decoder=bundle.manifest.generation is not None,
        sha256=hashlib.sha256(joined.encode()).hexdigest(),
        inputs=bundle.manifest.inputs,
        max_tokens=bundle.manifest.tokenizer.max_length,
    )
