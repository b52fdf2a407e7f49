"""Normalisation that was folded into convolutions, made real again so that a network can be trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def restore_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Give batch normalisation that never saw data the statistics of these images; the network's function stays.

    Weights that come from a deployed file (TFLite, ONNX) often have their normalisation folded into the convolutions:
    mean 0, variance 1. In training mode it would normalise after all, and undo what was learnt. Here mean and variance
    become those of the images, and weight and bias what makes up for it.

    Args:
        model: The network, changed in place.
        batches: Inputs (N, C, H, W).

    Returns:
        How many layers were changed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> x = torch.randn(8, 3, 5, 5)
        >>> before = net(x)
        >>> restore_statistics(net, [x]), torch.allclose(net(x), before, atol=1e-5)
        (1, True)
        >>> torch.allclose(net.train()(x), before, atol=1e-2)      # in training mode too
        True
    """
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and _untouched(m)]
    sums: dict[nn.Module, list[Any]] = {layer: [0, 0.0, 0.0] for layer in layers}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().double()
        entry = sums[layer]
        entry[0] += x.numel() // x.shape[1]
        entry[1] = entry[1] + x.sum((0, 2, 3))
        entry[2] = entry[2] + x.square().sum((0, 2, 3))

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    was = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    for layer in layers:
        count, total, squares = sums[layer]
        if not count:
            continue
        assert layer.running_mean is not None  # _untouched has seen both
        assert layer.running_var is not None
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        # weight * (x - mean) / deviation + bias stays what it was.
        old = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
        layer.bias.copy_(layer.bias.double() + old * (mean - layer.running_mean.double()))
        layer.weight.copy_(old * (variance + layer.eps).sqrt())
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return len(layers)


def _untouched(layer: nn.BatchNorm2d) -> bool:
    if layer.running_mean is None or layer.running_var is None or not layer.affine:
        return False
    return not layer.running_mean.any() and bool((layer.running_var - 1).abs().max() < 0.01)
