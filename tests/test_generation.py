"""Text generation from end to end: a tiny random Llama pressed, verified, loaded without PyTorch, compared with it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import onnxpress
from onnxpress.cli import main
from onnxpress.exporter import Thresholds, gate
from onnxpress.exporter.baseline import load_baseline
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.source import resolve_source
from onnxpress.runtime.generation.rows import LEAST_SHARED
from onnxpress.runtime.generation.timing import BATCHES, POOL, Timing, WritingWorkload
from onnxpress.runtime.measuring import Plan
from onnxpress.runtime.timed_texts import prompts_of
from tests.models import save_decoder

PROMPTS = ["the order was not sent", "where", "my cat is not the dog , the order", "is the parcel sent ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LlamaForCausalLM of two layers whose weights have a standard deviation of 0.3."""
    return save_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n".join(PROMPTS * 120))
    # Random weights of this size lose half of what they say in 4 bits; trained ones a hundredth.
    thresholds = Thresholds(int4_rms=1.0)
    config = onnxpress.ExportConfig(
        measure="none", evaluation=(text,), max_accuracy_drop=100.0, search_budget=0.0, thresholds=thresholds
    )
    return onnxpress.export(folder, tmp_path_factory.mktemp("bundles") / "b", config).folder


def test_the_bundle_is_for_generation(bundle: Path) -> None:
    manifest = json.loads((bundle / "onnxpress.json").read_text())
    assert manifest["task"] == "text-generation"
    assert [variant["name"] for variant in manifest["variants"]] == ["fp32", "int8", "int4"], reasons(bundle)
    assert manifest["generation"]["context"] == 96
    assert manifest["generation"]["kv_heads"] == [2, 2]
    assert manifest["generation"]["eos_ids"] == [3]


def reasons(bundle: Path) -> list[str]:
    return [variant["failure"] for variant in json.loads((bundle / "report.json").read_text())["variants"]]


def test_greedy_tokens_are_those_of_transformers(folder: Path, bundle: Path) -> None:
    ours = onnxpress.load(bundle, variant="fp32", task="text-generation")
    answers = ours.generate(PROMPTS, max_new_tokens=40, temperature=0.0)
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    backend = ours.tokenizer.backend
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([backend.encode(prompt).ids])
        with torch.inference_mode(), quiet():
            found = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
        expected = found[0, ids.shape[1] :].tolist()
        assert list(answer.token_ids) == expected
        assert answer.finish_reason in ("stop", "length")
    ours.close()


