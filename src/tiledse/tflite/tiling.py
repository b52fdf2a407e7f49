"""Put the tiles of a plan into a clone of a TensorFlow Lite network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import TiledSEError
from ..plan import Plan
from ..tile import Tile
from .finder import Finding, locate
from .graph import Graph
from .metadata import write_stated
from .model import TfliteModel
from .rewriting import restated, rewrite


def with_tiles(found: Finding, plan: Plan, forced: frozenset[str] = frozenset()) -> TfliteModel:
    """A clone of a network with the tiles of a plan for it.

    Args:
        found: What ``locate`` gave on the network.
        plan: The tiles.
        forced: Blocks that are written again as one strip over the map, by the code of tiles.
    """
    plan.check_single_images(
        "a TensorFlow Lite file gets no states here; convert the ONNX file or the PyTorch network that it was made from"
    )
    for block, tile in plan:
        if tile.squeeze == "two-step":
            raise TiledSEError(
                f"block '{block.name}': {tile} is a form of ONNX files (convert --target); a TensorFlow Lite file "
                "keeps its mean in one operator, so give it HxW, or tiles"
            )
    clone = found.model.clone()
    own = locate(clone, found.plan.input_size)
    graph, clone = own.graph, own.model
    stated = {}
    for (block, tile), learnt, place, was in zip(plan, plan.corrections, own.places, own.plan.corrections):
        same = tile.effect(block.height, block.width) == place.stated.tile.effect(block.height, block.width)
        if block.name in forced:
            # Not by the pool that it had: a mean in the map's own scale, as strips have it.
            strip = replace(place, stated=replace(place.stated, pool="AVERAGE_POOL_2D"))
            stated[block.name] = rewrite(graph, strip, block.name, Tile(block.height, None), None)
        elif same and learnt == was:
            stated[block.name] = restated(place, tile, learnt)
        else:
            stated[block.name] = rewrite(graph, place, block.name, tile, learnt)
    kept = {
        name: one for name, one in stated.items() if not one.tile.whole or one.mean is not None or one.biases
    }
    write_stated(clone.tree, kept)
    _fix_size(graph, own)
    shapes = tuple(graph.shape(tensor) for tensor in range(len(graph.tensors)))
    return replace(clone, shapes=shapes if found.model.shapes is not None else None)


def _fix_size(graph: Graph, found: Finding) -> None:
    """Fix the size of the image, where the file leaves it open: tiles are written for maps of one size."""
    stored = graph.tensors[found.image.tensor]
    signature = stored.shapeSignature
    if signature is None or not (np.asarray(signature)[1:] < 0).any():
        return
    shape = found.image.shape
    stored.shape = np.array(shape, np.int32)
    stored.shapeSignature = np.array([signature[0], *shape[1:]], np.int32)
