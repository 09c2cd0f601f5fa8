"""Example reports for the tests of the page: everything measured, hardly anything, and what lies between."""

from __future__ import annotations

import copy
from typing import Any

Report = dict[str, Any]

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;'\u202e\ud800\x00"

CASES = (
    "one real text",
    "8 real texts, right padding",
    "8 real texts, left padding",
    "batch 1, length 1",
    "batch 5, length 1",
    "batch 3, length 17",
    "batch 5, lengths 1 to 64, right padding",
    "batch 5, lengths 1 to 64, left padding",
    "batch 3 with a fully padded row",
    "batch 2, length 256 (the maximum)",
    "batch 1, length 512 (the positions' limit)",
    "batch 2, two segments",
)

_FUSE = {
    "name": "fuse",
    "summary": "attention fused, residual additions left unfused: 6 MultiHeadAttention",
    "nodes_before": 412,
    "nodes_after": 298,
    "counts": {"MultiHeadAttention": 6},
}

_FORMS = [
    {"name": "as traced", "milliseconds": 41.3, "chosen": False},
    {"name": "as traced, residual additions left unfused", "milliseconds": 25.9, "chosen": False},
    {"name": "attention fused, residual additions left unfused", "milliseconds": 24.1, "chosen": True},
]


def figures(milliseconds: float, texts_per_second: float, memory_mb: float, cold: float, size: int) -> Report:
    """Measured figures around a median latency for 16 tokens and a best throughput."""
    lengths = ((16, 1.0, 1.06), (64, 2.4, 1.09), (256, 9.1, 1.16))
    return {
        "latency": [
            {
                "tokens": tokens,
                "batch": 1,
                "samples": 120,
                "p50_ms": round(milliseconds * factor, 3),
                "p95_ms": round(milliseconds * factor * tail, 3),
                "p99_ms": None,
            }
            for tokens, factor, tail in lengths
        ],
        "throughput": [
            {"batch": batch, "texts_per_second": round(texts_per_second * share, 1)}
            for batch, share in ((1, 0.34), (8, 0.82), (32, 1.0), (256, 0.97))
        ],
        "peak_memory_bytes": int(memory_mb * 1e6),
        "cold_start_seconds": cold,
        "size_bytes": size,
    }


def parity(kind: str, threshold: float, difference: float, cosine: float, rms: float = 0.0) -> Report:
    """A verdict whose worst case is the first one."""
    cases = []
    for index, name in enumerate(CASES):
        share = 1 - 0.07 * ((index * 5) % len(CASES))
        cases.append(
            {
                "name": name,
                "max_abs_difference": difference * share,
                "min_cosine": 1 - (1 - cosine) * share,
                "rms_error": rms * share,
                "passed": True,
                "note": "",
            }
        )
    return {
        "kind": kind,
        "threshold": threshold,
        "max_abs_difference": difference,
        "min_cosine": cosine,
        "rms_error": rms,
        "agreement": 1 - (1 - cosine) / 4,
        "cases": cases,
        "first_divergence": None,
    }


def variant(name: str, accuracy: float | None, agreement: float, measured: Report, **more: Any) -> Report:
    """A variant that passed."""
    drop = None if accuracy is None else round(87.12 - accuracy, 4)
    return {
        "name": name,
        "precision": name.partition("-")[0],
        "target": "cpu",
        "status": "passed",
        "default": False,
        "failure": None,
        "accuracy": accuracy,
        "accuracy_drop": drop,
        "accuracy_interval": None,
        "metrics": {} if accuracy is None else {"spearman": accuracy},
        "changed_answers": None,
        "agreement": agreement,
        **measured,
        "parity": parity("max_abs", 1e-4, 3.4e-7, 0.9999998, 2.1e-7),
        "passes": [_FUSE],
        "candidates": copy.deepcopy(_FORMS),
        "float32_nodes": [],
        "notes": [],
        **more,
    }


