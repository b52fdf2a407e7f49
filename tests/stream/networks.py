"""Networks for the tests of streaming, with random weights in which no branch is switched off."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

import tiledse as ts


def build(name: str, size: tuple[int, int] = (128, 128)) -> nn.Module:
    """A network by MODEL text in float64."""
    from tiledse.networks.loading import load

    torch.manual_seed(0)
    model = load(name, input_size=(3, *size)).model
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 1 and not weight.any():
                weight.fill_(0.5)
    return model.double()


def difference(got: object, expected: object) -> float:
    """The largest difference of any output, relative to that output's largest value."""
    pairs = list(zip(tree_flatten(got)[0], tree_flatten(expected)[0], strict=True))
    assert pairs
    for a, b in pairs:
        assert a.shape == b.shape
        assert float(b.abs().max()) > 0
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def whole(model: nn.Module, plan: ts.Plan, x: torch.Tensor) -> object:
    """The converted network on the whole image: what every stream must equal."""
    with torch.no_grad():
        return ts.convert(model, plan)(x)


class Small(nn.Module):
    """Every node kind in few layers, as a pyramid of two maps and logits: heights that no stride divides."""

    def __init__(self, padded: bool = True) -> None:
        super().__init__()
        pad = 1 if padded else 0
        self.stem = nn.Conv2d(3, 8, 5, 2, 2 * pad, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.se = ts.TiledSqueezeExcite(8, 4, "HxW")
        self.deep = nn.Conv2d(8, 8, 3, 2, pad, dilation=1, groups=4)
        self.se2 = ts.TiledSqueezeExcite(8, 4, "HxW", gate=nn.Hardsigmoid)
        self.point = nn.Conv2d(8, 8, 1, 3)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.se(torch.relu_(self.norm(self.stem(x))))
        y = self.se2(self.deep(x))
        up = nn.functional.interpolate(y, x.shape[2:], mode="bilinear")
        near = nn.functional.interpolate(self.mean(y), scale_factor=2.0)[:, :, 1:]
        a, b = torch.cat([x + up, up], 1).chunk(2, 1)
        return {"maps": [a * b, near, self.point(self.pool(a))], "logits": self.head(y.mean((2, 3)))}
