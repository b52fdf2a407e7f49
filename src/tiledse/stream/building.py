"""Build the row graph of a network: trace it, walk its operators, and keep what its outputs need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..network import Network
from ..opening import open as open_network
from ..plan import Plan
from .builder import Builder
from .frames import Frames, row_shape, row_size
from .graph import Node, RowGraph
from .maps import SAME, First
from .operators import treat
from .tracing import mark, trace


def source_of(model: Any, input_size: Sequence[int]) -> Any:
    """What a row graph is built from: a module of PyTorch, or an open ONNX network.

    Raises:
        TiledSEError: a network of another kind.
    """
    if isinstance(model, nn.Module):
        return model
    network = model if isinstance(model, Network) else open_network(model, input_size)
    return network if network.kind == "ONNX" else network.module("a stream")


def build_graph(
    model: Any, plan: Plan, batch: int = 1, size: tuple[int, int] | None = None, known: bool = True
) -> RowGraph:
    """The row graph of a network with the tiles of a plan.

    Args:
        model: The network of PyTorch, SE or converted, or what ``tiledse.open`` takes; it is left as it was and its
            weights are shared.
        plan: From ``find`` on it.
        batch: Images at once.
        size: (H, W) of the images; the plan's if left out.
        known: Whether all images have this height.

    Raises:
        TiledSEError: the plan is another network's, or the network cannot be traced at this size.
    """
    plan.check_single_images(
        "rows of one image are streamed here; run frames one after the other through what ts.convert gives"
    )
    channels, *own = row_size(plan)
    height, width = size or own
    source = source_of(model, plan.input_size)
    blocks: Mapping[str, Any]
    if isinstance(source, nn.Module):
        marked, blocks = mark(source, plan, known)
    else:
        from .reading import read_onnx

        marked, blocks = read_onnx(source.model, plan, known)
    if len(row_shape(plan)) != 1:
        marked = Frames(marked, row_shape(plan))
    program = trace(marked, (batch, channels, height, width))
    return _used(Builder(program, blocks, treat).graph)


def _used(graph: RowGraph) -> RowGraph:
    """Drop what no output needs, join elementwise operators to the node before, and note who reads what."""
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
    nodes = [node for node in graph.nodes if node.output in needed]
    reads: dict[int, int] = {}
    for node in nodes:
        for i in node.inputs:
            reads[i] = reads.get(i, 0) + 1
    kept: list[Node] = []
    maker: dict[int, Node] = {}
    for node in nodes:
        before = maker.get(node.inputs[0])
        alone = (
            len(node.inputs) == 1 and node.kind == "row" and not node.macs and node.maps[0] in (SAME, First())
        )
        if (
            before is not None
            and alone
            and reads[node.inputs[0]] == 1
            and node.inputs[0] not in graph.outputs
        ):
            source, made = graph.values[node.inputs[0]], graph.values[node.output]
            if source.height == made.height:
                before.tail.append(_after(node, before.fresh))
                before.output, before.fresh = node.output, node.fresh
                before.sizes += node.sizes
                maker[node.output] = before
                continue
        kept.append(node)
        maker[node.output] = node
    # Numbers anew: values in the order of their makers, the image first.
    order = [0, *(node.output for node in kept)]
    number = {old: new for new, old in enumerate(order)}
    values = [graph.values[old] for old in order]
    for value in values:
        value.users.clear()
    for index, node in enumerate(kept):
        node.inputs, node.output = tuple(number[i] for i in node.inputs), number[node.output]
        values[node.output].maker = index
        for operand, i in enumerate(node.inputs):
            values[i].users.append((index, operand))
    outputs = [number[i] for i in graph.outputs]
    return RowGraph(graph.shape, values, kept, outputs, graph.spec, graph.dtype, graph.device)


def _after(node: Node, fresh: bool) -> Callable[[Tensor], Tensor]:
    run = node.run
    in_place_run = getattr(run, "in_place", None)
    if fresh and in_place_run is not None:
        return in_place_run
    return lambda rows: run([rows], 0, -1)
