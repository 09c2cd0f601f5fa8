"""What a sentence-transformers folder says, as plain data: no files, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolingConfig:
    """All tokens of a text to one vector."""

    modes: tuple[str, ...]
    """Their results are concatenated in this order."""
    include_prompt: bool = True
    embedding_dimension: int | None = None
    """Size of one mode's result."""

    @property
    def label(self) -> str:
        """For a person."""
        return f"Pooling ({' + '.join(self.modes)}{'' if self.include_prompt else ', prompt left out'})"


@dataclass(frozen=True)
class DenseConfig:
    """A linear layer and an activation."""

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: str
    """A class of torch.nn, such as Tanh."""
    use_residual: bool
    on_tokens: bool
    """It works on every token, before pooling."""

    @property
    def label(self) -> str:
        """For a person."""
        activation = "" if self.activation == "Identity" else f" {self.activation.lower()}"
        residual = " + residual" if self.use_residual else ""
        return f"Dense {self.in_features}->{self.out_features}{activation}{residual}{_on_tokens(self.on_tokens)}"


@dataclass(frozen=True)
class LayerNormConfig:
    """Layer normalisation of the embedding."""

    path: str
    dimension: int

    @property
    def label(self) -> str:
        """For a person."""
        return f"LayerNorm {self.dimension}"


@dataclass(frozen=True)
class NormalizeConfig:
    """Scaling to length 1."""

    on_tokens: bool

    @property
    def label(self) -> str:
        """For a person."""
        return f"Normalize{_on_tokens(self.on_tokens)}"


@dataclass(frozen=True)
class DropoutConfig:
    """Does nothing outside of training."""

    label = "Dropout"


ModuleConfig = PoolingConfig | DenseConfig | LayerNormConfig | NormalizeConfig | DropoutConfig


@dataclass(frozen=True)
class SentenceConfig:
    """Everything a sentence-transformers folder says. Plain data: `dataclasses.asdict` gives JSON."""

    transformer_path: str
    """Subfolder of the transformer and its tokenizer, mostly ""."""
    max_seq_length: int | None
    """Tokens after which a text is cut, None: see `effective_max_length`."""
    do_lower_case: bool
    """`tokenizers.normalizers.Lowercase()` goes before the tokenizer's own normalizer, unless that has one."""
    head: tuple[ModuleConfig, ...]
    """The modules after the transformer, in order."""
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str = "cosine"
    """cosine, dot, euclidean or manhattan."""
    truncate_dim: int | None = None
    """Only the first so many values of the embedding are kept."""

    @property
    def pooling(self) -> PoolingConfig:
        """The one pooling module."""
        return next(module for module in self.head if isinstance(module, PoolingConfig))

    @property
    def pooling_modes(self) -> tuple[str, ...]:
        """In concatenation order."""
        return self.pooling.modes

    @property
    def include_prompt(self) -> bool:
        """False: tokens of the prompt are seen by the transformer and left out of pooling."""
        return self.pooling.include_prompt

    @property
    def normalize(self) -> bool:
        """Embeddings have length 1: the last module that changes them is Normalize."""
        changing = [module for module in self.head if not isinstance(module, DropoutConfig)]
        return isinstance(changing[-1], NormalizeConfig) and self.truncate_dim is None

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules in order, for a person."""
        truncate = () if self.truncate_dim is None else (f"Truncate {self.truncate_dim}",)
        return ("Transformer", *(module.label for module in self.head), *truncate)

    @property
    def embedding_dimension(self) -> int | None:
        """Size of the embedding, as sentence-transformers reports it; None when the folder does not say."""
        size = None
        for module in self.head:
            if isinstance(module, PoolingConfig):
                size = module.embedding_dimension and module.embedding_dimension * len(module.modes)
            elif isinstance(module, DenseConfig) and not module.on_tokens:
                size = module.out_features
            elif isinstance(module, LayerNormConfig):
                size = module.dimension
        return min(size, self.truncate_dim) if size and self.truncate_dim else size or self.truncate_dim


def _on_tokens(on_tokens: bool) -> str:
    return " of every token" if on_tokens else ""
