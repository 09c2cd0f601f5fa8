"""A bundle for text generation made of the tiny graph and a tokenizer of single bytes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.manifest import (
    SCHEMA_VERSION,
    GenerationSettings,
    Manifest,
    SessionSettings,
    Source,
    TokenizerSettings,
    Variant,
)
from onnxpress.runtime.providers import ON_CPU
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_graph import TinyDecoder

SPECIAL = ["<s>", "</s>", "<pad>", "<user>", "<assistant>"]
TINY = TinyDecoder(vocabulary=256 + len(SPECIAL), seed=4)
ONE_THREAD = ServingSettings(threads=1)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SETTINGS = GenerationSettings(
    layers=TINY.layers,
    kv_heads=TINY.layout.kv_heads,
    head_dims=TINY.layout.head_dims,
    context=TINY.context,
    vocabulary=TINY.vocabulary,
    eos_ids=(1,),
    bos_id=0,
    defaults={"max_new_tokens": 12, "temperature": 0.7},
    chat_template=TEMPLATE,
    special_tokens={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
)


def byte_tokenizer() -> tokenizers.Tokenizer:
    """A token for each byte, after the special ones; begins with <s>."""
    vocabulary = {token: place for place, token in enumerate(SPECIAL)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 0)])
    return tokenizer


def make_bundle(folder: Path, decoder: TinyDecoder = TINY) -> Bundle:
    """Write a graph like the tiny one and the tokenizer into a folder."""
    decoder.save(folder / "model.onnx")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    variant = Variant("fp32", "fp32", "cpu", "passed", "model.onnx", ("model.onnx",), 1, SessionSettings(), "rms", 1e-4)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created="2026-11-24T00:00:00Z",
        source=Source("tiny", "/tiny", None, ""),
        task="text-generation",
        architecture="LlamaForCausalLM",
        tokenizer=TokenizerSettings("tokenizer.json", TINY.context, 2),
        embedding=None,
        labels=None,
        mask=None,
        generation=SETTINGS,
        inputs=(),
        outputs=(),
        files=(),
        variants=(variant,),
        default_variant="fp32",
        default_reason="",
        machine={},
        versions={},
    )
    return Bundle(folder, manifest, "")


@contextlib.contextmanager
def opening(bundle: Bundle, serving: ServingSettings = ONE_THREAD) -> Iterator[Callable[..., Generator]]:
    """A function that opens the bundle, with other generation settings if they are given; all are closed at the end."""
    opened: list[Generator] = []

    def open_with(generation: dict[str, Any] | None = None, **options: Any) -> Generator:
        settings = dataclasses.replace(SETTINGS, **(generation or {}))
        changed = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, generation=settings))
        variant = bundle.manifest.variant(None)
        opened.append(Generator.open(changed, variant, ON_CPU, serving, **options))
        return opened[-1]

    yield open_with
    for generator in opened:
        generator.close()