def test_perplexity_is_that_of_pytorch(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    assert report["evaluation"]["metric"] == "perplexity"
    figures = {row["name"]: row["metrics"]["perplexity"] for row in report["variants"]}
    assert figures["fp32"] == pytest.approx(report["baseline"]["metrics"]["perplexity"], rel=1e-4)
    assert figures["int8"] == pytest.approx(figures["fp32"], rel=0.05)
    drops = {row["name"]: row["accuracy_drop"] for row in report["variants"]}
    assert drops["int4"] == pytest.approx(100 * (figures["int4"] / report["baseline"]["accuracy"] - 1), abs=1e-2)


def test_perplexity_of_one_short_text_has_no_interval(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PROMPTS[0])
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",), evaluation=(text,))
    (fp32,) = onnxpress.export(folder, tmp_path / "b", config).report["variants"]
    assert fp32["accuracy_drop"] == pytest.approx(0, abs=0.01)
    assert fp32["accuracy_interval"] is None


def test_a_variant_whose_perplexity_is_no_number_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = gate.evaluate

    def broken(model: Any, evaluation: Any) -> Any:
        scores = evaluate(model, evaluation)
        is_int8 = hasattr(model, "variant") and model.variant.name == "int8"
        return dataclasses.replace(scores, metrics={"perplexity": math.nan}) if is_int8 else scores

    monkeypatch.setattr(gate, "evaluate", broken)
    text = tmp_path / "text.txt"
    text.write_text(PROMPTS[2])
    config = onnxpress.ExportConfig(measure="none", variants=("fp32", "int8"), evaluation=(text,))
    fp32, int8 = onnxpress.export(folder, tmp_path / "b", config).report["variants"]
    assert (fp32["status"], int8["status"]) == ("passed", "failed")
    assert (int8["accuracy"], int8["accuracy_drop"], int8["metrics"]) == (None, None, {})


def test_the_command_continues_a_prompt_and_lines(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--variant", "fp32", "--temperature", "0", "--max-new-tokens", "6"]
    assert main(["run", str(bundle), "--prompt", PROMPTS[0], *options]) == 0
    streamed = capsys.readouterr().out
    assert main(["run", str(bundle), "--prompt", PROMPTS[0], "--prompt-lookup", "4", *options]) == 0
    assert capsys.readouterr().out == streamed
    (tmp_path / "lines.txt").write_text("\n".join(PROMPTS))
    assert main(["run", str(bundle), "--input", str(tmp_path / "lines.txt"), *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["line"] for record in records] == [1, 2, 3, 4]
    assert records[0]["text"] == streamed.removesuffix("\n")


def test_the_command_searches_with_beams(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnxpress.load(bundle, variant="fp32", task="text-generation")
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"}
    expected = model.generate(PROMPTS, **options)
    assert expected[0].text != model.generate(PROMPTS[0], max_new_tokens=12, temperature=0.0).text
    asked = ["--variant", "fp32", "--max-new-tokens", "12", "--beams", "4", "--length-penalty", "2"]
    asked += ["--early-stopping", "never"]
    assert main(["run", str(bundle), "--prompt", PROMPTS[0], *asked]) == 0
    assert capsys.readouterr().out == f"{expected[0].text}\n"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    assert main(["run", str(bundle), "-i", str(tmp_path / "prompts.txt"), *asked]) == 0
    found = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert found == [answer.text for answer in expected]
    model.close()


def test_the_command_writes_with_penalties_and_stops(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnxpress.load(bundle, variant="fp32", task="text-generation")
    plain = model.generate(PROMPTS[0], max_new_tokens=12, temperature=0.0)
    stop = plain.token_ids[2]
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    wanted: list[tuple[dict[str, Any], list[str]]] = [
        ({"repetition_penalty": 3.0}, ["--repetition-penalty", "3"]),
        ({"presence_penalty": -50.0}, ["--presence-penalty", "-50"]),
        ({"frequency_penalty": -40.0}, ["--frequency-penalty", "-40"]),
        ({"stop_token_ids": [1, stop]}, ["--stop-token-id", "1", "--stop-token-id", str(stop)]),
        ({"temperature": 9.0, "min_p": 0.01, "seed": 3}, ["--temperature", "9", "--min-p", "0.01", "--seed", "3"]),
    ]
    for options, asked in wanted:
        expected = model.generate(PROMPTS, **({"max_new_tokens": 12, "temperature": 0.0} | options))
        assert expected[0].text != plain.text, asked
        command = ["run", str(bundle), "--variant", "fp32", "--max-new-tokens", "12", "--temperature", "0", *asked]
        assert main([*command, "--prompt", PROMPTS[0]]) == 0
        assert capsys.readouterr().out == f"{expected[0].text}\n"
        assert main([*command, "-i", str(tmp_path / "prompts.txt")]) == 0
        found = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
        assert found == [answer.text for answer in expected]
    model.close()


def test_a_form_that_the_model_cannot_follow_is_said_once(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    for given in (["-i", str(tmp_path / "prompts.txt")], ["--prompt", PROMPTS[0]]):
        assert main(["run", str(bundle), *given, "--regex", "a+"]) == 2  # its tokens are not made of bytes
        captured = capsys.readouterr()
        assert "output of this model cannot be constrained" in captured.err
        assert (len(captured.err.splitlines()), captured.out) == (1, "")


def test_one_beam_is_written_as_it_is_made(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", str(bundle), "--prompt", PROMPTS[0], "--max-new-tokens", "5", "--temperature", "0"]
    assert main(asked) == 0
    plain = capsys.readouterr().out
    assert main([*asked, "--beams", "1"]) == 0
    assert capsys.readouterr().out == plain


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--beams", "4", "--temperature", "0.5"], "--temperature cannot be combined with --beams"),
        (["--beams", "4", "--top-k", "5"], "--top-k cannot be combined with --beams"),
        (["--beams", "4", "--stop", "the"], "--stop cannot be combined with --beams"),
        (["--beams", "4", "--prompt-lookup", "3"], "--prompt-lookup cannot be combined with --beams"),
        (["--beams", "4", "--seed", "0"], "--seed cannot be combined with --beams"),
        (["--beams", "4", "--presence-penalty", "0"], "--presence-penalty cannot be combined with --beams"),
        (["--beams", "4", "--json-object"], "--json-object cannot be combined with --beams"),
        (["--beams", "4", "--choice", "a"], "--choice cannot be combined with --beams"),
        (["--length-penalty", "2"], "--length-penalty is for --beams; give that too, or leave it out"),
        (["--early-stopping", "true"], "--early-stopping is for --beams"),
        (["--beams", "0"], "num_beams"),
        (["--beams", "2", "--length-penalty", "nan"], "length_penalty"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["run", str(bundle), "--prompt", PROMPTS[0], *options]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (len(captured.err.splitlines()), captured.out) == (1, "")


def test_what_is_timed_of_a_decoder_and_of_pytorch_is_the_same(folder: Path, bundle: Path) -> None:
    """The two halves of the measurement, without their processes."""
    source = resolve_source(str(folder), onnxpress.ExportConfig())
    models: dict[str, Any] = {
        "PyTorch": load_baseline(source, "text-generation", onnxpress.ExportConfig()),
        "fp32": onnxpress.load(bundle, variant="fp32", task="text-generation"),
    }
    tokenizer = models["fp32"].tokenizer
    prompts = dict(zip((30, 48), prompts_of(tokenizer, (30, 48)), strict=True))
    for size, texts in prompts.items():
        assert len(texts) == POOL
        assert max(len(encoding) for encoding in tokenizer.encode(texts)) == size
    every = tokenizer.encode([text for texts in prompts.values() for text in texts])
    assert len({tuple(encoding.ids[:LEAST_SHARED]) for encoding in every}) == 2 * POOL
    workers = {name: InThisProcess(Timing(model)) for name, model in models.items()}
    plan = Plan(rounds=1, latency_seconds=0.0, throughput_seconds=0.0, batches=(), cold_starts=1)
    progress: list[float] = []
    found = WritingWorkload(prompts, 30, 5).measure(workers, plan, lambda _, fraction: progress.append(fraction))
    for name in models:
        assert [row["tokens"] for row in found[name]["latency"]] == [30, 48]
        assert all(row["tokens_per_second"] > 0 for row in found[name]["latency"])
        assert [row["batch"] for row in found[name]["throughput"]] == list(BATCHES)
        assert all(row["tokens_per_second"] > 0 for row in found[name]["throughput"])
    assert models["fp32"].engine.state.counts.reused_tokens == 0
    assert progress == sorted(progress)
    models["fp32"].close()


class InThisProcess:
    """A measuring process that is none."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing

    def ask(self, **command: Any) -> Any:
        return getattr(self.timing, command.pop("do"))(**command)


@pytest.mark.slow
def test_measuring_gives_every_figure_of_a_decoder(folder: Path, tmp_path: Path) -> None:
    config = onnxpress.ExportConfig(measure="quick", variants=("fp32",))
    result = onnxpress.export(folder, tmp_path / "b", config)
    for row in (result.report["baseline"], result.report["variants"][0]):
        assert row["latency"][-1]["tokens"] == 48  # half of the context
        assert all(entry["p50_ms"] > 0 and entry["tokens_per_second"] > 0 for entry in row["latency"])
        assert [entry["batch"] for entry in row["throughput"]] == [1, 16]
        assert row["peak_memory_bytes"] > 10e6
    assert result.manifest.variants[0].latency_ms is not None
    assert result.manifest.variants[0].texts_per_second is None
    assert "new tokens a second" in result.report["default"]["reason"]


def test_templates_special_tokens_and_settings_come_from_the_models_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_decoder(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "the"
    tokenizer.chat_template = {
        "default": "{{ messages[0].content }} {{ eos_token }} {{ unk_token }}",
        "tool_use": "{{ tools|length }}",
    }
    tokenizer.save_pretrained(folder)
    said = {
        "eos_token_id": [5, 3],
        "temperature": 0.7,
        "no_repeat_ngram_size": 3,
        "num_beams": 1,
        "suppress_tokens": [],
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    assert main(["export", str(folder), "-o", str(tmp_path / "b"), "--variants", "fp32", "--measure", "none"]) == 0
    note = "generation_config.json sets no_repeat_ngram_size, which answers do not heed by themselves"
    assert note in " ".join(capfd.readouterr().err.split())
    assert note in (tmp_path / "b" / "report.html").read_text()
    assert note in json.loads((tmp_path / "b" / "report.json").read_text())["model"]["notes"][0]
    model = onnxpress.load(tmp_path / "b", task="text-generation")
    chat = [{"role": "user", "content": "my cat"}]
    expected = tokenizer.apply_chat_template(chat, tokenize=False)
    assert expected == "my cat the [UNK]"
    assert model.chat_prompt(chat) == tokenizer.encode(expected, add_special_tokens=False)
    assert model.settings.generation is not None
    assert model.settings.generation.defaults == {"temperature": 0.7}
    assert list(model.settings.generation.other_chat_templates) == ["tool_use"]
    model.close()


def test_a_model_without_a_chat_template_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(bundle)]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_the_gate_runs_again_without_pytorch(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "fp32: passed" in capsys.readouterr().out
