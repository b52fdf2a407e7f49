"""Sound and clips on disk: ``.npy`` files of features (C, T), or of pixels (C, D, H, W), read in chunks of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TiledSEError, first_line
from .frames import words
from .sources import check_bytes, npy_header, plain_rows


class FrameRows:
    """A ``.npy`` file of frames as chunks of rows (1, C, frames, product of the sides).

    It holds floats as the network takes them: features (C, T), or clips (C, D, H, W); a first axis of one is left out.
    It is read piece by piece, so memory does not grow with its length. An array that was turned about (``x.T``) is
    read as it lies.

    Args:
        path: The file.
        channels: That the network takes.
        sides: Of a frame: () of sound, (H, W) of clips.

    Attributes:
        channels, height, width: Channels, frames, and numbers of a frame for each channel.

    Raises:
        TiledSEError: no such file, or it holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "features.npy"
        >>> np.save(path, np.zeros((80, 70), np.float32))
        >>> sound = FrameRows(path, 80)
        >>> (sound.channels, sound.height, sound.width), [chunk.shape[2] for chunk in sound.chunks(32)]
        ((80, 70, 1), [32, 32, 6])
    """

    def __init__(self, path: str | Path, channels: int, sides: Sequence[int] = ()) -> None:
        self.path, self.channels, self.width = Path(path), channels, prod(sides)
        what, letters = words(sides)[0], ("C, T" if not sides else "C, D, H, W")
        wanted = f"expected .npy of floats ({letters}): ({', '.join(map(str, (channels, 'frames', *sides)))})"
        if not self.path.is_file():
            raise TiledSEError(f"no {what} {path}; {wanted}")
        if self.path.suffix.lower() != ".npy":
            raise TiledSEError(f"{path} is no {what} that can be read; {wanted}")
        try:
            shape, fortran, dtype, offset = npy_header(self.path)
        except Exception as error:  # numpy has several errors for what is no array
            raise TiledSEError(f"cannot read {path}: {first_line(error)}; {wanted}") from error
        got = f"{path} holds {dtype} of {shape}"
        if dtype.kind != "f":
            raise TiledSEError(f"{got}; {wanted}: make the features that the network was trained on")
        shape = shape[1:] if len(shape) == 3 + len(sides) and shape[0] == 1 else shape
        if len(shape) != 2 + len(sides) or shape[0] != channels or tuple(shape[2:]) != tuple(sides):
            turned = not sides and shape[::-1][:1] == (channels,) and len(shape) == 2
            raise TiledSEError(f"{got}; {wanted}" + ("; save its transpose, x.T" if turned else ""))
        if fortran and sides:
            raise TiledSEError(f"{got}, the last axis first; save np.ascontiguousarray(x)")
        self.height = shape[1]
        if self.height < 1:
            raise TiledSEError(f"{got}, which has no frame")
        size = (self.height, self.width, channels)
        check_bytes(self.path, size, dtype.itemsize, self.path.stat().st_size - offset)
        self._rows = plain_rows(self.path, offset, dtype, size, planes=not fortran)

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """(1, C, at most ``rows``, W) each, in float32.

        Raises:
            TiledSEError: the file was cut off.
        """
        try:
            for part in self._rows(rows):
                array: Any = np.array(np.moveaxis(part, 2, 0), np.float32, order="C")
                yield torch.from_numpy(array)[None]
        except (OSError, ValueError) as error:
            raise TiledSEError(f"cannot read {self.path}: {first_line(error)}; is it cut off?") from error
