"""Sound streamed frame by frame: exactly what the network gives for all of it, for any length, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import onnx
import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tests.networks.over_time import LastSE, Residual, contextnet, ecapa, x3d
from tests.onnx.test_over_time import exported
from tiledse.onnx import model as files


def small(name):
    torch.manual_seed(0)
    model, size, _ = {"contextnet": contextnet, "ecapa": ecapa}[name]()
    return model.eval(), ts.find(model, size)


class Speaker(nn.Module):
    """A body, its mean over time, and a dense layer."""

    def __init__(self, body):
        super().__init__()
        self.body, self.pool, self.head = body, nn.AdaptiveAvgPool1d(1), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.pool(self.body(x)).flatten(1))


@pytest.mark.parametrize(
    ("name", "tile", "height"),
    [("contextnet", "1xT:running", None), ("contextnet", "8xT", None), ("ecapa", "1xT:running+3", None),
     ("ecapa", "1xT:window-4+2", 61), ("contextnet", "T", 61)],
)  # fmt: skip
def test_frames_in_frames_out(name, tile, height):
    model, plan = small(name)
    asked = plan.with_tile(tile)
    stream = ts.stream(model, asked, height=height, batch=2)
    tse = ts.convert(model, asked)
    for frames, chunk in ((61, 7),) if height else ((61, 7), (23, 1)):
        x = torch.randn(2, 16, frames)
        got = [y for y in stream.run(x.split(chunk, 2)) if y is not None]
        torch.testing.assert_close(torch.cat(got, 2), tse(x), rtol=1e-4, atol=1e-5)
    assert not stream.whole
    assert stream.plan.blocks[0].axes == 1


def test_memory_does_not_grow_and_pools_are_sums():
    body, _ = small("contextnet")
    model = Speaker(body).eval()
    plan = ts.find(model, (16, 40)).with_tile("1xT:running")
    peaks = []
    for frames in (200, 2000):
        stream, x = ts.stream(model, plan, height=None), torch.randn(1, 16, frames)
        torch.testing.assert_close(stream(x), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)
        peaks.append(stream.peak_live_bytes)
    assert peaks[0] == peaks[1]


def test_strides_and_channels_last():
    """A convolution of stride 2, and a block with its channels last."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.se = nn.Conv1d(16, 16, 4, 2, padding=1, dilation=1), LastSE(16, 4)
            self.after = Residual(16, nn.Identity(), 1)

        def forward(self, x):
            return self.after(self.se(self.down(x).transpose(1, 2)).transpose(1, 2))

    torch.manual_seed(0)
    model = Turned().eval()
    plan = ts.find(model, (16, 40)).with_tile("4xT:running")
    x = torch.randn(1, 16, 54)
    got = ts.stream(model, plan, height=54)(x, 5)
    torch.testing.assert_close(got, ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)


def test_wrong_use():
    model, plan = small("contextnet")
    plan = plan.with_tile("1xT:running")
    stream = ts.stream(model, plan, height=None)
    with pytest.raises(
        ts.TiledSEError, match=r"frames 0 and on: expected \(1, 16, frames\), got \(1, 8, 5\)"
    ):
        stream.push(torch.zeros(1, 8, 5))
    with pytest.raises(ts.TiledSEError, match="frames of sound have no width, got 4"):
        ts.stream(model, plan, width=4)
    with pytest.raises(ts.TiledSEError, match=r"this takes images"):
        ts.simulate(model, plan)
    with pytest.raises(ts.TiledSEError, match=r"this takes images"):
        ts.report(model, input_size=(16, 40))


@pytest.mark.parametrize(
    ("name", "tile"), [("contextnet", "1xT:running"), ("ecapa", "8xT:running+2"), ("x3d", "1xHxW:running")]
)
def test_onnx_files_are_streamed(name, tile):
    """Graphs of three and of five axes, of as many frames as there are."""
    torch.manual_seed(0)
    model, size, _ = {"contextnet": contextnet, "ecapa": ecapa, "x3d": x3d}[name]()
    model.eval()
    network = ts.open(files.from_proto(exported(model, size)), size)
    asked = network.plan.with_tile(tile)
    stream = ts.stream(network, asked, height=None)
    x = torch.randn(1, size[0], 37, *size[2:])
    expected = ts.convert(model, ts.find(model, size).with_tile(tile))(x)
    torch.testing.assert_close(stream(x, 5), expected, rtol=1e-4, atol=1e-5)
    assert not stream.whole


@pytest.mark.parametrize("free", [True, False], ids=["any length", "one length"])
def test_steps_of_onnx_files(free, tmp_path, monkeypatch):
    """By the verb: a step of a file, run on sounds of other lengths than the file may be of."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, size, _ = contextnet()
    model.eval()
    onnx.save(exported(model, size, free), "speech.onnx")
    made = (
        "stream",
        "speech.onnx",
        "--input",
        "x".join(map(str, size)),
        "--tile",
        "1xT:running",
        "--rows",
        16,
    )
    assert tiledse(*made, "--export", "step.onnx", "--any-height").code == 0
    whole = ts.convert(model, ts.find(model, size).with_tile("1xT:running"))
    for frames in (100, 41):
        x = torch.randn(1, size[0], frames)
        np.save("features.npy", x[0].numpy())
        done = tiledse("stream", "step.onnx", "features.npy", "-o", "out.npy", "--force", "--json")
        assert done.code == 0, done
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(np.load("out.npy")), whole(x), rtol=1e-4, atol=1e-5)
    if not free:
        assert tiledse(*made, "--export", "fixed.onnx").code == 0
        done = tiledse("stream", "fixed.onnx", "features.npy", "-o", "other.npy")
        assert_refused(done, "the step was made for sounds of 40 frames, got 41", "--any-height")
        done = tiledse("stream", "speech.onnx", "features.npy", "--tile", "1xT:running")
        assert_refused(done, "speech.onnx takes sounds of 16x40, and this one is 16x41", "--alone")
