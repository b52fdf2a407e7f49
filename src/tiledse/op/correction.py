"""The descriptors of row strips after a calibration: a linear map of what each strip knows."""

from __future__ import annotations

from torch import Tensor

from .grids import running


def correct(own: Tensor, height: int, tall: int, numbers: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
    """Descriptors of row strips by the numbers of a calibration.

    Args:
        own: The strips' own means, (N, C, strips, 1).
        height: Rows of the map.
        tall: Rows of a full strip.
        numbers: The factor of the own means, that of the running means (None: they are not used), and what is
            added; each (C, strips, 1).

    Returns:
        (N, C, strips, 1).

    Example:
        >>> import torch
        >>> own = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
        >>> half = torch.full((1, 2, 1), 0.5)
        >>> correct(own, 4, 2, (half, half, 0 * half)).flatten().tolist()
        [1.0, 2.5]
    """
    of_own, of_running, offset = numbers
    descriptors = own * of_own + offset
    return descriptors if of_running is None else descriptors + running(own, height, tall) * of_running
