"""Bundles that somebody made to do harm, or a disk damaged: what is refused, each in a sentence. bench/fuzz.py finds
more of them."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxpress
from onnxpress.runtime.bundle import Bundle, open_bundle
from onnxpress.runtime.errors import InferenceError, InvalidBundleError, InvalidInputError
from onnxpress.runtime.generation.perplexity import perplexity_from
from onnxpress.runtime.interface import check_interface, check_outputs
from onnxpress.runtime.manifest import SessionSettings, Tensor, TokenizerSettings
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.origin import made_on
from onnxpress.runtime.paths import is_inside
from onnxpress.runtime.session import make_session, runner
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.tokenizer import Tokenizer
from onnxpress.runtime.verification import load_cases
from onnxpress.runtime.verifying import _verdict_path, is_verified_here
from tests.tiny_generator import SETTINGS, byte_tokenizer, make_bundle, opening

# Files that are no files


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_that_leaves(path: Path) -> None:
    path.symlink_to(__file__)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [a_pipe, a_device, a_link_that_leaves, a_link_to_itself, a_folder])
@pytest.mark.parametrize("name", ["onnxpress.json", "tokenizer.json", "report.json", "fp32/model.onnx"])
def test_what_is_no_file_of_the_bundle_is_not_opened(put: Callable[[Path], None], name: str, bundle_copy: Path) -> None:
    (bundle_copy / name).unlink()
    put(bundle_copy / name)
    with pytest.raises(InvalidBundleError):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("put", [a_pipe, a_device, a_link_that_leaves, a_link_to_itself, a_folder])
def test_a_report_that_the_manifest_does_not_list_is_looked_at_before_it_is_opened(
    put: Callable[[Path], None], opened: Bundle, tmp_path: Path
) -> None:
    bundle = dataclasses.replace(opened, folder=tmp_path)
    put(tmp_path / "report.json")
    put(tmp_path / "verification.npz")
    assert bundle.report() == {}
    with pytest.raises(InvalidBundleError, match=r"verification\.npz"):
        bundle.path_of("verification.npz")


def test_a_link_within_the_bundle_is_followed(bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").rename(bundle_copy / "kept.json")
    (bundle_copy / "tokenizer.json").symlink_to("kept.json")
    assert open_bundle(bundle_copy).path_of("tokenizer.json").is_file()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"nonsense"])
def test_verification_cases_that_are_no_archive_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "verification.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidBundleError, match="does not hold verification cases"):
        load_cases(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"passed": true}', "[" * 100_000])
def test_a_verdict_in_the_cache_that_is_broken_counts_as_none(text: str, opened: Bundle) -> None:
    variant = opened.manifest.variant(None)
    path = _verdict_path(opened, variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert not is_verified_here(opened, variant, "CPUExecutionProvider")
    path.unlink()


def test_a_machine_may_be_anything(opened: Bundle) -> None:
    told: dict[str, Any] = {"cpu": 3, "cores": "many", "cpu_features": 5, "memory_bytes": [1], "gpu": {}}
    machine = made_on(dataclasses.replace(opened.manifest, machine=told))
    assert (machine.cpu, machine.cores, machine.cpu_features, machine.memory_bytes) == ("3", 0, (), 0)


# Tokenizers


def tokenizer_file(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(byte_tokenizer().to_str()) | changes))
    return path


def charsmap(table: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        # The library would allocate 8 GB, and abort where it does not get them.
        ({"normalizer": charsmap(b"\xff\xff\xff\xff" + bytes(8))}, "cut off"),
        ({"normalizer": {"type": "Sequence", "normalizers": [charsmap(b"\xff\xff\xff\x0f")]}}, "cut off"),
        ({"normalizer": charsmap(bytes(3))}, "cut off"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}, ""),
        # It would count to the largest id when the tokenizer is copied.
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 2**32 - 1}, "merges": []}}, "4294967295"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 4 * 10**9}, "unk_token": "a"}}, "4000000000"),
    ],
)
def test_a_tokenizer_that_the_library_would_not_survive_is_refused(
    changes: dict[str, Any], part: str, tmp_path: Path
) -> None:
    path = tokenizer_file(tmp_path, **changes)
    with pytest.raises(InvalidBundleError, match=rf"tokenizer\.json is not a readable tokenizer \(.*{part}"):
        Tokenizer(path, TokenizerSettings("tokenizer.json", 16, 0))


def test_letters_written_as_escapes_hide_nothing(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path, normalizer=charsmap(b"\xff\xff\xff\x0f"))
    path.write_text(path.read_text().replace("precompiled_charsmap", r"precompiled\u005fcharsmap"))
    with pytest.raises(InvalidBundleError, match="cut off"):
        Tokenizer(path, TokenizerSettings("tokenizer.json", 16, 0))


def test_large_numbers_that_are_no_ids_are_left_to_the_library(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 10**9, "strategy": "LongestFirst", "stride": 0}
    path = tokenizer_file(tmp_path, truncation=truncation)
    assert Tokenizer(path, TokenizerSettings("tokenizer.json", 16, 0)).encode(["a"])[0].ids


def test_a_panic_while_texts_are_tokenized_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    special = {"SpecialToken": {"id": "<none>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [special], "pair": [special], "special_tokens": {}}
    tokenizer = tokenizers_of(byte_tokenizer().to_str(), template, tmp_path)
    with pytest.raises(InvalidBundleError, match=r"tokenizer .*export the bundle again"):
        tokenizer.encode(["a", "b"])


def tokenizers_of(text: str, template: dict[str, Any], folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(text) | {"post_processor": template}))
    return Tokenizer(path, TokenizerSettings("tokenizer.json", 16, 0))


def test_a_panic_while_an_answer_is_written_ends_the_request(tmp_path: Path) -> None:
    """It comes in the thread that serves all requests, which must go on."""
    bundle = make_bundle(tmp_path)
    path = tmp_path / "tokenizer.json"
    decoder = {"type": "Strip", "content": "a", "start": 2**40, "stop": 5}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    with opening(bundle) as open_with:
        generator = open_with()
        for _ in range(2):
            with pytest.raises(InvalidBundleError, match="the bundle's tokenizer fails"):
                generator.generate("aaaa", max_new_tokens=4)


# ONNX files


def graph_model(*nodes: onnx.NodeProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(list(nodes), "graph", [given], [result])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=opsets, ir_version=10)


def calls(name: str, *called: str) -> onnx.FunctionProto:
    nodes = [helper.make_node(each, ["x"], [f"t{place}"], domain="own") for place, each in enumerate(called)]
    nodes.append(helper.make_node("Neg", ["x"], ["y"]))
    return helper.make_function("own", name, ["x"], ["y"], nodes, [helper.make_opsetid("own", 1)])


CALL = helper.make_node("f0", ["x"], ["y"], domain="own")
DOUBLING = tuple(calls(f"f{level}", *[f"f{level + 1}"] * 2) for level in range(40))


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (graph_model(CALL, functions=(calls("f0", "f0"),)), "functions that call themselves"),
        (graph_model(CALL, functions=(calls("f0", "f1"), calls("f1", "f0"))), "functions that call themselves"),
        (graph_model(CALL, functions=DOUBLING), "more than 1,000,000 nodes"),
        (graph_model(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")), "EPContext"),
    ],
)
def test_a_graph_that_onnxruntime_would_not_survive_is_refused(
    made: onnx.ModelProto, part: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(InvalidBundleError, match=part):
        external_data_locations(path)


def test_functions_that_come_to_an_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    functions = (calls("f0", "f1", "f1"), calls("f1", "f2"), calls("f2"), calls("unused", "f0"))
    path.write_bytes(graph_model(CALL, functions=functions).SerializeToString())
    assert external_data_locations(path) == set()


def test_a_file_of_nothing_but_zeros_is_refused_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for size in (2**20, 2**40):
        with path.open("wb") as file:
            file.truncate(size)
        with pytest.raises(InvalidBundleError, match="is not a readable ONNX file"):
            external_data_locations(path)


def point_weights(path: Path, location: str) -> None:
    """Have one tensor of an ONNX file lie somewhere else."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(model.SerializeToString())


