"""What a pool that counts its padding is multiplied by, so that it gives means.

``emit.py`` writes these numbers, and ``descriptors.py`` expects them.
"""

from __future__ import annotations

import numpy as np

# The last two axes changed over: about the product that gives running means.
SWAPPED = (0, 1, 3, 2)


def correction(sides: tuple[int | None, int | None], height: int, width: int) -> np.ndarray:
    """What a pool that counts its padding is multiplied by, (1, 1, rows, cols): full tile / elements there.

    Example:
        >>> correction((4, None), 10, 1).reshape(-1).tolist()
        [1.0, 1.0, 2.0]
    """

    def along(side: int | None, length: int) -> np.ndarray:
        if side is None:
            return np.ones(1)
        return side / np.diff(_ends(side, length), prepend=0)

    return (along(sides[0], height)[:, None] * along(sides[1], width)[None, :])[None, None]


def running_means(tall: int, height: int) -> np.ndarray:
    """The matrix, (strips, strips), from what a pool that counts its padding gives of strips to running means.

    Row by row on the left: ``pooled @ matrix``.

    Example:
        >>> running_means(4, 10).tolist()
        [[1.0, 0.5, 0.4], [0.0, 0.5, 0.4], [0.0, 0.0, 0.4]]
    """
    ends = _ends(tall, height)
    return np.triu(np.ones((len(ends), len(ends)))) * (tall / ends)


def _ends(side: int, length: int) -> np.ndarray:
    """Where each tile along an axis ends."""
    return np.minimum(np.arange(1, -(-length // side) + 1) * side, length)
