"""Follow a pool over tiles to its descriptors: past running means and calibrations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from .constants import Constants
from .factors import SWAPPED, running_means
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
        self, means: ir.Value, sides: tuple[int | None, int | None], channels: int, height: int
    ) -> tuple[Learnt, ir.Value] | None:
        """Follow means of strips over the numbers of a calibration, as ``emit.py`` writes them."""
        if sides[0] is None or sides[1] is not None:
            return None
        users = [use.node for use in means.uses()]
        sums = [n for n in users if n.op_type == "Transpose"]
        rest = [n for n in users if n.op_type != "Transpose"]
        if len(sums) > 1 or len(rest) != 1:
            return None
        own = self.numbers(rest[0], channels)
        if own is None:
            return None
        out = only_user(rest[0].outputs[0])
        running = None
        if sums:
            seen = self.running(sums[0], sides[0], height)
            step = None if seen is None else only_user(seen)
            running = self.numbers(step, channels)
            joined = None if step is None else only_user(step.outputs[0])
            if running is None or out is None or out.op_type != "Add" or joined is not out:
                return None
            out = only_user(out.outputs[0])
        offset = self.numbers(out, channels, "Add")
        return None if offset is None or out is None else (Learnt(own, running, offset), out.outputs[0])

    def running(self, swap: ir.Node | None, tall: int | None, height: int) -> ir.Value | None:
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

    def numbers(self, node: ir.Node | None, channels: int, op: str = "Mul") -> np.ndarray | None:
        """The constant (C, strips) that a Mul or Add takes second."""
        array = None if node is None or node.op_type != op else self.constants.array(node.inputs[1])
        if array is None or array.ndim != 4 or array.shape[:2] != (1, channels) or array.shape[3] != 1:
            return None
        return array[0, :, :, 0]
