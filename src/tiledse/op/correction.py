"""The descriptors of row strips after a calibration: a linear map of what each strip knows."""

from __future__ import annotations

from torch import Tensor

from ..tile import Tile
from .functional import squeeze
from .grids import running
from .sliding import by_rows, own_of, seen

_ROWS = Tile(1, None)


def known(x: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """What each row strip knows of its map: the mean over ``Tile.own_bounds``, and that over ``Tile.bounds``.

    Args:
        x: Map, (N, C, H, W).
        tile: Strips of rows.

    Returns:
        Two of (N, C, strips, 1); the same for strips that see only their own rows.

    Example:
        >>> import torch
        >>> own, seen = known(torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1), Tile.parse("1xW:running+1"))
        >>> own.flatten().tolist(), seen.flatten().tolist()
        ([2.0, 4.0, 5.0], [2.0, 3.0, 3.0])
    """
    height = int(x.shape[2])
    if by_rows(tile, height):
        rows = squeeze(x, _ROWS)
        return own_of(rows, tile), seen(rows, tile)
    tall, _ = tile.size(height, 1)
    own = squeeze(x, Tile(tall, None))
    return own, running(own, height, tall) if tile.slides else own


def correct(x: Tensor, tile: Tile, numbers: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
    """Descriptors of row strips by the numbers of a calibration.

    Args:
        x: Map, (N, C, H, W).
        tile: Strips of rows.
        numbers: The factor of the mean of a strip's own rows, that of the mean of the rows seen (None: it is not
            used), and what is added; each (C, strips, 1).

    Returns:
        (N, C, strips, 1).

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 1.0, 3.0, 3.0]).view(1, 1, 4, 1)
        >>> half = torch.full((1, 2, 1), 0.5)
        >>> correct(x, Tile.parse("2xW:running"), (half, half, 0 * half)).flatten().tolist()
        [1.0, 2.5]
    """
    of_own, of_seen, offset = numbers
    own, rows_seen = known(x, tile)
    descriptors = own * of_own + offset
    return descriptors if of_seen is None else descriptors + rows_seen * of_seen
