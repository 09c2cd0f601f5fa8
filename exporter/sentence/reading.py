"""A sentence-transformers folder to its `SentenceConfig`, every setting known or refused by name.

A setting passed over in silence would be a different model. Names and defaults are those of sentence-transformers 6.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from onnxpress.exporter.sentence.config import (
    DenseConfig,
    DropoutConfig,
    LayerNormConfig,
    ModuleConfig,
    NormalizeConfig,
    PoolingConfig,
    SentenceConfig,
)
from onnxpress.exporter.source import read_json
from onnxpress.runtime.errors import UnsupportedModelError

_SUPPORTED = "Transformer, then Pooling, with Dense, LayerNorm, Normalize and Dropout"
_MAX_SIZE = 2**31 - 1


def read_sentence_config(folder: Path) -> SentenceConfig | None:
    """What a sentence-transformers folder says; None when it has no modules.json, see `default_sentence_config`.

    Raises:
        UnsupportedModelError: a file is broken, or asks for something this export does not reproduce.
    """
    if not (folder / "modules.json").is_file():
        return None
    (_, transformer_path), *others = _read_module_list(folder / "modules.json")
    max_seq_length, do_lower_case = _read_transformer(folder / transformer_path)
    head = tuple(_READERS[kind](folder, path) for kind, path in others)
    _check_order(folder / "modules.json", head)
    settings = _Settings.read(folder / "config_sentence_transformers.json", optional=True)
    model_type = settings.text("model_type") or "SentenceTransformer"
    if model_type != "SentenceTransformer":
        raise UnsupportedModelError(f"{folder} holds a {model_type}; only a SentenceTransformer can be exported")
    prompts = _read_prompts(settings)
    default_prompt_name = settings.text("default_prompt_name")
    if default_prompt_name is not None and default_prompt_name not in prompts:
        raise settings.error("default_prompt_name", f"one of its prompts ({', '.join(prompts)})")
    similarity = settings.text("similarity_fn_name")
    return SentenceConfig(
        transformer_path=transformer_path,
        max_seq_length=max_seq_length,
        do_lower_case=do_lower_case,
        head=head,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        similarity=similarity if similarity in ("dot", "euclidean", "manhattan") else "cosine",
        truncate_dim=settings.count("truncate_dim"),
    )


def default_sentence_config(folder: Path) -> SentenceConfig:
    """What sentence-transformers assumes without modules.json: mean pooling, of causal models the last token."""
    settings = _Settings.read(folder / "config.json", optional=True).values
    architectures = settings.get("architectures") or [""]
    is_causal = str(architectures[0]).endswith("ForCausalLM") and settings.get("is_causal", True)
    return SentenceConfig(
        transformer_path="",
        max_seq_length=None,
        do_lower_case=False,
        head=(PoolingConfig(("lasttoken" if is_causal else "mean",)),),
        prompts={"query": "", "document": ""},
        default_prompt_name=None,
    )


class _Settings:
    """A JSON object of the folder. Every read checks the type and refuses with the name of the file and the value."""

    def __init__(self, file: Path, values: Any) -> None:
        if not isinstance(values, dict):
            raise UnsupportedModelError(f"{file} is not a JSON object; download the model again")
        self.file = file
        self.values: dict[str, Any] = values

    @classmethod
    def read(cls, file: Path, *, optional: bool = False) -> _Settings:
        """A file's content; an optional file that is missing is an empty object."""
        return cls(file, {} if optional and not file.exists() else read_json(file))

    def error(self, key: str, expected: str) -> UnsupportedModelError:
        """The sentence for a value that cannot be used."""
        return UnsupportedModelError(f"{self.file} has {key} = {self.values.get(key)!r}; expected {expected}")

    def allow(self, known: Iterable[str]) -> None:
        """Refuse keys that are not known: what they change is not known either. Empty values change nothing.

        Raises:
            UnsupportedModelError: there is one.
        """
        for key, value in self.values.items():
            if key not in known and value is not None and value not in ({}, []):
                raise UnsupportedModelError(f"{self.file} has {key} = {value!r}, a setting that cannot be exported")

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def count(self, key: str) -> int | None:
        """A whole number of 1 or more, None when it is absent."""
        value = self.values.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.error(key, "a whole number of 1 or more")
        return value

    def size(self, key: str) -> int:
        """A number of features, which must be there."""
        value = self.count(key)
        if value is None or value > _MAX_SIZE:
            raise self.error(key, f"a whole number from 1 to {_MAX_SIZE}")
        return value

    def text(self, key: str) -> str | None:
        """A text, None when it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a text")
        return value

    def inner(self, key: str) -> _Settings:
        """The JSON object under a key, empty when it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "a JSON object")
        return _Settings(self.file, value or {})


