"""Greedy tokens against transformers.generate: many prompts of unequal lengths in a call, up to the context limit."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

import onnxpress
from onnxpress.exporter.decoder_cases import decoder_inputs, longest_total
from onnxpress.exporter.quiet import quiet
from onnxpress.runtime.generation.generator import Generator
from tests.decoder_models import make_decoder
from tests.models import make_tokenizer
from tests.test_generator import byte_tokenizer

CONTEXT = 64
WINDOW = 12
NEAR_TIE = 1e-4
"""Two best logits closer than this times the largest magnitude may change places."""
SHARED = Path(os.environ.get("ONNXPRESS_TEST_DATA", Path(__file__).parents[2] / "shared"))
TRAINED = SHARED / "models" / "llama-wiki-6m"
TEXT = SHARED / "data" / "wikitext2" / "valid.txt"


def assert_those_of_transformers(model: Any, prompt: Sequence[int], got: Sequence[int]) -> None:
    """Equal to the greedy tokens, up to the first place where the two best logits are as good as equal."""
    ids = torch.tensor([prompt])
    with torch.inference_mode(), quiet():
        mask = torch.ones_like(ids)
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=len(got), min_new_tokens=len(got), do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
    for place, (one, other) in enumerate(zip(got, found, strict=True)):
        if one != other:
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *got[:place]]])).logits[0, -1]
            best = logits.topk(2).values
            assert best[0] - best[1] <= NEAR_TIE * logits.abs().max(), (len(prompt), place, list(got), found)
            return


@pytest.fixture(scope="module", params=["llama", "mistral"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Generator]]:
    """A decoder with full attention and one that looks back WINDOW tokens: in PyTorch, and its bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer()
    changes = {"sliding_window": WINDOW} if request.param == "mistral" else {}
    # No end token: minimum lengths, which forbid one, would change what is compared.
    model = make_decoder(
        request.param,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        **changes,
    )
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",))
    bundle = onnxpress.export(folder / "model", folder / "bundle", config).folder
    generator = onnxpress.load(bundle, task="text-generation", threads=1)
    yield model, generator
    generator.close()


def test_prompts_of_all_lengths_go_on_to_the_limit_as_in_transformers(tiny: tuple[Any, Generator]) -> None:
    model, generator = tiny
    rng = random.Random(0)
    vocabulary = model.config.vocab_size
    lengths = [1, 2, 3, WINDOW - 1, WINDOW, WINDOW + 1, CONTEXT - 2, CONTEXT - 1]
    lengths += [rng.randint(1, CONTEXT - 1) for _ in range(24)]
    prompts = [[rng.randrange(5, vocabulary) for _ in range(length)] for length in lengths]
    answers = generator.generate(prompts, max_new_tokens=CONTEXT, temperature=0.0)
    assert generator.engine.state.counts.steps < sum(CONTEXT - length for length in lengths) / 2  # they ran together
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(prompt) + len(answer.token_ids) == CONTEXT
        assert answer.finish_reason == "length"
        assert_those_of_transformers(model, prompt, answer.token_ids)


def test_a_prompt_in_pieces_beside_others_goes_on_as_in_transformers(tiny: tuple[Any, Generator]) -> None:
    """Long prompts are filled a piece at a time while others decode."""
    model, generator = tiny
    rng = random.Random(1)
    ids = [rng.randrange(5, model.config.vocab_size) for _ in range(CONTEXT)]
    short = generator.open_stream(ids[:2], max_new_tokens=CONTEXT, temperature=0.0)
    generator.engine._scheduler._fill_tokens = 10
    longer = [generator.open_stream(ids[5:length], max_new_tokens=CONTEXT, temperature=0.0) for length in (40, 52, 60)]
    for stream in (short, *longer):
        answer = stream.result()
        assert_those_of_transformers(model, stream.request.prompt, answer.token_ids)


@pytest.mark.skipif(not TRAINED.is_dir(), reason="the trained decoder is not here; ONNXPRESS_TEST_DATA says where")
def test_a_trained_decoder_goes_on_with_real_texts_as_in_transformers(tmp_path: Path) -> None:
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",))
    generator = onnxpress.load(onnxpress.export(TRAINED, tmp_path / "bundle", config).folder, threads=1)
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(TRAINED)
    context = model.config.max_position_embeddings
    ids = Tokenizer.from_file(str(TRAINED / "tokenizer.json")).encode(TEXT.read_text()[:60_000]).ids
    lengths = [1, 2, 7, 20, 33, 64, 100, 129, 200, 300, 511, 700, *range(context - 24, context, 2)]
    prompts = [ids[31 * place : 31 * place + length] for place, length in enumerate(lengths)]
    answers = generator.generate(prompts, max_new_tokens=24, temperature=0.0, ignore_eos=True)
    generator.close()
    model.generation_config.eos_token_id = None
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer.token_ids) == min(24, context - len(prompt))
        assert_those_of_transformers(model, prompt, answer.token_ids)


@pytest.mark.parametrize(
    ("vocabulary", "context", "longest"),
    [(261, 64, 64), (4096, 1024, 1024), (4096, 32_768, 1024), (152_064, 32_768, 882), (262_144, 8192, 512)],
)
def test_the_gate_compares_up_to_the_limit_or_as_far_as_can_be_afforded(
    vocabulary: int, context: int, longest: int
) -> None:
    made = decoder_inputs(byte_tokenizer(), vocabulary, context)
    totals = {
        name: int(feeds["attention_mask"].sum(axis=1).max()) + feeds["next_ids"].shape[1] for name, _, feeds in made
    }
    assert longest_total(vocabulary, context) == longest == max(totals.values())
    reached = [name for name, total in totals.items() if total == longest and name.startswith("a long prompt")]
    assert any("together" in name for name in reached)
    assert any("in pieces" in name for name in reached)
    assert all(("the context's limit" in name) == (longest == context) for name in reached)
