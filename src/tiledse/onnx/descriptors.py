"""Follow a pool over tiles to its descriptors: past the correction of ragged tiles, running sums, calibrations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from .constants import Constants
from .factors import SWAPPED, correction, running_means
from .nodes import ints, only_user


class Learnt(NamedTuple):
    """The numbers of a calibration as they stand in a graph, (C, strips); ``running`` is None for own strips only."""

    own: np.ndarray
    running: np.ndarray | None
    offset: np.ndarray


class DescriptorReader:
    """Reads what follows the pools over tiles of one graph."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants

    def learnt(
        self, node: ir.Node, sides: tuple[int | None, int | None], padded: bool, shape: tuple[int, ...]
    ) -> tuple[Learnt, ir.Value] | None:
        """Follow a pool over the numbers of a calibration, as ``emit.py`` writes them."""
        if sides[0] is None or sides[1] is not None:
            return None
        users = [use.node for use in node.outputs[0].uses()]
        sums = [n for n in users if n.op_type == "Transpose"]
        rest = [n for n in users if n.op_type != "Transpose"]
        if len(sums) > 1 or len(rest) != 1:
            return None
        step: ir.Node | None = rest[0]
        if padded:
            step = self._times(step, node.outputs[0], correction(sides, shape[2], shape[3]))
        own = self._numbers(step, shape)
        if own is None or step is None:
            return None
        out = only_user(step.outputs[0])
        running = None
        if sums:
            seen = self._running(sums[0], sides[0], shape[2])
            step = None if seen is None else only_user(seen)
            running = self._numbers(step, shape)
            joined = None if step is None else only_user(step.outputs[0])
            if running is None or out is None or out.op_type != "Add" or joined is not out:
                return None
            out = only_user(out.outputs[0])
        offset = self._numbers(out, shape, "Add")
        return None if offset is None or out is None else (Learnt(own, running, offset), out.outputs[0])

    def corrected(
        self, node: ir.Node, sides: tuple[int | None, int | None], padded: bool, shape: tuple[int, ...]
    ) -> tuple[bool, ir.Value] | None:
        """Follow a pool over its running sum and the correction of its last tile."""
        value, running = node.outputs[0], False
        follower = only_user(value)
        seen = self._running(follower, sides[0], shape[2])
        if seen is not None:
            return True, seen
        if follower is not None and follower.op_type == "CumSum":
            if (
                self.constants.ints(follower.inputs[1]) != (2,)
                or follower.attributes.get("exclusive") is not None
            ):
                return None
            value, running = follower.outputs[0], True
            follower = only_user(value)
        if not padded and not running:
            return False, value
        if follower is None or follower.op_type not in ("Mul", "Div") or follower.inputs[0] is not value:
            return None
        factor = self.constants.array(follower.inputs[1])
        if factor is not None:
            expected = correction(sides, shape[2], shape[3])
            if running or follower.op_type != "Mul" or factor.shape != expected.shape:
                return None
            if not np.allclose(factor.astype(np.float64), expected, rtol=2e-3):
                return None
            return False, follower.outputs[0]
        if follower.op_type == "Mul" or not self._shares(follower.inputs[1], node, running):
            return None
        return running, follower.outputs[0]

    def _running(self, swap: ir.Node | None, tall: int | None, height: int) -> ir.Value | None:
        """The running means that a Transpose, a MatMul by the matrix that makes them, and a Transpose give."""
        if swap is None or tall is None or swap.op_type != "Transpose" or ints(swap, "perm", ()) != SWAPPED:
            return None
        product = only_user(swap.outputs[0])
        if product is None or product.op_type != "MatMul" or product.inputs[0] is not swap.outputs[0]:
            return None
        means, expected = self.constants.array(product.inputs[1]), running_means(tall, height)
        if means is None or means.shape != expected.shape:
            return None
        back = only_user(product.outputs[0])
        if back is None or back.op_type != "Transpose" or ints(back, "perm", ()) != SWAPPED:
            return None
        return back.outputs[0] if np.allclose(means.astype(np.float64), expected, rtol=2e-3) else None

    def _times(self, node: ir.Node | None, value: ir.Value, expected: np.ndarray) -> ir.Node | None:
        """The one user of what a Mul by an expected constant gives."""
        if node is None or node.op_type != "Mul" or node.inputs[0] is not value:
            return None
        factor = self.constants.array(node.inputs[1])
        if factor is None or factor.shape != expected.shape:
            return None
        return (
            only_user(node.outputs[0])
            if np.allclose(factor.astype(np.float64), expected, rtol=2e-3)
            else None
        )

    def _numbers(self, node: ir.Node | None, shape: tuple[int, ...], op: str = "Mul") -> np.ndarray | None:
        """The constant (C, strips) that a Mul or Add takes second."""
        array = None if node is None or node.op_type != op else self.constants.array(node.inputs[1])
        if array is None or array.ndim != 4 or array.shape[:2] != (1, shape[1]) or array.shape[3] != 1:
            return None
        return array[0, :, :, 0]

    def _shares(self, value: ir.Value | None, pool: ir.Node, running: bool) -> bool:
        """Whether a value is the same pool over a map of ones."""
        twin = None if value is None else value.producer()
        if running:
            if twin is None or twin.op_type != "CumSum" or self.constants.ints(twin.inputs[1]) != (2,):
                return False
            twin = twin.inputs[0].producer() if twin.inputs[0] is not None else None
        if twin is None or twin.op_type != "AveragePool":
            return False
        if any(ints(twin, key, ()) != ints(pool, key, ()) for key in ("kernel_shape", "strides", "pads")):
            return False
        ones = twin.inputs[0].producer() if twin.inputs[0] is not None else None
        if ones is None or ones.op_type != "ConstantOfShape":
            return False
        fill = ones.attributes.get("value")
        return fill is not None and float(np.asarray(fill.as_tensor().numpy()).reshape(-1)[0]) == 1.0
