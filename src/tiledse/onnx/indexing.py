"""Indexing that takes all that there is: `z[:, :, 0, 0]` of one descriptor a channel, `g[:, :, None]` of gates."""

from __future__ import annotations

import onnx_ir as ir

from .constants import Constants
from .nodes import integer, ints
from .shapes import Shapes

INDEXING = {"Gather", "Slice"}
_NO_END = 2**31 - 1


def takes_all(node: ir.Node, shapes: Shapes, constants: Constants) -> bool:
    """Whether a Gather or Slice, which gives as many values as it gets, gives them in their order.

    A Gather must take the one entry of an axis behind the batch; a batch of one sample is no axis of one entry.
    """
    shape = shapes.of(node.inputs[0])
    if shape is None:
        return False
    if node.op_type == "Gather":
        axis = integer(node, "axis", 0) % len(shape)
        return axis > 0 and shape[axis] == 1 and constants.ints(node.inputs[1]) in ((0,), (-1,))
    if shapes.image.batch == 1 and not _open_ended(node, len(shape), constants):
        return False
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    return steps is None or set(constants.ints(steps) or (0,)) == {1}


def _open_ended(node: ir.Node, rank: int, constants: Constants) -> bool:
    """Whether a Slice takes all of the batch, however large: from 0 to an end that says so (``z[:]``)."""
    given: list[tuple[int, ...] | None] = [ints(node, name, None) for name in ("starts", "ends", "axes")]
    for place, value in enumerate(node.inputs[1:4]):
        given[place] = constants.ints(value) if value is not None else None
    starts, ends, axes = given
    if starts is None or ends is None:
        return False
    axes = tuple(range(len(starts))) if axes is None else axes
    cuts = zip(starts, ends, axes)
    return all(start == 0 and end >= _NO_END for start, end, axis in cuts if axis % rank == 0)
