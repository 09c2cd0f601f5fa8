"""Ways to spoil an ONNX file. Needs the onnx package."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from bench.fuzzing import sealing, values

_NUMBERS = (0, 1, -1, 2, 7, 16, 255, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))


def scramble(folder: Path, rng: random.Random, canary: Path) -> str:
    """The bytes of the ONNX file, or of the weights beside it."""
    path = rng.choice(sorted(path for path in folder.rglob("model.onnx*") if path.is_file()))
    data, said = values.scramble(path.read_bytes(), rng)
    path.write_bytes(data)
    sealing.seal(folder)
    return f"{path.name}: {said}"


def change_fields(folder: Path, rng: random.Random, canary: Path) -> str:
    """One to three fields of the messages in it."""
    path, model = _read(folder, rng)
    said = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        messages = list(_messages(model))
        kinds = sorted({type(message).__name__ for message in messages})
        kind = rng.choice(kinds)  # a graph has more nodes than anything else
        said.append(_change_field(rng.choice([m for m in messages if type(m).__name__ == kind]), rng))
    _write(folder, path, model)
    return "; ".join(said)


def attack(folder: Path, rng: random.Random, canary: Path) -> str:
    """What onnxruntime reads and may stumble over, or what would lead it outside."""
    path, model = _read(folder, rng)
    kind = rng.choice(sorted(_ATTACKS))
    said = _ATTACKS[kind](model, path, rng, canary)
    if said is None:
        _write(folder, path, model)
    return f"{kind} {said or ''}"


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, inner in message.ListFields():
        if field.message_type is not None:
            for one in inner if field.is_repeated else [inner]:
                yield from _messages(one)


def _change_field(message: Any, rng: random.Random) -> str:
    fields = [field for field, _ in message.ListFields()]
    if not fields or rng.random() < 0.1:
        fields = list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    where = f"{type(message).__name__}.{field.name}"
    if rng.random() < 0.15:
        message.ClearField(field.name)
        return f"without {where}"
    held = getattr(message, field.name)
    if field.message_type is not None:
        if not field.is_repeated:
            held.Clear()
        elif held and rng.random() < 0.5:
            del held[rng.randrange(len(held))]
        elif held:
            held.add().CopyFrom(held[rng.randrange(len(held))])
        return f"{where} removed or repeated"
    new = _scalar(field, message, rng)
    if field.is_repeated:
        if held and rng.random() < 0.7:
            held[rng.randrange(len(held))] = new
        else:
            held.append(new)
    else:
        setattr(message, field.name, new)
    return f"{where} = {str(new)[:40]!r}"


def _scalar(field: Any, message: Any, rng: random.Random) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return rng.choice(
            (*(text for text in values.TEXTS if text != "\ud800"), "input_ids", "MatMul", "com.microsoft")
        )
    if kind == FieldDescriptor.TYPE_BYTES:
        held = getattr(message, field.name)
        old = bytes(held) if isinstance(held, bytes) else b""
        return rng.choice((b"", old[:-1], old + old[:8], rng.randbytes(max(1, len(old)))))
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, -1e30, float("nan"), float("inf")))
    if kind == FieldDescriptor.TYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if kind == FieldDescriptor.TYPE_INT64:
        return rng.choice(_NUMBERS)
    if kind == FieldDescriptor.TYPE_INT32:
        return rng.choice([number for number in _NUMBERS if -(2**31) <= number < 2**31])
    return rng.choice([number for number in _NUMBERS if 0 <= number < 2**31])


Attack = Callable[[onnx.ModelProto, Path, random.Random, Path], str | None]
"""Changes the model, or writes the file itself and says what it did."""


def _external(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """Weights of a file elsewhere, or of a place that a file does not have."""
    tensor = rng.choice(list(model.graph.initializer))
    relative = os.path.relpath(canary, path.parent)
    inside = rng.random() < 0.5
    location = rng.choice(
        (relative, str(canary), f"./{relative}", f"{relative}/", "/dev/zero", "/dev/stdin", "", ".", "missing")
    )
    if inside:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), path.name)
    numbers = (
        "0",
        "-1",
        "1",
        str(2**31),
        str(2**40),
        str(2**63 - 1),
        str(2**64),
        "x",
        "",
        "1e3",
        " 1",
        str(path.stat().st_size),
    )
    _point(tensor, location, rng.choice(numbers), rng.choice((*numbers, None)))
    if rng.random() < 0.4:
        tensor.dims[:] = [rng.choice((-1, 0, 3, 2**33)) for _ in tensor.dims]


def _point(tensor: TensorProto, location: str, offset: str | None, length: str | None) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)


def _listed_link(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """Weights of a listed file that is a link."""
    link = path.parent / "weights.bin"
    link.symlink_to(canary)
    _point(rng.choice(list(model.graph.initializer)), "weights.bin", "0", None)
    _list(path, link)


def _memory(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """onnxruntime's name for weights that lie in memory, as a file that the manifest lists."""
    tag = "*/_ORT_MEM_ADDR_/*"
    file = path.parent / tag
    file.parent.mkdir(parents=True)
    file.touch()
    for tensor in rng.sample(list(model.graph.initializer), min(3, len(model.graph.initializer))):
        size = {1: 4, 7: 8}.get(tensor.data_type, 1)
        for dim in tensor.dims:
            size *= dim
        _point(tensor, tag, rng.choice(("0", "4096", str(2**40))), str(size))
    _list(path, file)


