"""The excitation of a block, by running its own forward on descriptors in place of the map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ..errors import TiledSEError
from .gating import Form, Gating, form_of
from .valid import own_call


class NotItsMap(TiledSEError):
    """What a forward gives back is something else than its map times a gate."""


@dataclass(frozen=True)
class OwnForward:
    """Descriptors to gates, by the block's own forward.

    Each tile becomes an image of one pixel, which is its own mean, so that no step of the forward can mix tiles. What
    the forward reads (attributes, the training mode) it reads at each call, as it does in the block.

    Args:
        nhwc: Whether the block takes maps with channels last, (N, H, W, C).
        axes: Axes of its maps behind the channels.
        alone: How its forward is called on a map alone.

    Example:
        >>> import torch
        >>> class Gate(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(8, 8)
        ...     def forward(self, x):
        ...         return x * self.layer(x.mean((2, 3))).sigmoid()[:, :, None, None]
        >>> block, z = Gate(), torch.randn(2, 8, 4, 1)
        >>> gates = OwnForward()(block, z)
        >>> torch.allclose(gates[:, :, 3, 0], block.layer(z[:, :, 3, 0]).sigmoid(), atol=1e-6)
        True
    """

    nhwc: bool = False
    axes: int = 2
    alone: Callable[[nn.Module, Tensor], Any] = own_call

    def __call__(self, block: nn.Module, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape.

        Raises:
            NotItsMap: the forward does not give back its map times a gate.
            TiledSEError: torch.fx traces it.
        """
        if isinstance(descriptors, fx.Proxy):
            raise TiledSEError(
                "torch.fx cannot trace the own forward of an SE block whose class is not registered; register a "
                "dialect for it (ts.register_dialect), or use torch.export or torch.jit.trace"
            )
        n, channels, rows, cols = descriptors.shape
        pixels = descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, *(1,) * self.axes, channels)
        pixels = pixels if self.nhwc else pixels.movedim(-1, 1)
        gates = self._gates(block, pixels)
        gates = gates.expand(pixels.shape).reshape(n, rows, cols, channels)
        return gates.permute(0, 3, 1, 2)

    def _gates(self, block: nn.Module, pixels: Tensor) -> Tensor:
        forms = [Form(pixels)]
        with Gating(forms):
            out = self.alone(block, pixels)
        form = form_of(forms, out)
        if form is None or not isinstance(form.factor, Tensor):
            raise NotItsMap("what it gives back is not its map times a gate")
        if form.offset is not None:
            raise NotItsMap(
                "it adds something to its map, beside the gate; a tile has a gate, and no place for a bias"
            )
        return form.factor
