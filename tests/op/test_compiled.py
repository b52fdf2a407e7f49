"""The C++ kernels against the formula in float64; skipped where there is no C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tiledse as ts
from tiledse.errors import TiledSEError
from tiledse.op import compiled, formula
from tiledse.op.formula import mean

ACTS, GATES = (nn.ReLU, nn.SiLU, nn.Hardswish), (nn.Sigmoid, nn.Hardsigmoid)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def kernels(cache, monkeypatch):
    """Ask for the kernels, and count their calls."""
    monkeypatch.setenv("TILEDSE_CPP", "1")
    monkeypatch.setenv("TILEDSE_CACHE", str(cache))
    compiled.library.cache_clear()
    calls = []
    for name in ("forward", "backward"):
        kernel = getattr(compiled, name)
        monkeypatch.setattr(
            compiled, name, lambda *a, k=kernel, n=name, **kw: (calls.append(n), k(*a, **kw))[1]
        )
    yield calls
    compiled.library.cache_clear()


def exactly(block, x, upstream):
    """The formula and its gradients, in float64."""
    twin = ts.TiledSqueezeExcite(block.fc1.in_channels, block.fc1.out_channels, block.tile).double()
    twin.load_state_dict(block.state_dict())
    twin.act, twin.gate = block.act, block.gate
    leaf = x.detach().double().requires_grad_()
    y = formula.scale(leaf, twin.excite(formula.squeeze(leaf, twin.tile, mean)), twin.tile)
    y.backward(upstream.double())
    return [y.detach(), leaf.grad, *(p.grad for p in twin.parameters())]


def ours(block, x, upstream):
    block.zero_grad()
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = block(leaf)
    y.backward(upstream)
    return [y.detach(), leaf.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("tile", "images", "channels", "height", "width"),
    [
        ("7xW", 2, 32, 14, 28), ("HxW", 3, 16, 7, 7), ("3xW", 2, 5, 10, 9), ("4xW", 1, 48, 9, 40),
        ("20xW", 2, 7, 4, 3), ("1xW", 2, 3, 5, 1), ("HxW", 1, 2, 40, 70),
        ("Hx7", 2, 24, 14, 28), ("Hx4", 2, 5, 9, 10), ("7x7", 2, 48, 21, 30), ("3x2", 3, 7, 7, 5), ("1x1", 1, 9, 5, 3),
        ("2xW:running", 3, 16, 13, 20), ("3xW:running", 1, 33, 30, 7), ("9xW:running", 2, 4, 9, 6),
        ("3xW:upper", 2, 8, 10, 12), ("4xW:middle", 3, 21, 11, 9), ("7xW:middle", 2, 5, 4, 3),
        ("2xW", 1, 600, 9, 150), ("5x40", 2, 600, 12, 90), ("4xW:running", 2, 300, 33, 64),
    ],
)  # fmt: skip
def test_is_the_formula(
    tile, images, channels, height, width, channels_last, past_cache, kernels, monkeypatch
):
    if past_cache:
        monkeypatch.setattr(compiled, "_PAST_CACHE_BYTES", 0)
    torch.manual_seed(height)
    block = ts.TiledSqueezeExcite(channels, 6, tile, act=ACTS[height % 3], gate=GATES[width % 2])
    x = 3 * torch.randn(images, channels, height, width) + 1
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    upstream = torch.randn_like(x)
    found = ours(block, x, upstream)
    assert kernels == ["forward", "backward"]
    for mine, exact in zip(found, exactly(block, x, upstream), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=2e-5, atol=2e-6 * float(exact.abs().max()))
    assert found[0].stride() == found[1].stride() == x.stride()
    with torch.no_grad():
        z = x.clone(memory_format=torch.preserve_format)
        assert ts.tiled_squeeze_excite(z, block.excite, tile, inplace=True) is z
        torch.testing.assert_close(z, found[0])


@pytest.mark.parametrize("tile", ["3xW", "2x2", "Hx3", "3xW:running", "3xW:middle"])
@pytest.mark.parametrize("own", [False, True])
def test_threads_share_the_tiles(tile, own, kernels, monkeypatch):
    if own:  # not torch's
        monkeypatch.setattr(compiled, "_threads_of_torch", lambda: None)
    compiled.library().tiledse_use_threads_of(compiled._threads_of_torch())
    monkeypatch.setattr(compiled, "_BYTES_OF_A_THREAD", 1)
    block = ts.TiledSqueezeExcite(8, 4, tile)
    x, upstream = torch.randn(3, 8, 10, 6), torch.randn(3, 8, 10, 6)
    alone = ours(block, x, upstream)
    for threads in (2, 5, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        for one, many in zip(alone, ours(block, x, upstream), strict=True):
            assert torch.equal(one, many)


def test_what_is_no_number_stays_none(kernels):
    block = ts.TiledSqueezeExcite(4, 2, "2xW")
    x = torch.randn(1, 4, 4, 3)
    x[0, 1, 0, 0] = torch.nan
    with torch.no_grad():
        y = block(x)
    assert kernels == ["forward"]
    assert y[0, :, :2].isnan().all()
    assert not y[0, :, 2:].isnan().any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e4])
def test_gates_at_both_ends(scale, kernels):
    block = ts.TiledSqueezeExcite(16, 8, "HxW", act=nn.SiLU)
    x = scale * torch.randn(2, 16, 3, 5)
    # Where gates are 0 or 1 in float32, 1 - gate has no digits left, in torch's own gradients as well.
    compared = 1 if scale == 1e4 else 6
    for mine, exact in list(zip(ours(block, x, x), exactly(block, x, x), strict=True))[:compared]:
        torch.testing.assert_close(mine.double(), exact, rtol=5e-5, atol=1e-5 * float(exact.abs().max()))


def test_everything_else_is_pytorch_s(kernels):
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        ts.TiledSqueezeExcite(8, 4, "3xW", act=nn.GELU)(x)
        ts.TiledSqueezeExcite(8, 4, "3xW", kernel_size=(3, 1))(x)
        block = ts.TiledSqueezeExcite(8, 4, "3xW")
        block(x[:, :, :, ::2])
        ts.tiled_squeeze_excite(x, torch.sigmoid, "3xW")
        block.double()(x.double())
    assert not kernels


def test_gradients_of_gradients_and_wrong_use(kernels):
    block, x = ts.TiledSqueezeExcite(4, 2, "2xW"), torch.randn(1, 4, 5, 3, requires_grad=True)
    (first,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    exact = x.detach().double().requires_grad_()
    double = ts.TiledSqueezeExcite(4, 2, "2xW").double()
    double.load_state_dict(block.state_dict())
    (first,) = torch.autograd.grad(double(exact).square().sum(), exact, create_graph=True)
    torch.testing.assert_close(
        second.double(), torch.autograd.grad(first.square().sum(), exact)[0], rtol=1e-3, atol=1e-4
    )
    with pytest.raises(TiledSEError, match="inplace would overwrite"):
        ts.tiled_squeeze_excite(x, block.excite, "2xW", inplace=True)


def nowhere():
    raise RuntimeError("could not determine home directory")


@pytest.mark.parametrize("reason", ["compiler", "quote", "home"])
def test_without_a_compiler_plain_pytorch_is_used_and_said_once(reason, monkeypatch, tmp_path):
    monkeypatch.setenv("TILEDSE_CPP", "1")
    monkeypatch.setenv("TILEDSE_CACHE", "" if reason == "home" else str(tmp_path))
    monkeypatch.setenv("CXX", 'no-such-compiler "' if reason == "quote" else "no-such-compiler")
    monkeypatch.setattr(Path, "home", nowhere)
    compiled.library.cache_clear()
    block, x = ts.TiledSqueezeExcite(4, 2, "2xW"), torch.randn(1, 4, 4, 3)
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match="cannot be built, so plain PyTorch is used"):
            y = block(x)
        torch.testing.assert_close(y, block(x))
    assert not list(tmp_path.glob("*"))
    compiled.library.cache_clear()


def test_who_saved_a_map_that_is_written_in_place_learns_of_it(kernels):
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(1, 8, 4, 6, requires_grad=True)
    y = x.exp()  # its gradient is itself
    with torch.no_grad():
        ts.tiled_squeeze_excite(y, block.excite, "2xW", inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with torch.inference_mode():
        ts.tiled_squeeze_excite(x.clone(), block.excite, "2xW", inplace=True)
    assert kernels == ["forward", "forward"]


@pytest.mark.slow
def test_the_compiler_may_be_a_command_and_stand_in_a_folder_with_spaces(cache, monkeypatch, tmp_path):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    folder = tmp_path / "with spaces"
    folder.mkdir()
    (folder / "c++").symlink_to(compiler)
    monkeypatch.setattr(
        compiled, "_SOURCE", shutil.copytree(compiled._SOURCE.parent, folder / "cpp") / "squeeze_excite.cpp"
    )
    (folder / "cpp" / ".DS_Store").write_bytes(b"\xff")  # no text, and no source
    for name in (f"{compiler} -w", str(folder / "c++"), f"env {compiler}"):
        monkeypatch.setenv("CXX", name)
        monkeypatch.setenv("TILEDSE_CACHE", str(folder / "cache"))
        assert compiled.build().exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect as Linux has it")
def test_nothing_outside_the_maps_is_touched(cache):
    """In a process of its own, which a read beyond the map's last number, or before its first, would kill."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "TILEDSE_CPP": "1", "TILEDSE_CACHE": str(cache), "PYTHONPATH": paths}
    script = Path(__file__).with_name("guarded_maps.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    assert done.stdout == "checked 176\n"
