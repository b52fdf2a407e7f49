"""Trace a value of a graph back to the map that it is a transposition, or an average along one axis, of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from .constants import Constants
from .nodes import integer, ints


@dataclass(frozen=True)
class View:
    """A value traced back through transposes and means along one axis.

    Attributes:
        root: The value that it is a view of.
        axes: For each axis of the value, the axis of ``root``.
        collapsed: Axes of ``root`` that were averaged on the way.
    """

    root: ir.Value
    axes: tuple[int, ...]
    collapsed: frozenset[int] = frozenset()


class ViewReader:
    """Reads what values of one graph are views of."""

    def __init__(self, constants: Constants, types: Callable[[ir.Value], ir.DataType]) -> None:
        self.constants = constants
        self.types = types

    def trace(self, value: ir.Value, through_means: bool = False) -> View:
        """Trace a map of 4 axes back to the value that it is a transposition of."""
        axes, collapsed = (0, 1, 2, 3), frozenset[int]()
        while (node := value.producer()) is not None and node.domain in ("", "ai.onnx"):
            if node.op_type == "Identity" or self._refloats(node):
                pass
            elif node.op_type == "Transpose" and len(perm := ints(node, "perm", ())) == 4:
                axes = tuple(perm[a] for a in axes)
                collapsed = frozenset(perm[a] for a in collapsed)
            elif through_means and node.op_type == "ReduceMean" and integer(node, "keepdims", 1):
                reduced = self.reduced_axes(node, 4)
                if len(reduced) != 1 or collapsed or not reduced <= {1, 2, 3}:
                    break
                collapsed = collapsed | reduced
            else:
                break
            value = node.inputs[0]  # type: ignore[assignment]
        return View(value, axes, collapsed)

    def _refloats(self, node: ir.Node) -> bool:
        """Whether a node hands a map on in another type of floating numbers: a mean is then taken in that type."""
        if node.op_type != "Cast" or node.inputs[0] is None:
            return False
        to = ir.DataType(integer(node, "to", 0))
        return to.is_floating_point() and self.types(node.inputs[0]).is_floating_point()

    def same(self, a: ir.Value, b: ir.Value) -> bool:
        """Whether two values are the same map: one of them, or both, may have been quantised and back."""
        if a is b or unquantised(a) is b or unquantised(b) is a:
            return True
        one, two = a.producer(), b.producer()
        return (
            one is not None
            and two is not None
            and one.op_type == two.op_type == "DequantizeLinear"
            and tuple(one.inputs) == tuple(two.inputs)
        )

    def reduced_axes(self, node: ir.Node, rank: int) -> set[int]:
        """The axes that a Reduce node averages; empty where they are not constant."""
        axes: tuple[int, ...] | None = ints(node, "axes", None)
        if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
            axes = self.constants.ints(node.inputs[1])
            if axes is None:
                return set()
        if not axes:
            return set() if integer(node, "noop_with_empty_axes", 0) else set(range(rank))
        return {a % rank for a in axes}

    def is_length(self, value: ir.Value | None, source: ir.Value, axis: int) -> bool:
        """Whether a value is the length of an axis of ``source``, as ``emit.py`` computes it."""
        gather = None if value is None else value.producer()
        if gather is None or gather.op_type != "Gather" or self.constants.ints(gather.inputs[1]) != (axis,):
            return False
        shape = gather.inputs[0].producer() if gather.inputs[0] is not None else None
        return (
            shape is not None
            and shape.op_type == "Shape"
            and shape.inputs[0] is not None
            and self.trace(shape.inputs[0]) == self.trace(source)
            and not shape.attributes
        )


def unquantised(value: ir.Value) -> ir.Value:
    """What a value was before it was quantised and dequantised again; else the value."""
    back = value.producer()
    if back is None or back.op_type != "DequantizeLinear" or back.inputs[0] is None:
        return value
    there = back.inputs[0].producer()
    if there is None or there.op_type != "QuantizeLinear" or there.inputs[0] is None:
        return value
    return there.inputs[0]
