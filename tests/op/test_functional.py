"""The operator against four numpy loops, in every layout, type and tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiledse as ts
from tests.reference import by_crops, two_layers
from tests.reference import tiled_squeeze_excite as by_loops
from tiledse.op import formula, scale, squeeze, tiled_squeeze_excite
from tiledse.op.formula import mean

TILES = (
    "HxW",
    "7xW",
    "3xW",
    "1xW",
    "Hx7",
    "Hx2",
    "7x7",
    "3x5",
    "1x1",
    "7xW:upper",
    "3xW:middle",
    "3xW:running",
    "1xW:running+6",
    "1xW:running-1",
    "2xW:running+5",
    "3xW:running-1",
    "1xW:window-6+6",
    "2xW:window-3+1",
    "3xW:window-4-2",
)


def block_and_excite(channels, tile, seed=0):
    torch.manual_seed(seed)
    block = ts.TiledSqueezeExcite(channels, 3, tile).double()
    arrays = [p.detach().numpy() for p in (block.fc1.weight[:, :, 0, 0], block.fc1.bias)]
    arrays += [p.detach().numpy() for p in (block.fc2.weight[:, :, 0, 0], block.fc2.bias)]
    return block, two_layers(*arrays)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("size", [(14, 14), (10, 9), (7, 7), (1, 1), (1, 8), (9, 1)])
def test_equals_the_loops_in_float64(tile, size):
    block, excite = block_and_excite(5, tile)
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    expected = by_loops(x.numpy(), tile, excite)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tile", ["7xW", "3xW:running", "1xW:running+2", "HxW", "3xW:upper"])
@pytest.mark.parametrize("size", [(14, 48), (10, 63)])
def test_wide_rows_equal_the_loops_forward_and_back(tile, size):
    """Rows of 48 numbers and more are multiplied one by one in NCHW."""
    block, excite = block_and_excite(3, tile)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    y = block(x)
    np.testing.assert_allclose(y.detach().numpy(), by_loops(x.detach().numpy(), tile, excite), rtol=1e-12)
    upstream, parsed = torch.randn_like(y), ts.Tile.parse(tile)
    (got,) = torch.autograd.grad(y, x, upstream)
    expected = formula.scale(x, block.excite(formula.squeeze(x, parsed, mean)), parsed)
    torch.testing.assert_close(got, torch.autograd.grad(expected, x, upstream)[0])


sides = st.one_of(st.none(), st.integers(1, 12))


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 11), width=st.integers(1, 11), tall=sides, wide=sides, channels_last=st.booleans(),
    squeeze_kind=st.sampled_from(["tiles", "upper", "middle", "running", "window"]),
    ahead=st.integers(-3, 12), above=st.integers(1, 12),
)  # fmt: skip
def test_any_tile_on_any_map(height, width, tall, wide, channels_last, squeeze_kind, ahead, above):
    if squeeze_kind != "tiles":
        tall, wide = tall or 3, None
    if squeeze_kind in ("running", "window"):
        above = above if squeeze_kind == "window" else None
        tile = ts.Tile(tall, wide, squeeze_kind, max(ahead, -tall), above)
    else:
        tile = ts.Tile(tall, wide, squeeze_kind)
    block, excite = block_and_excite(4, tile)
    x = torch.randn(1, 4, height, width, dtype=torch.float64)
    expected = by_loops(x.numpy(), str(tile), excite)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_smaller_types_stay_within_their_rounding(tile, dtype):
    block, excite = block_and_excite(6, tile)
    x = (torch.randn(2, 6, 15, 10) + 1).to(dtype)
    got = block.to(dtype)(x)
    assert got.dtype == dtype
    expected = by_loops(x.double().numpy(), tile, excite)
    # Weights, descriptors, hidden values, gates and product are each rounded once.
    tolerance = 8 * torch.finfo(dtype).eps
    np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tile", ["HxW", "1xW", "7xW:running", "Hx7"])
def test_float16_does_not_overflow_on_a_large_map(tile):
    x = torch.full((1, 1, 128, 256), 8.0, dtype=torch.float16)  # its sum is 262144, above float16's 65504
    assert torch.equal(squeeze(x, tile), torch.full_like(squeeze(x, tile), 8.0))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("size", [(14, 14), (10, 9)])
def test_the_layout_comes_out_as_it_went_in(tile, size):
    block, _ = block_and_excite(5, tile)
    block = block.float()
    plain = torch.randn(2, 5, *size)
    last = plain.to(memory_format=torch.channels_last)
    assert block(plain).is_contiguous()
    assert block(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(last), block(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tile", TILES)
def test_empty_batch(tile):
    assert ts.TiledSqueezeExcite(4, 2, tile)(torch.empty(0, 4, 9, 9)).shape == (0, 4, 9, 9)


@pytest.mark.parametrize("tile", TILES)
def test_gradients(tile):
    block, _ = block_and_excite(3, tile)
    x = torch.randn(2, 3, 8, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


@pytest.mark.parametrize("tile", TILES)
def test_export_gives_the_same_numbers(tile):
    block = ts.TiledSqueezeExcite(4, 2, tile).eval()
    x = torch.randn(2, 4, 10, 9)
    program = torch.export.export(block, (x,))
    torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.parametrize("tile", ["HxW", "7xW", "Hx7", "3x5", "7xW:middle", "7xW:running"])
def test_compile_traces_it_as_one_graph(tile):
    block = ts.TiledSqueezeExcite(4, 2, tile)
    x = torch.randn(2, 4, 10, 9, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    torch.testing.assert_close(compiled(x), block(x))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("tile", "written"), [("7xW", 1), ("3xW", 1), ("7xW:running", 1), ("7x7", 1), ("3x5", 1)]
)
def test_the_gate_is_never_repeated_in_memory(tile, written, channels_last):
    """The one value of the map's size that is made is the output itself: no gate, no product beside it."""
    memory = set()

    class Memory(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for made in out if isinstance(out, list) else [out]:
                if isinstance(made, torch.Tensor) and made.untyped_storage().nbytes() >= x.nbytes:
                    memory.add(made.untyped_storage().data_ptr())
                    kept.append(made)  # or its memory might be given to the next
            return out

    kept: list[torch.Tensor] = []
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 8, 14, 14).to(memory_format=layout)
    block = ts.TiledSqueezeExcite(8, 2, tile).eval()
    with torch.no_grad(), Memory(), ts.kernels("torch"):
        y = block(x)
    assert y.data_ptr() in memory
    assert len(memory - {x.untyped_storage().data_ptr()}) == written


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_in_place(tile, channels_last):
    block, _ = block_and_excite(5, tile)
    x = torch.randn(2, 5, 10, 9, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    with torch.no_grad():
        expected = block(x)
        assert tiled_squeeze_excite(x, block.excite, tile, inplace=True) is x
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


def test_in_place_refuses_to_overwrite_what_a_gradient_needs():
    block, _ = block_and_excite(5, "3xW")
    x = torch.randn(1, 5, 7, 7, dtype=torch.float64)
    kept = x.clone()
    with pytest.raises(ts.TiledSEError, match=r"under torch.no_grad\(\)"):
        tiled_squeeze_excite(x, block.excite, "3xW", inplace=True)
    with pytest.raises(ts.TiledSEError, match="overwrite"):
        scale(x.requires_grad_(), squeeze(x, "3xW"), "3xW", inplace=True)
    assert torch.equal(x, kept)


def test_a_layer_in_place_overwrites_only_where_no_gradient_is_recorded():
    block = ts.TiledSqueezeExcite(5, 2, "3xW", inplace=True)
    x = torch.randn(1, 5, 7, 7)
    assert block(x) is not x
    with torch.no_grad():
        assert block(x) is x


@pytest.mark.parametrize("tile", [*TILES, "5xW"])
@pytest.mark.parametrize("act", [torch.nn.ReLU, torch.nn.GELU])  # by two layers, and by layers of one's own
@pytest.mark.parametrize("width", [9, 64])
def test_a_frozen_block_s_output_is_no_view(tile, act, width):
    block, x = ts.TiledSqueezeExcite(5, 2, tile, act=act), torch.randn(2, 5, 10, width)
    with torch.no_grad():
        y = block(x)
    y += torch.nn.Parameter(torch.ones(5, 1, 1))  # refused for a view that was made under no_grad
    assert y.requires_grad


@pytest.mark.parametrize("tile", ["1x1", "3x1", "64x1", "70x1", "3xW", "3x9"])
def test_wide_maps_in_torch(tile):
    """Rows of 64 columns, which PyTorch's way takes in its own way; 64 rows of one column are as many as columns."""
    torch.manual_seed(0)
    block = ts.TiledSqueezeExcite(3, 2, tile, act=torch.nn.GELU).double()
    x = torch.randn(2, 3, 70, 64, dtype=torch.float64)
    whole = ts.TiledSqueezeExcite(3, 2, "HxW", act=torch.nn.GELU).double()
    whole.load_state_dict(block.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_crops(whole, x, tile))


@pytest.mark.parametrize("tile", TILES)
def test_maps_without_numbers(tile):
    block = ts.TiledSqueezeExcite(5, 2, tile).to("meta")
    x = torch.empty(2, 5, 10, 9, device="meta", requires_grad=True)
    block(x).sum().backward()
    assert x.grad.shape == block(x.detach()).shape == x.shape


@pytest.mark.parametrize("tile", TILES)
def test_maps_that_are_parts_of_others(tile):
    block, excite = block_and_excite(4, tile)
    whole = torch.randn(3, 9, 13, 12, dtype=torch.float64)
    for x in (whole[:2, 2:6, 1:11, ::2], whole[:2, :4].transpose(2, 3), whole[:1, :1].expand(2, 4, -1, -1)):
        expected = by_loops(x.numpy(), tile, excite)
        np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_long_sums_in_channels_last_keep_their_digits():
    torch.manual_seed(0)
    x = (torch.randn(1, 8, 700, 400) + 100).to(memory_format=torch.channels_last)
    exact = x.double().mean((2, 3), keepdim=True)
    assert float(((squeeze(x, "HxW") - exact) / exact).abs().max()) < 1e-6  # 2e-5 by one pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_product_for_a_1x1_convolution(dtype):
    from tiledse.op.excitation import apply

    torch.manual_seed(0)
    fc = torch.nn.Conv2d(70, 30, 1).to(dtype)
    z = torch.randn(2, 70, 4, 5).to(dtype)
    torch.testing.assert_close(apply(fc, z), fc(z))


def test_a_convolution_that_is_more_than_its_weights_is_called_as_it_is():
    from tiledse.op.excitation import apply

    calls = []
    hooked = torch.nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda *_: calls.append("hook"))

    class Own(torch.nn.Conv2d):
        def forward(self, x):
            calls.append("own")
            return super().forward(x)

    z = torch.zeros(64, 4, 8, 2)
    apply(hooked, z)
    apply(Own(4, 4, 1), z)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(4, 4, 1))
    torch.testing.assert_close(apply(normed, z + 1), normed(z + 1))
    strided = torch.nn.Conv2d(4, 4, 1, stride=2)
    assert apply(strided, z).shape == (64, 4, 4, 1)
    assert calls == ["hook", "own"]


