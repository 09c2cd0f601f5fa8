"""runtime/onnx_files.py: every file an ONNX model points to is found, wherever the tensor is; anything else is refused.

What there is to find is told by a walk over the messages of the onnx package, field by field, whatever they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.onnx_files import external_data_locations


def external(name: str, location: str | None) -> TensorProto:
    """A float32 tensor [2] whose values lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": "4096", "length": "8", "checksum": "location"}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return tensor


def inline(name: str) -> TensorProto:
    return onnx.numpy_helper.from_array(np.arange(2, dtype=np.float32), name)


def graph(*nodes: onnx.NodeProto, name: str = "graph", **parts: Any) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_graph(list(nodes), name, [], [output], **parts)


def model(*nodes: onnx.NodeProto, functions: tuple[onnx.FunctionProto, ...] = (), **parts: Any) -> onnx.ModelProto:
    return helper.make_model(graph(*nodes, **parts), functions=list(functions))


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=external("value", location))


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=external("values", location), indices=external("i", f"{location}.i"), dims=[9])


def branches(then: onnx.GraphProto, otherwise: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["y"], then_branch=then, else_branch=otherwise)


def function(*nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("own", "twice", [], ["y"], list(nodes), [helper.make_opsetid("", 20)])


def with_default_attribute() -> onnx.ModelProto:
    made = function(constant("in the body"))
    made.attribute_proto.append(helper.make_attribute("weight", external("t", "in a default attribute")))
    return model(functions=(made,))


def with_training() -> onnx.ModelProto:
    made = model()
    made.training_info.add(
        initialization=graph(constant("initialization")), algorithm=graph(initializer=[external("a", "algorithm")])
    )
    return made


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], set[str]]] = {
    "nothing": (lambda: model(), set()),
    "inline weights": (lambda: model(initializer=[inline("a")]), set()),
    "initializers": (
        lambda: model(initializer=[external("a", "a.data"), inline("b"), external("c", "a.data"), external("d", "d")]),
        {"a.data", "d"},
    ),
    "a name that leaves the folder": (lambda: model(initializer=[external("a", "../../etc/ü")]), {"../../etc/ü"}),
    "an empty name": (lambda: model(initializer=[external("a", "")]), {""}),
    "no name": (lambda: model(initializer=[external("a", None)]), set()),
    "a node's attribute": (lambda: model(constant("value.data")), {"value.data"}),
    "a list of tensors in an attribute": (
        lambda: model(
            helper.make_node("Many", [], ["y"], values=[external("a", "a"), inline("b"), external("c", "c")])
        ),
        {"a", "c"},
    ),
    "both branches of an If": (
        lambda: model(branches(graph(constant("then")), graph(initializer=[external("a", "otherwise")]))),
        {"then", "otherwise"},
    ),
    "the body of a Loop inside an If inside a Loop": (
        lambda: model(
            helper.make_node(
                "Loop",
                ["n", "c"],
                ["y"],
                body=graph(
                    branches(graph(helper.make_node("Loop", ["n", "c"], [], body=graph(constant("deep")))), graph())
                ),
            )
        ),
        {"deep"},
    ),
    "a list of graphs in an attribute": (
        lambda: model(
            helper.make_node("Many", [], ["y"], bodies=[graph(constant("first")), graph(constant("second"))])
        ),
        {"first", "second"},
    ),
    "a function's body": (lambda: model(functions=(function(constant("in a function")),)), {"in a function"}),
    "a function's default attribute": (with_default_attribute, {"in the body", "in a default attribute"}),
    "sparse initializers": (lambda: model(sparse_initializer=[sparse("s")]), {"s", "s.i"}),
    "a sparse attribute": (
        lambda: model(helper.make_node("Constant", [], ["y"], sparse_value=sparse("t"))),
        {"t", "t.i"},
    ),
    "a list of sparse attributes": (
        lambda: model(helper.make_node("Many", [], ["y"], values=[sparse("u"), sparse("v")])),
        {"u", "u.i", "v", "v.i"},
    ),
    "training graphs": (with_training, {"initialization", "algorithm"}),
}


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor anywhere in a message."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if not hasattr(value, "ListFields") else [value]:
                yield from _tensors(inner)


def locations_by_onnx(made: onnx.ModelProto) -> set[str]:
    return {entry.value for tensor in _tensors(made) for entry in tensor.external_data if entry.key == "location"}


@pytest.mark.parametrize("name", MODELS)
def test_every_file_is_found(name: str, tmp_path: Path) -> None:
    make, expected = MODELS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    assert external_data_locations(path) == expected == locations_by_onnx(make())


def test_all_of_them_at_once(tmp_path: Path) -> None:
    merged = onnx.ModelProto()
    for make, _ in MODELS.values():
        merged.MergeFrom(make())
    path = tmp_path / "model.onnx"
    path.write_bytes(merged.SerializeToString())
    assert external_data_locations(path) == set().union(*(expected for _, expected in MODELS.values()))


