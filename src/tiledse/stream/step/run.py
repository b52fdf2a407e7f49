"""StepRun: a page of rows through the steps of a network, wherever they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import TiledSEError
from ..frames import as_rows, expected, words
from .clock import UNKNOWN
from .header import Header
from .saved import load_state, next_window, save_state
from .sessions import Session, start_arrays

Rows = dict[str, "np.ndarray | None"]


class StepRun:
    """Takes the rows of an image in any numbers, runs a step whenever it has enough, and gives the outputs' rows.

    After ``finish`` it is ready for the next image.

    Attributes:
        header: What the step says of itself.
        height: Rows of an image; None where it shows when the image ends.
        seen: Rows of the image that have come.
    """

    def __init__(self, session: Session, header: Header, height: int | None, dtype: Any = np.float32) -> None:
        self.session, self.header, self.dtype = session, header, np.dtype(dtype)
        self.height = header.height if height is None else height
        if self.height is not None:
            self._check_height(self.height)
        self._begin()

    def _begin(self) -> None:
        header = self.header
        self._state = self.session.state(start_arrays(header, self.dtype))
        self._window = np.zeros((header.images, header.channels, header.window, header.width), self.dtype)
        self._next = header.begin  # the number of the first row of the window
        self.seen = 0
        self._ended = self._broken = False
        self._given = [False] * len(header.heads)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state that a step hands to the next."""
        return self.header.state_elements * self.dtype.itemsize

    def push(self, rows: Any, start: int | None = None) -> Rows:
        """Take the next rows of the image.

        Args:
            rows: (N, C, any number of rows, W), of sound (N, C, any number of frames): an array or a tensor.
            start: The number of the first of them, if the source counts its rows: a dropped row is noticed.

        Returns:
            By output, its new rows; None where there are none. Where the height is known, the last ones come with
            the last rows of the image.

        Raises:
            TiledSEError: rows of another shape or type, rows that are not finite, more rows than the image has, or a
                row was dropped or sent twice. The state is then as it was.
        """
        part = self._checked(rows, start)
        self._broken = True  # until all of it is through: what stops half-way cannot be taken back
        gathered: list[list[np.ndarray]] = [[] for _ in self.header.heads]
        top = 0
        while top < part.shape[2]:
            held = self.seen - self._next  # below 0 where no step reads the next rows
            count = min(self.header.window - held, part.shape[2] - top)
            if held + count > 0:
                there = max(0, -held)
                self._window[:, :, held + there : held + count] = part[:, :, top + there : top + count]
            top += count
            self.seen += count
            if held + count == self.header.window:
                self._step(gathered)
        if self.seen == self.height:
            self._drain(gathered)
        self._broken = False
        return self._joined(gathered)

    def finish(self) -> Rows:
        """End the image, and give the rows that waited for that.

        Raises:
            TiledSEError: there were fewer rows than the image has, none at all, or a height that the network does not
                take. The state is then as it was.
        """
        self._alive()
        what, rows = words(self.header.row_shape)
        if self.seen == 0:
            raise TiledSEError(f"the {what} ended before its first {rows[:-1]}; push {rows} first")
        if self.height is not None and self.seen != self.height:
            raise TiledSEError(
                f"the {what} ended after {self.seen} {rows}, expected {self.height}; push the missing {rows}, or leave "
                "the height out"
            )
        self._check_height(self.seen)
        gathered: list[list[np.ndarray]] = [[] for _ in self.header.heads]
        self._broken = True
        if not self._ended:
            self._drain(gathered)
        self._begin()
        return self._joined(gathered)

    def run(self, chunks: Iterable[Any]) -> Iterator[Rows]:
        """Stream an image that comes in chunks of rows: one result for each chunk that gives any."""
        for rows in chunks:
            out = self.push(rows)
            if any(part is not None for part in out.values()):
                yield out
        out = self.finish()
        if any(part is not None for part in out.values()):
            yield out

    def __call__(self, image: Any) -> dict[str, np.ndarray]:
        """Stream an image that is there as a whole: each output as a whole."""
        gathered: dict[str, list[np.ndarray]] = {head.name: [] for head in self.header.heads}
        for out in self.run([image]):
            for name, part in out.items():
                if part is not None:
                    gathered[name].append(part)
        dims = {head.name: head.row_dim or 0 for head in self.header.heads}
        return {name: np.concatenate(parts, dims[name]) for name, parts in gathered.items()}

    def save(self, path: str | Path) -> None:
        """Write the state between two pushes to a safetensors file; ``load`` goes on from it, in any runtime.

        Raises:
            TiledSEError: the file cannot be written.
        """
        self._alive()
        arrays = self.session.arrays(self._state)
        stop = 0 if self._ended else max(0, self.seen - self._next)
        waiting = self._window[:, :, max(0, -self._next) : stop]
        save_state(Path(path), self.header, arrays, waiting, self.seen, self.height, self._given)

    def load(self, path: str | Path) -> None:
        """Go on from a saved state.

        Raises:
            TiledSEError: no state, or that of another step. The run is then as it was.
        """
        saved = load_state(Path(path), self.header, self.dtype, self.height)
        state = self.session.state(saved.arrays)
        self._begin()
        self._state, self.seen = state, saved.seen
        self._next = next_window(self.header, saved.seen)
        held = saved.seen - self._next
        self._window[:, :, held - saved.waiting.shape[2] : held] = saved.waiting
        self._ended, self._given = saved.ended, list(saved.given)

    def _step(self, gathered: list[list[np.ndarray]], ended: bool = False) -> bool:
        """Run one step; whether rows are still to come."""
        header = self.header
        height = self.seen if ended else UNKNOWN if self.height is None else self.height
        middle = not ended and self._next >= header.middle_from + header.begin
        outputs, table, self._state = self.session.run(
            self._window.reshape(header.window_shape), self._next, height, self._state, middle
        )
        self._next += header.rows
        # What the next step is given once more. Its other rows come, or are zeros after the end.
        again = max(0, header.window - header.rows)
        self._window[:, :, :again] = self._window[:, :, header.window - again :].copy()
        for number, (head, rows) in enumerate(zip(header.heads, outputs)):
            low, high, _ = (int(n) for n in table[number])
            if high > low and not self._given[number]:
                if head.row_dim is None:
                    self._given[number] = True
                    gathered[number].append(rows.copy())
                else:
                    cut = (slice(None),) * head.row_dim + (slice(low, high),)
                    gathered[number].append(rows[cut].copy())
        return bool(table[:, 2].any())

    def _drain(self, gathered: list[list[np.ndarray]]) -> None:
        """Steps without new rows of the image, until all outputs have all of theirs."""
        most = 2 + -(-self.header.latency // self.header.rows) + self.header.middle_from // self.header.rows
        for _ in range(most):
            self._window[:, :, max(0, self.seen - self._next) :] = 0
            if not self._step(gathered, ended=True):
                self._ended = True
                return
        raise TiledSEError("the step does not end; its file was changed, export it again")

    def _joined(self, gathered: list[list[np.ndarray]]) -> Rows:
        found: Rows = {}
        for head, parts in zip(self.header.heads, gathered):
            found[head.name] = (
                None
                if not parts
                else parts[0]
                if len(parts) == 1
                else np.concatenate(parts, head.row_dim or 0)
            )
        return found

    def _alive(self) -> None:
        if self._broken:
            raise TiledSEError(
                "this run was interrupted in the middle of a push and its state is lost; load a saved state, or make "
                "it new"
            )

    def _check_height(self, height: int) -> None:
        header = self.header
        what, rows = words(header.row_shape)
        if not header.least <= height < UNKNOWN:
            raise TiledSEError(
                f"{height} {rows} cannot go through this step: it takes {what}s of {header.least} to {UNKNOWN - 1} "
                f"{rows}"
            )
        if height % header.multiple:
            raise TiledSEError(
                f"this network takes {rows} in multiples of {header.multiple}, got {height}; pad the {what}"
            )
        if header.height not in (None, height):
            raise TiledSEError(
                f"the step was made for {what}s of {header.height} {rows}, got {height}; export it for any length "
                "(--any-height, height=None), or for this one"
            )

    def _checked(self, rows: Any, start: int | None) -> np.ndarray:
        self._alive()
        header = self.header
        detach = getattr(rows, "detach", None)
        whole, some = words(header.row_shape)
        given: Any = rows if detach is None else detach().cpu().numpy()
        part: Any = as_rows(given, header.row_shape)
        size = (header.images, header.channels, header.width)
        if not isinstance(part, np.ndarray) or part.ndim != 4 or (*part.shape[:2], part.shape[3]) != size:
            got = given.shape if isinstance(given, np.ndarray) else type(rows).__name__
            raise TiledSEError(
                f"{some} {self.seen} and on: expected {expected(*size[:2], header.row_shape)}, "
                f"got {got}; all have the size and the channels that the step was made for"
            )
        if start is not None and start != self.seen:
            what = "dropped" if start > self.seen else "sent twice"
            raise TiledSEError(
                f"expected {some[:-1]} {self.seen} next, got {some[:-1]} {start}: {abs(start - self.seen)} {what}"
            )
        most = UNKNOWN - 1 if self.height is None else self.height
        if self.seen + part.shape[2] > most:
            raise TiledSEError(
                f"{self.seen + part.shape[2]} {some} came, the {whole} has {most} at the most; finish() ends it"
            )
        if part.dtype != self.dtype:
            raise TiledSEError(
                f"expected {some} of {self.dtype}, got {part.dtype}; scale and normalise integers as the network wants "
                "them"
            )
        # A sum is one pass without memory; only where it is not finite is each value looked at.
        with np.errstate(all="ignore"):
            total = part.sum(dtype=self.dtype)
        if not np.isfinite(total) and not np.isfinite(part).all():
            bad = np.argwhere(~np.isfinite(part))[0].tolist()
            raise TiledSEError(
                f"{some[:-1]} {self.seen + bad[2]} holds a value that is not finite (column {bad[3]}, channel {bad[1]})"
            )
        return part
