"""Compares what a graph takes and gives with what the manifest says of it, before and after a run.

A graph that fits is fed and read without another look: rows are taken of outputs by their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxpress.runtime.errors import InferenceError, InvalidBundleError

if TYPE_CHECKING:
    import onnxruntime

    from onnxpress.runtime.manifest import Tensor


def check_interface(
    session: onnxruntime.InferenceSession, inputs: Sequence[Tensor], outputs: Sequence[Tensor], name: str
) -> None:
    """
    Args:
        session: of the graph.
        inputs: all that the graph may take.
        outputs: those that are read of it.
        name: of the ONNX file, for the error.

    Raises:
        InvalidBundleError: the graph takes or gives something else than the manifest says.
    """
    taken = {node.name: node for node in session.get_inputs()}
    given = {node.name: node for node in session.get_outputs()}
    if unfed := sorted(taken.keys() - {tensor.name for tensor in inputs}):
        raise InvalidBundleError(
            f"{name} has the input {unfed[0][:80]!r}, of which the manifest says nothing; export the bundle again"
        )
    for kind, tensors, nodes in (("input", inputs, taken), ("output", outputs, given)):
        for tensor in tensors:
            node = nodes.get(tensor.name)
            if node is None or node.type != f"tensor({tensor.type})" or not _fits(node.shape, tensor.shape):
                found = "is missing" if node is None else f"is {node.type[:80]}{_shown(node.shape)}"
                raise InvalidBundleError(
                    f"{name} does not fit the manifest: its {kind} {tensor.name[:80]!r} {found}, the manifest says "
                    f"tensor({tensor.type[:80]}){_shown(tensor.shape)}; export the bundle again"
                )


def check_outputs(outputs: Sequence[Any], tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
    """
    Args:
        outputs: of a run, arrays in the order of `tensors`.
        tensors: what the manifest says of them.
        sizes: of axes by their names.

    Raises:
        InferenceError: an array is not of the shape that is said of it.
    """
    for output, tensor in zip(outputs, tensors, strict=True):
        expected = [sizes.get(axis, int(axis) if axis.isdecimal() else None) for axis in tensor.shape]
        found = getattr(output, "shape", ())
        if len(found) != len(expected) or any(
            size not in (None, there) for size, there in zip(expected, found, strict=True)
        ):
            raise InferenceError(
                f"the model gave {tensor.name!r} of the shape {_shown(found)}, the manifest says "
                f"{_shown(tensor.shape)} for {dict(sizes)}; export the bundle again"
            )


def _fits(found: Sequence[Any], said: Sequence[str]) -> bool:
    """Whether axes can be what is said of them: what is a name there is open in the graph, a size is not another. Files
    from elsewhere may not say the axes of an output; `check_outputs` sees them."""
    if not found:
        return True
    if len(found) != len(said):
        return False
    return all(not isinstance(size, int) or str(size) == axis for size, axis in zip(found, said, strict=True))


def _shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join(str(axis)[:20] for axis in shape[:8])}]"