def full_report() -> Report:
    """Three variants of MiniLM, everything measured."""
    int8 = variant(
        "int8",
        86.92,
        0.9987,
        figures(1.98, 1640.2, 238, 0.41, 22_914_206),
        default=True,
        accuracy_interval={"difference": -0.2, "low": -0.4312, "high": 0.018},
        parity=parity("cosine", 0.98, 0.0312, 0.99124, 0.0061),
        passes=[
            _FUSE,
            {
                "name": "quantize to int8",
                "summary": "36 matrix products in int8: signed 8-bit weights, per channel",
                "nodes_before": 298,
                "nodes_after": 451,
                "counts": {"DynamicQuantizeLinear": 24, "MatMulInteger": 36},
            },
        ],
        candidates=[
            {"name": "signed 8-bit weights, per channel", "milliseconds": 9.04, "error": 0.031, "chosen": True},
            {"name": "signed 8-bit weights, per tensor", "milliseconds": 9.11, "error": 0.094, "chosen": False},
        ],
    )
    fp16 = variant(
        "fp16",
        87.12,
        0.999999,
        figures(3.41, 842.0, 412, 0.52, 45_601_113),
        parity=parity("cosine", 0.9995, 0.00042, 0.9999987, 0.00008),
        passes=[
            _FUSE,
            {
                "name": "convert to fp16",
                "summary": "weights and 280 nodes in float16, 5 nodes kept in float32",
                "nodes_before": 298,
                "nodes_after": 318,
                "counts": {"Cast": 20},
            },
        ],
        float32_nodes=[f"encoder.layer.{index}/LayerNorm: overflows on a fully padded row" for index in range(5)],
        notes=["On CPU, fp16 saves disk space, not time: onnxruntime computes in float32 and converts."],
    )
    fp32 = variant("fp32", 87.12, 1.0, figures(3.18, 884.6, 331, 0.47, 90_902_811))
    return {
        "schema_version": 1,
        "onnxpress_version": "0.1.0",
        "created": "2026-11-24T03:30:00Z",
        "model": {
            "source": "/models/all-MiniLM-L6-v2",
            "name": "all-MiniLM-L6-v2",
            "revision": None,
            "task": "feature-extraction",
            "architecture": "BertModel",
            "parameters": 22_713_216,
            "weights_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "max_length": 256,
            "embedding_dimension": 384,
            "pooling": "mean",
            "normalized": True,
            "labels": None,
        },
        "target": "cpu",
        "objective": "throughput",
        "max_accuracy_drop": 1.0,
        "machine": {
            "cpu": "AMD EPYC 9V74 80-Core Processor",
            "architecture": "x86_64",
            "cores": 2,
            "cpu_features": ["avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"],
            "memory_bytes": 25_000_000_000,
            "system": "Linux 6.1",
            "python": "3.11.7",
            "gpu": None,
        },
        "hardware": {
            "features": ["avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"],
            "int8_dot_product": "AVX-512 VNNI",
            "cuda_compute_capability": None,
            "decisions": [
                {
                    "name": "weights of int8",
                    "choice": "signed, 8 bits",
                    "reason": "AVX-512 VNNI sums 8-bit products in 32 bits.",
                }
            ],
        },
        "versions": {
            "onnxpress": "0.1.0",
            "onnxruntime": "1.32.0",
            "numpy": "2.4.1",
            "tokenizers": "0.22.2",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "onnx": "1.23.2",
        },
        "evaluation": {
            "metric": "spearman",
            "label": "Spearman correlation x 100",
            "files": ["sentence_pairs.tsv"],
            "sha256": "0f4b5c7d9a3e1f2b6c8d0e9f7a5b3c1d2e4f6a8b0c9d7e5f3a1b2c4d6e8f0a9b",
            "samples": 300,
            "rows": 300,
        },
        "calibration": {
            "source": "files",
            "files": ["articles.txt"],
            "sha256": "1f" * 32,
            "samples": 256,
            "rows": 4_100,
            "tokens": 8_192,
        },
        "measurement": {
            "mode": "quick",
            "rounds": 2,
            "threads": 2,
            "texts": 256,
            "tokens_mean": 14.2,
            "tokens_max": 60,
            "provider": "CPUExecutionProvider",
        },
        "baseline": {
            "name": "PyTorch eager",
            "accuracy": 87.12,
            "metrics": {"spearman": 87.12},
            **figures(9.104, 320.4, 612, 7.9, 90_868_376),
        },
        "variants": [fp32, fp16, int8],
        "default": {
            "variant": "int8",
            "reason": "fastest (1,640 texts a second, 5.1x PyTorch) of 3 variants that lose at most 1 point",
        },
        "steps": [
            {"name": "load", "seconds": 6.21, "cached": False},
            {"name": "trace", "seconds": 10.1, "cached": False},
            {"name": "fuse", "seconds": 14.73, "cached": False},
            {"name": "convert", "seconds": 9.4, "cached": True},
            {"name": "verify", "seconds": 12.02, "cached": False},
            {"name": "measure", "seconds": 31.5, "cached": False},
            {"name": "choose", "seconds": 0.0, "cached": False},
        ],
    }


