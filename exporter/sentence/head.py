"""All that follows the transformer of a sentence embedder, as traceable PyTorch code.

It computes what sentence-transformers 6.2 computes, padded on either side, and runs no code that the folder names.

Shapes: b batch, s sequence, h hidden size of the transformer, d size of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from onnxpress.exporter.sentence.config import (
    DenseConfig,
    LayerNormConfig,
    NormalizeConfig,
    PoolingConfig,
    SentenceConfig,
)
from onnxpress.exporter.sentence.reading import default_sentence_config
from onnxpress.runtime.errors import UnsupportedModelError, first_line


class SentenceHead(nn.Module):
    """Everything after the transformer."""

    def __init__(self, token_modules: list[nn.Module], pooling: Pooling, modules: list[nn.Module]) -> None:
        super().__init__()
        self.token_modules = nn.Sequential(*token_modules)
        self.pooling = pooling
        self.sentence_modules = nn.Sequential(*modules)

    def forward(self, token_embeddings: Tensor, attention_mask: Tensor, pooling_mask: Tensor | None = None) -> Tensor:
        """
        Args:
            token_embeddings: float [b, s, h].
            attention_mask: int64 [b, s], 1 for tokens and 0 for padding.
            pooling_mask: int64 [b, s], the attention mask with the tokens of the prompt zeroed. Used only where the
                prompt is left out of pooling; None there means that there is no prompt.

        Returns:
            Embeddings of the same dtype [b, d]; zeros into the modules after pooling where a row is all padding.
        """
        hidden = self.token_modules(token_embeddings)  # [b, s, h']
        pooled = self.pooling(hidden, attention_mask, pooling_mask)  # [b, modes * h']
        return self.sentence_modules(pooled)  # [b, d]


class Pooling(nn.Module):
    """One vector of all tokens: the results of every mode side by side."""

    def __init__(self, modes: tuple[str, ...], include_prompt: bool) -> None:
        super().__init__()
        self.modes = modes
        self.include_prompt = include_prompt

    def forward(self, hidden: Tensor, attention_mask: Tensor, pooling_mask: Tensor | None) -> Tensor:
        """Token embeddings [b, s, h] and masks as in `SentenceHead` to [b, modes * h]."""
        attended = attention_mask != 0  # [b, s]
        used = attended if self.include_prompt or pooling_mask is None else pooling_mask != 0
        pooled = torch.cat([_POOLING_MODES[mode](hidden, attended, used) for mode in self.modes], dim=-1)
        # Of a row that is all padding some transformers make NaN, which multiplying by the mask would keep.
        return pooled.masked_fill(~attended.any(dim=1, keepdim=True), 0.0)


# Every mode: hidden [b, s, h], attended (bool [b, s]: a token), used (bool [b, s]: a token that counts) -> [b, h].


def _pool_cls(hidden: Tensor, attended: Tensor, used: Tensor) -> Tensor:
    return _token_at(hidden, _first(used))


def _pool_lasttoken(hidden: Tensor, attended: Tensor, used: Tensor) -> Tensor:
    positions = torch.arange(hidden.shape[1], device=hidden.device)  # [s]
    last = (positions * used).amax(dim=1)  # [b]
    return _token_at(hidden, last).masked_fill(~used.any(dim=1, keepdim=True), 0.0)


def _pool_max(hidden: Tensor, attended: Tensor, used: Tensor) -> Tensor:
    largest = hidden.masked_fill(~used.unsqueeze(-1), float("-inf")).amax(dim=1)
    # The largest of nothing is -inf, which Normalize would turn into NaN.
    return largest.masked_fill(~used.any(dim=1, keepdim=True), 0.0)


def _pool_mean(hidden: Tensor, attended: Tensor, used: Tensor) -> Tensor:
    total, count = _sum(hidden, used)
    return (total / count).to(hidden.dtype)


def _pool_mean_sqrt_len(hidden: Tensor, attended: Tensor, used: Tensor) -> Tensor:
    total, count = _sum(hidden, used)
    return (total / torch.sqrt(count)).to(hidden.dtype)


def _pool_weightedmean(hidden: Tensor, attended: Tensor, used: Tensor) -> Tensor:
    dtype = _sum_dtype(hidden)
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=dtype)  # [s]
    # Weights count from the first token of the text, also of a prompt that is left out.
    weights = (positions - _first(attended).unsqueeze(-1).to(dtype)) * used.to(dtype)  # [b, s]
    total = (_without(hidden, used) * weights.unsqueeze(-1)).sum(dim=1)  # [b, h]
    return (total / weights.sum(dim=1, keepdim=True).clamp(min=1.0)).to(hidden.dtype)


_POOLING_MODES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": _pool_cls,
    "max": _pool_max,
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt_len,
    "weightedmean": _pool_weightedmean,
    "lasttoken": _pool_lasttoken,
}


def _first(mask: Tensor) -> Tensor:
    """Position of the first True in each row of a mask [b, s], 0 if there is none: [b]."""
    return mask.to(torch.float32).argmax(dim=1)  # floats: microsoft/onnxruntime#10068 for ArgMax of int64


def _token_at(hidden: Tensor, position: Tensor) -> Tensor:
    """One token of each row: hidden [b, s, h], position [b] -> [b, h]."""
    index = position.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index).squeeze(1)


def _sum(hidden: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Sum [b, h] and number [b, 1] of the used tokens; a number of at least 1, so that nothing is divided by 0."""
    dtype = _sum_dtype(hidden)
    total = _without(hidden, used).sum(dim=1, dtype=dtype)
    return total, used.to(dtype).sum(dim=1, keepdim=True).clamp(min=1.0)


