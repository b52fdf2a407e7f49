"""Gradients against those of the paper's formula, differentiated by torch: every tile, layout and use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.op.test_functional import TILES
from tiledse.op import by_pytorch, formula, scale, squeeze, tiled_squeeze_excite
from tiledse.op.formula import mean


def by_formula(x, excite, tile):
    """The formula that compilers trace: plain views and products, and torch's own gradients of them."""
    tile = ts.Tile.parse(tile)
    return formula.scale(x, excite(formula.squeeze(x, tile, mean)), tile)


def block_of(tile, channels=5, **kwargs):
    torch.manual_seed(0)
    return ts.TiledSqueezeExcite(channels, 3, tile, act=nn.SiLU, **kwargs).double()


def gradients(function, x, block, upstream):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    block.zero_grad()
    y = function(x)
    y.backward(upstream)
    return [y.detach(), x.grad, *(p.grad for p in block.parameters())]


def assert_same(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("known", [True, False])  # two layers, and an excitation that is called
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(14, 14), (10, 9), (1, 8)])
@pytest.mark.parametrize("tile", TILES)
def test_gradients_are_those_of_the_formula(tile, size, channels_last, known):
    check_gradients(tile, size, channels_last, known)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tile", ["3xW", "3x2", "3xW:upper", "1xW:running+2"])
def test_gradients_of_batches_that_are_summed_by_images(tile, channels_last, monkeypatch):
    monkeypatch.setattr(by_pytorch, "_CACHED_BYTES", 2 * 5 * 90 * 8)  # two of three images
    check_gradients(tile, (10, 9), channels_last, known=True)
    check_gradients(tile, (10, 9), channels_last, known=False)


def check_gradients(tile, size, channels_last, known):
    block = block_of(tile)
    if not known:
        block.act = nn.GELU()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(3, 5, *size, dtype=torch.float64).to(memory_format=layout)
    upstream = torch.randn_like(x)
    got = gradients(block, x, block, upstream)
    assert_same(got, gradients(lambda x: by_formula(x, block.excite, tile), x, block, upstream))
    assert got[1].stride() == x.stride()


@pytest.mark.parametrize("tile", TILES)
def test_gradients_of_gradients(tile):
    block = block_of(tile, 2)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(block, (x,))


@pytest.mark.parametrize("tile", ["7xW", "Hx2", "3xW:running", "3xW:middle"])
def test_a_gradient_that_is_one_number_everywhere(tile):
    """sum().backward() sends an expanded number, which has no memory layout."""
    block = block_of(tile)
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64).expand(x.shape)
    assert_same(
        gradients(block, x, block, one),
        gradients(lambda x: by_formula(x, block.excite, tile), x, block, one),
    )


def test_only_what_asks_for_a_gradient_gets_one():
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    block = block_of("3xW")
    reference = gradients(block, x, block, torch.ones_like(x))
    block.zero_grad()
    block(x).sum().backward()  # the map needs none
    assert_same([p.grad for p in block.parameters()], reference[2:])
    assert x.grad is None
    frozen = block_of("3xW").requires_grad_(False)
    y = x.clone().requires_grad_()
    frozen(y).sum().backward()
    torch.testing.assert_close(y.grad, reference[1])
    assert not frozen(x).requires_grad
    only = torch.autograd.grad(block(y).sum(), block.fc1.weight)[0]
    torch.testing.assert_close(only, reference[2])


def test_an_excitation_that_stops_the_gradient():
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64, requires_grad=True)
    tiled_squeeze_excite(x, lambda z: z.detach().sigmoid(), "3xW").sum().backward()
    gates = squeeze(x.detach(), "3xW").sigmoid()
    torch.testing.assert_close(x.grad, scale(torch.ones_like(x), gates, "3xW"))


def test_a_loss_on_the_descriptors_as_well():
    kept = []

    def excite(z):
        kept.append(z)
        return z.sigmoid()

    def loss(function):
        x = torch.arange(2 * 3 * 7 * 4, dtype=torch.float64).view(2, 3, 7, 4).sin().requires_grad_()
        y = function(x, excite, "3xW")
        return x, (y**2).sum(), (kept.pop() ** 3).sum()

    for parts in ((0, 1), (1,), (0,)):
        found = []
        for function in (tiled_squeeze_excite, by_formula):
            x, *losses = loss(function)
            sum(losses[part] for part in parts).backward()
            found.append(x.grad)
        torch.testing.assert_close(*found)


def test_two_backward_passes_through_one_graph():
    block, x = block_of("3xW"), torch.randn(2, 5, 9, 8, dtype=torch.float64, requires_grad=True)
    y = block(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    torch.autograd.grad(y.sum(), block.fc1.weight, retain_graph=True)
    with_graph = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(first, with_graph)
    torch.testing.assert_close(first, torch.autograd.grad(y.sum(), x)[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, in jvp
def test_batched_and_forward_gradients():
    block, x = block_of("3x2"), torch.randn(1, 5, 4, 4, dtype=torch.float64)
    plain = torch.autograd.functional.jacobian(block, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(block, x, vectorize=True), plain)
    forward = torch.autograd.functional.jacobian(block, x, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, plain)
    torch.testing.assert_close(torch.func.jacrev(block)(x), plain)
    many = torch.randn(3, 2, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(block)(many), torch.stack([block(x) for x in many]))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tile", ["HxW", "7xW", "3xW:running", "Hx7", "3x5"])
def test_autocast(tile, channels_last):
    torch.manual_seed(0)
    block = ts.TiledSqueezeExcite(8, 4, tile)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 8, 14, 12).to(memory_format=layout)
    for map_type in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            leaf = x.to(map_type, copy=True).requires_grad_()
            y = block(leaf)
        assert y.dtype == map_type
        y.float().square().sum().backward()
        reference = x.clone().requires_grad_()
        by_formula(reference, block.excite, tile).square().sum().backward()
        torch.testing.assert_close(leaf.grad.float(), reference.grad, rtol=0.05, atol=0.05)


def test_half_precision_maps_with_gates_of_a_wider_type():
    x = torch.randn(1, 4, 7, 5, dtype=torch.float16, requires_grad=True)
    y = tiled_squeeze_excite(x, lambda z: z.float().sigmoid(), "3xW")
    assert y.dtype == torch.float32
    y.sum().backward()
    exact = x.detach().double().requires_grad_()
    by_formula(exact, torch.sigmoid, "3xW").sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0.01, atol=0.01)


def saved_bytes(function, x):
    """Bytes that the graph keeps for its backward pass, each memory once."""
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x).sum()
    return sum(held.values())


@pytest.mark.parametrize("channels_last", [False, True])
def test_keeps_no_more_than_squeeze_and_excite_does_and_the_tiles(channels_last):
    from timm.layers import SEModule

    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 64, 28, 28).to(memory_format=layout).requires_grad_()
    block = ts.TiledSqueezeExcite(64, 16, "7xW")
    tiles = 4 * 64 * 4 * 4  # bytes of one value per image, channel and tile
    assert saved_bytes(block, x) <= saved_bytes(SEModule(64, rd_channels=16), x) + 4 * tiles
    assert saved_bytes(block, x) < 1.1 * x.nbytes
