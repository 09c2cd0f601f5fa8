"""Decoders that are known not to export as text generators: each with the reason and the nearest thing that works.

A family that is not here is tried; what then fails is refused with what stood in the way.
"""

from __future__ import annotations

from onnxpress.exporter.refusals import Refusal
from onnxpress.runtime.errors import UnsupportedModelError

__all__ = ["REFUSALS", "USUAL", "refuse_decoder"]

USUAL = "decoders with grouped or plain attention, such as Llama, Qwen3 or Gemma, export"
"""What works, for whoever has a decoder that does not."""


def refuse_decoder(model_type: str, name: str) -> None:
    """Raise at once for a family that is known not to export. Needs neither weights nor PyTorch.

    Args:
        model_type: as in config.json.
        name: of the model, for the sentence.

    Raises:
        UnsupportedModelError: with the reason and the nearest thing that works.
    """
    refusal = REFUSALS.get(model_type)
    if refusal is not None:
        raise UnsupportedModelError(
            f"{name} ({model_type}) cannot be exported for text-generation: {refusal.reason}; {refusal.alternative}"
        )


_COMPRESSED = Refusal("it caches compressed keys and values and expands them anew for each token", USUAL)
_STATE = Refusal("some of its layers keep a state from token to token, which the cache of a graph cannot hold", USUAL)
_SHARED = Refusal(
    "its later layers attend to keys and values that earlier ones cached",
    "Gemma 2 and the text models of Gemma 3 export",
)
_CHUNKED = Refusal(
    "its attention begins anew at each chunk of the text, and GroupQueryAttention has windows but no chunks", USUAL
)
_DIFFERENCE = Refusal("its attention is the difference of two, over values that it doubles after caching them", USUAL)
_AFTER_PADDING = Refusal(
    "it is an encoder whose positions begin after that of padding", "it exports for the tasks of encoders"
)

REFUSALS: dict[str, Refusal] = {
    **dict.fromkeys(
        (
            "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "glm4_moe_lite",
            "glm_moe_dsa", "longcat_flash", "minicpm3", "mistral4", "sarvam_mla", "youtu",
        ),
        _COMPRESSED,
    ),
    **dict.fromkeys(
        (
            "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "inkling_text", "inkling2_text",
            "inkling2_loop_text", "jamba", "kimi_linear", "lara_mini", "lfm3", "mamba", "mamba2", "minimax",
            "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text",
            "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
        ),
        _STATE,
    ),
    "gemma3n_text": _SHARED,
    "llama4_text": _CHUNKED,
    "diffllama": _DIFFERENCE,
    **dict.fromkeys(
        (
            "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
        ),
        _AFTER_PADDING,
    ),
}  # fmt: skip
"""By model type, as in config.json. What is not here is tried."""