def _without(hidden: Tensor, used: Tensor) -> Tensor:
    """Zeros instead of the tokens that do not count, whatever they hold: [b, s, h]."""
    return hidden.masked_fill(~used.unsqueeze(-1), 0.0)


def _sum_dtype(values: Tensor) -> torch.dtype:
    """Half precision is summed in float32."""
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype


class Dense(nn.Module):
    """A linear layer, an activation and possibly the input added; submodules have the names of the saved tensors."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.in_features, config.out_features, bias=config.bias)
        self.activation_function = getattr(nn, config.activation)()
        if getattr(self.activation_function, "dim", 0) is None:
            # What torch takes, with a warning, when softmax gets three dimensions or two.
            self.activation_function.dim = 0 if config.on_tokens else 1
        self.use_residual = config.use_residual
        projects = config.use_residual and config.in_features != config.out_features
        self.residual = nn.Linear(config.in_features, config.out_features, bias=False) if projects else None

    def forward(self, values: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        result = self.activation_function(self.linear(values))
        if not self.use_residual:
            return result
        return result + (values if self.residual is None else self.residual(values))


class LayerNorm(nn.Module):
    """Layer normalisation; the submodule has the name of the saved tensors."""

    def __init__(self, config: LayerNormConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dimension)

    def forward(self, values: Tensor) -> Tensor:
        """[..., dimension] -> the same shape."""
        return self.norm(values)


class Normalize(nn.Module):
    """Length 1; zeros stay zeros."""

    def forward(self, values: Tensor) -> Tensor:
        """[..., d] -> the same shape."""
        # Not in half precision: squares overflow, and the smallest divisor 1e-12 would be 0.
        return nn.functional.normalize(values.to(_sum_dtype(values)), dim=-1).to(values.dtype)


class Truncate(nn.Module):
    """Only the first values, as `encode` gives them where the folder sets truncate_dim."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, values: Tensor) -> Tensor:
        """[..., d] -> [..., size]."""
        return values[..., : self.size]


def build_head(
    folder: Path, config: SentenceConfig | None, hidden_size: int, *, allow_pickle: bool = False
) -> SentenceHead:
    """Everything after the transformer, with its weights, in float32 and evaluation mode.

    Args:
        folder: where `config` was read.
        config: None stands for `default_sentence_config(folder)`.
        hidden_size: of the transformer.
        allow_pickle: read pytorch_model.bin where there is no model.safetensors.

    Raises:
        UnsupportedModelError: weights are missing, broken or do not fit.
    """
    config = config or default_sentence_config(folder)
    before: list[nn.Module] = []
    after: list[nn.Module] = []
    modules, width = before, hidden_size
    pooling = Pooling(config.pooling_modes, config.include_prompt)
    for module in config.head:
        if isinstance(module, PoolingConfig):
            modules, width = after, width * len(module.modes)
        elif isinstance(module, NormalizeConfig):
            modules.append(Normalize())
        elif isinstance(module, DenseConfig | LayerNormConfig):
            modules.append(_load_module(folder, module, width, allow_pickle))
            width = _output_width(modules[-1], folder / module.path, width)
    if config.truncate_dim is not None:
        after.append(Truncate(config.truncate_dim))
    head = SentenceHead(before, pooling, after)
    head.eval().requires_grad_(False)
    return head


def _load_module(folder: Path, config: DenseConfig | LayerNormConfig, width: int, allow_pickle: bool) -> nn.Module:
    """A module that takes vectors of a width, with its weights in float32."""
    place = folder / config.path
    size = config.in_features if isinstance(config, DenseConfig) else config.dimension
    if size != width:
        raise UnsupportedModelError(
            f"{place / 'config.json'} is for vectors of size {size}; they are of size {width} here"
        )
    with torch.device("meta"):  # only shapes: what the folder claims is not allocated
        module = Dense(config) if isinstance(config, DenseConfig) else LayerNorm(config)
    weights = _read_weights(place, allow_pickle)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        raise UnsupportedModelError(
            f"the weights in {place} do not fit its config.json: expected {_shapes(expected)}, found {_shapes(found)}"
        )
    module.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()}, assign=True)
    return module


def _read_weights(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    file, pickle_file = folder / "model.safetensors", folder / "pytorch_model.bin"
    if not file.is_file() and not pickle_file.is_file():
        raise UnsupportedModelError(f"{folder} has no model.safetensors; download the model again")
    try:
        if file.is_file():
            return dict(safetensors.torch.load_file(file))
        if allow_pickle:
            return dict(torch.load(pickle_file, map_location="cpu", weights_only=True))
    # safetensors and the unpickler raise many types; each means the same to the user.
    except Exception as error:
        file = file if file.is_file() else pickle_file
        reason = first_line(error)
        raise UnsupportedModelError(f"{file} is truncated or broken ({reason}); download the model again") from error
    raise UnsupportedModelError(
        f"{folder} has its weights only as a Python pickle ({pickle_file.name}), which can run code when read; convert "
        "it to safetensors, or give --allow-pickle if you trust its author"
    )


def _output_width(module: nn.Module, place: Path, width: int) -> int:
    """Size of the vectors a module makes: GLU halves it."""
    try:
        with torch.no_grad():
            return int(module(torch.zeros(1, width)).shape[-1])
    except RuntimeError as error:
        raise UnsupportedModelError(f"the module in {place} cannot be computed: {error}") from error


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "no tensors"
