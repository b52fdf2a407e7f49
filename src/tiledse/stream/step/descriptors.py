"""The squeeze in steps: descriptors of strips and patches, from the means of rows as they come."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Node
from .clock import Clock
from .schedule import Track
from .sums import add

# Channels side by side in the layout of ONNX Runtime's convolutions; fewer on older processors.
_BLOCK = 16
# What no number of a map lies below, and every format can write.
LOWEST = float(torch.finfo(torch.float32).min)


class Descriptors:
    """Makes the descriptors that a step brings.

    Rows are averaged over their columns first, so all that is kept of a map is a number for each row and channel.

    Args:
        node: The squeeze.
        track: Of its map.
        out: Of its descriptors.
        width: Columns of the map.

    Attributes:
        kept: Rows before the step whose means a strip of it still sees.
        columns: Tiles side by side.
    """

    def __init__(self, node: Node, track: Track, out: Track, width: int) -> None:
        assert node.squeeze is not None
        self.node, self.track, self.out = node, track, out
        self.tile, self.reduce = node.squeeze
        assert self.tile.height is not None
        self.tall = self.tile.height
        self.wide = min(self.tile.width or width, width)
        self.columns = -(-width // self.wide)
        # The first strip of a step, from its first row of the map on.
        self.top = track.lag - out.lag * self.tall
        ends = self.top + self.tall + self.tile.ahead
        needed = [ends if self.running else self.top - (self.tile.above or 0)]
        if self.alone or node.numbers:
            needed.append(self.top)
        self.kept = max(0, -min(needed))

    @property
    def running(self) -> bool:
        """Whether a sum of all rows is kept."""
        return self.tile.squeeze == "running"

    @property
    def alone(self) -> bool:
        """Whether the first strip sees no row but its own."""
        return self.tile.ahead == -self.tall

    @property
    def maxima(self) -> bool:
        """Whether the squeeze takes maxima as well."""
        return self.reduce == "mean_and_max"

    def states(self, images: int, channels: int) -> dict[str, tuple[tuple[int, ...], float, str]]:
        """Shape, start value and meaning of what is kept, by name."""
        found: dict[str, tuple[tuple[int, ...], float, str]] = {}
        shape = (images, channels, self.kept, self.columns)
        if self.kept:
            found["means"] = shape, 0.0, "means of the last rows"
        if self.kept and self.maxima:
            found["maxima"] = shape, LOWEST, "maxima of the last rows"
        if self.running:
            found["sum"] = (images, channels, 1, 1), 0.0, "sum of the means of all rows before them"
            found["rest"] = (images, channels, 1, 1), 0.0, "what rounding left out of that sum"
        return found

    def __call__(
        self, x: Tensor, again: int, clock: Clock, state: Mapping[str, Tensor], edges: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Descriptors, and what is kept now, from the rows of the map that a step brings.

        Args:
            x: (N, C, rows, W).
            again: Rows at its top that an earlier step has brought, and that count no more.
            clock: Of the step.
            state: What was kept.
            edges: Whether rows may lie outside of the map.
        """
        value, new = self.node.inputs[0], {}
        # Cut after the columns are averaged: of the map itself that would be a copy.
        means = self._joined(_over_columns(x, self.wide, False), again, state.get("means"))
        new["means"] = means.narrow(2, means.shape[2] - self.kept, self.kept)
        inside = clock.inside(value, -self.kept, means.shape[2]).view(1, 1, -1, 1) if edges else None
        if inside is not None:
            means = torch.where(inside, means, 0.0)
        if not self.tile.slides:
            made = self._tiles(means, clock, edges)
            if self.maxima:
                highest = self._joined(_over_columns(x, self.wide, True), again, state.get("maxima"))
                new["maxima"] = highest.narrow(2, highest.shape[2] - self.kept, self.kept)
                if inside is not None:
                    highest = torch.where(inside, highest, LOWEST)
                kernel = (self.tall, 1)
                made = 0.5 * made + 0.5 * F.max_pool2d(self._own(highest), kernel, kernel)
            if self.node.numbers:
                made = self._corrected(clock, made, made)
            return made, {name: new[name] for name in new if self.kept}
        total = None
        if self.running:
            total = state["sum"], state["rest"]
            rows = torch.arange(means.shape[2])[:, None]
            new["sum"], new["rest"] = add(total, _added(means, rows < self.track.rows))
        made = self._seen(means, clock, edges, total)
        if self.node.numbers:
            made = self._corrected(clock, self._own_and_later(means, clock, made), made)
        if not self.kept:
            del new["means"]
        return made, new

    def _joined(self, rows: Tensor, again: int, kept: Tensor | None) -> Tensor:
        rows = rows.narrow(2, again, rows.shape[2] - again) if again else rows
        return rows if kept is None else torch.cat([kept, rows], 2)

    def _own(self, rows: Tensor) -> Tensor:
        """The rows of the strips of a step."""
        return rows.narrow(2, self.kept + self.top, self.out.rows * self.tall)

    def _tiles(self, means: Tensor, clock: Clock, edges: bool) -> Tensor:
        """Means of the strips' own rows."""
        kernel = (self.tall, 1)
        made = self._own(means) if self.tall == 1 else F.avg_pool2d(self._own(means), kernel, kernel)
        if not edges or self.tall == 1:
            return made
        start, end = self._ends(clock, 0, 0)
        return made * (self.tall / (end - start).clamp(min=1).to(made.dtype)).view(1, 1, -1, 1)

    def _ends(self, clock: Clock, above: int, ahead: int) -> tuple[Tensor, Tensor]:
        """First row, and row after the last, of the strips with rows about them, as far as the map goes."""
        height = clock.height(self.node.inputs[0])
        tops = clock.rows(self.node.output, 0, self.out.rows) * self.tall
        start, end = tops - above, tops + (self.tall + ahead)
        return tuple(torch.minimum(at.clamp(min=0), height) for at in (start, end))  # type: ignore[return-value]

    def _sums(self, means: Tensor, start: int | None, ahead: int) -> Tensor:
        """Sums over the rows from ``start`` rows after the top of each strip, or from the first, to its end."""
        rows = torch.arange(means.shape[2]) - self.kept
        tops = self.top + self.tall * torch.arange(self.out.rows)[:, None]
        seen = rows < tops + self.tall + ahead
        if start is not None:
            seen &= rows >= tops + start
        return _added(means, seen.T)

    def _seen(self, means: Tensor, clock: Clock, edges: bool, total: tuple[Tensor, Tensor] | None) -> Tensor:
        """Means of the rows that the gates of the strips see."""
        above, ahead = self.tile.above or 0, self.tile.ahead
        if total is None:
            sums = self._sums(means, -above, ahead)
            if not edges:
                return sums / float(above + self.tall + ahead)
            start, end = self._ends(clock, above, ahead)
        else:
            sums = total[0] + (total[1] + self._sums(means, None, ahead))
            if not edges:
                return sums / clock.strip_ends(self.node.output, self.out.rows, self.tall, ahead)
            _, end = self._ends(clock, 0, ahead)
            start = end * 0
        count = end - start
        made = sums / count.clamp(min=1).to(sums.dtype).view(1, 1, -1, 1)
        if not edges or not self.alone:
            return made
        # The first strip has no rows above it, and is seen itself.
        return torch.where((count > 0).view(1, 1, -1, 1), made, self._tiles(means, clock, edges))

    def _own_and_later(self, means: Tensor, clock: Clock, seen: Tensor) -> Tensor:
        """Means of the strips' own rows and of those after them that their gates see."""
        if self.alone:
            return seen
        start, end = self._ends(clock, 0, self.tile.ahead)
        sums = self._sums(means, 0, self.tile.ahead)
        return sums / (end - start).clamp(min=1).to(sums.dtype).view(1, 1, -1, 1)

    def _corrected(self, clock: Clock, own: Tensor, seen: Tensor) -> Tensor:
        """By the numbers of a calibration: strip j by those of strip j."""
        of_own, of_running, offset = self.node.numbers
        assert of_own is not None
        assert offset is not None
        strips = clock.rows(self.node.output, 0, self.out.rows).clamp(0, of_own.shape[1] - 1)
        made = own * of_own.index_select(1, strips) + offset.index_select(1, strips)
        return made if of_running is None else made + seen * of_running.index_select(1, strips)


def _added(means: Tensor, which: Tensor) -> Tensor:
    """Sums (N, C, sums, 1) of rows, by a matrix (rows, sums) of which rows are in which sum."""
    images, channels, rows, _ = means.shape
    return (means.reshape(images, channels, rows) @ which.to(means.dtype)).reshape(images, channels, -1, 1)


def _over_columns(x: Tensor, wide: int, maxima: bool) -> Tensor:
    """Each row over its columns, by tiles of ``wide`` columns of which the last may be narrower.

    By pools where ONNX Runtime keeps the layout in memory for them that convolutions have; else its pools are slow.
    """
    width = x.shape[3]
    pool = F.max_pool2d if maxima else F.avg_pool2d
    full = width // wide * wide
    if wide == 1:
        return x
    if full == width == wide and x.shape[1] % _BLOCK:
        return x.amax(3, keepdim=True) if maxima else x.mean(3, keepdim=True)
    if full == width:
        return pool(x, (1, wide), (1, wide))
    parts = [
        pool(x.narrow(3, 0, full), (1, wide), (1, wide)),
        pool(x.narrow(3, full, width - full), (1, width - full)),
    ]
    return torch.cat(parts, 3)
