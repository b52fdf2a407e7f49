"""Make the step of a network: its row graph, its schedule, the heights that it takes, and its header."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from ...errors import TiledSEError
from ...networks.converter import fingerprint
from ...plan import Plan
from ..building import build_graph, source_of
from ..frames import row_shape, row_size
from ..graph import RowGraph
from ..heights import another, check_free, check_joins, check_unknown
from .header import Head, Header
from .module import Step
from .schedule import Schedule, schedule


@dataclass(frozen=True)
class Made:
    """A step, in torch.

    Args:
        graph: The row graph.
        step: The step with edges, for any rows of an image.
        middle: The step without, for rows whose layers all lie within their maps.
        header: What it says of itself.
    """

    graph: RowGraph
    step: Step
    middle: Step
    header: Header


def make_step(
    model: Any,
    plan: Plan,
    *,
    rows: int | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
) -> Made:
    """Make the step of a network.

    Args:
        model: What ``stream`` takes.
        plan: From ``find`` on it, with the tiles wanted.
        rows: Rows of the image in a step; the fewest that are possible if left out.
        height: Rows of each image; None for any.
        width: Columns of the images; the plan's if left out.
        batch: Images at once.

    Raises:
        TiledSEError: a layer that is not local in rows, a height that must be known, or rows that are no multiple of
            what strides and tiles ask for.
    """
    model = source_of(model, plan.input_size)
    weights = fingerprint(model) if isinstance(model, nn.Module) else model.weights
    wide, tall = width or row_size(plan)[2], height or plan.input_size[1]
    graph = build_graph(model, plan, batch, (tall, wide), False)
    made = schedule(graph, rows)
    multiple = 1
    if height is None:
        graph, made, multiple = _any_height(model, plan, graph, made)
    for index, track in enumerate(made.tracks):
        if track is not None and graph.values[index].row_dim is None:
            raise TiledSEError(f"'{graph.values[index].name}' has no axis of rows; it cannot run in steps")
    step, middle = Step(graph, made), Step(graph, made, edges=False)
    return Made(graph, step, middle, _header(graph, step, plan, height, multiple, weights))


def _any_height(model: Any, plan: Plan, graph: RowGraph, made: Schedule) -> tuple[RowGraph, Schedule, int]:
    """The row graph of images of any height, and its schedule.

    Or of any multiple of a number, where that is all that can be had: the third that is given.
    """
    batch, _, tall, wide = graph.shape
    try:
        check_free(graph)
        check_unknown(graph, build_graph(model, plan, batch, (tall + another(graph), wide), False))
        for more in range(_strides(graph, made)):  # what fits a row more may not fit eight
            check_joins(graph, tall + more)
        return graph, made, 1
    except TiledSEError as error:
        unit = _strides(graph, made)
        if unit == 1:
            raise
        # Sums of maps and resizing to another map's size go together where strides divide the height.
        try:
            below, above = (
                build_graph(model, plan, batch, (tall // unit * unit + more, wide), False)
                for more in (unit, 2 * unit)
            )
            made = schedule(below, made.rows)  # another one: networks may pad these heights in another way
            check_free(below)
            check_unknown(below, above)
        except TiledSEError:
            raise error from None
        return below, made, unit


def _strides(graph: RowGraph, made: Schedule) -> int:
    """Rows of the image for a row of the smallest map; gates are none."""
    most = 1
    for node in graph.nodes:
        track = made.tracks[node.output]
        if track is not None and node.kind not in ("squeeze", "excite") and track.per.denominator == 1:
            most = max(most, track.per.numerator)
    return most


def _header(
    graph: RowGraph, step: Step, plan: Plan, height: int | None, multiple: int, weights: str
) -> Header:
    made = step.schedule
    batch, channels, _, width = graph.shape
    heads = []
    for name, index in zip(head_names(graph), graph.outputs):
        value, track = graph.values[index], made.tracks[index]
        shape = list(value.shape)
        if track is not None:
            assert value.row_dim is not None
            shape[value.row_dim] = track.rows
        heads.append(Head(name, tuple(shape), None if track is None else value.row_dim))
    tracks = [track for track in made.tracks if track is not None]
    waits = [-(-(track.lag + track.kept) // track.rows) for track in tracks]
    waits += [-(-d.kept // d.track.rows) + -(-d.track.lag // d.track.rows) for d in step.descriptors]
    latency = max(int(track.lag * track.per) for track in tracks)
    return Header(
        rows=made.rows,
        unit=made.unit,
        window=made.window,
        begin=-made.track(0).kept,
        images=batch,
        channels=channels,
        width=width,
        height=height,
        multiple=multiple,
        least=_least(graph),
        latency=latency,
        middle_from=max(waits) * made.rows,
        states=tuple(step.states),
        heads=tuple(heads),
        tiles={block.name: str(tile) for block, tile in plan},
        identity=_identity(graph, step, weights),
        versions=_versions(),
        sides=row_shape(plan) if len(row_shape(plan)) != 1 else (width,),
    )


def head_names(graph: RowGraph) -> list[str]:
    """A name for each output of a network, after its place among them."""
    numbers = tree_unflatten(list(range(len(graph.outputs))), graph.spec)
    paths, _ = tree_flatten_with_path(numbers)
    names = [".".join(_key(key) for key in path) or "output" for path, _ in paths]
    return [f"output.{name}" if name.isdigit() else name for name in names]


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def _least(graph: RowGraph) -> int:
    """The fewest rows of an image of which every map has one."""
    for height in range(1, graph.shape[2] + 1):
        heights = {0: height}
        for node in graph.nodes:
            source = heights[node.inputs[0]]
            now = node.maps[0].height(source) if hasattr(node.maps[0], "height") else 1
            heights[node.output] = now
            if now < 1 or source < node.least:
                break
        else:
            return height
    return graph.shape[2]


def _identity(graph: RowGraph, step: Step, weights: str) -> str:
    """A name for all that a state belongs to."""
    made = step.schedule
    layers = [(n.name, n.kind, n.inputs, str(n.maps), str(n.squeeze)) for n in graph.nodes]
    text = repr(
        (graph.shape[:2], graph.shape[3], made.rows, made.window, made.tracks, layers, step.states, weights)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    for name in ("tiledse", "onnx", "onnxscript"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
