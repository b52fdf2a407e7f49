"""Images on disk, read in chunks of rows; and outputs written to disk as their rows come.

Files are read and written piece by piece with plain reads, not memory maps: what was mapped would stay resident.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..data.pixels import decoded, positive, scaled, unit
from ..errors import TiledSEError, first_line
from ..extras import missing
from ..files import written_whole

_FORMATS = ".npy, .tif/.tiff, or a format that Pillow reads (which decodes it as a whole)"


class ImageRows:
    """An image file as chunks of rows.

    ``.npy`` holds (H, W), (H, W, C) or (C, H, W) with fewer channels than rows and columns. ``.tif`` is read with
    tifffile, by its strips, its tiles or, uncompressed, any rows. Others are decoded as a whole by Pillow.

    Args:
        path: The file.
        mean: Subtracted by channel after scaling.
        std: Divided by, by channel.
        dtype: Of the rows given.

    Attributes:
        channels, height, width: Of the image.

    Raises:
        TiledSEError: no such file, or no image that can be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "image.npy"
        >>> np.save(path, np.zeros((70, 8, 3), np.uint8))
        >>> image = ImageRows(path)
        >>> (image.channels, image.height, image.width), [chunk.shape[2] for chunk in image.chunks(32)]
        ((3, 70, 8), [32, 32, 6])
    """

    def __init__(
        self,
        path: str | Path,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.path, self.mean, self.std, self.dtype = Path(path), mean, std, dtype
        if not self.path.is_file():
            raise TiledSEError(f"no image {path}; expected {_FORMATS}")
        read = {".npy": _read_npy, ".tif": _read_tiff, ".tiff": _read_tiff}.get(
            self.path.suffix.lower(), _read_pillow
        )
        try:
            with _quiet():
                self.height, self.width, self.channels, self._rows = read(self.path)
        except TiledSEError as error:
            named = str(self.path) in str(error)
            raise TiledSEError(str(error) if named else f"image {path}: {error}") from error
        except Exception as error:  # each library has its own errors for what is no image
            raise TiledSEError(
                f"cannot read image {path}: {type(error).__name__}: {first_line(error)}; expected {_FORMATS}"
            ) from error

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """(1, C, at most ``rows``, W) each: integers scaled by their type's largest value, then normalised.

        Raises:
            TiledSEError: the file is damaged, holds integers below 0, or, where there is a mean to be subtracted, other
                numbers outside of 0 to 1.
        """
        try:
            seen = 0
            for part in self._rows(rows):
                seen += part.shape[0]
                if part.shape[1:] != (self.width, self.channels) or seen > self.height:
                    raise ValueError(
                        f"row {seen} is {part.shape[1:]}, expected {(self.width, self.channels)}"
                    )
                if part.dtype.kind == "i":
                    positive(part)
                elif part.dtype.kind == "f" and self.mean is not None:
                    unit(part)
                x = torch.from_numpy(np.array(np.moveaxis(part, 2, 0), order="C"))[None]
                top = np.iinfo(part.dtype).max if part.dtype.kind in "ui" else None
                x = x.to(self.dtype) if top is None else x.to(self.dtype) / top
                if self.mean is not None:
                    x = x - torch.tensor(self.mean, dtype=self.dtype)[:, None, None]
                if self.std is not None:
                    x = x / torch.tensor(self.std, dtype=self.dtype)[:, None, None]
                yield x
            if seen != self.height:
                raise ValueError(f"{seen} rows came, expected {self.height}")
        except TiledSEError as error:
            raise TiledSEError(f"image {self.path}: {error}") from error
        except Exception as error:  # what decodes has its own errors for each kind of damage
            raise TiledSEError(
                f"cannot read image {self.path}: {first_line(error)}; is it cut off?"
            ) from error


def plain_rows(
    path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, int, int], planes: bool
) -> Any:
    """Rows by plain reads: (H, W, C) in one run, or (C, H, W) plane after plane."""
    height, width, channels = shape

    def rows(count: int) -> Iterator[np.ndarray]:
        line = width * dtype.itemsize * (1 if planes else channels)
        with path.open("rb") as file:
            for start in range(0, height, count):
                now = min(count, height - start)
                parts = []
                for plane in range(channels if planes else 1):
                    file.seek(offset + (plane * height + start) * line)
                    data = file.read(now * line)
                    if len(data) < now * line:
                        raise EOFError(f"row {start} is not complete")
                    parts.append(np.frombuffer(data, dtype).reshape(now, width, -1))
                part = np.concatenate(parts, 2) if planes else parts[0]
                yield part.astype(dtype.newbyteorder("="), copy=False)

    return rows


def npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the first axis changes fastest, type, and where the numbers begin."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0(file)
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0(file)
        )
        shape, fortran, dtype = header
        return shape, fortran, dtype, file.tell()


def _read_npy(path: Path) -> tuple[int, int, int, Any]:
    shape, fortran, dtype, offset = npy_header(path)
    if fortran or dtype.kind not in "uif" or len(shape) not in (2, 3):
        raise TiledSEError(
            f"{path} holds {dtype} of shape {shape}; expected numbers of (H, W), (H, W, C) or (C, H, W)"
        )
    planes = len(shape) == 3 and shape[0] < min(shape[1:])
    height, width, channels = (*shape, 1) if len(shape) == 2 else (*shape[1:], shape[0]) if planes else shape
    check_bytes(path, (height, width, channels), dtype.itemsize, path.stat().st_size - offset)
    return height, width, channels, plain_rows(path, offset, dtype, (height, width, channels), planes)


def _read_tiff(path: Path) -> tuple[int, int, int, Any]:
    try:
        import tifffile
    except ImportError as error:
        raise missing(f"reading {path} needs", "tifffile", error=error) from error
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        if page.planarconfig == 2 and channels > 1:
            raise TiledSEError(f"{path} keeps its channels in planes; write it with interleaved channels")
        if page.is_memmappable:
            size = (height, width, channels)
            check_bytes(path, size, np.dtype(page.dtype).itemsize, path.stat().st_size - page.dataoffsets[0])
            dtype = np.dtype(page.dtype).newbyteorder(tiff.byteorder)
            return height, width, channels, plain_rows(path, page.dataoffsets[0], dtype, size, False)
        _check_pieces(path, page)

    def rows(count: int) -> Iterator[np.ndarray]:
        """Strips, or rows of tiles, decoded one after the other."""
        with _quiet(), tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            band: dict[int, list[tuple[int, np.ndarray]]] = {}
            for data, place, _ in page.segments(maxworkers=1, buffersize=1 << 20):
                row, col = place[-3], place[-2]
                if data is None:
                    raise EOFError(f"the piece at row {row} is missing")
                band.setdefault(row, []).append((col, data[0, : height - row, : width - col]))
                pieces = band[row]
                if sum(p.shape[1] for _, p in pieces) >= width:
                    whole = np.concatenate([p for _, p in sorted(band.pop(row), key=lambda item: item[0])], 1)
                    for start in range(0, len(whole), count):
                        yield whole[start : start + count]

    return height, width, channels, rows


def check_bytes(path: Path, size: tuple[int, int, int], itemsize: int, there: int) -> None:
    """Check a size that a header says against the bytes that there are, before anything is made of that size."""
    if min(size) < 1 or size[0] * size[1] * size[2] * itemsize > there:
        raise TiledSEError(
            f"{path} says that it holds {size[0]} x {size[1]} x {size[2]} numbers of {itemsize} bytes, and "
            f"{max(there, 0)} bytes are there; it was cut off, or its header is damaged"
        )


# No compression that TIFF has makes less than this of an image, but for one that is all of one colour.
_MOST_PACKED, _SMALL_BYTES = 5000, 1 << 26


def _check_pieces(path: Path, page: Any) -> None:
    """Check the strips or tiles of a compressed TIFF against the file: where they lie, and how large they would be."""
    length, counts = path.stat().st_size, page.databytecounts
    expected = int(np.prod(page.chunked, dtype=object))
    piece = int(np.prod(page.chunks, dtype=object)) * np.dtype(page.dtype).itemsize
    ends = [start + count for start, count in zip(page.dataoffsets, counts)]
    lies = len(ends) != expected or not ends or max(ends) > length or min(page.shape) < 1
    if lies or (piece > _SMALL_BYTES and piece > _MOST_PACKED * max(counts)):
        raise TiledSEError(
            f"{path} says that it holds {page.imagelength} x {page.imagewidth} pixels in {expected} pieces, and its "
            f"{length} bytes cannot; it was cut off, or its header is damaged"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without tifffile's own lines about a damaged file: what is wrong with it is said once, by us."""
    logger = logging.getLogger("tifffile")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read_pillow(path: Path) -> tuple[int, int, int, Any]:
    with decoded(path) as image:
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            # More than 8 bits: Pillow's own conversion would cut them off at 255.
            pixels = np.repeat(scaled(image).astype(np.float32)[:, :, None], 3, 2)
        else:
            pixels = np.asarray(image.convert("RGB"))

    def rows(count: int) -> Iterator[np.ndarray]:
        for start in range(0, len(pixels), count):
            yield pixels[start : start + count]

    return (*pixels.shape, rows)


