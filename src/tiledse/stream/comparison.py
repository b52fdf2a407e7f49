"""Stream an image, compare the outputs with those of the whole image, and weigh both in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..cost import cost
from ..errors import TiledSEError
from ..files import written_whole
from .executor import Stream
from .flow import Held, first_output
from .frames import row_shape
from .heights import heights_at, sized_plan
from .memory import peak_resident
from .sources import OutputFile
from .step.stream import StepStream


class Rows(Protocol):
    """An image that comes in rows: ``sources.ImageRows``, or ``RandomRows``."""

    @property
    def channels(self) -> int:
        """Of the image."""

    @property
    def height(self) -> int:
        """Rows of the image."""

    @property
    def width(self) -> int:
        """Columns of the image."""

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """(1, C, at most ``rows``, W) each, from the first row to the last."""


@dataclass(frozen=True)
class RandomRows:
    """An image of random numbers, the same at each reading."""

    channels: int
    height: int
    width: int

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """(1, C, at most ``rows``, W) each."""
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.height, rows):
            yield torch.randn(
                1, self.channels, min(rows, self.height - start), self.width, generator=generator
            )


@dataclass(frozen=True)
class Streamed:
    """What streaming one image gave.

    Args:
        input_size: (C, H, W) of the image; (C, T) of sound, (C, D, H, W) of a clip.
        rows: Rows at a time.
        held: What each layer holds where rows come one by one.
        whole: Layers that are not local in rows, and the elements that each waits for.
        gate_buffer: Elements that the gates hold by the closed form of ``cost``, in row order.
        peak_live_bytes: Most bytes of rows that were alive at once.
        rss_delta_bytes: What resident memory grew by while streaming; None where the system does not tell.
        full_rss_delta_bytes: The same for the whole image; None where that was not run.
        max_rel_error: Largest difference from the outputs of the whole image, relative to the largest output; None
            where that was not run.
        first_output: Rows of the image after which the first row of an output is known.
    """

    input_size: tuple[int, ...]
    rows: int
    held: list[Held]
    whole: dict[str, int]
    gate_buffer: int
    peak_live_bytes: int
    rss_delta_bytes: int | None
    full_rss_delta_bytes: int | None
    max_rel_error: float | None
    first_output: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of ``stream``."""
        return {
            "input": list(self.input_size),
            "max_rel_error": self.max_rel_error,
            "peak_live_bytes": self.peak_live_bytes,
            "rss_delta_bytes": self.rss_delta_bytes,
            "full_rss_delta_bytes": self.full_rss_delta_bytes,
            "held": [dict(vars(item)) for item in self.held],
            "gate_buffer": sum(item.elements for item in self.held if item.kind == "gate"),
            "cost_buffer_row_order": self.gate_buffer,
            "whole": self.whole,
            "first_output_after": self.first_output,
        }


def stream_image(
    s: Stream | StepStream,
    image: Rows,
    *,
    whole: Callable[[], nn.Module] | None = None,
    outputs: Sequence[Path] = (),
    name: str = "the network",
    watched: Callable[[Iterator[Tensor], int], Iterator[Tensor]] | None = None,
) -> Streamed:
    """Stream an image once, and say what it took.

    Args:
        s: The stream, made for the height and width of the image.
        image: The image.
        whole: Makes the network with the same tiles, which is run on the whole image to compare with, such as
            ``Network.tiled``; None leaves that out.
        outputs: Files for the outputs of the network, from ``output_files``; none keeps no output.
        name: What messages call the network.
        watched: Called with the chunks of the image and their number; gives the chunks back as they are read.

    Raises:
        TiledSEError: an output is not finite, the image cannot be read, or the network takes no image of this size
            as a whole.
    """
    count = -(-image.height // s.rows)
    sides = row_shape(s.plan)
    size = image.channels, image.height, *(sides if len(sides) != 1 else (image.width,))
    if isinstance(s, Stream):
        # What torch loads at its first call of each operator is not the stream's.
        few = torch.zeros(1, image.channels, min(image.height, 2 * s.rows), image.width)
        Stream(s.graph, s.plan, s.height, s.rows).push(few)
    error = full = None
    tse = None if whole is None else whole()
    check = getattr(tse, "check_size", None)  # of files, which may be of one size
    if check is not None:
        check(size)
    with TemporaryDirectory() as folder:
        # Outputs that are kept for the comparison lie in files: in memory they would count as the stream's.
        kept = outputs or (() if tse is None else output_files(Path(folder, "out.npy"), s))
        gc.collect()
        with peak_resident() as grown:
            chunks = image.chunks(s.rows)
            _run(s, chunks if watched is None else watched(chunks, count), kept, image.height)
        if tse is not None:
            gc.collect()
            with peak_resident() as whole_grown:
                expected = _whole(tse, image, s.rows, size)
            full = whole_grown()
            # numpy, whose maximum of something and nan is nan.
            error = float(np.max([_difference(*pair) for pair in zip(kept, expected, strict=True)]))
            if not np.isfinite(error):
                raise TiledSEError(
                    f"{name} gives outputs that are not finite on this image; check its weights (--weights) and "
                    "how the image is normalised"
                )
    unknown = None if s.height is not None else image.height
    closed = cost(sized_plan(s.plan, s.graph, unknown)).tse.buffer_row_order
    first = first_output(s.graph, unknown)
    return Streamed(
        size, s.rows, s.held(unknown), s.whole, closed, s.peak_live_bytes, grown(), full, error, first
    )


def output_files(path: Path, s: Stream | StepStream) -> list[Path]:
    """One file for each output of the network: out.npy, or out.0.npy, out.1.npy, ..."""
    count = len(s.graph.outputs)
    return [path] if count == 1 else [path.with_suffix(f".{i}{path.suffix}") for i in range(count)]


def _run(s: Stream | StepStream, chunks: Iterator[Tensor], files: Sequence[Path], height: int) -> None:
    """Stream, and write outputs as their rows come."""
    values, heights = [s.graph.values[i] for i in s.graph.outputs], heights_at(s.graph, height)
    with ExitStack() as stack:
        open_files: list[OutputFile] = []
        for path, value, index in zip(files, values, s.graph.outputs):
            shape = list(value.shape)
            if value.row_dim is not None:
                shape[value.row_dim] = heights[index]
            part = stack.enter_context(written_whole(path))
            file: IO[bytes] = stack.enter_context(part.open("r+b"))
            open_files.append(OutputFile(file, shape, value.row_dim))
        for out in s.run(chunks):
            for i, leaf in enumerate(torch.utils._pytree.tree_flatten(out, is_leaf=lambda x: x is None)[0]):
                if leaf is None:
                    continue
                if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
                    raise TiledSEError(
                        f"output {i} of the network is not finite; check its weights and the image's numbers"
                    )
                if open_files:
                    open_files[i].put(leaf)
        for open_file in open_files:
            open_file.close()


def _whole(model: nn.Module, image: Rows, rows: int, size: Sequence[int]) -> list[Tensor]:
    """The outputs of the whole image at once, which is filled with its rows so as to be there only once."""
    filled, row = torch.empty(1, image.channels, image.height, image.width), 0
    for chunk in image.chunks(rows):
        filled[:, :, row : row + chunk.shape[2]] = chunk
        row += chunk.shape[2]
    with torch.no_grad():
        return torch.utils._pytree.tree_flatten(model(filled.reshape(1, *size)))[0]


def _difference(file: Path, expected: Tensor) -> float:
    """The largest difference of what was written from an output, relative to the output's largest value."""
    written = torch.from_numpy(np.load(file))
    return float((written - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
