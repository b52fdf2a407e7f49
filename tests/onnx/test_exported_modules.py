"""People export converted modules themselves: they get the form that ``tiledse convert`` writes, on four axes."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import onnx
import tiledse as ts
from tests import reference
from tiledse import onnx as tse_onnx
from tiledse.onnx.model import from_proto

TILES = (
    "7xW", "4xW", "Hx4", "Hx3", "4x4", "3x5", "7xW:running", "1xW:running+6", "2xW:window-2+1", "1xW", "7xW:upper",
    "7xW:middle", "HxW", "HxW:two-step",
)  # fmt: skip
SIZE = (16, 12)


class Net(nn.Module):
    """A convolution, a block and a convolution."""

    def __init__(self, tile):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.block = ts.TiledSqueezeExcite(6, 4, tile)

    def forward(self, x):
        return self.last(self.block(self.first(x)))


def by_loops(net, x, tile):
    layers = (net.block.fc1, net.block.fc2)
    w1, b1, w2, b2 = (p.detach().double().numpy() for layer in layers for p in layer.parameters())
    excite = reference.two_layers(w1[:, :, 0, 0], b1, w2[:, :, 0, 0], b2)
    inner = net.first(x).detach().double().numpy()
    y = reference.tiled_squeeze_excite(inner, "HxW" if tile == "HxW:two-step" else tile, excite)
    return net.last(torch.from_numpy(y).float()).detach().numpy()


def by_trace(net, x):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, dynamo=False, opset_version=17, input_names=["x"])
    return onnx.load_from_string(file.getvalue())


def by_dynamo(net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (x,), dynamo=True, opset_version=18, verbose=False, input_names=["x"]
        )
    return program.model_proto


def most_axes(proto):
    known = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.value_info
    return max(len(v.type.tensor_type.shape.dim) for v in known)


def check(proto, net, x, tile):
    ops = {node.op_type for node in proto.graph.node}
    assert not ops & {"CumSum", "ScatterND", "GatherND", "Expand", "Tile"}, ops
    assert most_axes(proto) <= 4
    (got,) = tse_onnx.session(from_proto(proto)).run(None, {"x": x.numpy()})
    expected = by_loops(net, x, tile)
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("tile", TILES)
def test_torch_jit_and_the_older_exporter(tile):
    torch.manual_seed(0)
    net, x = Net(tile).eval(), torch.randn(1, 3, *SIZE)
    proto = by_trace(net, x)
    check(proto, net, x, tile)
    if tile in ("7xW", "4xW", "Hx4", "7xW:running"):
        assert [str(t) for t in tse_onnx.find(from_proto(proto)).tiles] == [tile]


@pytest.mark.parametrize("tile", ["7xW", pytest.param("7xW:running", marks=pytest.mark.slow)])
def test_the_exporter_of_torch_export(tile):
    torch.manual_seed(0)
    net, x = Net(tile).eval(), torch.randn(1, 3, *SIZE)
    proto = by_dynamo(net, x)
    check(proto, net, x, tile)
    assert [str(t) for t in tse_onnx.find(from_proto(proto)).tiles] == [tile]


@pytest.mark.parametrize("tile", TILES)
def test_exported_programs_have_four_axes_at_the_most(tile):
    torch.manual_seed(0)
    net, x = Net(tile).eval(), torch.randn(2, 3, *SIZE)
    program = torch.export.export(net, (x,), strict=False)
    shapes = [n.meta["val"].shape for n in program.graph.nodes if hasattr(n.meta.get("val"), "shape")]
    assert max(map(len, shapes)) <= 4
    assert "cumsum" not in str(program.graph)
    got = program.module()(x).detach().numpy()
    expected = by_loops(net, x, tile)
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_free_batch_exports():
    torch.manual_seed(0)
    net, x = Net("7xW").eval(), torch.randn(2, 3, *SIZE)
    free = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: free},), strict=False)
    for batch in (1, 5):
        other = torch.randn(batch, 3, *SIZE)
        torch.testing.assert_close(program.module()(other), net(other), atol=1e-5, rtol=1e-5)