def with_logits(task: str, label: str, scores: Report, changed: tuple[int, ...], labels: list[str] | None) -> Report:
    """The report of a model with a head: no embeddings, logits compared by their RMS error.

    Args:
        task: the model's.
        label: of the primary figure, the first in `scores`.
        scores: figures of PyTorch, fp32, fp16, int8 by name.
        changed: answers of the three variants that are not PyTorch's.
        labels: the model's.
    """
    report = full_report()
    report["model"] |= {"task": task, "architecture": "BertModelWithHead", "labels": labels}
    report["model"] |= {"embedding_dimension": None, "pooling": None, "normalized": None}
    report["evaluation"] |= {"metric": next(iter(scores)), "label": label, "files": ["examples.tsv"], "samples": 872}
    for index, row in enumerate((report["baseline"], *report["variants"])):
        row["metrics"] = {name: values[index] for name, values in scores.items()}
        row["accuracy"] = next(iter(row["metrics"].values()))
        if index > 0:
            row["accuracy_drop"] = round(report["baseline"]["accuracy"] - row["accuracy"], 4)
            row["changed_answers"] = changed[index - 1]
            row["accuracy_interval"] = None
    _, fp16, int8 = report["variants"]
    fp16["parity"] = parity("rms", 0.03, 0.0035, 0.999995, 0.00127)
    int8["parity"] = parity("rms", 0.2, 0.322, 0.994008, 0.109)
    return report


def writer() -> Report:
    """A decoder: perplexity, time to the first token, new tokens a second alone and together."""

    def measured(first_ms: float, alone: float, together: float, memory_mb: float, cold: float, size: int) -> Report:
        rows = figures(first_ms, 1.0, memory_mb, cold, size)
        for row in rows["latency"]:
            row["tokens_per_second"] = round(1000 * row["tokens"] / row["p50_ms"], 1)
        rates = ((1, alone), (16, together))
        return rows | {"throughput": [{"batch": batch, "tokens_per_second": rate} for batch, rate in rates]}

    perplexities = [104.59, 104.59, 104.71, 105.1]
    report = with_logits("text-generation", "perplexity", {"perplexity": perplexities}, (0, 0, 0), None)
    fp32, int8, int4 = report["variants"]
    for row, name in ((int8, "int8"), (int4, "int4")):
        row |= {"name": name, "precision": name}
    report["model"] |= {"architecture": "LlamaForCausalLM", "max_length": 1024}
    report["evaluation"] |= {"files": ["valid.txt"], "samples": 1}
    report["baseline"] |= measured(59.8, 53.9, 249.0, 546, 8.58, 21_121_936)
    fp32 |= measured(16.0, 561.8, 2396.8, 142, 0.38, 21_300_000)
    int8 |= measured(15.2, 1010.0, 2510.0, 125, 0.37, 6_300_000)
    int4 |= measured(16.4, 1479.0, 2273.0, 121, 0.42, 3_600_000)
    for row in report["variants"]:
        row |= {"accuracy_drop": round(100 * (row["accuracy"] / 104.59 - 1), 4), "changed_answers": None}
    reason = (
        "the most new tokens a second for one request, 1,479 (27.4x PyTorch), of the 3 variants that lose at most 1 %"
    )
    report["default"] = {"variant": "int4", "reason": f"{reason} of perplexity"}
    report["measurement"] = {"mode": "quick", "rounds": 2, "threads": 2, "prompt_tokens": 64, "new_tokens": 64}
    report["measurement"] |= {"provider": "CPUExecutionProvider"}
    return report


def classifier() -> Report:
    """Sentiment: two labels, two figures."""
    scores = {"accuracy": [88.1881, 88.1881, 88.1881, 88.4174], "macro_f1": [88.1767, 88.1767, 88.1767, 88.4039]}
    return with_logits("text-classification", "accuracy, %", scores, (0, 0, 12), ["negative", "positive"])


