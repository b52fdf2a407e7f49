"""Prove a block in training: numbers, gradients, and what a batch leaves behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import TiledSEError, first_line
from ..tile import Tile
from .block import Way
from .block_trial import BlockTrial, Unproven, said, seeded
from .tilewise import by_tiles


def prove_training(trial: BlockTrial, way: Way) -> None:
    """Check a block in train mode, from one seed: numbers, gradients, and what the batch leaves behind.

    Args:
        trial: The block.
        way: How it is to be converted.

    Raises:
        Unproven: with tiles it gives something else.
    """
    _, height, width = trial.size
    x = trial.map(2, height, width) if trial.filled else trial.map(2, 6, 3)
    tile = Tile(-(-height // 3), None) if trial.filled else Tile(2, None)
    leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    old = trial.old(training=True)
    try:
        with seeded():
            expected = by_tiles(lambda part: trial.call(old, part), leaf * 1.0, tile, filled=trial.filled)
    except TiledSEError:
        return  # a block that was written inline, and says itself that it cannot be trained
    except Exception as error:
        raise Unproven(f"the block itself fails in training: {first_line(error, 100)}") from None
    weigh = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    wanted = _gradients([(y, part.of(weigh)) for part, y in expected], leaf, trial.layers)
    left = {name: value.clone() for name, value in trial.layers.named_buffers()}
    new = trial.new(tile, way, training=True)
    with seeded(), said("with tiles it fails in training"):
        got = trial.call(new, again * 1.0)
    trial.compare(got, expected, "in training it gives other numbers than its own forward on each tile")
    ours = _gradients([(part.of(got), part.of(weigh)) for part, _ in expected], again, trial.layers)
    # A gradient that is 0 but for rounding, as that of a bias before a normalisation, is none to be relative to.
    floor = (1e-6 if trial.dtype is torch.float64 else 1e-3) * max(
        float(g.abs().max()) for g in wanted.values()
    )
    for name, gradient in wanted.items():
        trial.near(ours[name], gradient, f"in training the gradient of {name} is another", 10, floor)
    for name, value in trial.layers.named_buffers():
        trial.near(value, left[name], f"in training it leaves another '{name}' behind")


def _gradients(pairs: list[tuple[Tensor, Tensor]], x: Tensor, block: nn.Module) -> dict[str, Tensor]:
    """Of a weighed sum of outputs: for the map and each parameter that is trained; zeros where there is none."""
    named = {"its map": x, **{f"'{n}'": p for n, p in block.named_parameters() if p.requires_grad}}
    loss = torch.stack([(y * weight).sum() for y, weight in pairs]).sum()
    if not loss.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(named.items(), grads)}