def _read_module_list(file: Path) -> list[tuple[str, str]]:
    """Class name and subfolder of each module; the first is the transformer."""
    listed = read_json(file)
    if not isinstance(listed, list) or not listed:
        raise UnsupportedModelError(f"{file} is not a list of modules; download the model again")
    modules: list[tuple[str, str]] = []
    names: set[str] = set()
    for entry in listed:
        fields = [entry.get(key) if isinstance(entry, dict) else None for key in ("name", "path", "type")]
        if not all(isinstance(field, str) for field in fields) or fields[0] in names:
            raise UnsupportedModelError(
                f"{file} has the entry {entry!r}; expected a name of its own, a path and a type"
            )
        name, path, type_name = map(str, fields)
        names.add(name)
        if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts or "\0" in path:
            raise UnsupportedModelError(f"{file} names the path {path!r}, which leaves the model's folder")
        prefix, _, kind = type_name.rpartition(".")
        is_known = prefix.split(".")[0] == "sentence_transformers" and kind in ("Transformer", *_READERS)
        if not is_known or (kind == "Transformer") != (not modules):
            where = f" (in {path})" if path else ""
            raise UnsupportedModelError(
                f"{file} has {type_name}{where} as module {len(modules) + 1}, which cannot be exported; supported of "
                f"sentence_transformers: {_SUPPORTED}"
            )
        modules.append((kind, "" if path == "." else path))
    return modules


def _check_order(file: Path, head: tuple[ModuleConfig, ...]) -> None:
    """One Pooling; what works on tokens before it, what works on the embedding after it."""
    poolings = [index for index, module in enumerate(head) if isinstance(module, PoolingConfig)]
    if len(poolings) != 1:
        raise UnsupportedModelError(f"{file} has {len(poolings)} Pooling modules; supported: {_SUPPORTED}")
    for index, module in enumerate(head):
        on_tokens = isinstance(module, DenseConfig | NormalizeConfig) and module.on_tokens
        if not isinstance(module, PoolingConfig | DropoutConfig) and on_tokens != (index < poolings[0]):
            raise UnsupportedModelError(
                f"{file} has {module.label!r} on the wrong side of Pooling: modules that work on token_embeddings come "
                "before it, those that work on sentence_embedding after it"
            )


def _read_prompts(settings: _Settings) -> dict[str, str]:
    prompts: dict[str, str] = {"query": "", "document": ""}
    for name, prompt in settings.inner("prompts").values.items():
        if not isinstance(prompt, str | None):
            raise settings.error("prompts", "a text for every name")
        prompts[name] = prompt or ""
    return prompts


# --- the transformer's settings ---

# Old names of the same file, in the order in which sentence-transformers looks for them; the first that is not empty.
_TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_RENAMED_GROUPS = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
# Options that change neither token ids nor embeddings, beyond what float32 makes more precise.
_HARMLESS: dict[str, tuple[str, ...]] = {
    "model_kwargs": (
        "add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype",
        "trust_remote_code", "use_safetensors",
    ),
    "config_kwargs": ("trust_remote_code", "use_cache"),
    "processor_kwargs": (
        "clean_up_tokenization_spaces", "model_max_length", "padding_side", "trust_remote_code", "use_fast",
    ),
    "text": ("max_length", "pad_to_multiple_of", "padding", "return_tensors", "truncation"),
    "common": ("max_length", "pad_to_multiple_of", "padding", "return_tensors", "truncation"),
}  # fmt: skip
_KNOWN_SETTINGS = (
    "do_lower_case", "max_seq_length", "modality_config", "module_output_name", "processing_kwargs",
    "transformer_task", "unpad_inputs", *_RENAMED_GROUPS, *_RENAMED_GROUPS.values(),
)  # fmt: skip
_PLAIN_TEXT = (
    {"method": "forward", "method_output_name": "last_hidden_state"},
    {"method": "forward", "method_output_name": ["last_hidden_state"]},
)


