"""ONNX files of sound and volumes: graphs of 3 and 5 axes are found and converted; they are what PyTorch makes."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import onnx
import tiledse as ts
from tests.networks.over_time import Around, ConvSE, build
from tiledse.onnx import model as files


def exported(model, size, free=True, opset=17, dynamo=False):
    """The network as a file, time and batch free; in memory."""
    x = torch.randn(2, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = ({0: torch.export.Dim("n")},)
            return torch.onnx.export(
                model, (x,), input_names=["input"], dynamic_shapes=batch, verbose=False
            ).model_proto
        file = io.BytesIO()
        axes = {name: {0: "n", 2: "t"} if free else {0: "n"} for name in ("input", "output")}
        torch.onnx.export(
            model, (x,), file, dynamo=False, opset_version=opset, dynamic_axes=axes, input_names=["input"],
            output_names=["output"],
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def run(model, x):
    opened = ort.InferenceSession(model.to_proto().SerializeToString())
    return opened.run(None, {"input": x.numpy()})[0]


def check(kind, tile, **options):
    net, size = build(kind)
    loaded = files.from_proto(exported(net, size, **options))
    network = ts.open(loaded, size)
    plan = network.plan
    assert [b.sides for b in plan.blocks] == [size[1:]]
    assert str(plan.tiles[0]) == ("T" if len(size) == 2 else "DxHxW")
    asked = plan.with_tile(tile)
    made = network.convert(asked)
    assert ts.open(made.given, size).plan == asked
    assert str(ts.open(made.given, size).plan.tiles[0]) == tile
    tse = ts.convert(net, ts.find(net, size).with_tile(tile))
    for frames in (
        (size[1], size[1] + 6) if options.get("free", True) and not options.get("dynamo") else (size[1],)
    ):
        x = torch.randn(2, size[0], frames, *size[2:])
        np.testing.assert_allclose(run(made.given, x), tse(x).detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run(loaded, x), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tile", "options"),
    [
        ("ConvSE", "8xT", {}),
        ("PoolSE", "1xT:running+3", {}),
        ("ConvSE", "4xT:running", {"free": False, "opset": 11}),
        ("VolumeSE", "1xHxW:running", {}),
        ("VolumeSE", "4xHxW", {"free": False}),
        ("IndexedSE", "8xT", {"free": False, "dynamo": True}),
    ],
)
def test_a_file_is_what_pytorch_makes(kind, tile, options):
    check(kind, tile, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ConvSE", "PoolSE", "VolumeSE", "DenseVolumeSE"])
def test_files_of_the_new_exporter(kind):
    check(kind, "4xHxW" if "Volume" in kind else "1xT:window-2+3", free=False, dynamo=True)


def test_what_is_not_read_is_told():
    """A sum over time is no near nothing: it is a near miss with its reason."""
    net, size = build("LastSE")
    plan = ts.open(files.from_proto(exported(net, size)), size).plan
    assert not len(plan)
    assert "pooled by ReduceSum" in plan.near_misses[0].reason


def test_wrong_use():
    net, size = build("ConvSE")
    loaded = files.from_proto(exported(net, size))
    with pytest.raises(
        ts.TiledSEError, match=r"leaves the size of its input 'input' free \(4x\?\).*--input CxT"
    ):
        ts.open(loaded)
    with pytest.raises(
        ts.TiledSEError, match=r"expected an input size of \(C, T\), such as \(80, 1000\), got \(4, 8, 8\)"
    ):
        ts.open(loaded, (4, 8, 8))
    with pytest.raises(ts.TiledSEError, match="write 7xT"):
        ts.open(loaded, size).plan.with_tile("7xW")


def test_blocks_of_three_axes_in_a_file_of_images():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.plane, self.body = nn.Conv2d(1, 1, 3, padding=1), Around(ConvSE(8, 4), 1)

        def forward(self, x):
            return self.body(self.plane(x).flatten(1, 2))

    net = Spectral().eval()
    loaded = files.from_proto(exported(net, (1, 4, 20), free=False))
    plan = ts.open(loaded, (1, 4, 20)).plan
    assert [b.sides for b in plan.blocks] == [(20,)]
    made = ts.open(loaded, (1, 4, 20)).convert(plan.with_tile("5xT")).given
    x = torch.randn(2, 1, 4, 20)
    tse = ts.convert(net, ts.find(net, (1, 4, 20)).with_tile("5xT"))
    np.testing.assert_allclose(run(made, x), tse(x).detach(), rtol=1e-4, atol=1e-5)


def test_means_over_some_axes_are_near_misses_here_too():
    from tests.networks.test_over_time import OverTimeAlone

    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), OverTimeAlone("mean")).eval()
    plan = ts.onnx.find(files.from_proto(exported(model, (1, 10, 30), free=False)))
    assert not len(plan)
    (miss,) = plan.near_misses
    assert "by means over axis 3 of 4 alone, more than one a channel" in miss.reason


class Norm(nn.Module):
    """A norm written out: a map times one over the size of its squares along some axis."""

    def __init__(self, axis, centred=False):
        super().__init__()
        self.axis, self.centred = axis, centred

    def forward(self, x):
        far = x - x.mean(self.axis, keepdim=True) if self.centred else x
        return far * torch.rsqrt((far * far).mean(self.axis, keepdim=True) + 1e-5)


class ChannelsLast(nn.Module):
    """Something done to (N, H, W, C)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OfChannels(nn.Module):
    """A gate a pixel, by the mean of its channels (the last axis)."""

    def forward(self, x):
        return x * torch.sigmoid(x.mean(-1, keepdim=True))


@pytest.mark.parametrize(
    "inner",
    [Norm(-1), Norm(-1, True), ChannelsLast(Norm(-1)), ChannelsLast(Norm(-1, True)), ChannelsLast(OfChannels())],
    ids=["rms", "layer", "rms of channels", "layer of channels", "a gate a pixel"],
)  # fmt: skip
def test_norms_and_gates_of_pixels_are_no_near_misses(inner):
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), inner, nn.Conv2d(8, 2, 1)).eval()
    plan = ts.onnx.find(files.from_proto(exported(model, (1, 10, 30), free=False)))
    assert not [miss for miss in plan.near_misses if miss.gates], plan.near_misses
