"""What a manifest must say beyond having its keys and types: numbers in their ranges, parts that fit each other,
options of onnxruntime that touch no other file.

A manifest comes from whoever made the bundle. What is let through here is used without another look. Knows nothing of
files on disk (bundle.py) and of graphs (encoder.py and generation/decoder.py compare those with what is said here).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.runtime.manifest import GenerationSettings, Manifest, SessionSettings, Tensor

SESSION_KEYS = frozenset(
    {
        "mlas.disable_kleidiai",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "mlas.use_lut_gemm",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.graph_optimizations_loop_level",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
        "session.x64quantprecision",
    }
)
"""Options of onnxruntime that a bundle may set: those that decide how a graph is computed. Others name files to read or
write, or belong to whoever serves. Source: onnxruntime_session_options_config_keys.h of onnxruntime 1.32."""

_MOST = 2**31 - 1
"""Of tokens, ids and sizes: what fits the 32 bits that libraries keep them in."""
_MOST_LAYERS = 10_000
_LONGEST_OPTION = 200  # characters
_SECOND_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "feature-extraction": ("sentence_embedding",),
    "question-answering": ("start_logits", "end_logits"),
}
_LABELLED = ("text-classification", "zero-shot-classification", "text-ranking", "token-classification")
_TASKS = (*_SECOND_OUTPUTS, *_LABELLED, "fill-mask")


def check_manifest(manifest: Manifest) -> None:
    """
    Raises:
        ValueError: the text begins with the place, such as `tokenizer.max_length: expected ...`.
    """
    tokenizer = manifest.tokenizer
    _in_range("tokenizer.max_length", tokenizer.max_length, 1)
    _in_range("tokenizer.pad_id", tokenizer.pad_id)
    _in_range("tokenizer.pad_type_id", tokenizer.pad_type_id)
    if manifest.mask is not None:
        _in_range("mask.id", manifest.mask.id)
    if manifest.embedding is not None:
        _in_range("embedding.dimension", manifest.embedding.dimension, 1)
        default = manifest.embedding.default_prompt_name
        if default is not None and default not in manifest.embedding.prompts:
            raise ValueError(f"embedding.default_prompt_name: there is no prompt {default[:80]!r}")
    if manifest.generation is not None:
        _check_generation(manifest.generation)
    if manifest.task in _TASKS:
        _check_tensors(manifest)
    _check_variants(manifest)


def _check_variants(manifest: Manifest) -> None:
    names = [variant.name for variant in manifest.variants]
    for place, variant in enumerate(manifest.variants):
        where = f"variants[{place}]"
        if not is_plain_name(variant.name):  # it becomes the name of files in the cache
            raise ValueError(f"{where}.name: {variant.name[:80]!r} is no name; letters, digits, '-', '_', '.' are")
        if names.count(variant.name) > 1:
            raise ValueError(f"{where}.name: {variant.name!r} comes twice")
        if not variant.model.endswith(".onnx"):  # onnxruntime reads other formats by other names
            raise ValueError(f"{where}.model: expected a name that ends with .onnx, got {variant.model[:80]!r}")
        _check_session(variant.session, f"{where}.session")


def is_plain_name(name: str) -> bool:
    """Whether a name is safe as that of a file: ASCII letters, digits, `-`, `_`, `.`, at most 100, no dot in front."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return 0 < len(name) <= 100 and plain.isascii() and plain.isalnum() and not name.startswith(".")


def _check_session(session: SessionSettings, where: str) -> None:
    for key, value in session.config.items():
        if key not in SESSION_KEYS:
            raise ValueError(f"{where}.config: {key[:80]!r} is no option that a bundle may set")
        if not 0 < len(value) <= _LONGEST_OPTION or "\0" in value:
            raise ValueError(f"{where}.config.{key}: {value[:80]!r} is no value of an option")
    for name in session.disabled_optimizers:
        if not is_plain_name(name):
            raise ValueError(f"{where}.disabled_optimizers: {name[:80]!r} is no name of an optimizer")


def _check_generation(settings: GenerationSettings) -> None:
    where = "generation"
    _in_range(f"{where}.layers", settings.layers, 1, _MOST_LAYERS)
    for name in ("kv_heads", "head_dims"):
        values = getattr(settings, name)
        if len(values) != settings.layers:
            raise ValueError(f"{where}.{name}: expected one number for each of {settings.layers} layers")
        for value in values:
            _in_range(f"{where}.{name}", value, 1)
    _in_range(f"{where}.context", settings.context, 1)
    _in_range(f"{where}.vocabulary", settings.vocabulary, 1)
    for token in settings.eos_ids:
        _in_range(f"{where}.eos_ids", token, 0, settings.vocabulary - 1)
    if settings.bos_id is not None:
        _in_range(f"{where}.bos_id", settings.bos_id, 0, settings.vocabulary - 1)


def _check_tensors(manifest: Manifest) -> None:
    """Inputs and outputs of an encoder: those that its task feeds and reads."""
    needed = ("input_ids", "attention_mask", *(("mask_positions",) if manifest.task == "fill-mask" else ()))
    _has("inputs", manifest.inputs, needed)
    _has("outputs", manifest.outputs, _SECOND_OUTPUTS.get(manifest.task, ("logits",)))
    axes = {tensor.name: tensor.shape for tensor in manifest.inputs}
    for name in ("input_ids", "attention_mask"):
        if axes[name][1] != "sequence":
            raise ValueError(f"inputs: the second axis of {name!r} is {axes[name][1][:80]!r}, expected 'sequence'")
    size = None
    if manifest.task == "feature-extraction" and manifest.embedding is not None:
        size = manifest.embedding.dimension
    elif manifest.task in _LABELLED and manifest.labels is not None:
        size = len(manifest.labels.names)
    for tensor in manifest.outputs:
        if size is not None and tensor.name in ("logits", "sentence_embedding") and tensor.shape[-1] != str(size):
            raise ValueError(
                f"outputs: the last axis of {tensor.name!r} is {tensor.shape[-1][:80]!r}, expected {size}, the number "
                f"of {'features' if manifest.task == 'feature-extraction' else 'labels'}"
            )


def _has(where: str, tensors: Sequence[Tensor], needed: Sequence[str]) -> None:
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: a name comes twice")
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{where}: {missing[0]!r} is missing, which the task needs")
    for place, tensor in enumerate(tensors):
        if len(tensor.shape) < 2:
            raise ValueError(f"{where}[{place}].shape: expected at least two axes, got {len(tensor.shape)}")


def _in_range(where: str, value: int, least: int = 0, most: int = _MOST) -> None:
    if not least <= value <= most:
        raise ValueError(f"{where}: expected a number from {least} to {most}, got {str(value)[:80]}")
