"""The manifest of a bundle, `onnxpress.json`: plain frozen data, read strictly and written canonically.

Knows nothing of files on disk: `bundle.py` checks those. docs/bundle.md describes every key.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.manifest_checks import check_manifest

SCHEMA_VERSION = 2


def _upgrade_1_to_2(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew sentence embedders only."""
    return document | {"schema_version": 2, "labels": None, "mask": None, "generation": None}


# Functions from an older document to the next version, so that older bundles stay readable.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_1_to_2}


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """One file of the bundle. `path` is relative to the bundle, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights came from. `weights_sha256` covers every weight and configuration file read."""

    name: str
    location: str
    revision: str | None
    weights_sha256: str


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """How texts become token ids; `file` is a Hugging Face `tokenizer.json`."""

    file: str
    max_length: int
    """Tokens per text including special tokens; longer texts are truncated."""
    pad_id: int
    padding_side: Literal["right", "left"] = "right"
    pad_type_id: int = 0
    """The segment (`token_type_ids`) of padding."""


@dataclasses.dataclass(frozen=True)
class EmbeddingSettings:
    """What the graph's pooling head is and how its vectors are meant to be used."""

    dimension: int
    modules: tuple[str, ...]
    normalized: bool
    similarity: str
    include_prompt: bool
    """False: a prompt's tokens are attended to but left out of pooling, through the input `pooling_mask`."""
    prompts: dict[str, str]
    default_prompt_name: str | None


@dataclasses.dataclass(frozen=True)
class LabelSettings:
    """What the numbers of the output `logits` stand for."""

    names: tuple[str, ...]
    """In the order of the logits."""
    function: Literal["softmax", "sigmoid", "identity"]
    """What makes scores of logits: softmax where one label is right, sigmoid where each is right or not, identity for
    a model that predicts numbers."""


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """The token a fill-mask model replaces."""

    token: str
    id: int


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """A decoder's key/value cache and how its model is meant to write."""

    layers: int
    kv_heads: tuple[int, ...]
    """Key/value heads of each layer."""
    head_dims: tuple[int, ...]
    """Size of a head in each layer."""
    context: int
    """Tokens at most, prompt and answer together."""
    vocabulary: int
    eos_ids: tuple[int, ...]
    """Tokens that end an answer."""
    bos_id: int | None
    """What a prompt of no tokens is continued from."""
    defaults: dict[str, Any]
    """The model's own sampling options, under transformers' names."""
    chat_template: str | None
    """Jinja, over a list of messages."""
    special_tokens: dict[str, str]
    """What chat templates write, by the names they have there: `bos_token`, `eos_token` and others."""
    other_chat_templates: dict[str, str] = dataclasses.field(default_factory=dict)
    """By name: conversations with tools take `tool_use` where there is one."""


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What a task needs to know beside the graph: the part of the manifest that a model in PyTorch has too."""

    task: str
    tokenizer: TokenizerSettings
    embedding: EmbeddingSettings | None
    labels: LabelSettings | None
    mask: MaskSettings | None
    generation: GenerationSettings | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A graph input or output; `shape` mixes axis names (`batch`, `sequence`) and sizes written as text."""

    name: str
    type: str
    shape: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """How onnxruntime must open a variant to run the graph that was measured."""

    disabled_optimizers: tuple[str, ...] = ()
    config: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One precision of the model for one target, with what was measured where it was made."""

    name: str
    precision: str
    target: Literal["cpu", "cuda", "tensorrt"]
    status: Literal["passed", "unverified"]
    model: str
    """Path of the ONNX file."""
    files: tuple[str, ...]
    """Paths of every file the variant needs, the ONNX file and its external data."""
    size_bytes: int
    session: SessionSettings
    parity_kind: Literal["max_abs", "cosine", "rms"]
    """How `onnxpress verify` compares it with PyTorch, and the bound (runtime/verification.py)."""
    parity_threshold: float
    accuracy: float | None = None
    agreement: float | None = None
    """Mean cosine similarity with the reference on the real texts of the verification inputs."""
    latency_ms: float | None = None
    """Median time of one short text, tokenization included."""
    texts_per_second: float | None = None
    """Best throughput over the batch sizes that were measured."""
    peak_memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything the runtime needs to serve a bundle, and what a person may ask about it."""

    schema_version: int
    created: str
    source: Source
    task: str
    architecture: str
    tokenizer: TokenizerSettings
    embedding: EmbeddingSettings | None
    """For the task feature-extraction."""
    labels: LabelSettings | None
    """For the tasks that classify texts or tokens, and for text-ranking."""
    mask: MaskSettings | None
    """For the task fill-mask."""
    generation: GenerationSettings | None
    """For the task text-generation."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: tuple[FileRecord, ...]
    variants: tuple[Variant, ...]
    default_variant: str
    default_reason: str
    machine: dict[str, Any]
    """The machine the figures were measured on (see `runtime/machine.py`)."""
    versions: dict[str, str]

    @property
    def settings(self) -> TaskSettings:
        """The part that the classes in `runtime/tasks` read."""
        return TaskSettings(self.task, self.tokenizer, self.embedding, self.labels, self.mask, self.generation)

    def variant(self, name: str | None) -> Variant:
        """The variant called `name`, or the default one.

        Raises:
            InvalidBundleError: there is no such variant; the text lists those there are.
        """
        wanted = name or self.default_variant
        for variant in self.variants:
            if variant.name == wanted:
                return variant
        there = ", ".join(variant.name for variant in self.variants)
        raise InvalidBundleError(f"the bundle has no variant {wanted!r}; it has: {there}")


def parse_manifest(text: str, origin: str) -> Manifest:
    """Read a manifest, upgrading older schema versions.

    Args:
        text: the JSON document.
        origin: what to call it in an error, mostly its path.

    Raises:
        InvalidBundleError: not JSON, a newer schema, a key that is unknown, missing or of the wrong type, or a value
            that cannot be (manifest_checks.py).
    """
    try:
        document = json.loads(text)
        # NaN, numbers beyond float64 and lone surrogates are read without complaint and fail where nobody expects
        # them.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidBundleError(f"{origin} is not valid JSON ({error}); export the bundle again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidBundleError(
            f"{origin} has no usable schema_version (found {str(version)[:80]!r}); is this a bundle?"
        )
    if version > SCHEMA_VERSION:
        raise InvalidBundleError(
            f"{origin} has schema version {str(version)[:20]}, this onnxpress reads up to {SCHEMA_VERSION}; "
            "upgrade onnxpress"
        )
    try:
        while version < SCHEMA_VERSION:
            document = UPGRADES[version](document)
            version = document["schema_version"]
        manifest = decode(Manifest, document)
        manifest.variant(None)
        check_manifest(manifest)
    # The last three come from upgrades, which trust that an older document has the form it should have.
    except (ValueError, OverflowError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InvalidBundleError(f"{origin} is not a valid manifest: {error}; export the bundle again") from error
    return manifest


def render_manifest(manifest: Manifest) -> str:
    """The manifest as JSON text, the same for equal manifests."""
    return json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
