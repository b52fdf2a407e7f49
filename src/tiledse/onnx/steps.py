"""Read one step of a squeeze: tile means along one axis, or by one pool, as ``emit.py`` writes them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .constants import Constants
from .nodes import integer, ints, only_user, string
from .shapes import Shapes
from .views import ViewReader


@dataclass(frozen=True)
class Step:
    """Tile means of a value of 4 axes.

    Attributes:
        source: The value.
        result: Its means.
        sides: For rows and columns (axes 2 and 3): elements of a tile, 1 where nothing is averaged, None for all.
        running: Whether each mean is of all rows up to the end of its tile.
    """

    source: ir.Value
    result: ir.Value
    sides: tuple[int | None, int | None]
    running: bool = False


class StepReader:
    """Reads the steps of the squeezes of one graph."""

    def __init__(self, constants: Constants, shapes: Shapes, views: ViewReader) -> None:
        self.constants = constants
        self.shapes = shapes
        self.views = views

    def part_of(self, pool: ir.Node) -> ir.Node | None:
        """The Concat that joins an AveragePool of complete tiles, or of the rest, with the other; None without."""
        cut = pool.inputs[0].producer() if pool.inputs[0] is not None else None
        joined = only_user(pool.outputs[0])
        if cut is None or cut.op_type != "Slice" or joined is None or joined.op_type != "Concat":
            return None
        return joined if self._joined(joined) is not None else None

    def step(self, value: ir.Value) -> Step | None:
        """The step that gives a value; None where none does."""
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "AveragePool":
            return self._complete(node)
        if node.op_type == "Concat":
            return self._joined(node)
        return self._shared(node) if node.op_type == "Div" else None

    def window(self, node: ir.Node) -> tuple[int, int] | None:
        """The kernel of an AveragePool whose windows lie side by side within its map; None for other pools."""
        kernel = ints(node, "kernel_shape", ())
        shape = self.shapes.of(node.inputs[0])
        if shape is None or len(kernel) != 2 or string(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
        if any(ints(node, "pads", ())) or any(d != 1 for d in ints(node, "dilations", ())):
            return None
        if ints(node, "strides", (1, 1)) != kernel and kernel != shape[2:]:
            return None
        # A floor drops what does not fill a window: then these are no tiles.
        return kernel if not any(n % k for n, k in zip(shape[2:], kernel)) else None

    def _complete(self, node: ir.Node) -> Step | None:
        """One pool whose tiles are all complete."""
        kernel, source = self.window(node), node.inputs[0]
        if kernel is None or source is None:
            return None
        shape = self.shapes.of(source) or ()
        sides = tuple(None if k == n and k > 1 else k for k, n in zip(kernel, shape[2:]))
        for axis, k in enumerate(kernel):
            if k > 1 and self.shapes.fixed(source, 2 + axis) is None:
                return None  # of another size, its windows do not fill the map
        return Step(source, node.outputs[0], sides)  # type: ignore[arg-type]

    def _joined(self, node: ir.Node) -> Step | None:
        """Pools of the complete tiles and of the rest along one axis, joined."""
        axis = integer(node, "axis", 0)
        if axis not in (2, 3) or len(node.inputs) != 2:
            return None
        parts = []
        for value in node.inputs:
            pool = value.producer() if value is not None else None
            if pool is None or pool.op_type != "AveragePool" or (kernel := self.window(pool)) is None:
                return None
            cut = pool.inputs[0].producer() if pool.inputs[0] is not None else None
            span = None if cut is None else self._span(cut, axis)
            if cut is None or span is None or kernel[3 - axis] != 1:
                return None
            parts.append((cut.inputs[0], span, kernel[axis - 2]))
        (source, (start, middle), k), (again, (rest, stop), last) = parts
        if source is None or again is not source or (start, rest) != (0, middle) or last != stop - rest:
            return None
        if stop != self.shapes.fixed(source, axis) or last >= k:
            return None
        return Step(source, node.outputs[0], (k, 1) if axis == 2 else (1, k))

    def _span(self, cut: ir.Node, axis: int) -> tuple[int, int] | None:
        """The stretch of one axis that a Slice takes."""
        if cut.op_type != "Slice" or len(cut.inputs) < 4 or self.constants.ints(cut.inputs[3]) != (axis,):
            return None
        if len(cut.inputs) > 4 and cut.inputs[4] is not None and self.constants.ints(cut.inputs[4]) != (1,):
            return None
        start, stop = (self.constants.ints(cut.inputs[i]) for i in (1, 2))
        shape = self.shapes.of(cut.inputs[0])
        if start is None or stop is None or shape is None or len(start) != 1 or start[0] < 0:
            return None
        return start[0], min(stop[0], shape[axis]) if stop[0] >= 0 else shape[axis] + stop[0]

    def _shared(self, node: ir.Node) -> Step | None:
        """Means over zeros that fill the last tile, divided by the share of each tile that is map."""
        if len(node.inputs) != 2:
            return None
        means, shares = (self._padded(value) for value in node.inputs)
        if means is None or shares is None:
            return None
        (source, k, axis, pads, running), (ones, k_too, axis_too, pads_too, running_too) = means, shares
        if (k, axis, running) != (k_too, axis_too, running_too) or pads is not pads_too:
            return None
        fill = ones.producer()
        if fill is None or fill.op_type != "ConstantOfShape" or "value" not in fill.attributes:
            return None
        if fill.attributes["value"].as_tensor().numpy().reshape(-1).tolist() != [1]:
            return None
        # Both are as long as the map, at whatever size.
        length = self._listed(fill.inputs[0], axis, 4, 1)
        if length is None or self._spare(pads, axis, k) is not length:
            return None
        if not self._is_length(length, source, axis):
            return None
        return Step(source, node.outputs[0], (k, 1) if axis == 2 else (1, k), running)

    def _padded(self, value: ir.Value | None) -> tuple[ir.Value, int, int, ir.Value | None, bool] | None:
        """What is padded and pooled along one axis: the value, the tile's side, the axis, the pads, whether summed."""
        node = None if value is None else value.producer()
        running = False
        if node is not None and node.op_type == "CumSum":
            if self.constants.ints(node.inputs[1]) != (2,) or node.attributes:
                return None
            node, running = node.inputs[0].producer() if node.inputs[0] is not None else None, True
        if node is None or node.op_type != "AveragePool":
            return None
        kernel, pad = self.window(node), node.inputs[0].producer() if node.inputs[0] is not None else None
        if kernel is None or min(kernel) != 1 or pad is None or pad.op_type != "Pad" or len(pad.inputs) != 2:
            return None
        if string(pad, "mode", "constant") != "constant" or pad.inputs[0] is None:
            return None
        axis = 3 if kernel[1] > 1 else 2
        return pad.inputs[0], max(kernel), axis, pad.inputs[1], running

    def _listed(self, value: ir.Value | None, at: int, count: int, others: int) -> ir.Value | None:
        """The one number that is computed in a list of ``count`` that else holds a constant."""
        node = None if value is None else value.producer()
        if node is None or node.op_type != "Concat":
            return None
        found, place = None, 0
        for part in node.inputs:
            known = self.constants.ints(part)
            if known is None:
                if place != at:
                    return None
                found, place = part, place + 1
            else:
                if any(i != others for i in known):
                    return None
                place += len(known)
        return found if place == count else None

    def _spare(self, pads: ir.Value | None, axis: int, k: int) -> ir.Value | None:
        """The length for which pads fill the last tile of k: (k - 1) - (length + k - 1) mod k."""
        sub = self._listed(pads, 4 + axis, 8, 0)
        node = None if sub is None else sub.producer()
        if node is None or node.op_type != "Sub" or self.constants.ints(node.inputs[0]) != (k - 1,):
            return None
        mod = node.inputs[1].producer() if node.inputs[1] is not None else None
        if mod is None or mod.op_type != "Mod" or self.constants.ints(mod.inputs[1]) != (k,):
            return None
        add = mod.inputs[0].producer() if mod.inputs[0] is not None else None
        if add is None or add.op_type != "Add" or self.constants.ints(add.inputs[1]) != (k - 1,):
            return None
        return add.inputs[0]

    def _is_length(self, length: ir.Value, source: ir.Value, axis: int) -> bool:
        """Whether a number is the length of an axis of a value, or of the map that it is averaged from."""
        before = self.step(source)
        if before is not None and before.sides[axis - 2] == 1:
            source = before.source
        view = self.views.trace(source, through_means=True)
        return self.views.is_length(length, view.root, view.axes[axis])
