"""The C++ kernels against the formula in float64; skipped where pip could not build them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tiledse as ts
from tiledse.errors import TiledSEError
from tiledse.op import by_cpp, choosing, formula
from tiledse.op.formula import mean

ACTS, GATES = (nn.ReLU, nn.SiLU, nn.Hardswish), (nn.Sigmoid, nn.Hardsigmoid)
ROOT = Path(__file__).parents[2]

# Of this processor, the lowest first; the last one is what the operator takes.
LEVELS = {"AVX512": ["v2", "v3", "v4"], "AVX2": ["v2", "v3"]}.get(
    torch.backends.cpu.get_cpu_capability(), ["v2"]
)
if platform.machine().lower() not in ("x86_64", "amd64"):
    LEVELS = ["plain"]

pytestmark = pytest.mark.skipif(isinstance(by_cpp.library(), str), reason=f"C++ kernels: {by_cpp.library()}")


@pytest.fixture(autouse=True)
def choices():
    """What was prepared under a test's own limits is forgotten."""
    choosing._chosen.cache_clear()
    yield
    choosing._chosen.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """The calls of the kernels."""
    calls = []
    for name in ("forward", "backward"):
        kernel = getattr(by_cpp, name)
        monkeypatch.setattr(
            by_cpp, name, lambda *a, k=kernel, n=name, **kw: (calls.append(n), k(*a, **kw))[1]
        )
    return calls


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


CASES = [
    ("7xW", 2, 32, 14, 28), ("HxW", 3, 16, 7, 7), ("3xW", 2, 5, 10, 9), ("4xW", 1, 48, 9, 40),
    ("20xW", 2, 7, 4, 3), ("1xW", 2, 3, 5, 1), ("HxW", 1, 2, 40, 70),
    ("Hx7", 2, 24, 14, 28), ("Hx4", 2, 5, 9, 10), ("7x7", 2, 48, 21, 30), ("3x2", 3, 7, 7, 5), ("1x1", 1, 9, 5, 3),
    ("2xW:running", 3, 16, 13, 20), ("3xW:running", 1, 33, 30, 7), ("9xW:running", 2, 4, 9, 6),
    ("3xW:upper", 2, 8, 10, 12), ("4xW:middle", 3, 21, 11, 9), ("7xW:middle", 2, 5, 4, 3),
    ("2xW", 1, 600, 9, 150), ("5x40", 2, 600, 12, 90), ("4xW:running", 2, 300, 33, 64),
    ("1xW:running+6", 3, 16, 13, 20), ("1xW:running+2", 2, 5, 9, 3), ("3xW:running-2", 2, 33, 20, 9),
    ("1xW:running-1", 2, 8, 6, 11), ("2xW:window-3+4", 2, 24, 19, 16), ("3xW:window-7-3", 1, 7, 25, 30),
    ("4xW:window-2+2", 2, 300, 33, 64), ("2xW:running+3", 1, 600, 9, 150), ("1xW:window-6+6", 5, 16, 14, 14),
]  # fmt: skip


