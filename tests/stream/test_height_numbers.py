"""Numbers that a forward takes from the height are known only where the height is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiledse as ts

SPELLINGS = {
    "quotient": lambda y: y / y.shape[2],
    "share": lambda y: y * (1.0 / y.shape[2]),
    "tensor": lambda y: y * (torch.ones(1) * y.shape[2]),
    "vector": lambda y: y * (torch.ones(y.shape[2]) / y.shape[2])[None, None, :, None],
    "after a layer": lambda y: torch.relu(y).mul(1.0 / y.shape[2]),
}


class Counts(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        self.conv, self.spelling = nn.Conv2d(3, 4, 3, stride=2, padding=1), spelling

    def forward(self, x):
        return SPELLINGS[self.spelling](self.conv(x))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_number_of_the_height_wants_a_height(spelling):
    torch.manual_seed(0)
    model = Counts(spelling).eval()
    plan, image = ts.find(model, (3, 16, 12)), torch.randn(1, 3, 37, 12)
    with pytest.raises(ts.TiledSEError, match="the height must be known"):
        ts.stream(model, plan, height=None)
    stream = ts.stream(model, plan, height=37)
    parts = [stream.push(rows) for rows in image.split(5, 2)]
    parts = [part for part in [*parts, stream.finish()] if part is not None]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts, 2), model(image))