def _read_transformer(folder: Path) -> tuple[int | None, bool]:
    """`max_seq_length` and `do_lower_case`, after a check that nothing else changes the tokens or their embeddings."""
    files = [_Settings.read(folder / name, optional=True) for name in _TRANSFORMER_FILES]
    settings = next((file for file in files if file.values), files[0])
    settings.allow(_KNOWN_SETTINGS)
    for key, expected in (("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")):
        if settings.text(key) not in (None, expected):
            raise settings.error(key, expected)
    modalities = settings.inner("modality_config").values
    # With "message" every text is put into a chat template first.
    if modalities and (modalities.get("text") not in _PLAIN_TEXT or "message" in modalities):
        raise settings.error("modality_config", "plain text that gives last_hidden_state")
    options = {new: settings.inner(old if old in settings.values else new) for old, new in _RENAMED_GROUPS.items()}
    calls = settings.inner("processing_kwargs")
    options.update(text=calls.inner("text"), common=calls.inner("common"))
    for name, group in options.items():
        group.allow(_HARMLESS[name])
        if group.values.get("truncation", True) not in (True, "longest_first", "only_first"):
            raise group.error("truncation", "true: the graph cannot take texts of any length")
    lengths = (  # the first that is given; those for a call of the tokenizer override its own
        options["common"].count("max_length"),
        options["text"].count("max_length"),
        options["processor_kwargs"].count("model_max_length"),
        settings.count("max_seq_length"),
    )
    return next((length for length in lengths if length is not None), None), settings.flag("do_lower_case", False)


# --- the modules after it ---

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The old keys, in the order in which their results are concatenated."""
_ACTIVATIONS = (
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU",
    "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax",
    "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
)  # fmt: skip
"""The activations of torch.nn that can be made without arguments, as sentence-transformers makes them."""


def _read_pooling(folder: Path, path: str) -> PoolingConfig:
    settings = _Settings.read(folder / path / "config.json")
    size, old_size = "embedding_dimension", "word_embedding_dimension"
    settings.allow((size, old_size, "pooling_mode", "include_prompt", *_LEGACY_MODES))
    modes = settings.values.get("pooling_mode")
    if "pooling_mode" not in settings.values:
        modes = [mode for key, mode in _LEGACY_MODES.items() if settings.flag(key, False)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    known = list(_LEGACY_MODES.values())
    if not isinstance(modes, list) or not modes or not all(mode in known for mode in modes):
        raise settings.error("pooling_mode", f"one or more of {', '.join(known)}")
    return PoolingConfig(
        modes=tuple(modes),
        include_prompt=settings.flag("include_prompt", True),
        embedding_dimension=settings.size(
            old_size if old_size in settings.values and size not in settings.values else size
        ),
    )


def _read_dense(folder: Path, path: str) -> DenseConfig:
    settings = _Settings.read(folder / path / "config.json")
    settings.allow(
        ("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
         "use_residual")
    )  # fmt: skip
    name = settings.text("activation_function") if "activation_function" in settings.values else "torch.nn.Tanh"
    match = re.fullmatch(r"torch\.nn\.(?:modules\.(?:\w+\.)?)?(\w+)", name or "")
    if match is None or match[1] not in _ACTIVATIONS:
        raise settings.error("activation_function", f"torch.nn. and one of {', '.join(_ACTIVATIONS)}")
    return DenseConfig(
        path=path,
        in_features=settings.size("in_features"),
        out_features=settings.size("out_features"),
        bias=settings.flag("bias", True),
        activation=match[1],
        use_residual=settings.flag("use_residual", False),
        on_tokens=_works_on_tokens(settings),
    )


def _read_layer_norm(folder: Path, path: str) -> LayerNormConfig:
    settings = _Settings.read(folder / path / "config.json")
    settings.allow(("dimension",))
    return LayerNormConfig(path, settings.size("dimension"))


def _read_normalize(folder: Path, path: str) -> NormalizeConfig:
    return NormalizeConfig(_works_on_tokens(_Settings.read(folder / path / "config.json", optional=True)))


def _works_on_tokens(settings: _Settings) -> bool:
    """Whether a module replaces the token embeddings; False: it replaces the sentence embedding."""
    name = settings.text("module_input_name") or "sentence_embedding"
    if name not in ("sentence_embedding", "token_embeddings"):
        raise settings.error("module_input_name", "sentence_embedding or token_embeddings")
    if settings.text("module_output_name") not in (None, name):
        raise settings.error("module_output_name", f"the same as its input, {name}")
    return name == "token_embeddings"


_READERS: dict[str, Callable[[Path, str], ModuleConfig]] = {
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
    "Dropout": lambda folder, path: DropoutConfig(),
}
