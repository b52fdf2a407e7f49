"""Verify a conversion by running it: the tiled operator with one tile must be the network as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..plan import Plan
from ..tile import Tile
from .converter import convert_shared

# Larger than any map, and a tile larger than the map is the map: SE, computed by the tiled operator.
_ONE_TILE = Tile(10**9, 10**9)


def identity_difference(model: nn.Module, plan: Plan, seed: int = 0) -> tuple[float, float]:
    """Run a network and the same with all blocks converted to one tile a map, on one random image.

    Args:
        model: The SE network, in eval mode.
        plan: Any plan of it.
        seed: Of the image.

    Returns:
        The largest absolute difference of the outputs, and the largest absolute value of the outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    x = torch.randn(1, *plan.input_size, generator=generator).to(parameter)
    with torch.no_grad():
        before = _tensors(convert_shared(model, plan.with_tile("HxW"))(x))
        after = _tensors(convert_shared(model, plan.with_tile(_ONE_TILE))(x))
    differences = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()]
    return max(differences, default=0.0), max(
        (float(a.abs().max()) for a in before if a.numel()), default=0.0
    )


def _tensors(output: object) -> list[Tensor]:
    """The floating tensors in whatever a network gives: a tensor, or lists and dicts of them."""
    if isinstance(output, Tensor):
        return [output.float()] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in _tensors(item)] if isinstance(output, (list, tuple)) else []
