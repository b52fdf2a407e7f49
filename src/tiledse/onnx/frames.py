"""Blocks that are gated by the previous frame, as nodes: the state of each is an input and an output of the file.

A state holds means of the block's map in the last frame of each stream: of the whole map, (N, C), for ``HxW:previous``,
and of its rows, (N, C, H), for strips. NaN stands for a stream that has had no frame yet: where the first number of a
channel's state is NaN, the gate is that of the rows that have come (``Tile.first``). A graph has no branches, so
the gates of all rows are computed in every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..tile import Tile
from . import sliding
from .constants import Constants
from .factors import SWAPPED
from .metadata import Stated
from .nodes import Miss, integer, ints, only_user
from .states import State, states_of

if TYPE_CHECKING:
    from .emit import Writer

_TOLERANCE = 2e-3


def write(
    writer: Writer, x: ir.Value, axes: tuple[int, int, int], tile: Tile, size: tuple[int, int],
    batch: int | ir.SymbolicDim, free: bool = False,
) -> tuple[ir.Value, ir.Node, State]:  # fmt: skip
    """Write the descriptors of a tile with ``previous``.

    Args:
        writer: Writes the nodes; its prefix is the name of the block.
        x: The map.
        axes: Its axes of channels, rows and columns.
        tile: The tile.
        size: Channels and rows of the map.
        batch: The first side of the image input.
        free: Whether the file leaves the rows free; for tiles of the whole map.

    Returns:
        Descriptors (N, C, rows of the grid of ``Tile.first``, 1), the node that the block is named after, its state.
    """
    channels, height = size
    whole = tile.height is None
    means = writer.mean(x, axes[2])
    rows = writer.nchw(means, axes)
    shape = (channels,) if whole else (channels, height)
    state = State(writer.prefix, writer.fresh("previous"), writer.fresh("current"), shape)
    given = ir.Value(name=state.input, shape=ir.Shape([batch, *shape]), type=ir.TensorType(writer.dtype))
    writer.graph.inputs.append(given)
    # A frame and a state of different batches fail where they are joined; Add and Where would repeat one of them.
    if free:
        assert whole
        first = sliding.write(writer, rows, tile.first, None, writer.length(x, axes[1]))
        left = writer.node("Gather", [first, writer.ints("last_row", -1)], axis=2)  # it sees all rows
    else:
        swapped = writer.node("Transpose", [rows], perm=list(SWAPPED))

        def product(what: str, shares: np.ndarray, of: ir.Value = swapped) -> ir.Value:
            made = writer.node("MatMul", [of, writer.numbers(what, shares.T)])
            return writer.node("Transpose", [made], perm=list(SWAPPED))

        left = product("all_rows", np.full((1, height), 1 / height)) if whole else swapped
        first = product("rows_come", tile.first.weights(height))
    if whole:
        any_ = writer.node("Reshape", [given, writer.ints("one_pixel", 0, 0, 1, 1)])
        both = writer.node("Concat", [any_, left], axis=3)
        known = writer.node("Gather", [both, writer.ints("last_frame", 0)], axis=3)
    else:
        before = writer.node("Reshape", [given, writer.ints("row_by_row", 0, 0, 1, height)])
        both = writer.node("Concat", [swapped, before], axis=3)
        known = product("shares", np.concatenate(tile.shares_of_frames(height), 1), both)
        any_ = writer.node("Gather", [before, writer.ints("first_row", 0)], axis=3)
    begins = writer.node("IsNaN", [any_], dtype=ir.DataType.BOOL)
    descriptors = writer.node("Where", [begins, first, known])
    flat = writer.node("Reshape", [left, writer.ints("as_state", 0, 0, *shape[1:])])
    flat.name, flat.shape = state.output, ir.Shape([batch, *shape])
    writer.graph.outputs.append(flat)
    made = means.producer()
    assert made is not None
    return descriptors, made, state


def remove(model: ir.Model, state: State) -> None:
    """Take the output of a state from a graph that no longer has its block, and then its input."""
    graph = model.graph
    for value in list(graph.outputs):
        if value.name == state.output:
            graph.outputs.remove(value)
            node = value.producer()
            while node is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                before = node.inputs[0]
                graph.remove(node, safe=True)
                node = None if before is None else before.producer()
    for value in list(graph.inputs):
        if value.name == state.input:
            for use in list(value.uses()):
                if not any(v.uses() or v.is_graph_output() for v in use.node.outputs):
                    graph.remove(use.node, safe=True)
            if not value.uses():
                graph.inputs.remove(value)


class FrameReader:
    """Reads what ``write`` writes.

    Args:
        constants: Of the graph.
        model: The file, whose metadata says which values are states, and the tiles.
        stated: The tiles that it says.
    """

    def __init__(self, constants: Constants, model: ir.Model, stated: Mapping[str, Stated]) -> None:
        self.constants, self.stated = constants, stated
        self.states = {state.input: state for state in states_of(model)}

    def read(
        self, node: ir.Node, rows: ir.Value, sums: Callable[[ir.Node], sliding.Read | None]
    ) -> tuple[Tile, ir.Value, State] | None:
        """Read means of rows (N, C, H, 1) as the first step of a block that sees the previous frame.

        Args:
            node: The mean that the block is named after.
            rows: The means.
            sums: Reads what follows a cast of them as running means of rows that are not counted in the file.

        Returns:
            The tile, the descriptors and the state; None where it is something else.

        Raises:
            Miss: it is, but the file does not say how, or the numbers are other ones.
        """
        step = only_user(rows)
        if step is not None and step.op_type == "Transpose" and ints(step, "perm", ()) == SWAPPED:
            means, free = step.outputs[0], None
            firsts = {value for use in means.uses() if (value := self._after(use.node)) is not None}
        else:
            free = sums(step) if step is not None and step.op_type == "Cast" else None
            if free is None:
                return None
            means, firsts = rows, {free[1]}
        choices = {use.node for v in firsts for use in v.uses() if use.node.op_type == "Where"}
        if len(choices) != 1:
            return None
        (choice,) = choices
        given = self._given(choice)
        if given is None or choice.inputs[2] is None:
            return None
        state, stated = self.states.get(given.name or ""), self.stated.get(node.name or "")
        if state is None or stated is None or not stated.tile.previous:
            raise Miss(
                "it is gated by the previous frame, and the file no longer says with which tile; convert the file "
                "of the SE network again"
            )
        fits = self._fits_free if free is not None else self._fits
        if (free is not None and free[0] != stated.tile.first) or not fits(
            stated.tile, choice, means, given, state
        ):
            raise Miss(f"it says that its tile is {stated.tile}, and computes something else")
        return stated.tile, choice.outputs[0], state

    def _after(self, product: ir.Node) -> ir.Value | None:
        """What a product of rows gives, rows second again."""
        back = only_user(product.outputs[0]) if product.op_type == "MatMul" else None
        turned = back is not None and back.op_type == "Transpose" and ints(back, "perm", ()) == SWAPPED
        return back.outputs[0] if back is not None and turned else None

    def _given(self, choice: ir.Node) -> ir.Value | None:
        """The input of the graph that a choice looks at, as it is or its first row."""
        begins = _maker(choice.inputs[0], "IsNaN")
        looked = None if begins is None else begins.inputs[0]
        row = _maker(looked, "Gather")
        if row is not None:
            looked = row.inputs[0] if self.constants.ints(row.inputs[1]) == (0,) else None
        shaped = _maker(looked, "Reshape")
        given = None if shaped is None else shaped.inputs[0]
        return given if given is not None and given.is_graph_input() else None

    def _shares(self, value: ir.Value | None) -> tuple[ir.Value, np.ndarray] | None:
        """The rows, and the share of each, that a value is the mean of."""
        back = _maker(value, "Transpose")
        product = None if back is None else _maker(back.inputs[0], "MatMul")
        array = None if product is None else self.constants.array(product.inputs[1])
        if product is None or product.inputs[0] is None or array is None or array.ndim != 2:
            return None
        return product.inputs[0], array.T.astype(np.float64)

    def _fits(
        self, tile: Tile, choice: ir.Node, means: ir.Value, given: ir.Value, state: State
    ) -> bool:  # fmt: skip
        """Whether a graph computes what a tile says, of maps of a fixed height; ``means`` is (N, C, 1, H)."""

        def same(value: ir.Value | None, rows: ir.Value, expected: np.ndarray) -> bool:
            found = self._shares(value)
            return (
                found is not None
                and found[0] is rows
                and found[1].shape == expected.shape
                and np.allclose(found[1], expected, rtol=_TOLERANCE)
            )

        known, first = choice.inputs[2], self._shares(choice.inputs[1])
        height = 0 if first is None else first[1].shape[1]
        if known is None or not height or not same(choice.inputs[1], means, tile.first.weights(height)):
            return False
        left = self._left(given, state)
        if tile.height is None:
            return same(left, means, np.full((1, height), 1 / height)) and self._is_last(known, given, left)
        shared = self._shares(known)
        both = None if shared is None else _maker(shared[0], "Concat")
        if both is None or left is not means or len(both.inputs) != 2 or both.inputs[0] is not means:
            return False
        before = _maker(both.inputs[1], "Reshape")
        shares = np.concatenate(tile.shares_of_frames(height), 1)
        return before is not None and before.inputs[0] is given and same(known, both.outputs[0], shares)

    def _fits_free(
        self, tile: Tile, choice: ir.Node, means: ir.Value, given: ir.Value, state: State
    ) -> bool:  # fmt: skip
        """The same of maps of any height, where the first frame's means are known to be those of the tile."""
        left, known = self._left(given, state), choice.inputs[2]
        last = _maker(left, "Gather")
        if tile.height is not None or last is None or last.inputs[0] is not choice.inputs[1] or known is None:
            return False
        picks = self.constants.ints(last.inputs[1]) == (-1,) and integer(last, "axis", 0) == 2
        return picks and self._is_last(known, given, left)

    def _left(self, given: ir.Value, state: State) -> ir.Value | None:
        """What a frame leaves, before it has the shape of the state."""
        outputs = [] if given.graph is None else [v for v in given.graph.outputs if v.name == state.output]
        shaped = _maker(outputs[0], "Reshape") if len(outputs) == 1 else None
        return None if shaped is None else shaped.inputs[0]

    def _is_last(self, known: ir.Value, given: ir.Value, left: ir.Value | None) -> bool:
        """Whether a value is the state that was given, picked from what is joined with the new one."""
        pick = _maker(known, "Gather")
        both = None if pick is None else _maker(pick.inputs[0], "Concat")
        if pick is None or both is None or len(both.inputs) != 2 or both.inputs[1] is not left:
            return False
        shaped = _maker(both.inputs[0], "Reshape")
        picks = self.constants.ints(pick.inputs[1]) == (0,) and integer(pick, "axis", 0) == 3
        return picks and integer(both, "axis", 0) == 3 and shaped is not None and shaped.inputs[0] is given


def _maker(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that makes a value, if it is of a kind."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None
