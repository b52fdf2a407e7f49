"""Images of any type of number, made 8-bit by the type's range: the one opener for what becomes a network's input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import TiledSEError

# Bits and kinds of a sample in TIFF (tags BitsPerSample and SampleFormat).
_BITS, _KIND = 258, 339
_SIGNED = 2


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """An image, decoded, whose values a network's preprocessing may take as 0 to 255.

    Pillow turns 16-bit colour to 8 bits by the type's range itself, but cuts 16-bit and 32-bit grey off at 255.

    Args:
        source: The file, or its open bytes.

    Raises:
        TiledSEError: values beyond the range that its type has for an image.
        OSError, ValueError, ...: Pillow's own, for what is no image.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(file, "PNG")
        >>> with opened(file) as image:
        ...     image.mode, list(image.getdata())
        ('L', [0, 128, 255])
    """
    with warnings.catch_warnings():
        # Size and metadata are told in our own words or are no concern of a user's.
        warnings.simplefilter("ignore")
        with Image.open(source) as image:
            image.load()
            yield eight_bits(image)


def eight_bits(image: Image.Image) -> Image.Image:
    """An image whose values are 0 to 255; one that has such values is given back as it is.

    Raises:
        TiledSEError: whole numbers below 0, or other numbers outside of 0 to 1.
    """
    if image.mode == "F":
        return Image.fromarray(_rounded(unit(np.asarray(image))))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_rounded(scaled(image)))
    return image


def scaled(image: Image.Image) -> np.ndarray:
    """A grey image of more than 8 bits, (H, W), as numbers from 0 to 1 of its type's range.

    Raises:
        TiledSEError: whole numbers below 0, or other numbers outside of 0 to 1.
    """
    if image.mode == "F":
        return unit(np.asarray(image))
    values, top = _whole(image)
    return positive(values) / top


def positive(values: np.ndarray) -> np.ndarray:
    """Whole numbers as they are; none may be below 0.

    Raises:
        TiledSEError: one is.
    """
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise TiledSEError(f"it holds {values.min()}; expected whole numbers from 0, or numbers from 0 to 1")
    return values


def unit(values: np.ndarray) -> np.ndarray:
    """Numbers that are no whole ones, as they are: they must lie in 0 to 1, for their type says no range.

    Raises:
        TiledSEError: some lie outside, or are not finite.
    """
    if values.size and not (float(values.min()) >= 0 and float(values.max()) <= 1):
        raise TiledSEError(
            f"it holds numbers from {values.min():g} to {values.max():g}; expected 0 to 1, scale it and save it again"
        )
    return values


def _whole(image: Image.Image) -> tuple[np.ndarray, float]:
    """Values of a grey image of more than 8 bits, and the largest that their type has."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode != "I" or tags is None:  # PNG and PGM have 16 bits, whichever mode Pillow takes for them
        return values, 65535.0
    bits, signed = int(tags.get(_BITS, (16,))[0]), int(tags.get(_KIND, (1,))[0]) == _SIGNED
    if bits == 32 and not signed:
        values = values.view(np.uint32)
    return values, float(2 ** (bits - signed) - 1)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(values, np.float64) * 255).astype(np.uint8)