def write_rows(path: str | Path, shape: Sequence[int], row_dim: int | None, parts: Iterator[Tensor]) -> None:
    """Write an output to a ``.npy`` file as its rows come; the file is there when all of them are.

    Args:
        path: The file.
        shape: Of the whole output.
        row_dim: The axis of the rows; None where the output comes in one piece.
        parts: The rows, in order.

    Raises:
        TiledSEError: the file cannot be written, or the rows are not as many as the shape says.
    """
    with written_whole(path) as target, target.open("r+b") as file:
        OutputFile(file, shape, row_dim).take(parts)


class OutputFile:
    """An open ``.npy`` file that rows are written into, each at its place in the whole array."""

    def __init__(self, file: IO[bytes], shape: Sequence[int], row_dim: int | None) -> None:
        self.file, self.shape, self.row_dim = file, tuple(shape), row_dim
        self.row = self.offset = 0

    def put(self, rows: Tensor) -> None:
        """The next rows."""
        array = rows.detach().cpu().numpy()
        if not self.offset:
            header = {
                "descr": np.lib.format.dtype_to_descr(array.dtype),
                "fortran_order": False,
                "shape": self.shape,
            }
            np.lib.format.write_array_header_1_0(self.file, header)
            self.offset = self.file.tell()
        dim = 0 if self.row_dim is None else self.row_dim
        outer = int(np.prod(self.shape[:dim]))
        blocks = np.ascontiguousarray(array).reshape(outer, -1)
        line = int(np.prod(self.shape[dim + 1 :])) * array.itemsize
        for index, block in enumerate(blocks):
            self.file.seek(self.offset + (index * self.shape[dim] + self.row) * line)
            self.file.write(block.tobytes())
        self.row += array.shape[dim]

    def take(self, parts: Iterator[Tensor]) -> None:
        """All rows, and check that none is missing."""
        for part in parts:
            self.put(part)
        self.close()

    def close(self) -> None:
        """Check that all rows came."""
        rows = self.shape[0 if self.row_dim is None else self.row_dim]
        if self.row != rows:
            raise TiledSEError(f"{self.row} rows of output came, expected {rows}; nothing was written")