def test_a_model_saved_by_onnx_points_to_its_data_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    made = model(initializer=[onnx.numpy_helper.from_array(np.ones(5000, np.float32), "w")])
    onnx.save(made, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert external_data_locations(path) == {"weights.bin"}


@functools.cache
def serialized() -> bytes:
    """Every kind of place in one small file."""
    merged = onnx.ModelProto()
    for make, _ in MODELS.values():
        merged.MergeFrom(make())
    return merged.SerializeToString()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.onnx"


def found_or_refused(path: Path, data: bytes) -> set[str] | None:
    """The names found, or None if the file was refused in a sentence; any other exception fails the test."""
    path.write_bytes(data)
    try:
        found = external_data_locations(path)
    except InvalidBundleError:
        return None
    assert all(isinstance(name, str) for name in found)
    return found


def parsed_by_onnx(data: bytes) -> set[str] | None:
    try:
        return locations_by_onnx(onnx.ModelProto.FromString(data))
    except Exception:  # noqa: BLE001 - protobuf's own; what it refuses, onnxruntime does not load
        return None


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(scratch: Path, data: bytes) -> None:
    found_or_refused(scratch, data)


@given(st.integers(0, len(serialized()) - 1))
def test_a_truncated_file_hides_nothing(scratch: Path, size: int) -> None:
    data = serialized()[:size]
    found, known = found_or_refused(scratch, data), parsed_by_onnx(data)
    assert found is None or found == known


@given(st.lists(st.tuples(st.integers(0, len(serialized()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400)
def test_a_changed_file_hides_nothing(scratch: Path, changes: list[tuple[int, int]]) -> None:
    """What protobuf reads, and onnxruntime with it, is found or the whole file is refused."""
    data = bytearray(serialized())
    for position, value in changes:
        data[position] = value
    found, known = found_or_refused(scratch, bytes(data)), parsed_by_onnx(bytes(data))
    assert found is None or known is None or found >= known


@given(st.integers(0, len(serialized())), st.binary(max_size=12), st.integers(0, 12))
@settings(max_examples=200)
def test_inserted_and_removed_bytes_hide_nothing(scratch: Path, start: int, added: bytes, removed: int) -> None:
    data = serialized()[:start] + added + serialized()[start + removed :]
    found, known = found_or_refused(scratch, data), parsed_by_onnx(data)
    assert found is None or known is None or found >= known


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def tag(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return tag(number, 2) + varint(len(content)) + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"not a model",
        tag(7, 2) + b"\x7fshort",  # longer than the file
        tag(1, 0) + b"\xff" * 11,  # a number without an end
        tag(1, 0) + b"\xff",
        tag(1, 5) + b"abc",  # four bytes that are three
        tag(1, 3),  # a group, which ONNX never uses
        field(7, field(5, field(13, field(1, b"location") + field(2, b"\xff\xfe")))),  # a name that is no text
    ],
    ids=str,
)
def test_what_is_no_model_is_refused(data: bytes, scratch: Path) -> None:
    assert found_or_refused(scratch, data) is None


def test_repeated_keys_of_one_entry_count_as_protobuf_counts_them(scratch: Path) -> None:
    entry = field(1, b"offset") + field(1, b"location") + field(2, b"first") + field(2, b"last")
    data = field(7, field(5, field(13, entry)))
    assert found_or_refused(scratch, data) == {"last"} == parsed_by_onnx(data)


def test_a_split_message_is_read_whole(scratch: Path) -> None:
    """Protobuf merges a field that comes twice, so half a graph can come first."""
    tensor = field(13, field(1, b"location") + field(2, b"a"))
    data = field(7, field(2, b"name")) + field(7, field(5, tensor))
    assert found_or_refused(scratch, data) == {"a"} == parsed_by_onnx(data)


def test_a_split_entry_hides_nothing(scratch: Path) -> None:
    """A name whose value comes in a second occurrence of the tensor is another entry, for protobuf too."""
    attribute = field(5, field(13, field(1, b"location"))) + field(5, field(13, field(2, b"b")))
    data = field(7, field(1, field(5, attribute)))
    found, known = found_or_refused(scratch, data), parsed_by_onnx(data)
    assert found is None or known is None or found >= known


def test_graphs_nested_without_end_are_refused(scratch: Path) -> None:
    graph_content = b""
    for _ in range(200):
        graph_content = field(1, field(5, field(6, graph_content)))
    assert found_or_refused(scratch, field(7, graph_content)) is None


@pytest.mark.parametrize("extra_bit", [32, 33, 34, 35, 40, 63])
def test_a_field_number_that_onnxruntime_cuts_short_is_refused(scratch: Path, extra_bit: int) -> None:
    """onnxruntime reads such a key as that of the graph, and with it the weights' file; nothing may be hidden so."""
    made = model(helper.make_node("Identity", ["w"], ["y"]), initializer=[external("w", "outside.bin")])
    head = onnx.ModelProto(ir_version=10, opset_import=made.opset_import)
    body = made.graph.SerializeToString()
    key = 7 << 3 | 2
    data = head.SerializeToString() + varint(key) + varint(len(body)) + body
    assert found_or_refused(scratch, data) == {"outside.bin"}
    data = head.SerializeToString() + varint(key | 1 << extra_bit) + varint(len(body)) + body
    assert found_or_refused(scratch, data) is None


def test_a_key_written_with_more_bytes_than_needed_is_the_same_key(scratch: Path) -> None:
    content = field(5, field(13, field(1, b"location") + field(2, b"a")))
    data = b"\xba\x80\x80\x00" + varint(len(content)) + content
    assert found_or_refused(scratch, data) == {"a"}


def test_a_refused_file_is_named(scratch: Path) -> None:
    scratch.write_bytes(b"not a model")
    with pytest.raises(InvalidBundleError, match=r"model\.onnx is not a readable ONNX file .*; export the bundle"):
        external_data_locations(scratch)


def test_a_missing_file_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        external_data_locations(tmp_path / "none.onnx")