def seal(folder: Path, document: dict[str, Any]) -> None:
    """Write a manifest whose sizes are right."""
    for record in document["files"]:
        record["size_bytes"] = (folder / record["path"]).stat().st_size
    (folder / "onnxpress.json").write_text(json.dumps(document))


def test_weights_in_memory_are_refused(bundle_copy: Path) -> None:
    """onnxruntime has a name for them, which can be that of a file."""
    name = "*/_ORT_MEM_ADDR_/*"
    document = json.loads((bundle_copy / "onnxpress.json").read_text())
    (variant,) = (entry for entry in document["variants"] if entry["name"] == "fp32")
    path = bundle_copy / variant["model"]
    point_weights(path, name)
    (bundle_copy / "fp32" / name).parent.mkdir(parents=True)
    (bundle_copy / "fp32" / name).touch()
    variant["files"].append(f"fp32/{name}")
    document["files"].append({"path": f"fp32/{name}", "size_bytes": 0, "sha256": ""})
    seal(bundle_copy, document)
    with pytest.raises(InvalidBundleError, match="reads its weights from"):
        onnxpress.load(bundle_copy, variant="fp32")


def test_a_refusal_does_not_repeat_an_endless_name(bundle_copy: Path) -> None:
    path = bundle_copy / "fp32" / "model.onnx"
    point_weights(path, "x" * 100_000)
    document = json.loads((bundle_copy / "onnxpress.json").read_text())
    seal(bundle_copy, document)
    with pytest.raises(InvalidBundleError, match=r"reads its weights from 'xxx.*do not use this bundle") as refusal:
        onnxpress.load(bundle_copy, variant="fp32")
    assert len(str(refusal.value)) < 1000


