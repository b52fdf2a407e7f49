"""The states of a file whose blocks are gated by the previous frame: what its metadata says of inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..documents import read_json, write_json

STATES_KEY = "tiledse.states"
FORMAT = "tiledse.states/1"
MEANING = (
    "means of the block's map in the last frame of each stream: of the whole map, (N, C), or of each row, (N, C, H); "
    "NaN: a stream without a frame yet"
)


@dataclass(frozen=True)
class State:
    """The state of a block.

    Attributes:
        block: The block's name.
        input: The input that takes it.
        output: The output that gives it for the next frame.
        shape: Of one stream: (C,), or (C, H).
    """

    block: str
    input: str
    output: str
    shape: tuple[int, ...]


def write_states(model: ir.Model, states: list[State]) -> None:
    """Say in the metadata of a file which inputs and outputs are states, and how a stream begins."""
    model.metadata_props.pop(STATES_KEY, None)
    if states:
        listed = [{**vars(state), "shape": list(state.shape), "start": "nan"} for state in states]
        model.metadata_props[STATES_KEY] = write_json(
            {"format": FORMAT, "meaning": MEANING, "states": listed}
        )


def states_of(model: ir.Model) -> tuple[State, ...]:
    """The states that a file says it has, as far as they are inputs and outputs of it."""
    try:
        given = read_json(model.metadata_props.get(STATES_KEY, "{}"))
        listed = given.get("states", [])
        states = [State(s["block"], s["input"], s["output"], tuple(map(int, s["shape"]))) for s in listed]
    except (ValueError, TypeError, KeyError, AttributeError):  # not ours
        return ()
    shapes = {v.name: tuple(v.shape or ())[1:] for v in model.graph.inputs}
    outputs = {v.name for v in model.graph.outputs}
    return tuple(s for s in states if shapes.get(s.input) == s.shape and s.output in outputs)
