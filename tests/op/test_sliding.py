"""Sliding strips in the operator: tall maps, where sums take the place of a matrix; compilers; memory formats."""

from __future__ import annotations

import pytest
import torch

import tiledse as ts
from tests.reference import rows_seen
from tiledse.op import grids, squeeze

TILES = ("1xW:running+6", "3xW:running-2", "2xW:window-3+4", "3xW:window-7-3")


@pytest.mark.parametrize("tile", TILES)
def test_a_tall_map_is_squeezed_by_sums(tile):
    """The way by sums from row to row, of values and of gradients, against one gate picked row by row."""
    height = grids.TALLEST_MATRIX + 7
    parsed = ts.Tile.parse(tile)
    x = torch.randn(2, 3, height, 2, dtype=torch.float64, requires_grad=True)
    got = squeeze(x, tile)
    picked = [
        rows_seen(x[0].detach(), top, parsed.height, tile.partition(":")[2]).mean((1, 2))
        for top in range(0, height, parsed.height)
    ]
    torch.testing.assert_close(got[0, :, :, 0], torch.stack(picked, 1))
    weight = torch.randn_like(got)
    (grad,) = torch.autograd.grad((got * weight).sum(), x)
    expected = torch.tensor(parsed.weights(height)).t() @ weight / 2
    torch.testing.assert_close(grad, expected.expand_as(grad))
    torch.testing.assert_close(grids.share(weight, parsed, height) / 2, expected)


@pytest.mark.parametrize("tile", TILES)
def test_float32_sums_do_not_drift_on_a_tall_map(tile):
    x = torch.randn(1, 2, 5000, 3) + 100
    torch.testing.assert_close(squeeze(x, tile).double(), squeeze(x.double(), tile), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tile", TILES)
def test_compiled_and_traced_it_gives_the_same(tile):
    block = ts.TiledSqueezeExcite(4, 2, tile).eval()
    x = torch.randn(1, 4, 12, 5)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))


def test_a_block_that_squeezes_a_maximum_has_no_sliding_mean():
    from tiledse.op.formula import mean_and_max

    with pytest.raises(ts.TiledSEError, match="a window strip is a mean, but this block also squeezes a max"):
        squeeze(torch.zeros(1, 1, 9, 4), "1xW:window-2+2", mean_and_max)
