"""Which way a map takes: the list of kernels, what says so, and what may be asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.op.test_functional import TILES
from tiledse.op import by_cpp, choosing, formula
from tiledse.op.formula import mean

CPP = by_cpp.library()
FAST = "torch" if isinstance(CPP, str) else "cpp"


def kernel_of(block, x):
    (taken,) = ts.explain(block, x).taken
    return taken.kernel


def test_a_block_says_which_kernel_it_takes_and_why_no_earlier_one():
    block, x = ts.TiledSqueezeExcite(8, 4, "7xW"), torch.randn(1, 8, 14, 6)
    told = str(ts.explain(block, x))
    assert told.startswith(f"the block, 7xW on 1x8x14x6: the operator in {FAST}\n")
    assert "  not triton: the map is on cpu" in told
    with ts.kernels("torch"):
        (taken,) = ts.explain(block, x).taken
    assert (taken.kernel, taken.reasons["cpp"]) == ("torch", "kernels are 'torch'")
    assert kernel_of(block.double(), x.double()) == "torch"


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_kernel_takes_every_tile_without_being_asked(tile, dtype):
    block, x = ts.TiledSqueezeExcite(8, 4, tile).to(dtype), torch.randn(1, 8, 14, 6).to(dtype)
    assert kernel_of(block, x) == FAST
    assert kernel_of(block, x.to(memory_format=torch.channels_last).requires_grad_()) == FAST
    with torch.no_grad():
        y = block(x)
        with ts.kernels("torch"):
            torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: setattr(block, "act", nn.GELU()), "no kernel knows GELU"),
        (lambda block: block.fc1.register_forward_hook(lambda *_: None), "its Conv2d has hooks"),
        (lambda block: setattr(block.fc2, "bias", None), "its layers have no biases"),
        (lambda block: setattr(block, "fc1", nn.Conv2d(8, 4, 3, padding=1)), "its layers are not two 1x1 convolutions"),
        (lambda block: block.double(), "its layers are torch.float64, the map torch.float32"),
    ],
)  # fmt: skip
def test_an_excitation_that_is_called_says_why(change, reason):
    block = ts.TiledSqueezeExcite(8, 4, "7xW")
    change(block)
    try:
        (taken,) = ts.explain(block, torch.zeros(1, 8, 14, 6)).taken
    except RuntimeError:
        assert "float64" in reason  # as the layers themselves say
        return
    assert taken.kernel is None
    assert taken.reasons["the operator"].startswith(reason)


def test_a_network_says_it_block_by_block(monkeypatch):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("regnety_002", num_classes=4).eval()
    plan = ts.find(network, (3, 64, 64)).with_tile("3xW")
    tiled = ts.convert(network, plan)
    told = ts.explain(tiled, torch.zeros(1, 3, 64, 64))
    assert [taken.block for taken in told.taken] == [block.name for block in plan.blocks]
    assert {taken.kernel for taken in told.taken} == {FAST}
    assert str(ts.explain(network, torch.zeros(1, 3, 64, 64))) == "no map was gated by tiles"


def test_a_name_that_is_no_kernel():
    message = "expected one of auto, triton, cpp, torch, got 'cuda'"
    with pytest.raises(ts.TiledSEError, match=message), ts.kernels("cuda"):
        pass
    script = "import torch, tiledse as ts; ts.TiledSqueezeExcite(8, 4)(torch.zeros(1, 8, 7, 7))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TILEDSE_KERNELS": "cuda"}, capture_output=True, text=True
    )  # fmt: skip
    assert f"TILEDSE_KERNELS: {message}" in done.stderr


def test_what_was_asked_ends_with_the_block_that_asked_even_by_an_error():
    block, x = ts.TiledSqueezeExcite(8, 4, "7xW"), torch.randn(1, 8, 14, 6)
    with pytest.raises(KeyError), ts.kernels("torch"):
        raise KeyError
    assert kernel_of(block, x) == FAST


@pytest.mark.skipif(FAST == "torch", reason=f"C++ kernels: {CPP}")
@pytest.mark.parametrize(
    ("missing", "reason"), [("sources", "built from other sources"), ("file", "install tiledse with pip")]
)
def test_without_the_library_pytorch_is_used_and_said(missing, reason, monkeypatch, tmp_path):
    if missing == "sources":
        (tmp_path / "squeeze_excite.cpp").write_text("// edited, and not built again\n")
        monkeypatch.setattr(by_cpp, "_SOURCES", tmp_path)
    else:
        monkeypatch.setattr(by_cpp, "__file__", str(tmp_path / "by_cpp.py"))
    by_cpp.load.cache_clear()
    choosing._chosen.cache_clear()
    block, x = ts.TiledSqueezeExcite(8, 4, "7xW"), torch.randn(1, 8, 14, 6)
    try:
        (taken,) = ts.explain(block, x).taken
        assert taken.kernel == "torch"
        assert reason in taken.reasons["cpp"]
        wanted = formula.scale(x, block.excite(formula.squeeze(x, block.tile, mean)), block.tile)
        torch.testing.assert_close(block(x), wanted)
    finally:
        by_cpp.load.cache_clear()
        choosing._chosen.cache_clear()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("maps", [torch.float32, torch.bfloat16])
def test_under_autocast_maps_reach_the_kernels_and_keep_their_type(maps, channels_last):
    torch.manual_seed(0)
    block = ts.TiledSqueezeExcite(8, 4, "3xW")
    x = torch.randn(2, 8, 14, 6).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    leaf, exact = x.to(maps).requires_grad_(), x.to(maps).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel_of(block, leaf) == FAST
        y = block(leaf)
        with torch.no_grad():
            assert torch.equal(block(leaf.detach()), y)
            z = leaf.detach().clone()
            assert torch.equal(ts.tiled_squeeze_excite(z, block.excite, "3xW", inplace=True), y)
    assert y.dtype == maps
    y.float().square().sum().backward()
    got = [leaf.grad.float(), *(p.grad.clone() for p in block.parameters())]
    block.zero_grad()
    wanted = block(exact)
    wanted.square().sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5} if maps == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    torch.testing.assert_close(y.float(), wanted, rtol=close["rtol"], atol=close["rtol"])
    for mine, reference in zip(got, [exact.grad, *(p.grad for p in block.parameters())], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, reference, **close)


def test_under_autocast_a_gradient_taken_inside_it_is_the_same():
    block, x = ts.TiledSqueezeExcite(8, 4, "3xW"), torch.randn(2, 8, 14, 6, requires_grad=True)
    for name in ("auto", "torch"):
        with ts.kernels(name), torch.autocast("cpu", torch.bfloat16):
            (inside,) = torch.autograd.grad(block(x).square().sum(), x)
        (outside,) = torch.autograd.grad(block(x).square().sum(), x)
        torch.testing.assert_close(inside, outside)