def searched() -> Report:
    """A classifier whose precisions were searched: a mixture was accepted."""
    report = classifier()
    layers = [f"bert.encoder.layer.{layer}.{part}" for layer in range(6) for part in ("attention.self.value", "output")]
    names = [*(f"node_MatMul_{index}" for index in range(len(layers))), "node_classifier"]
    nodes = [
        {
            "node": name,
            "module": module,
            "op_type": "MatMul",
            "divergence": 0.02 * 0.6**index,
            "measured": index != 3,
            "local_error": 0.003 * 0.9**index,
            "multiply_adds": 711_327_744,
            "size_bytes": 591_744,
            "float32_bytes": 2_359_296,
        }
        for index, (name, module) in enumerate(zip(names, [*layers, "classifier"], strict=True))
    ]

    def trial(name: str, float32: int, drop: float, speedup: float, **more: Any) -> Report:
        return {
            "name": name,
            "nodes": {"int8": len(names) - float32, "fp32": float32},
            "float32_nodes": names[:float32],
            "divergence": 0.04 * 0.5**float32,
            "metric": 88.07 - drop,
            "drop": drop,
            "milliseconds": 208.7 / speedup,
            "speedup": speedup,
            "size_bytes": 58_762_185 + 1_800_000 * float32,
            "peak_memory_bytes": None,
            "holds": drop <= 1,
            "failure": None,
            "holds_held_out": None,
            **more,
        }

    report["sensitivity"] = {
        "inputs": 86,
        "precisions": [{"precision": "int8", "divergence": 0.0521, "seconds": 9.8, "nodes": nodes}],
    }
    report["search"] = {
        "limit": {"max_accuracy_drop": 1.0, "min_metric": None},
        "objective": "throughput",
        "budget_seconds": 300.0,
        "seconds": 41.3,
        "ended": "done",
        "splits": {"search": 436, "held_out": 436},
        "float32": {"metric": 88.07, "milliseconds": 208.7},
        "trials": [
            trial("int8", 0, 7.11, 2.5),
            trial("mixed 1", 1, 2.75, 2.44),
            trial("mixed 2", 2, 0.69, 2.38, holds=False, failure="differs from PyTorch: allowed 0.2"),
            trial("mixed 3", 4, 0.23, 2.31, holds_held_out=True),
            trial("mixed 4", 3, 0.46, 2.35, holds_held_out=False),
        ],
        "accepted": {"trial": "mixed 3", "variant": "mixed"},
        "held_out": {
            "trial": "mixed 3",
            "holds": True,
            "search": {"samples": 436, "float32": 88.07, "metric": 87.84, "drop": 0.23, "interval": [-0.92, 0.46]},
            "held_out": {"samples": 436, "float32": 88.53, "metric": 88.3, "drop": 0.23, "interval": [-1.15, 0.69]},
            "looks": 2,
        },
        "sentence": "mixed loses at most 1 point on both parts of the evaluation, at 2.31 times the speed of float32.",
    }
    return report


def tagger() -> Report:
    """Names in texts: many labels, three figures, and a variant too far off."""
    scores = {
        "f1": [91.31, 91.31, 91.3, 90.87],
        "precision": [90.68, 90.68, 90.66, 90.2],
        "recall": [91.95, 91.95, 91.95, 91.55],
    }
    labels = [
        "O",
        *(f"{prefix}-{kind}" for kind in ("PER", "LOC", "ORG", "MISC", "EVENT", "PRODUCT") for prefix in "BI"),
    ]
    report = with_logits("token-classification", "entity F1 x 100", scores, (0, 1, 37), labels)
    fp16 = report["variants"][1]
    fail(fp16, "differs from PyTorch on 'batch 1, length 1': root mean square error 0.052 of the scale, allowed 0.03")
    fp16["parity"]["cases"][3] |= {"rms_error": 0.052, "max_abs_difference": 0.11, "passed": False}
    fp16["parity"] |= {"rms_error": 0.052, "max_abs_difference": 0.11}
    return report


def pressed_from_onnx() -> Report:
    """Answers to questions; what was given is an ONNX file, which is the baseline."""
    scores = {"f1": [82.91, 82.91, 82.91, 82.4], "exact_match": [79.87, 79.87, 79.87, 79.2]}
    report = with_logits("question-answering", "answer F1 x 100", scores, (0, 0, 25), None)
    report["baseline"]["name"] = "the ONNX file as given"
    report["default"]["reason"] = "fastest (1,640 texts a second, 5.1x the ONNX file as given) of 3 variants"
    return report


def without_evaluation() -> Report:
    """No --eval: accuracies are unknown."""
    report = full_report()
    report["evaluation"] = None
    for row in (report["baseline"], *report["variants"]):
        row["accuracy"] = None
        row["accuracy_drop"] = None
        row["metrics"] = {}
    report["default"]["reason"] = "fastest of 3 variants that agree with PyTorch within their bounds"
    return report


def unmeasured() -> Report:
    """--measure none, without --eval."""
    report = without_evaluation()
    report["baseline"] = report["measurement"] = None
    for row in report["variants"]:
        row |= {"latency": [], "throughput": [], "peak_memory_bytes": None, "cold_start_seconds": None}
    report["default"]["reason"] = "nothing was measured (--measure none)"
    return report


def fail(row: Report, failure: str, divergence: Report | None = None) -> None:
    """Turn a variant into one that did not pass."""
    row |= {"status": "failed", "failure": failure, "default": False, "latency": [], "throughput": []}
    row |= {"peak_memory_bytes": None, "cold_start_seconds": None, "size_bytes": None}
    row["parity"]["first_divergence"] = divergence


