"""Run a step on an image on disk, or on the next rows of one, and write its outputs as their rows come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import TiledSEError
from ...files import written_whole
from ..frame_files import FrameRows
from ..frames import words
from ..memory import peak_resident
from ..sources import ImageRows, OutputFile
from .header import Header
from .run import Rows, StepRun


@dataclass(frozen=True)
class Ran:
    """What running a step on an image took.

    Args:
        input_size: (C, H, W) of the image; (C, T) of sound.
        rows: Rows of a step.
        seconds: On the clock, reading and writing included.
        rss_delta_bytes: What resident memory grew by; None where the system does not tell.
        state_bytes: Of the state that a step hands to the next.
        shapes: Of the outputs; None of one that has nothing yet.
        seen: Rows of the image that have come, those before this file among them.
    """

    input_size: tuple[int, ...]
    rows: int
    seconds: float
    rss_delta_bytes: int | None
    state_bytes: int
    shapes: dict[str, tuple[int, ...] | None]
    seen: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "input": list(self.input_size),
            "rows": self.rows,
            "seconds": self.seconds,
            "rss_delta_bytes": self.rss_delta_bytes,
            "state_bytes": self.state_bytes,
            "outputs": {name: None if shape is None else list(shape) for name, shape in self.shapes.items()},
            "seen": self.seen,
        }


def step_files(path: Path, header: Header) -> list[Path]:
    """One file for each output: out.npy, or out.NAME.npy."""
    if len(header.heads) == 1:
        return [path]
    return [path.with_suffix(f".{head.name}{path.suffix}") for head in header.heads]


def run_file(
    run: StepRun,
    image: ImageRows | FrameRows,
    files: Sequence[Path] = (),
    watched: Callable[[Iterator[Tensor], int], Iterator[Tensor]] | None = None,
    first: int | None = None,
    ends: bool = True,
) -> Ran:
    """Run a step on an image, or on the next rows of one.

    Args:
        run: Made for the height of the image; in the middle of it where a state was loaded.
        image: The image.
        files: Files for the outputs, from ``step_files``; none keeps no output.
        watched: Called with the chunks of the image and their number; gives the chunks back as they are read.
        first: The number of the file's first row in the image, where that is to be checked.
        ends: Whether the image ends with this file.

    Raises:
        TiledSEError: the image is another than the step takes, rows are missing or were sent twice, or an output is
            not finite. No output is then written.
    """
    header = run.header
    if (image.channels, image.width) != (header.channels, header.width) or header.images != 1:
        raise TiledSEError(
            f"{image.path} is {image.channels} x {image.height} x {image.width}; the step takes {header.images} "
            f"{words(header.row_shape)[0]} of {header.channels} channels and {header.width} columns"
        )
    chunks = image.chunks(header.rows)
    if watched is not None:
        chunks = watched(chunks, -(-image.height // header.rows))
    shapes = {head.name: list(head.shape) for head in header.heads}
    counts = dict.fromkeys(shapes, 0)
    seen, began = run.seen + image.height, time.perf_counter()
    with peak_resident() as grown, ExitStack() as stack:
        writers: list[_Output] = [_Output(stack, path) for path in files]
        for out in _pushed(run, chunks, first, ends):
            for number, (head, part) in enumerate(zip(header.heads, out.values(), strict=True)):
                if part is None:
                    continue
                if not np.isfinite(part).all():
                    raise TiledSEError(
                        f"output '{head.name}' is not finite; check the weights and the image's numbers"
                    )
                counts[head.name] += 1 if head.row_dim is None else part.shape[head.row_dim]
                if writers:
                    writers[number].put(part, head.row_dim)
        for writer in writers:
            writer.close()
    found: dict[str, tuple[int, ...] | None] = {}
    for head in header.heads:
        if head.row_dim is not None:
            shapes[head.name][head.row_dim] = counts[head.name]
        found[head.name] = tuple(shapes[head.name]) if counts[head.name] else None
    size = image.channels, image.height, *header.row_shape
    ended = time.perf_counter()
    return Ran(size, header.rows, ended - began, grown(), run.state_bytes, found, seen)


def _pushed(run: StepRun, chunks: Iterator[Tensor], first: int | None, ends: bool) -> Iterator[Rows]:
    for rows in chunks:
        yield run.push(rows, first)
        if first is not None:
            first += rows.shape[2]
    if ends:
        yield run.finish()


class _Output:
    """A ``.npy`` file of as many rows as will have come: they are known only at the end. None where nothing comes.

    Rows of an output with its rows not in front lie apart in the file, so they wait in a file of their own.
    """

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.stack, self.path = stack, path
        self.rows: list[tuple[int, ...]] = []
        self.raw: IO[bytes] | None = None
        self.row_dim: int | None = None

    def put(self, part: np.ndarray, row_dim: int | None) -> None:
        """The next rows."""
        if self.raw is None:
            self.part = self.stack.enter_context(written_whole(self.path))
            self.raw = self.stack.enter_context(self.part.with_suffix(".rows").open("w+b"))
            self.stack.callback(self.part.with_suffix(".rows").unlink, missing_ok=True)
        self.row_dim = row_dim
        self.rows.append(part.shape)
        self.dtype = part.dtype
        self.raw.write(np.ascontiguousarray(part).tobytes())

    def close(self) -> None:
        """Put the rows in their places."""
        if self.raw is None:
            return
        shape = list(self.rows[0])
        if self.row_dim is not None:
            shape[self.row_dim] = sum(part[self.row_dim] for part in self.rows)
        self.raw.seek(0)
        with self.part.open("r+b") as file:
            out = OutputFile(file, shape, self.row_dim)
            for part in self.rows:
                count = int(np.prod(part)) * self.dtype.itemsize
                array = np.frombuffer(self.raw.read(count), self.dtype).reshape(part)
                out.put(torch.from_numpy(array.copy()))
            out.close()


__all__ = ["Ran", "Rows", "run_file", "step_files"]