def check(case, channels_last, dtype, tolerance):
    tile, images, channels, height, width = case
    torch.manual_seed(height)
    block = ts.TiledSqueezeExcite(channels, 6, tile, act=ACTS[height % 3], gate=GATES[width % 2]).to(dtype)
    x = (3 * torch.randn(images, channels, height, width) + 1).to(dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    upstream = torch.randn_like(x)
    found = ours(block, x, upstream)
    for mine, exact in zip(found, exactly(block, x, upstream), strict=True):
        most = float(exact.abs().max())
        torch.testing.assert_close(mine.double(), exact, rtol=10 * tolerance, atol=tolerance * most)
    assert found[0].stride() == found[1].stride() == x.stride()
    with torch.no_grad():
        z = x.clone(memory_format=torch.preserve_format)
        assert ts.tiled_squeeze_excite(z, block.excite, tile, inplace=True) is z
        assert torch.equal(z, found[0])


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_is_the_formula(case, channels_last, past_cache, calls, monkeypatch):
    if past_cache:
        monkeypatch.setattr(by_cpp, "_PAST_CACHE_BYTES", 0)
    check(case, channels_last, torch.float32, 2e-6)
    assert calls == ["forward", "backward", "forward"]


@pytest.mark.parametrize("case", CASES[1::2], ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("level", LEVELS[:-1])
def test_libraries_of_lower_levels_are_the_formula(level, case, calls, monkeypatch):
    monkeypatch.setattr(by_cpp, "library", lambda: by_cpp.load(level))
    monkeypatch.setattr(by_cpp, "_PAST_CACHE_BYTES", 0 if case[4] % 2 else 1 << 30)
    for channels_last in (False, True):
        for dtype, tolerance in (
            (torch.float32, 2e-6),
            (torch.bfloat16, torch.finfo(torch.bfloat16).eps / 2),
        ):
            choosing._chosen.cache_clear()
            check(case, channels_last, dtype, tolerance)
    assert calls == ["forward", "backward", "forward"] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: "-".join(map(str, case)))
def test_maps_of_half_precision_are_summed_in_float32(case, dtype, calls, monkeypatch):
    if dtype == torch.float16 and not by_cpp.library().tiledse_has_float16():
        pytest.skip("this processor does not convert float16")
    if case[3] % 2:
        monkeypatch.setattr(by_cpp, "_PAST_CACHE_BYTES", 0)
    # The map and its gradient are rounded once, and nothing between them is.
    check(case, case[2] % 2 == 0, dtype, torch.finfo(dtype).eps / 2)
    assert calls == ["forward", "backward", "forward"]


@pytest.mark.parametrize("value", [1.00390625, -3.4e38, float("inf"), float("nan"), 1e-40, 0.0, -0.0])
def test_bfloat16_is_rounded_as_torch_rounds_it(value, calls):
    block = ts.TiledSqueezeExcite(1, 1, "1x1").to(torch.bfloat16)
    nn.init.zeros_(block.fc2.weight)
    nn.init.constant_(block.fc2.bias, 90.0)  # a gate of 1
    x = torch.full((1, 1, 3, 40), value).to(torch.bfloat16)
    x += torch.arange(40) / 64
    with torch.no_grad():
        torch.testing.assert_close(block(x), x, rtol=0, atol=0, equal_nan=True)
    assert calls == ["forward"]


TILES = ["3xW", "2x2", "Hx3", "3xW:running", "3xW:middle", "1xW:running+2", "2xW:window-3+1", "1xW:running-1"]


@pytest.mark.skipif(by_cpp.threads_of_torch() is None, reason="torch before 2.10 lends its threads to nobody")
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tile", TILES)
def test_threads_share_the_tiles(tile, images, calls, monkeypatch):
    monkeypatch.setattr(by_cpp, "_BYTES_OF_A_THREAD", 1)
    block = ts.TiledSqueezeExcite(8, 4, tile)
    x, upstream = torch.randn(images, 8, 30, 60), torch.randn(images, 8, 30, 60)
    alone = ours(block, x, upstream)
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert choosing.call_of(x, block.fc1.weight, block.tile, "relu", "sigmoid").threads == threads
            for one, many in zip(alone, ours(block, x, upstream), strict=True):
                torch.testing.assert_close(one, many, rtol=1e-6, atol=1e-6)
            with torch.no_grad():
                z = x.clone()
                assert torch.equal(ts.tiled_squeeze_excite(z, block.excite, tile, inplace=True), block(x))
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_stays_none(calls):
    block = ts.TiledSqueezeExcite(4, 2, "2xW")
    x = torch.randn(1, 4, 4, 3)
    x[0, 1, 0, 0] = torch.nan
    with torch.no_grad():
        y = block(x)
    assert calls == ["forward"]
    assert y[0, :, :2].isnan().all()
    assert not y[0, :, 2:].isnan().any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e4])
def test_gates_at_both_ends(scale, calls):
    block = ts.TiledSqueezeExcite(16, 8, "HxW", act=nn.SiLU)
    x = scale * torch.randn(2, 16, 3, 5)
    # Where gates are 0 or 1 in float32, 1 - gate has no digits left, in torch's own gradients as well.
    compared = 1 if scale == 1e4 else 6
    for mine, exact in list(zip(ours(block, x, x), exactly(block, x, x), strict=True))[:compared]:
        torch.testing.assert_close(mine.double(), exact, rtol=5e-5, atol=1e-5 * float(exact.abs().max()))


def test_everything_else_is_pytorch_s(calls):
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        ts.TiledSqueezeExcite(8, 4, "3xW", act=nn.GELU)(x)
        ts.TiledSqueezeExcite(8, 4, "3xW", kernel_size=(3, 1))(x)
        block = ts.TiledSqueezeExcite(8, 4, "3xW")
        block(x[:, :, :, ::2])
        ts.tiled_squeeze_excite(x, torch.sigmoid, "3xW")
        with ts.kernels("torch"):
            block(x)
        block.double()(x.double())
    assert not calls


def test_gradients_of_gradients_and_wrong_use(calls):
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


def test_who_saved_a_map_that_is_written_in_place_learns_of_it(calls):
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(1, 8, 4, 6, requires_grad=True)
    y = x.exp()  # its gradient is itself
    with torch.no_grad():
        ts.tiled_squeeze_excite(y, block.excite, "2xW", inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with torch.inference_mode():
        ts.tiled_squeeze_excite(x.clone(), block.excite, "2xW", inplace=True)
    assert calls == ["forward", "forward"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect as Linux has it")
def test_nothing_outside_the_maps_is_touched():
    """In a process of its own, which a read beyond the map's last number, or before its first, would kill."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    script = Path(__file__).with_name("guarded_maps.py")
    done = subprocess.run(
        [sys.executable, str(script), *LEVELS], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    assert done.stdout == "checked 168\n"