def test_ragged_tiles_are_averaged_over_what_they_have():
    x = torch.arange(10.0).view(1, 1, 10, 1)
    assert squeeze(x, "4xW").flatten().tolist() == [1.5, 5.5, 8.5]
    assert squeeze(x, "4xW:running").flatten().tolist() == [1.5, 3.5, 4.5]
    assert squeeze(x, "4xW:upper").flatten().tolist() == [1.5]
    assert squeeze(x, "4xW:middle").flatten().tolist() == [4.5]


def test_rows_are_repeated_and_cropped_not_resized():
    """H = 56, k = 9: by nearest-neighbour resizing 21 of 56 rows would get another tile's gate (checked.md)."""
    gates = torch.arange(7.0).view(1, 1, 7, 1)
    rows = scale(torch.ones(1, 1, 56, 1), gates, "9xW").flatten()
    assert rows.tolist() == [i // 9 for i in range(56)]
    nearest = torch.nn.functional.interpolate(gates, size=(56, 1), mode="nearest").flatten()
    assert int((rows != nearest).sum()) == 21


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4, 5), "expected a map of shape"),
        (torch.zeros(1, 3, 0, 5), "at least one row"),
    ],
)
def test_no_map(x, message):
    with pytest.raises(ts.TiledSEError, match=message):
        tiled_squeeze_excite(x, torch.sigmoid, "7xW")


def test_an_excitation_that_changes_the_grid():
    with pytest.raises(ts.TiledSEError, match=r"expected \(1, 2, 3, 1\), got \(1, 2, 2, 1\)"):
        tiled_squeeze_excite(torch.zeros(1, 2, 9, 4), lambda z: z[:, :, :2], "3xW")


@pytest.mark.parametrize("tile", ["7xW", "7x650", "7xW:running"])
def test_long_sums_of_ragged_tiles_in_channels_last(tile):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 23, 700).to(memory_format=torch.channels_last)
    torch.testing.assert_close(squeeze(x, tile), formula.squeeze(x, ts.Tile.parse(tile), mean))


@pytest.mark.parametrize("tile", ["3xW", "Hx3", "2x3", "3xW:running", "HxW", "3xW:upper"])
@pytest.mark.parametrize("known", [True, False])
def test_the_layout_stays_with_gradients_of_a_single_small_map(tile, known):
    block = ts.TiledSqueezeExcite(8, 4, tile, act=torch.nn.ReLU if known else torch.nn.GELU)
    x = torch.randn(1, 8, 7, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = block(x)
    assert y.requires_grad
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
