"""The state of a stream between two pushes, written to a file and read back: tensors and numbers, no code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ..documents import read_json, write_json
from ..errors import TiledSEError, first_line
from ..files import written_whole
from .engine import Engine
from .graph import RowGraph

FORMAT = "tiledse.stream/2"


def fingerprint(graph: RowGraph, known: bool) -> str:
    """What a state must be resumed with: the same layers, read in the same way, at the same image size."""
    text = repr(
        (graph.shape, known, [(n.name, n.kind, n.inputs, str(n.maps), n.needs_height) for n in graph.nodes])
    )
    return hashlib.sha256(text.encode()).hexdigest()


def save_state(engine: Engine, path: Path) -> None:
    """Write all that an engine knows of the image so far."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    for index, buffer in enumerate(engine.buffers):
        if buffer.pieces:
            starts[str(index)] = buffer.pieces[0][0]
            end = engine.progress.produced[index]
            tensors[f"rows.{index}"] = buffer.read(buffer.pieces[0][0], end).contiguous().clone()
    states: dict[str, list[Any]] = {}
    for index, state in engine.states.items():
        states[str(index)] = []
        for place, item in enumerate(state):
            if isinstance(item, Tensor):
                tensors[f"state.{index}.{place}"] = item.contiguous().clone()
            states[str(index)].append(None if isinstance(item, Tensor) else item)
    header = {
        "format": FORMAT,
        "graph": fingerprint(engine.graph, engine.known),
        "produced": engine.progress.produced,
        "taken": {str(k): v for k, v in engine.taken.items()},
        "starts": starts,
        "states": states,
    }
    with written_whole(path) as part:
        save_file(tensors, part, metadata={"tiledse.stream": write_json(header)})


def load_state(engine: Engine, path: Path) -> None:
    """Put a saved state into a fresh engine.

    Raises:
        TiledSEError: no such file, no state, or that of another network, plan or image size.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise TiledSEError(f"no stream state {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = read_json((file.metadata() or {})["tiledse.stream"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, expected {FORMAT}")
    except Exception as error:  # a foreign, old or cut-off file fails in many ways
        raise TiledSEError(
            f"{path} is no stream state ({type(error).__name__}: {first_line(error)})"
        ) from error
    if header["graph"] != fingerprint(engine.graph, engine.known):
        raise TiledSEError(
            f"the state {path} is of another network, plan or image size; make the stream as it was when it was saved"
        )
    engine.progress.produced = list(header["produced"])
    engine.taken = {int(k): v for k, v in header["taken"].items()}
    for key, start in header["starts"].items():
        engine.buffers[int(key)].append(start, tensors[f"rows.{key}"])
    for key, items in header["states"].items():
        engine.states[int(key)] = tuple(
            tensors[f"state.{key}.{place}"] if item is None else item for place, item in enumerate(items)
        )
    engine.bytes = sum(buffer.bytes for buffer in engine.buffers)
