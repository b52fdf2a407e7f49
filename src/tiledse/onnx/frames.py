"""Blocks that are gated by the previous frame, as nodes: the state of each is an input and an output of the file.

A state is (N, C): the mean of the block's map in the last frame of each stream. NaN stands for a stream that has had no
frame yet: where a channel's state is NaN, the gate is that of the rows that have come (``Tile.first``). A graph has no
branches, so the gates of all rows are computed in every frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..documents import read_json, write_json
from ..tile import Tile
from .constants import Constants
from .factors import SWAPPED
from .metadata import Stated
from .nodes import Miss, ints, only_user

if TYPE_CHECKING:
    from .emit import Writer

STATES_KEY = "tiledse.states"
FORMAT = "tiledse.states/1"
MEANING = (
    "(N, C), the mean of the block's map in the last frame of each stream; NaN: a stream without a frame yet"
)
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class State:
    """The state of a block.

    Attributes:
        block: The block's name.
        input: The input that takes it.
        output: The output that gives it for the next frame.
        channels: C.
    """

    block: str
    input: str
    output: str
    channels: int


def write_states(model: ir.Model, states: list[State]) -> None:
    """Say in the metadata of a file which inputs and outputs are states, and how a stream begins."""
    model.metadata_props.pop(STATES_KEY, None)
    if states:
        listed = [{**vars(state), "start": "nan"} for state in states]
        model.metadata_props[STATES_KEY] = write_json(
            {"format": FORMAT, "meaning": MEANING, "states": listed}
        )


def states_of(model: ir.Model) -> tuple[State, ...]:
    """The states that a file says it has, as far as they are inputs and outputs of it."""
    try:
        given = read_json(model.metadata_props.get(STATES_KEY, "{}"))
        listed = given.get("states", [])
        states = [State(s["block"], s["input"], s["output"], int(s["channels"])) for s in listed]
    except (ValueError, TypeError, KeyError, AttributeError):  # not ours
        return ()
    inputs, outputs = ({v.name for v in part} for part in (model.graph.inputs, model.graph.outputs))
    return tuple(s for s in states if s.input in inputs and s.output in outputs)


def write(
    writer: Writer, x: ir.Value, axes: tuple[int, int, int], tile: Tile, size: tuple[int, int],
    batch: int | ir.SymbolicDim,
) -> tuple[ir.Value, ir.Node, State]:  # fmt: skip
    """Write the descriptors of a tile with ``previous``.

    Args:
        writer: Writes the nodes; its prefix is the name of the block.
        x: The map.
        axes: Its axes of channels, rows and columns.
        tile: The tile.
        size: Channels and rows of the map.
        batch: The first side of the image input.

    Returns:
        Descriptors (N, C, rows of the grid of ``Tile.first``, 1), the node that the block is named after, its state.
    """
    channels, height = size
    means = writer.mean(x, axes[2])
    swapped = writer.node("Transpose", [writer.nchw(means, axes)], perm=list(SWAPPED))

    def product(what: str, shares: np.ndarray) -> ir.Value:
        made = writer.node("MatMul", [swapped, writer.numbers(what, shares.T)])
        return writer.node("Transpose", [made], perm=list(SWAPPED))

    state = State(writer.prefix, writer.fresh("previous"), writer.fresh("current"), channels)
    given = ir.Value(name=state.input, shape=ir.Shape([batch, channels]), type=ir.TensorType(writer.dtype))
    writer.graph.inputs.append(given)
    before = writer.node("Reshape", [given, writer.ints("one_pixel", 0, 0, 1, 1)])
    known = before
    if tile.height is not None:
        this, share = tile.shares_of_frames(height)
        part = writer.node("Mul", [before, writer.numbers("share_before", share[None, None, :, None])])
        known = writer.node("Add", [product("share_of_rows", this), part])
    first = product("rows_come", tile.first.weights(height))
    begins = writer.node("IsNaN", [before], dtype=ir.DataType.BOOL)
    descriptors = writer.node("Where", [begins, first, known])
    mean = product("all_rows", np.full((1, height), 1 / height))
    flat = writer.node("Reshape", [mean, writer.ints("one_vector", 0, 0)])
    flat.name, flat.shape = state.output, ir.Shape([batch, channels])
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

    def read(self, node: ir.Node, rows: ir.Value) -> tuple[Tile, ir.Value, State] | None:
        """Read means of rows (N, C, H, 1) as the first step of a block that sees the previous frame.

        Returns:
            The tile, the descriptors and the state; None where it is something else.

        Raises:
            Miss: it is, but the file does not say how, or the numbers are other ones.
        """
        swap = only_user(rows)
        if swap is None or swap.op_type != "Transpose" or ints(swap, "perm", ()) != SWAPPED:
            return None
        shares: dict[ir.Value, np.ndarray] = {}
        for use in swap.outputs[0].uses():
            array, back = self.constants.array(use.node.inputs[1]), only_user(use.node.outputs[0])
            if use.node.op_type != "MatMul" or array is None or back is None or array.ndim != 2:
                return None
            shares[back.outputs[0]] = array.T.astype(np.float64)
        chosen = [v for v in shares if (user := only_user(v)) is not None and user.op_type == "Where"]
        if len(chosen) != 1:
            return None
        choice = only_user(chosen[0])
        assert choice is not None
        before = self._state(choice)
        if before is None:
            return None
        value, state = before
        stated = self.stated.get(node.name or "")
        if state is None or stated is None or not stated.tile.previous:
            raise Miss(
                "it is gated by the previous frame, and the file no longer says with which tile; convert the file "
                "of the SE network again"
            )
        if not self._fits(stated.tile, choice, chosen[0], value, state, shares):
            raise Miss(f"it says that its tile is {stated.tile}, and computes something else")
        return stated.tile, choice.outputs[0], state

    def _state(self, choice: ir.Node) -> tuple[ir.Value, State | None] | None:
        """The state that a choice looks at, as (N, C, 1, 1), where it is one."""
        begins = None if choice.inputs[0] is None else choice.inputs[0].producer()
        value = None if begins is None or begins.op_type != "IsNaN" else begins.inputs[0]
        maker = None if value is None else value.producer()
        given = None if maker is None or maker.op_type != "Reshape" else maker.inputs[0]
        if value is None or given is None or not given.is_graph_input():
            return None
        return value, self.states.get(given.name or "")

    def _fits(
        self, tile: Tile, choice: ir.Node, first: ir.Value, before: ir.Value, state: State,
        shares: Mapping[ir.Value, np.ndarray],
    ) -> bool:  # fmt: skip
        """Whether a graph computes what a tile says."""
        height = shares[first].shape[1]

        def same(value: ir.Value | None, expected: np.ndarray) -> bool:
            found = None if value is None else shares.get(value)
            return (
                found is not None
                and found.shape == expected.shape
                and np.allclose(found, expected, rtol=_TOLERANCE)
            )

        if choice.inputs[1] is not first or not same(first, tile.first.weights(height)):
            return False
        ends = [
            v for v in shares if (user := only_user(v)) is not None and user.outputs[0].name == state.output
        ]
        if len(ends) != 1 or not same(ends[0], np.full((1, height), 1 / height)):
            return False
        if tile.height is None:
            return choice.inputs[2] is before and len(shares) == 2
        this, share = tile.shares_of_frames(height)
        joined = None if choice.inputs[2] is None else choice.inputs[2].producer()
        if joined is None or joined.op_type != "Add" or not same(joined.inputs[0], this):
            return False
        part = None if joined.inputs[1] is None else joined.inputs[1].producer()
        if part is None or part.op_type != "Mul" or part.inputs[0] is not before:
            return False
        array = self.constants.array(part.inputs[1])
        return (
            array is not None
            and array.size == share.size
            and np.allclose(array.reshape(-1), share, rtol=_TOLERANCE)
        )
