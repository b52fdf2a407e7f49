"""TiledSqueezeExcite: the operator as a layer, built from scratch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import TiledSEError
from ..tile import Tile
from .excitation import apply
from .functional import tiled_squeeze_excite


class TiledSqueezeExcite(nn.Module):
    """A squeeze-and-excite block with tiles, in the variants of the paper's appendix B.

    Args:
        channels: C, channels of the map.
        reduced: Width between the two convolutions. The paper's R is relative to the width of the block's
            input, so it is a width here, not a ratio.
        tile: The tile, as text or Tile. ``HxW`` makes a plain SE block.
        act: Makes the activation between the convolutions.
        gate: Makes the gate function.
        kernel_size: Of both convolutions over the grid of tiles: 1 (C1x1), 3 (C3x3), or ``(along, across)``
            with (3, 1) for C3x1: 3 along the axis in which the tiles follow each other (rows for kxW and
            patches, columns for Hxk) and 1 across it. Odd; the grid is padded with zeros.
        bias: Whether the convolutions have biases.
        inplace: Write into the map where no gradient is recorded; for a map that nobody else reads.

    Shape:
        (N, C, H, W) to (N, C, H, W), in the memory layout of the input.

    Raises:
        TiledSEError: a width below 1, an even kernel, no tile.

    Example:
        >>> import torch
        >>> block = TiledSqueezeExcite(64, 16, "1xW", kernel_size=(3, 1))
        >>> block(torch.randn(2, 64, 56, 56)).shape
        torch.Size([2, 64, 56, 56])
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        tile: str | Tile = "7xW",
        *,
        act: Callable[[], nn.Module] = nn.ReLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
        kernel_size: int | tuple[int, int] = 1,
        bias: bool = True,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1 or reduced < 1:
            raise TiledSEError(f"expected channels and reduced of at least 1, got {channels} and {reduced}")
        along, across = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        if along % 2 != 1 or across % 2 != 1 or along < 1 or across < 1:
            raise TiledSEError(f"expected an odd kernel_size, such as 1, 3 or (3, 1), got {kernel_size}")
        self.tile, self.inplace = Tile.parse(tile), inplace
        if self.tile.previous:
            raise TiledSEError(
                f"tile {self.tile} keeps a state from frame to frame, which a block built from scratch has not; build "
                "it with HxW, train it, and convert the network"
            )
        columns = self.tile.height is None and self.tile.width is not None
        kernel = (across, along) if columns else (along, across)
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.fc1 = nn.Conv2d(channels, reduced, kernel, padding=padding, bias=bias)
        self.act = act()
        self.fc2 = nn.Conv2d(reduced, channels, kernel, padding=padding, bias=bias)
        self.gate = gate()

    def excite(self, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape."""
        hidden = self.act(apply(self.fc1, descriptors))
        return self.gate(apply(self.fc2, hidden))

    def layers(self) -> tuple[nn.Module, ...] | None:
        """What ``excite`` calls, in order; None for a subclass with an ``excite`` of its own."""
        if type(self).excite is not TiledSqueezeExcite.excite:
            return None
        own = self._modules  # Module's own lookup takes longer
        return own["fc1"], own["act"], own["fc2"], own["gate"]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        inplace = self.inplace and not torch.is_grad_enabled()
        return tiled_squeeze_excite(x, self.excite, self.tile, inplace=inplace)

    def extra_repr(self) -> str:
        """The tile, for print(model)."""
        return f"tile={self.tile}"
