"""Stream: run a network row by row, exactly, on images of any height with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import TiledSEError
from ..plan import Plan
from .building import build_graph
from .engine import Engine
from .flow import Held, count_held
from .frames import as_rows, expected, row_shape, row_size, words
from .graph import RowGraph
from .heights import another, check_free, check_joins, check_unknown, sized_plan
from .state import load_state, save_state

if TYPE_CHECKING:
    from .step.stream import StepStream


class Stream:
    """A network that takes an image row by row and gives its outputs as soon as their rows are known.

    Made by ``stream``. After ``finish`` it is ready for the next image.

    Attributes:
        graph: The row graph.
        plan: The plan, with the sizes that the maps have at this image size.
        height: Rows of an image; None where it shows when the image ends.
        rows: Rows that a push is cut into.
    """

    def __init__(self, graph: RowGraph, plan: Plan, height: int | None, rows: int) -> None:
        self.graph, self.plan, self.height, self.rows = graph, plan, height, rows
        self._sides = row_shape(plan) if len(row_shape(plan)) != 1 else (graph.shape[3],)
        self._engine = Engine(graph, rows, height is not None)
        self._broken = False

    @property
    def seen(self) -> int:
        """Rows of the image that have come."""
        return self._engine.progress.produced[0]

    @property
    def peak_live_bytes(self) -> int:
        """Most bytes that the row buffers held at once since the stream was made."""
        return self._engine.peak_bytes

    @property
    def whole(self) -> dict[str, int]:
        """Layers that are not local in rows, and the elements that each waits for."""
        return self.graph.whole

    def held(self, height: int | None = None) -> list[Held]:
        """What each layer holds where rows come one by one, counted by streaming without computing.

        Args:
            height: Rows of an image, for a stream that is not told them; left out, those of the plan.
        """
        return count_held(self.graph, height if self.height is None else None)

    def push(self, rows: Tensor, start: int | None = None) -> Any:
        """Take the next rows of the image.

        Args:
            rows: (N, C, any number of rows, W); of sound (N, C, any number of frames), of clips (N, C, any number of
                frames, H, W).
            start: The number of the first of them, if the source counts its rows: a dropped row is noticed.

        Returns:
            The new rows of the outputs, nested as the network nests them; None for an output without new rows.

        Raises:
            TiledSEError: rows of another shape, rows that are not finite, more rows than the image has, or a row
                was dropped. The state is then as it was.
        """
        rows = self._framed(rows)
        self._check(rows, start)
        self._broken = True  # until all of it is through: what stops half-way cannot be taken back
        with torch.no_grad():
            for piece in rows.split(self.rows, 2):
                at = self.seen
                self._engine.put(0, at, piece)
                self._engine.feed(piece.shape[2])
        self._broken = False
        return self._collect()

    def finish(self) -> Any:
        """The image is complete: give the rows and the results that waited for its end.

        Where the height is known, they come with the last push already, and nothing is left to give here.

        Raises:
            TiledSEError: there were fewer rows than the image has. The state is then as it was.
        """
        self._alive()
        what, rows = words(self._sides)
        if self.height is not None and self.seen != self.height:
            raise TiledSEError(
                f"the {what} ended after {self.seen} {rows}, expected {self.height}; push the missing {rows}, or "
                f"stream with height=None if {'heights' if rows == 'rows' else 'lengths'} are not known"
            )
        if self.seen == 0:
            raise TiledSEError(f"the {what} ended before its first {rows[:-1]}; push {rows} first")
        if self.height is None:
            self._check_height()
        self._broken = True
        with torch.no_grad():
            self._engine.end()
        result = self._collect()
        peak = self._engine.peak_bytes
        self._engine = Engine(self.graph, self.rows, self.height is not None)
        self._engine.peak_bytes = peak
        self._broken = False
        return result

    def save(self, path: str | Path) -> None:
        """Write the state between two pushes to a safetensors file; ``load`` goes on from it.

        Raises:
            TiledSEError: the file cannot be written.
        """
        self._alive()
        save_state(self._engine, Path(path))

    def load(self, path: str | Path) -> None:
        """Go on from a saved state. The weights are not in it: make the stream from the same network.

        Raises:
            TiledSEError: no state, or that of another network, plan or image size. The stream is then as it was.
        """
        engine = Engine(self.graph, self.rows, self.height is not None)
        load_state(engine, Path(path))
        self._engine, self._broken = engine, False

    def run(self, chunks: Iterable[Tensor]) -> Iterator[Any]:
        """Stream an image that comes in chunks of rows: one result for each chunk that gives any."""
        for rows in chunks:
            out = self.push(rows)
            if any(leaf is not None for leaf in self._leaves(out)):
                yield out
        out = self.finish()
        if any(leaf is not None for leaf in self._leaves(out)):
            yield out

    def __call__(self, image: Tensor, chunk: int | None = None) -> Any:
        """Stream an image that is there as a whole and put the outputs together as the network gives them.

        Args:
            image: (N, C, H, W); of sound (N, C, T), of clips (N, C, D, H, W).
            chunk: Rows at a time; the stream's own if left out.

        Example:
            >>> import timm, tiledse as ts
            >>> model = timm.create_model("lcnet_050").eval()
            >>> plan = ts.find(model, (3, 64, 64)).with_tile("7xW")
            >>> stream(model, plan)(torch.zeros(1, 3, 64, 64)).shape
            torch.Size([1, 1000])
        """
        gathered: list[list[Tensor]] = [[] for _ in self.graph.outputs]
        image = self._framed(image)
        if not isinstance(image, Tensor) or image.dim() != 4:
            self._check(image, None)
        for out in self.run(image.split(chunk or self.rows, 2)):
            for whole, leaf in zip(gathered, self._leaves(out), strict=True):
                if leaf is not None:
                    whole.append(leaf)
        dims = [self.graph.values[i].row_dim for i in self.graph.outputs]
        leaves = [w[0] if d is None else torch.cat(w, d) for w, d in zip(gathered, dims)]
        return tree_unflatten(leaves, self.graph.spec)

    def _leaves(self, out: Any) -> list[Any]:
        return tree_flatten(out, is_leaf=lambda leaf: leaf is None)[0]

    def _collect(self) -> Any:
        leaves = []
        for value, rows in zip(self.graph.outputs, self._engine.given):
            dim = self.graph.values[value].row_dim
            leaves.append(
                None if not rows else rows[0] if len(rows) == 1 or dim is None else torch.cat(rows, dim)
            )
            rows.clear()
        return tree_unflatten(leaves, self.graph.spec)

    def _framed(self, rows: Any) -> Any:
        """Frames of sound or of a clip as rows; anything else as it is."""
        return as_rows(rows, self._sides)

    def _alive(self) -> None:
        if self._broken:
            raise TiledSEError(
                "this stream was interrupted in the middle of a push and its state is lost; load a saved state, or "
                "make it new"
            )

    def _check(self, rows: Tensor, start: int | None) -> None:
        self._alive()
        n, c, _, w = self.graph.shape
        whole, some = words(self._sides)
        if (
            not isinstance(rows, Tensor)
            or rows.dim() != 4
            or (rows.shape[0], rows.shape[1], rows.shape[3]) != (n, c, w)
        ):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            if len(self._sides) != 1 and isinstance(got, tuple) and got[3:] == (w,):
                got = (*got[:3], *self._sides)
            raise TiledSEError(
                f"{some} {self.seen} and on: expected {expected(n, c, self._sides)}, got {got}; all "
                "have the size and the channels that the stream was made for"
            )
        if start is not None and start != self.seen:
            what = "dropped" if start > self.seen else "sent twice"
            raise TiledSEError(
                f"expected {some[:-1]} {self.seen} next, got {some[:-1]} {start}: {abs(start - self.seen)} {what}"
            )
        if self.height is not None and self.seen + rows.shape[2] > self.height:
            raise TiledSEError(
                f"{self.seen + rows.shape[2]} {some} came, the {whole} has {self.height}; finish() ends it"
            )
        if (rows.dtype, rows.device) != (self.graph.dtype, self.graph.device):
            raise TiledSEError(
                f"expected {some} of {self.graph.dtype} on {self.graph.device}, as the weights are, got {rows.dtype} "
                f"on {rows.device}; scale and normalise integers as the network wants them"
            )
        # A sum is one pass without memory; only where it is not finite is each value looked at.
        if not torch.isfinite(rows.sum()) and not bool(torch.isfinite(rows).all()):
            bad = (~torch.isfinite(rows)).nonzero()[0].tolist()
            raise TiledSEError(
                f"{some[:-1]} {self.seen + bad[2]} holds a value that is not finite (column {bad[3]}, channel {bad[1]})"
            )

    def _check_height(self) -> None:
        """Whether an image of the height that it turned out to have goes through this network at all."""
        heights: dict[int, int] = {0: self.seen}
        what, rows = words(self._sides)
        for node in self.graph.nodes:
            fixed = self._engine.heights[node.output]
            if fixed is None:
                fixed = node.maps[0].height(heights[node.inputs[0]])  # type: ignore[union-attr]
                if fixed < 1:
                    raise TiledSEError(
                        f"{self.seen} {rows} are too few for the {what}: layer '{node.name}' would get less than its "
                        "window"
                    )
            heights[node.output] = fixed
        check_joins(self.graph, self.seen)


def stream(
    model: Any,
    plan: Plan,
    *,
    height: int | str | None = "plan",
    width: int | None = None,
    batch: int = 1,
    rows: int = 64,
    backend: Literal["torch", "onnxruntime", "openvino"] = "torch",
) -> Stream | StepStream:
    """Make a network run row by row, exactly as on the whole image.

    With row tiles every layer is local in rows, and memory does not grow with the height. A layer that is not local
    in rows waits for its whole map, and is named in ``Stream.whole``.

    Args:
        model: The network, SE or converted, or what ``tiledse.open`` takes: of PyTorch or ONNX; it is left as it was,
            and its weights are shared.
        plan: From ``find`` on it, with the tiles wanted.
        height: Rows of the images: a number, or None if it is known only when an image ends; the plan's if left
            out.
        width: Columns of the images; the plan's if left out.
        batch: Images at once.
        rows: Rows that are computed at a time. More are faster up to about 64, and hold more. A runtime takes the next
            multiple of what strides and tiles ask for.
        backend: What computes: torch, operator by operator, or a runtime that runs the network in steps of fixed shapes
            (see ``export_step``), in float32 and with as many threads as torch has.

    Raises:
        TiledSEError: the network cannot be traced, or its height must be known (the error says which layer
            wants it).

    Example:
        >>> import timm, tiledse as ts
        >>> model = timm.create_model("lcnet_050", num_classes=0, global_pool="").eval()
        >>> plan = ts.find(model, (3, 64, 64)).with_tile("1xW")
        >>> s = stream(model, plan, height=None)
        >>> [s.push(torch.zeros(1, 3, 300, 64)).shape[2] for _ in range(2)]
        [1, 9]
        >>> s.finish().shape
        torch.Size([1, 1280, 9, 2])
    """
    if rows < 1 or batch < 1:
        raise TiledSEError(f"expected rows and batch of at least 1, got {rows} and {batch}")
    if not (height is None or height == "plan" or (isinstance(height, int) and height > 0)):
        raise TiledSEError(f"expected a height of at least 1, or None for unknown heights, got {height!r}")
    _, own_tall, own_wide = row_size(plan)
    tall = height if isinstance(height, int) else own_tall
    wide = width or own_wide
    if len(row_shape(plan)) != 1 and wide != own_wide:
        raise TiledSEError(f"frames of {words(row_shape(plan))[0]} have no width, got {width}; leave it out")
    if backend != "torch":
        from .step.stream import stream_in_steps

        return stream_in_steps(
            model, plan, backend, height=None if height is None else tall, width=wide, batch=batch, rows=rows,
            threads=torch.get_num_threads(),
        )  # fmt: skip
    graph = build_graph(model, plan, batch, (tall, wide), height is not None)
    if height is None:
        check_free(graph)
        check_unknown(graph, build_graph(model, plan, batch, (tall + another(graph), wide), False))
    return Stream(graph, sized_plan(plan, graph), tall if height is not None else None, rows)
