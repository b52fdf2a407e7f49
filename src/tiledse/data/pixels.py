"""Images of any type of number, made 8-bit by the type's range: the one opener for what becomes a network's input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import TiledSEError

# What Pillow and its decoders raise for what is no image, or one that is damaged or too large.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

# No compression of pictures makes less than this of an image, but for one that is all of one colour; what is small
# does no harm. A picture that is not compressed has some bits for each of its pixels.
_MOST_PACKED, _SMALL_BYTES = 5000, 1 << 26
_GREY_BITS, _COLOUR_BITS = 1, 12
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}

# Bits and kinds of a sample in TIFF (tags BitsPerSample and SampleFormat).
_BITS, _KIND = 258, 339
_SIGNED = 2


@contextmanager
def decoded(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """An image, decoded by Pillow, its values as the file has them; its size is checked before memory is asked for.

    Args:
        source: The file, or its open bytes.

    Raises:
        TiledSEError: a header that says more than the file can hold.
        OSError, ValueError, ...: ``BROKEN``, for what is no image; also for more than Pillow's limit of 179 million
            pixels.
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        # Size and metadata are told in our own words or are no concern of a user's.
        warnings.simplefilter("ignore")
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        length = file.seek(0, 2)
        file.seek(0)
        image = stack.enter_context(Image.open(file))
        _check_size(image, length)
        image.load()
        yield image


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """An image, decoded, whose values a network's preprocessing may take as 0 to 255.

    Pillow turns 16-bit colour to 8 bits by the type's range itself, but cuts 16-bit and 32-bit grey off at 255.

    Args:
        source: The file, or its open bytes.

    Raises:
        TiledSEError: values beyond the range that its type has for an image; see also ``decoded``.
        OSError, ValueError, ...: ``BROKEN``.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(file, "PNG")
        >>> with opened(file) as image:
        ...     image.mode, list(image.getdata())
        ('L', [0, 128, 255])
    """
    with decoded(source) as image:
        yield eight_bits(image)


def _check_size(image: Image.Image, length: int) -> None:
    """Check the size that a header says against the bytes of the file."""
    pixels = image.width * image.height
    held = pixels * _PIXEL_BYTES.get(image.mode, 4)
    pieces = getattr(image, "tile", ())
    plain = bool(pieces) and all(piece[0] == "raw" for piece in pieces)
    bits = _GREY_BITS if image.mode in ("1", "L", "P") else _COLOUR_BITS
    if held > _SMALL_BYTES and (held > _MOST_PACKED * length or (plain and pixels * bits > 8 * length)):
        raise TiledSEError(
            f"it says that it holds {image.height} x {image.width} pixels (rows x columns), and its {length} bytes "
            "cannot; it was cut off, or its header is damaged"
        )


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
