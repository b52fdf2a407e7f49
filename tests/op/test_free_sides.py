"""Exporters that leave height and width free get a form that is right at every size; traces refuse other sizes."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

import tiledse as ts
from tests import reference
from tiledse.op import formula, free_sides, functional
from tiledse.tile import Tile

TILES = (
    "7xW", "1xW", "Hx4", "4x5", "3xW:running", "1xW:running+6", "2xW:running-1", "2xW:running-2", "1xW:window-6+6",
    "2xW:window-3-1", "3xW:window-1-3", "4xW:upper", "4xW:middle", "HxW", "HxW:two-step",
)  # fmt: skip
SIZES = ((14, 12), (16, 21), (23, 16), (40, 9))


def by_loops(tile):
    return "HxW" if tile == "HxW:two-step" else tile


class Net(nn.Module):
    """A convolution, a block and a convolution."""

    def __init__(self, tile):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.block = ts.TiledSqueezeExcite(6, 4, tile)
        nn.init.normal_(self.block.fc2.weight, std=3.0)

    def forward(self, x):
        return self.last(self.block(self.first(x)))

    def by_loops(self, x):
        layers = (self.block.fc1, self.block.fc2)
        w1, b1, w2, b2 = (p.detach().double().numpy() for layer in layers for p in layer.parameters())
        excite = reference.two_layers(w1[:, :, 0, 0], b1, w2[:, :, 0, 0], b2)
        inner = self.first(x).detach().double().numpy()
        y = reference.tiled_squeeze_excite(inner, by_loops(str(self.block.tile)), excite)
        return self.last(torch.from_numpy(y).float()).detach().numpy()


def traced_for(net, size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: torch.jit.trace is deprecated
        return torch.jit.trace(net, torch.randn(1, 3, *size))


def far(got, expected):
    assert got.shape == expected.shape
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@given(st.sampled_from(TILES), st.integers(1, 33), st.integers(1, 12), st.sampled_from([1, 3]))
def test_every_tile_on_maps_of_every_size(tile, height, width, channels):
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height))
    z = free_sides.squeeze(x, Tile.parse(tile))
    y = free_sides.scale(x, z.sigmoid(), Tile.parse(tile))
    expected = reference.tiled_squeeze_excite(
        x.double().numpy(), by_loops(tile), lambda means: 1 / (1 + np.exp(-means))
    )
    assert far(y.numpy(), expected) <= 2e-6


@pytest.mark.parametrize("tile", TILES)
def test_exported_once_it_is_right_at_other_sizes(tile):
    net = Net(tile).eval()
    free = {0: Dim("n", min=1, max=64), 2: Dim("h", min=8, max=4096), 3: Dim("w", min=8, max=4096)}
    program = torch.export.export(net, (torch.randn(2, 3, 14, 12),), dynamic_shapes=(free,), strict=False)
    shapes = [n.meta["val"].shape for n in program.graph.nodes if hasattr(n.meta.get("val"), "shape")]
    assert max(map(len, shapes)) <= 4
    run = program.module(check_guards=False)  # as runtimes do that take the graph alone
    for n, size in enumerate(SIZES, start=1):
        x = torch.randn(n, 3, *size)
        assert far(run(x).detach().numpy(), net.by_loops(x)) <= 2e-5


@pytest.mark.parametrize("height", [Dim("h", min=8, max=4096), 11 * Dim("k", min=1, max=99), Dim.AUTO])
def test_dynamo_too_tells_symbols_from_numbers(height):
    net = Net("7xW").eval()
    program = torch.export.export(
        net, (torch.randn(1, 3, 22, 12),), dynamic_shapes=({2: height},), strict=True
    )
    x = torch.randn(1, 3, 33, 12)
    run = program.module(check_guards=False)
    assert far(run(x).detach().numpy(), net.by_loops(x)) <= 2e-5
    fixed = torch.export.export(net, (torch.randn(1, 3, 14, 12),), strict=True)
    assert "index_select" not in str(fixed.graph)


@pytest.mark.parametrize("tile", ["7xW", pytest.param("1xW:running+6", marks=pytest.mark.slow)])
def test_onnx_files_with_free_sides(tile):
    import onnxruntime as ort

    net = Net(tile).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (torch.randn(1, 3, 14, 12),), dynamo=True, opset_version=18, verbose=False, input_names=["x"],
            dynamic_shapes=({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
        )  # fmt: skip
    run = ort.InferenceSession(program.model_proto.SerializeToString())
    for size in (*SIZES, (5, 3)):
        x = torch.randn(1, 3, *size)
        assert far(run.run(None, {"x": x.numpy()})[0], net.by_loops(x)) <= 2e-5


SEVEN = Tile.parse("7xW")


class MeanAndMax(nn.Module):
    def forward(self, x):
        return ts.tiled_squeeze_excite(x, torch.sigmoid, SEVEN, formula.mean_and_max)


class Calibrated(nn.Module):
    """Descriptors of a map of 7 rows, which is one strip: numbers for one strip would be taken for all of them."""

    def forward(self, x):
        half = torch.full((x.shape[1], 1, 1), 0.5)
        z = functional.correct(x, SEVEN, (half, None, half))
        return functional.scale(x, z.sigmoid(), SEVEN)


@pytest.mark.parametrize(
    ("block", "said"),
    [(MeanAndMax(), "more than a mean is exported for one size"), (Calibrated(), "one height")],
)
def test_what_holds_for_one_size_is_refused(block, said):
    x = torch.randn(1, 3, 7, 12)  # torch.export marks it where it fails
    with pytest.raises(ts.TiledSEError, match=said):
        torch.export.export(block, (x.clone(),), dynamic_shapes=({2: Dim.AUTO},), strict=False)
    with pytest.raises(
        Exception, match="TiledSEError|super"
    ):  # dynamo cannot trace our error, and ends in its own
        torch.export.export(block, (x.clone(),), dynamic_shapes=({2: Dim.AUTO},), strict=True)
    program = torch.export.export(block, (x.clone(),), strict=True)
    torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.parametrize("tile", ["7xW", "1xW", "Hx4", "7xW:running", "4xW:middle"])
@pytest.mark.parametrize("traced", [(14, 12), (7, 12)])
def test_a_trace_of_torch_jit_refuses_other_sizes(tile, traced):
    net = Net(tile).eval()
    trace = traced_for(net, traced)
    x = torch.randn(2, 3, *traced)
    assert far(trace(x).detach().numpy(), net.by_loops(x)) <= 2e-5
    for size in ((14, 16), (28, 12), (21, 24), (12, 14), (5, 12), (1, 12), (14, 1), (1, 1), (28, 6)):
        with pytest.raises(RuntimeError):
            trace(torch.randn(1, 3, *size))


@pytest.mark.parametrize("tile", ["HxW", "HxW:two-step"])
def test_a_trace_of_plain_se_takes_all_sizes(tile):
    net = Net(tile).eval()
    trace, x = traced_for(net, (14, 12)), torch.randn(1, 3, 20, 9)
    assert far(trace(x).detach().numpy(), net.by_loops(x)) <= 2e-5


def older_export(net, axes, **names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.randn(1, 3, 14, 12),), io.BytesIO(), dynamo=False, dynamic_axes=axes, **names
        )


@pytest.mark.parametrize("axes", [{"x": {2: "h"}}, {"x": [0, 3]}, {"x": {0: "n", 2: "h", 3: "w"}, "y": [0]}])
def test_the_older_exporter_frees_the_batch_only(axes):
    names = {"input_names": ["x"], "output_names": ["y"]}
    with pytest.raises(
        ts.TiledSEError, match="free the batch of 'x' only in dynamic_axes, or use dynamo=True"
    ):
        older_export(Net("7xW").eval(), axes, **names)
    older_export(Net("HxW").eval(), axes, **names)
    older_export(Net("7xW").eval(), {"x": {0: "n"}, "y": {0: "n", 2: "h"}}, **names)


def test_an_input_that_is_no_map_may_be_free():
    class Two(Net):
        def forward(self, x, words):
            return super().forward(x) + words.float().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Two("7xW").eval(), (torch.randn(1, 3, 14, 12), torch.ones(1, 5)), io.BytesIO(), dynamo=False,
            input_names=["x", "words"], dynamic_axes={"x": {0: "n"}, "words": {0: "n", 1: "l"}},
        )  # fmt: skip
