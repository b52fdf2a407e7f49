"""The matrix from means of strips to running means: ``emit.py`` writes it, and ``descriptors.py`` expects it."""

from __future__ import annotations

import numpy as np

# The last two axes changed over: about the product that gives running means.
SWAPPED = (0, 1, 3, 2)


def running_means(tall: int, height: int) -> np.ndarray:
    """The matrix, (strips, strips), from means of strips to means of all rows down to each strip's end.

    Row by row on the left: ``means @ matrix``.

    Example:
        >>> running_means(4, 10).tolist()
        [[1.0, 0.5, 0.4], [0.0, 0.5, 0.4], [0.0, 0.0, 0.2]]
    """
    ends = np.minimum(np.arange(1, -(-height // tall) + 1) * tall, height)
    rows = np.diff(ends, prepend=0)
    return np.triu(rows[:, None] / ends[None, :])
