"""onnxpress debug: errors of tensors against their definition, in order, and the node where they begin."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxpress.cli import main
from onnxpress.exporter import debugging
from onnxpress.exporter.debug_inputs import make_feeds, prefill
from onnxpress.exporter.debugging import TensorError, debug, modules_of, tensor_errors
from onnxpress.quantize.graphs import MODULE_KEY, load_graph, save_graph
from onnxpress.quantize.probing import open_probe
from onnxpress.quantize.weight_only import WeightOnlyConfig, quantize_weights
from onnxpress.runtime.bundle import Bundle, open_bundle
from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError
from tests.tiny_generator import SETTINGS, TINY

TEXTS = ["where is my order", "the dog", "a"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def graph_of(bundle: Bundle, variant: str) -> Path:
    return bundle.model_path(bundle.manifest.variant(variant))


def test_errors_are_those_of_the_definition(bundle: Bundle) -> None:
    found = debug(bundle, "int8", texts=TEXTS)
    feeds = make_feeds(bundle, "fp32", TEXTS)
    assert found.runs == len(feeds) == 3
    names = [row.tensor for row in found.tensors if row.sqnr_db is not None]
    assert len(names) > 20
    sessions = [open_probe(graph_of(bundle, name), names, as_written=True) for name in ("fp32", "int8")]
    values: list[list[Any]] = [[session.run(names, run) for run in feeds] for session in sessions]
    by_name = {row.tensor: row for row in found.tensors}
    for place, name in enumerate(names):
        x, y = (np.concatenate([run[place].ravel() for run in runs]).astype(np.float64) for runs in values)
        kept = np.abs(x) < 1e30
        signal, error = (x[kept] ** 2).sum(), ((x - y)[kept] ** 2).sum()
        assert by_name[name].sqnr_db == pytest.approx(10 * np.log10(signal / error), abs=1e-6)
        assert by_name[name].relative_rms == pytest.approx(np.sqrt(error / signal))


def test_tensors_come_in_the_order_of_the_float32_graph_with_their_modules(bundle: Bundle) -> None:
    found = debug(bundle, "int8", texts=TEXTS)
    nodes = onnx.load(graph_of(bundle, "fp32"), load_external_data=False).graph.node
    order = [name for node in nodes for name in node.output]
    listed = [row.tensor for row in found.tensors]
    assert listed == [name for name in order if name in set(listed)]
    products = [
        row for row in found.tensors if row.op_type in ("MatMul", "Gemm") and row.variant_op_type != row.op_type
    ]
    assert len(products) >= 6  # quantized ones, whose own nodes know no module
    assert all(row.module and not row.module.startswith("transformer.") for row in products)
    known = {row.module for row in found.tensors}
    assert known >= {"encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense", "head.pooling"}


def test_fused_nodes_get_the_module_of_their_weights_or_of_what_reads_them() -> None:
    def node(inputs: str, output: str, module: str | None = None) -> onnx.NodeProto:
        made = onnx.helper.make_node("MatMul", inputs.split(), [output])
        if module:
            made.metadata_props.add(key=MODULE_KEY, value=module)
        return made

    nodes = [
        node("x packed", "qkv"),
        node("qkv", "q", "layer.0.self.query"),
        node("qkv", "k", "layer.0.self.key"),
        node("q layer.0.output.dense.bias", "sum"),
        node("k layer.0.q_proj.weight+k_proj+v_proj", "other"),
        node("sum other", "end"),
        node("y", "nothing", "_empty_nn_module_stack_from_metadata_hook"),
    ]
    assert modules_of(nodes) == {
        "qkv": "layer.0.self",
        "q": "layer.0.self.query",
        "k": "layer.0.self.key",
        "sum": "layer.0.output.dense",
        "other": "layer.0.q_proj",
    }


def test_padding_does_not_count(bundle: Bundle) -> None:
    together, alone = debug(bundle, "int8", texts=TEXTS), [debug(bundle, "int8", texts=[text]) for text in TEXTS]
    assert sum(found.runs for found in alone) == together.runs
    assert all((run["attention_mask"] == 1).all() for run in make_feeds(bundle, "fp32"))


def test_a_threshold_names_the_first_node_past_it(bundle: Bundle) -> None:
    found = debug(bundle, "int8", texts=TEXTS, threshold=1e9)
    assert found.first == next(row for row in found.tensors if row.sqnr_db is not None)
    assert debug(bundle, "int8", texts=TEXTS, threshold=-1e9).first is None


def broken(bundle: Bundle, folder: Path, op_type: str, index: int, factor: float) -> tuple[Path, str]:
    """The float32 graph with the weights of one node multiplied, and the node's output."""
    model = load_graph(graph_of(bundle, "fp32"))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    node = [node for node in model.graph.node if node.op_type == op_type and node.input[1] in weights][index]
    tensor = weights[node.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    save_graph(model, folder / "model.onnx")
    return folder / "model.onnx", node.output[0]


@pytest.mark.parametrize(("factor", "bad"), [(1.5, False), (float("nan"), True)])
def test_what_was_changed_is_where_it_begins(bundle: Bundle, tmp_path: Path, factor: float, bad: bool) -> None:
    graph, output = broken(bundle, tmp_path, "MatMul", 3, factor)
    errors = list(tensor_errors(graph_of(bundle, "fp32"), graph, make_feeds(bundle, "fp32", TEXTS)))
    first = next(row for row in errors if row.is_past(20))
    assert first.tensor == output
    assert (first.bad > 0) is bad
    if not bad:
        assert first.relative_rms == pytest.approx(0.5, rel=1e-5)
        assert first.sqnr_db == pytest.approx(10 * np.log10(4), abs=1e-4)
    before = errors[: errors.index(first)]
    assert before
    assert all(row.sqnr_db is None and not row.bad and row.relative_rms == 0 for row in before)


def test_groups_of_tensors_give_the_same(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = debug(bundle, "int8", texts=TEXTS)
    opened = []
    monkeypatch.setattr(debugging, "GROUP_BYTES", 4096)
    monkeypatch.setattr(debugging, "open_probe", lambda *given, **more: opened.append(1) or open_probe(*given, **more))
    assert debug(bundle, "int8", texts=TEXTS) == whole
    assert len(opened) > 10


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny decoder, and its weights in 4 and in 8 bits."""
    folder = tmp_path_factory.mktemp("decoder")
    graphs = {"fp32": folder / "fp32.onnx"}
    TINY.save(graphs["fp32"])
    for bits in (4, 8):
        graphs[f"int{bits}"] = folder / f"int{bits}.onnx"
        quantize_weights(graphs["fp32"], graphs[f"int{bits}"], WeightOnlyConfig(bits=bits, block_size=16))
    return graphs


def test_decoders_are_compared_on_a_prefill(decoder: dict[str, Path]) -> None:
    feeds = [prefill(list(range(5, 5 + length)), SETTINGS) for length in (3, 11)]
    worst = {}
    for name in ("int4", "int8"):
        errors = {row.tensor: row for row in tensor_errors(decoder["fp32"], decoder[name], feeds)}
        assert any(row.variant_op_type == "MatMulNBits" for row in errors.values())
        assert "logits" in errors
        worst[name] = min(row.sqnr_db for row in errors.values() if row.sqnr_db is not None)
    assert worst["int8"] > worst["int4"] + 10


def test_graphs_with_nothing_in_common_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = load_graph(graph_of(bundle, "fp32"))
    inputs = {item.name for item in model.graph.input}
    kept = inputs | {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = name if name in kept or not name else f"{name}_renamed"
    for output in model.graph.output:
        output.name += "_renamed"
    del model.graph.value_info[:]
    save_graph(model, tmp_path / "model.onnx")
    with pytest.raises(InvalidInputError, match="no tensor in common"):
        list(tensor_errors(graph_of(bundle, "fp32"), tmp_path / "model.onnx", make_feeds(bundle, "fp32", TEXTS)))


def test_a_graph_that_does_not_run_is_said_to_be_one(bundle: Bundle) -> None:
    (feeds,) = make_feeds(bundle, "fp32", ["a"])
    feeds["input_ids"] = feeds["input_ids"] + 10**6
    with pytest.raises(InvalidBundleError, match="does not run on the CPU"):
        list(tensor_errors(graph_of(bundle, "fp32"), graph_of(bundle, "int8"), [feeds]))


def test_a_variant_is_not_compared_with_itself(bundle: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="compared with itself; choose another with --variant: fp16, int8"):
        debug(bundle, "fp32")


def test_a_threshold_is_a_number(bundle: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="the threshold is nan"):
        debug(bundle, "int8", threshold=float("nan"))


def test_zero_signal_and_none_are_told_apart() -> None:
    same = TensorError("a", "", "Add", "Add", None, None, 0.0, 0)
    assert not same.is_past(20)
    assert dataclasses.replace(same, bad=1).is_past(20)


def test_the_command_shows_the_place(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["debug", str(tiny_bundle), "--variant", "int8", "--text", "the dog", "--threshold", "200"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "first below 200 dB: " in shown
    assert main([*command, "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(shown.splitlines())
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["tensor"] in shown
    assert found["first"] in found["tensors"]


def test_the_command_works_without_torch_and_names_what_is_missing(tiny_bundle: Path) -> None:
    def run(*absent: str) -> subprocess.CompletedProcess[str]:
        program = (
            f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
            "from onnxpress.cli import main\nsys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", program, "debug", str(tiny_bundle), "--variant", "int8"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("torch", "transformers", "onnx_ir", "optimum", "huggingface_hub")
    assert done.returncode == 0, done.stderr
    assert "tensors of int8 and fp32" in done.stdout
    refused = run("torch", "onnx")
    assert refused.returncode == 2
    assert refused.stderr.startswith("onnxpress: onnxpress debug needs onnx, which is not installed")