def one_survivor() -> Report:
    """All variants failed but fp32: one at a case, one by its accuracy."""
    report = full_report()
    fp32, fp16, int8 = report["variants"]
    fail(
        fp16,
        "differs from PyTorch on 'batch 3 with a fully padded row': rows [1] are not finite",
        {
            "tensor": "/encoder/layer.0/attention/self/Softmax_output_0",
            "node": "/encoder/layer.0/attention/self/Softmax",
            "op_type": "Softmax",
            "module": "encoder.layer.0.attention.self",
            "difference": None,
        },
    )
    fp16["parity"]["cases"][8] |= {"max_abs_difference": None, "min_cosine": -1.0, "passed": False}
    fp16["parity"]["cases"][8]["note"] = "rows [1] are not finite"
    fp16["parity"] |= {"max_abs_difference": None, "min_cosine": -1.0}
    fail(int8, "loses 1.31 points (85.81 against 87.12), allowed 1")
    int8 |= {"accuracy": 85.81, "accuracy_drop": 1.31}
    fp32["default"] = True
    report["default"] = {"variant": "fp32", "reason": "the only variant that loses at most 1 point"}
    return report


def one_variant() -> Report:
    """Only int8 was asked for."""
    report = full_report()
    report["variants"] = report["variants"][2:]
    return report


def six_variants() -> Report:
    """Six variants, some of them nearly the same, one failed, one for another machine."""
    report = full_report()
    fp32, fp16, int8 = report["variants"]
    per_tensor = copy.deepcopy(int8) | {"name": "int8-per-tensor", "default": False, "accuracy": 86.9}
    per_tensor |= figures(2.02, 1612.0, 236, 0.42, 22_871_002) | {"accuracy_drop": 0.22}
    cuda = copy.deepcopy(fp16) | {"name": "fp16-cuda", "status": "unverified", "notes": []}
    cuda |= {"latency": [], "throughput": [], "peak_memory_bytes": None, "cold_start_seconds": None}
    cuda["notes"] = ["Not verified on cuda: no CUDA device was found. Run `onnxpress verify` on the target machine."]
    int4 = copy.deepcopy(int8) | {"name": "int4"}
    fail(
        int4,
        "differs from PyTorch on 'batch 1, length 1': lowest cosine similarity 0.91233, needed 0.98",
        {"tensor": "layer.5/out", "node": "MatMul_77", "op_type": "MatMul", "module": None, "difference": 0.3127},
    )
    int4["parity"]["cases"][3] |= {"min_cosine": 0.91233, "max_abs_difference": 0.214, "passed": False}
    int4["parity"] |= {"min_cosine": 0.91233, "max_abs_difference": 0.214}
    report["variants"] = [fp32, fp16, int8, per_tensor, cuda, int4]
    return report


def bare() -> Report:
    """The least that is a report: keys are missing, and what is there is null."""
    empty = dict.fromkeys(
        ("accuracy", "accuracy_drop", "agreement", "failure", "peak_memory_bytes", "cold_start_seconds", "size_bytes")
    )
    lists: Report = {"latency": [], "throughput": [], "passes": [], "candidates": [], "float32_nodes": [], "notes": []}
    row = {"name": "fp32", "precision": "fp32", "status": "passed", "default": True, "parity": None, **empty, **lists}
    return {
        "schema_version": 1,
        "model": {"name": "tiny"},
        "machine": {},
        "versions": {},
        "evaluation": None,
        "measurement": None,
        "baseline": None,
        "variants": [row],
        "default": {"variant": "fp32", "reason": ""},
        "steps": [],
    }


def hostile() -> Report:
    """Every text and every key that others choose tries to break out."""

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            names = key in ("counts", "versions", "metrics", "nodes")
            return {f"{name}{HOSTILE}" if names else name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item, key) for item in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) and key not in ("status", "kind") else value

    report = six_variants()
    report["model"]["labels"] = ["negative", "positive"]
    report |= {key: searched()[key] for key in ("search", "sensitivity")}
    poisoned: Report = poison(report)
    poisoned["baseline"]["name"] = HOSTILE
    return poisoned


def all_reports() -> dict[str, Report]:
    """Every example under its name."""
    makers = (
        full_report, without_evaluation, unmeasured, one_survivor, one_variant, six_variants, classifier, tagger,
        pressed_from_onnx, writer, searched, bare, hostile,
    )  # fmt: skip
    return {maker.__name__: maker() for maker in makers}
