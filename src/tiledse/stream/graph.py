"""The row graph of a network: values that come row by row, and nodes that turn rows into rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..tile import Tile
from .maps import RowMap, Total, Whole

# (rows of each operand, first output row, output row after the last); see Node.run.
Run = Callable[..., Any]


@dataclass
class Value:
    """What one layer hands to others, row by row.

    Args:
        name: Of the operator that makes it.
        shape: Of the whole map, at the height that the network was traced at.
        row_dim: The axis of the rows; None where it has none and comes as one piece, such as a pooled vector.
        maker: Index of the node that makes it; -1 for the image.
        users: (node, operand) pairs that read it.
        outputs: How often it is an output of the network.
        images: Images of the batch, all of which are in ``shape``, whichever of its axes they are in.
    """

    name: str
    shape: tuple[int, ...]
    row_dim: int | None
    maker: int = -1
    users: list[tuple[int, int]] = field(default_factory=list)
    outputs: int = 0
    images: int = 1

    @property
    def height(self) -> int:
        """Rows; 1 where it comes as one piece."""
        return 1 if self.row_dim is None else self.shape[self.row_dim]

    @property
    def row_elements(self) -> int:
        """Elements of one row, of one image of the batch."""
        return prod(self.shape) // self.images // self.height


@dataclass
class Node:
    """A layer: one operator and the elementwise ones after it.

    Args:
        name: The layer's name in the network, or the operator's.
        kind: What it is in rows: ``window``, ``row`` (one row to one row), ``join``, ``pad``, ``mean``, ``squeeze``,
            ``excite``, ``gate``, ``nearest``, ``bilinear``, ``whole``.
        inputs: Values read.
        maps: How rows of each are read.
        output: The value made.
        run: Makes output rows a to b: ``run(parts, a, b)``; for a ``Total`` ``run(part, state)`` absorbs.
        finish: For a ``Total``: from the state to the row. For a running squeeze: None.
        block: The SE block of a squeeze or gate.
        macs: Multiply-adds for the whole map, one image.
        tail: Elementwise operators that follow.
        stateful: ``run(parts, a, b, state)`` gives (rows, state).
        needs_height: Why the height of the image must be known, if it must.
        fresh: The rows made share memory with nothing else.
        sizes: Numbers among the arguments of an operator, which must be the same at each height: of one that works
            elementwise all, of one that gets its operands in one piece the whole numbers.
        outside: What rows outside of the map count as, where it reads some: a number, or None for the nearest row.
        counted: Of a mean over windows: whether rows outside of the map are counted.
        squeeze: The tile of a squeeze, and by what name of ``marks.REDUCES`` it squeezes.
        wide: Whether a running sum is kept in float64.
        least: Rows that it must have had for its result to be a number: a deviation has none of one.
        numbers: Those of a calibrated squeeze: of own means, of seen means, and what is added.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    maps: tuple[RowMap, ...]
    output: int
    run: Run
    finish: Run | None = None
    block: str | None = None
    macs: int = 0
    tail: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    stateful: bool = False
    needs_height: str | None = None
    fresh: bool = False
    sizes: tuple[Any, ...] = ()
    outside: float | None = 0.0
    counted: bool = True
    squeeze: tuple[Tile, str] | None = None
    numbers: tuple[Tensor | None, ...] = ()
    wide: bool = False
    least: int = 1

    @property
    def absorbs(self) -> bool:
        """Whether rows are taken in as they come and nothing is kept of them but a sum."""
        return isinstance(self.maps[0], Total)

    @property
    def whole(self) -> bool:
        """Whether it waits for whole maps."""
        return isinstance(self.maps[0], Whole)


@dataclass
class RowGraph:
    """The row graph of a network at one batch and image size.

    Args:
        shape: (N, C, H, W) of the images.
        values: All values; the first is the image.
        nodes: In an order in which each comes after what it reads.
        outputs: Values that the network gives, in its order.
        spec: How the outputs are nested.
        dtype: Of the image, as the weights have it.
        device: Where the weights are.
    """

    shape: tuple[int, int, int, int]
    values: list[Value]
    nodes: list[Node]
    outputs: list[int]
    spec: Any
    dtype: torch.dtype
    device: torch.device

    @property
    def gates(self) -> dict[str, Node]:
        """The scales of the SE blocks, by block name."""
        return {node.block: node for node in self.nodes if node.kind == "gate" and node.block is not None}

    @property
    def whole(self) -> dict[str, int]:
        """Layers that are not local in rows, and the elements of the maps that each of them waits for."""
        return {
            node.name: sum(self.values[i].height * self.values[i].row_elements for i in set(node.inputs))
            for node in self.nodes
            if node.kind == "whole"
        }