# Graphs and manifests that do not fit each other

GIVEN = (Tensor("x", "float", ("batch", "2")),)
RESULT = (Tensor("y", "float", ("batch", "2")),)


@pytest.mark.parametrize(
    ("inputs", "outputs", "part"),
    [
        ((), RESULT, "has the input 'x', of which the manifest says nothing"),
        ((*GIVEN, Tensor("z", "float", ("batch", "2"))), RESULT, "input 'z' is missing"),
        (GIVEN, (Tensor("logits", "float", ("batch", "2")),), "output 'logits' is missing"),
        (GIVEN, (Tensor("y", "int64", ("batch", "2")),), r"output 'y' is tensor\(float\)"),
        (GIVEN, (Tensor("y", "float", ("batch", "3")),), r"says tensor\(float\)\[batch, 3\]"),
        (GIVEN, (Tensor("y", "float", ("batch", "sequence")),), r"says tensor\(float\)\[batch, sequence\]"),
        (GIVEN, (Tensor("y", "float", ("batch", "2", "2")),), r"says tensor\(float\)\[batch, 2, 2\]"),
    ],
)
def test_a_graph_that_does_not_fit_the_manifest_is_refused(
    inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], part: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_model(helper.make_node("Neg", ["x"], ["y"])).SerializeToString())
    session = make_session(path, SessionSettings(), settings=ServingSettings(threads=1))
    check_interface(session, GIVEN, RESULT, "model.onnx")
    with pytest.raises(InvalidBundleError, match=part):
        check_interface(session, inputs, outputs, "model.onnx")


def test_an_output_of_another_shape_than_said_is_an_error() -> None:
    said = (Tensor("y", "float", ("batch", "sequence", "2")),)
    sizes = {"batch": 3, "sequence": 5}
    check_outputs([np.zeros((3, 5, 2))], said, sizes)
    for shape in ((3, 5), (1, 5, 2), (3, 4, 2), (3, 5, 3), ()):
        with pytest.raises(InferenceError, match="the manifest says"):
            check_outputs([np.zeros(shape)], said, sizes)


def test_a_graph_that_fails_while_it_runs_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("Constant", [], ["i"], value=helper.make_tensor("i", TensorProto.INT64, [1], [7])),
        helper.make_node("Gather", ["x", "i"], ["y"], axis=1),
    ]
    path.write_bytes(graph_model(*nodes).SerializeToString())
    run = runner(make_session(path, SessionSettings(), settings=ServingSettings(threads=1)), ["y"])
    with pytest.raises(
        InferenceError, match=r"onnxruntime failed while it ran the model: .*out of data bounds"
    ) as caught:
        run({"x": np.zeros((1, 2), np.float32)})
    assert "\n" not in str(caught.value)


def test_texts_without_tokens_have_no_perplexity() -> None:
    with pytest.raises(InvalidInputError, match="at least two tokens"):
        perplexity_from([])
    assert perplexity_from([(-1e6, 2)]) == math.inf


@pytest.mark.parametrize("relative", ["", ".", "./", "/", "..", "a/../b", "a\\b", "a\0", "C:/x"])
def test_what_is_no_path_within_a_folder_is_not_inside(relative: str) -> None:
    assert not is_inside(relative)


def test_a_decoder_of_fewer_tokens_than_said_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    with (
        opening(bundle) as open_with,
        pytest.raises(InvalidBundleError, match=r"the graph knows \d+ tokens, the manifest says"),
    ):
        open_with({"vocabulary": SETTINGS.vocabulary + 1})