def _list(path: Path, file: Path) -> None:
    folder = next(parent for parent in path.parents if (parent / sealing.MANIFEST).is_file())
    document = sealing.read(folder)
    sealing.add_file(document, file.relative_to(folder).as_posix())
    sealing.write(folder, document)


def _nested_ifs(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> str:
    """Graphs within graphs, deeper than protobuf or a stack goes."""
    depth = rng.choice((10, 20, 30, 60, 90, 1000, 20_000))
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    head = model.SerializeToString()
    graph = b""
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + b"\xa0\x01\x05" + _field(6, graph)  # the type GRAPH
        otherwise = _field(1, b"else_branch") + b"\xa0\x01\x05" + _field(6, b"")
        node = _field(1, b"c") + _field(2, b"y") + _field(4, b"If") + _field(5, attribute) + _field(5, otherwise)
        graph = (
            _field(1, condition.SerializeToString()) + _field(1, node) + _field(2, b"g") + _field(12, _field(1, b"y"))
        )
    path.write_bytes(head + _field(7, graph))
    _reseal(path)
    return f"{depth} deep"


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _chain(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """A very long chain of nodes before an output."""
    count = rng.choice((500, 3000))
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["link_0" if name == output else name for name in node.output]
    kind = rng.choice(("Identity", "Neg", "Cast"))
    attributes = {"to": TensorProto.FLOAT} if kind == "Cast" else {}
    for index in range(count):
        target = output if index == count - 1 else f"link_{index + 1}"
        model.graph.node.append(helper.make_node(kind, [f"link_{index}"], [target], **attributes))


def _cycle(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """A node that needs what comes after it."""
    nodes = model.graph.node
    for _ in range(rng.choice((1, 1, 3))):
        node = rng.choice([node for node in nodes if node.input])
        node.input[rng.randrange(len(node.input))] = rng.choice(nodes).output[0]


def _recursive_function(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """Functions that call themselves, or each other, or twice as many at each level."""
    own = [helper.make_opsetid("own", 1), helper.make_opsetid("", 20)]
    kind = rng.choice(("itself", "each other", "doubling"))
    calls = {"itself": {"f": ["f"]}, "each other": {"f": ["g"], "g": ["f"]}}.get(kind) or {
        "f" if level == 0 else f"f{level}": [f"f{level + 1}"] * 2 for level in range(rng.choice((8, 40)))
    }
    last = max(calls, key=len) if kind == "doubling" else ""
    if last:
        calls[calls[max(calls, key=lambda name: int(name[1:] or 0))][0]] = []
    for name, inner in calls.items():
        nodes = [
            helper.make_node(callee, ["x" if place == 0 else f"t{place}"], [f"t{place + 1}"], domain="own")
            for place, callee in enumerate(inner)
        ]
        nodes.append(helper.make_node("Identity", [f"t{len(inner)}" if inner else "x"], ["y"]))
        model.functions.append(helper.make_function("own", name, ["x"], ["y"], nodes, own))
    model.opset_import.append(own[0])
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    model.graph.node.append(helper.make_node("f", ["before"], [output], domain="own"))


def _custom_node(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """A node that only a custom library, or only an engine's own format, has."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    domain, kind = rng.choice(
        (("com.microsoft", "EPContext"), ("evil", "Run"), ("ai.onnx.ml", "X"), ("com.ms.internal.nhwc", "Conv"))
    )
    attributes = {
        "ep_cache_context": str(canary),
        "embed_mode": 0,
        "main_context": 1,
        "source": "TensorrtExecutionProvider",
    }
    model.graph.node.append(helper.make_node(kind, ["before"], [output], domain=domain, **attributes))
    model.opset_import.append(helper.make_opsetid(domain, 1))


def _huge(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """Values of a size that no machine has, from few bytes."""
    size = rng.choice((2**33, 2**40, 2**62, -1, 2**63 - 1))
    kind = rng.choice(("ConstantOfShape", "Expand", "Range", "Tile", "OneHot", "initializer"))
    graph = model.graph
    if kind == "initializer":
        rng.choice(list(graph.initializer)).dims[:] = [size]
        return
    shape = helper.make_tensor("huge.shape", TensorProto.INT64, [1], [size])
    one = helper.make_tensor("huge.one", TensorProto.INT64, [1], [1])
    scalars = [
        helper.make_tensor(f"huge.{name}", TensorProto.INT64, [], [value])
        for name, value in (("a", 0), ("b", size), ("c", 1))
    ]
    pair = helper.make_tensor("huge.pair", TensorProto.INT64, [2], [0, 1])
    graph.initializer.extend([shape, one, pair, *scalars])
    node = {
        "ConstantOfShape": helper.make_node(
            "ConstantOfShape", ["huge.shape"], ["huge"], value=helper.make_tensor("v", 7, [1], [0])
        ),
        "Expand": helper.make_node("Expand", ["huge.one", "huge.shape"], ["huge"]),
        "Range": helper.make_node("Range", ["huge.a", "huge.b", "huge.c"], ["huge"]),
        "Tile": helper.make_node("Tile", ["huge.one", "huge.shape"], ["huge"]),
        "OneHot": helper.make_node("OneHot", ["huge.one", "huge.b", "huge.pair"], ["huge"]),
    }[kind]
    graph.node.insert(0, node)
    graph.node.insert(1, helper.make_node("ReduceMax", ["huge"], ["huge.max"], keepdims=0))
    graph.node.insert(2, helper.make_node("Cast", ["huge.max"], ["huge.float"], to=TensorProto.FLOAT))
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    graph.node.append(helper.make_node("Add", ["before", "huge.float"], [output]))


def _interface(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """Inputs and outputs that are not those of the manifest."""
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = rng.choice(("type", "rank", "size", "axis", "name", "extra input", "swap", "sequence"))
    tensor = value.type.tensor_type
    if kind == "type":
        tensor.elem_type = rng.choice((1, 6, 7, 8, 9, 10, 11, 16, 0, 99))
    elif kind == "rank":
        del tensor.shape.dim[rng.randrange(1 + len(tensor.shape.dim)) :]
    elif kind == "size" and tensor.shape.dim:
        rng.choice(list(tensor.shape.dim)).dim_value = rng.choice(_NUMBERS)
    elif kind == "axis" and tensor.shape.dim:
        rng.choice(list(tensor.shape.dim)).dim_param = rng.choice(("", "batch", "x"))
    elif kind == "name":
        value.name += "x"
    elif kind == "extra input":
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    elif kind == "swap":
        one, two = model.graph.output[0], model.graph.input[0]
        one.name, two.name = two.name, one.name
    else:
        value.type.Clear()
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1


def _versions(model: onnx.ModelProto, path: Path, rng: random.Random, canary: Path) -> None:
    """Opsets and versions of the format that do not exist."""
    if rng.random() < 0.5:
        rng.choice(list(model.opset_import)).version = rng.choice(_NUMBERS)
    else:
        model.ir_version = rng.choice(_NUMBERS)


_ATTACKS: dict[str, Attack] = {
    "external data": _external,
    "external data of a listed link": _listed_link,
    "data in memory": _memory,
    "nested graphs": _nested_ifs,
    "chain": _chain,
    "cycle": _cycle,
    "recursive functions": _recursive_function,
    "custom node": _custom_node,
    "huge value": _huge,
    "interface": _interface,
    "versions": _versions,
}


def _read(folder: Path, rng: random.Random) -> tuple[Path, onnx.ModelProto]:
    path = rng.choice(sorted(folder.rglob("model.onnx")))
    return path, onnx.load(path, load_external_data=False)


def _write(folder: Path, path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString())
    sealing.seal(folder)


def _reseal(path: Path) -> None:
    sealing.seal(next(parent for parent in path.parents if (parent / sealing.MANIFEST).is_file()))
