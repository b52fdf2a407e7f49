"""RowBuffer: the rows of one value that somebody still needs."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class RowBuffer:
    """Rows as they came, in pieces, of which the first are dropped when nobody needs them.

    Args:
        dim: The axis of the rows; None for a value that comes as one piece.
    """

    def __init__(self, dim: int | None) -> None:
        self.dim = dim
        self.pieces: deque[tuple[int, Tensor]] = deque()
        self.bytes = 0
        self._none: Tensor | None = (
            None  # no rows, in the shape of rows: what a window wholly in the padding reads
        )

    def append(self, start: int, rows: Tensor) -> None:
        """Rows from ``start`` on."""
        if self._none is None and self.dim is not None:
            self._none = rows.narrow(self.dim, 0, 0).clone()
        self.pieces.append((start, rows))
        self.bytes += rows.nbytes

    def read(self, low: int, high: int) -> Tensor:
        """Rows low to high; without a copy where they lie in one piece."""
        if self.dim is None:
            return self.pieces[0][1]
        parts = []
        for start, rows in self.pieces:
            end = start + rows.shape[self.dim]
            if end > low and start < high:
                first = max(low, start)
                parts.append(rows.narrow(self.dim, first - start, min(high, end) - first))
        if not parts:
            assert self._none is not None
            return self._none
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def drop(self, row: int) -> None:
        """Forget rows before ``row``. Of a piece of which little is left, that is copied and the rest freed."""
        while self.pieces:
            start, rows = self.pieces[0]
            count = 1 if self.dim is None else rows.shape[self.dim]
            if start + count <= row:
                self.pieces.popleft()
                self.bytes -= rows.nbytes
                continue
            if row > start and self.dim is not None and (row - start) * 2 >= count:
                kept = rows.narrow(self.dim, row - start, start + count - row).clone()
                self.bytes += kept.nbytes - rows.nbytes
                self.pieces[0] = (row, kept)
            return
