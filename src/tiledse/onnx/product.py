"""Read the product: where gates meet the map, as they are or repeated over their tiles."""

from __future__ import annotations

import onnx_ir as ir

from .constants import Constants
from .nodes import Miss, ints, only_user, string
from .shapes import Shapes
from .squeeze import Squeeze
from .views import ViewReader


class ProductReader:
    """Reads the products of one graph."""

    def __init__(self, constants: Constants, shapes: Shapes, views: ViewReader) -> None:
        self.constants = constants
        self.shapes = shapes
        self.views = views

    def read(
        self, node: ir.Node, squeeze: Squeeze, shape: tuple[int, ...]
    ) -> tuple[ir.Node, int, tuple[int, ...]] | None:
        """The Mul with the map that a node is, or that it leads to over nothing but a repetition of the gates."""
        if node.op_type == "Mul":
            for slot in (0, 1):
                other = node.inputs[1 - slot]
                if other is None or len(self.shapes.of(other) or ()) != 4:
                    continue
                view = self.views.trace(other)
                # The map as it is, or the same map in another order of axes.
                root = self.views.trace(squeeze.source)
                if view.axes[0] == 0 and root.axes[0] == 0 and self.views.same(view.root, root.root):
                    back = [root.axes.index(a) for a in view.axes]
                    label = {0: 0, **{a: i + 1 for i, a in enumerate(squeeze.axes)}}
                    layout = tuple(label[a] for a in back)
                    return (node, slot, layout) if layout in ((0, 1, 2, 3), (0, 2, 3, 1)) else None
            return None
        if node.op_type == "Expand" or (
            node.op_type == "Transpose" and ints(node, "perm", ()) == (0, 2, 3, 1)
        ):
            user = only_user(node.outputs[0])
            return None if user is None or user.op_type != "Mul" else self.read(user, squeeze, shape)
        if node.op_type == "Resize":
            return self._repeated(node, squeeze, shape)
        return None

    def _repeated(
        self, node: ir.Node, squeeze: Squeeze, shape: tuple[int, ...]
    ) -> tuple[ir.Node, int, tuple[int, ...]] | None:
        """Follow gates that are repeated, cropped and transposed, as ``emit.py`` writes it."""
        tile = squeeze.tile
        _, rows, cols = squeeze.axes
        tall, wide = (1 if side is None else side for side in (tile.height, tile.width))
        if tile.single or string(node, "mode", "nearest") != "nearest":
            return None
        if string(node, "coordinate_transformation_mode", "half_pixel") != "asymmetric":
            return None
        if string(node, "nearest_mode", "round_prefer_floor") != "floor" or len(node.inputs) < 3:
            return None
        scales = self.constants.array(node.inputs[2])
        if scales is None or tuple(scales.reshape(-1)) != (1, 1, tall, wide):
            return None
        cropped = {2} if tile.height is not None and shape[rows] % tall else set()
        cropped |= {3} if tile.width is not None and shape[cols] % wide else set()
        user = self._after(node)
        if user is not None and user.op_type == "Slice":
            axes = self.constants.ints(user.inputs[3]) if len(user.inputs) > 3 else None
            starts = self.constants.ints(user.inputs[1])
            if axes is None or starts is None or any(starts) or not set(axes) <= {2, 3} or self._skips(user):
                return None
            ends = self.constants.ints(user.inputs[2])
            lengths = {2: (rows, shape[rows]), 3: (cols, shape[cols])}
            if ends is not None:
                if ends != tuple(lengths[a][1] for a in axes):
                    return None
            elif not self._lengths(user.inputs[2], squeeze, [lengths[a][0] for a in axes]):
                return None
            cropped -= set(axes)
            user = self._after(user)
        if cropped:
            return None
        if user is not None and user.op_type == "Transpose" and ints(user, "perm", ()) == (0, 2, 3, 1):
            user = self._after(user)
        return None if user is None or user.op_type != "Mul" else self.read(user, squeeze, shape)

    def _after(self, node: ir.Node) -> ir.Node | None:
        """The one node that takes what a node gives, past quantising it and back."""
        user = only_user(node.outputs[0])
        if user is not None and user.op_type == "QuantizeLinear":
            back = only_user(user.outputs[0])
            if back is not None and back.op_type == "DequantizeLinear":
                return only_user(back.outputs[0])
        return user

    def _skips(self, cut: ir.Node) -> bool:
        """Whether a Slice takes other steps than 1."""
        steps = cut.inputs[4] if len(cut.inputs) > 4 else None
        return steps is not None and {*(self.constants.ints(steps) or (0,))} != {1}

    def _lengths(self, value: ir.Value | None, squeeze: Squeeze, axes: list[int]) -> bool:
        """Whether a value lists lengths of axes of the map."""
        if len(axes) == 1:
            return self.views.is_length(value, squeeze.source, axes[0])
        concat = None if value is None else value.producer()
        if concat is None or concat.op_type != "Concat" or len(concat.inputs) != len(axes):
            return False
        shape = self.shapes.of(squeeze.source) or ()
        return all(
            self.views.is_length(v, squeeze.source, a) or self.constants.ints(v) == (shape[a],)
            for v, a in zip(concat.inputs, axes)
        )

    def check_gate(self, gate: ir.Value, layout: tuple[int, ...], channels: int) -> None:
        """Check that gates that meet the map as they are, meet its channels."""
        shape = self.shapes.of(gate) or ()
        padded = (1,) * (4 - len(shape)) + tuple(shape)
        wanted = layout.index(1)
        long = [i for i, d in enumerate(padded) if d != 1 and i > 0]
        if len(padded) != 4 or (
            long and long != [wanted] and channels > 1 and not self._grid(padded, wanted, channels)
        ):
            raise Miss(f"its gates, of shape {shape}, do not lie along the channels of the map")

    def _grid(self, shape: tuple[int, ...], axis: int, channels: int) -> bool:
        return shape[axis] == channels
