"""Statistics over all frames at the end of a stream, deviations and attentive pooling, by running sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tiledse as ts
from tests.networks.over_time import contextnet


class Pooled(nn.Module):
    """A body with SE and a pooling over frames."""

    def __init__(self, pool):
        super().__init__()
        self.body, self.pool = contextnet()[0][:1], pool

    def forward(self, x):
        return self.pool(self.body(x) + 3)


class Moments(nn.Module):
    """x-vectors: mean and deviation (Snyder et al., 2018), in one of the ways in which they are written."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        mean = x.mean(2)
        if self.how == "std":
            spread = x.std(2)
        elif self.how == "std, frames before channels":
            spread = x.transpose(1, 2).std(dim=1)
        elif self.how == "var":
            spread = torch.sqrt(torch.var(x, dim=-1, unbiased=False) + 1e-7)
        elif self.how == "var_mean":
            spread, mean = torch.var_mean(x, 2, correction=0)
        elif self.how == "squared distance":
            spread = ((x - mean.unsqueeze(2)) ** 2).mean(2).sqrt()
        elif self.how == "summed distance":
            spread = ((x - x.mean(2, keepdim=True)).square().sum(2) / 7).sqrt()
        else:
            spread = (x * x).mean(2) - mean**2
        return torch.cat([mean, spread], 1)


class Attentive(nn.Module):
    """Attentive statistics pooling (Okabe et al., 2018) without global context, as ECAPA's of wespeaker has it."""

    def __init__(self, channels, spread="squares"):
        super().__init__()
        self.one, self.two = nn.Conv1d(channels, 4, 1), nn.Conv1d(4, channels, 1)
        self.spread = spread

    def forward(self, x):
        alpha = torch.softmax(self.two(torch.tanh(self.one(x))) * 20, dim=2)
        mean = torch.sum(alpha * x, dim=2)
        if self.spread == "squares":
            var = torch.sum(alpha * x**2, dim=2) - mean**2
        else:
            var = (alpha * (x - mean.unsqueeze(2)).pow(2)).sum(2)
        return torch.cat([mean, var.clamp(min=1e-7).sqrt()], dim=1)


class OneWeight(Attentive):
    """Self-attentive pooling: one weight a frame for all channels."""

    def forward(self, x):
        alpha = torch.softmax(self.one(x).sum(1, keepdim=True), -1)
        return (x * alpha).sum(-1)


WAYS = (
    "std", "std, frames before channels", "var", "var_mean", "squared distance", "summed distance", "mean of squares"
)  # fmt: skip


def pooled(pool):
    torch.manual_seed(0)
    model = Pooled(pool).eval()
    return model, ts.find(model, (16, 40)).with_tile("1xT:running")


@pytest.mark.parametrize(
    "pool", [*map(Moments, WAYS), Attentive(16), Attentive(16, "distance"), OneWeight(16)], ids=repr
)
def test_at_the_end_come_the_statistics_of_the_whole(pool):
    model, plan = pooled(pool)
    model.double()  # squares less squares: in float32 the whole itself is right to 1e-4 only
    stream = ts.stream(model, plan, height=None, batch=2)
    tse, peaks = ts.convert(model, plan), []
    for frames in (37, 300):
        x = torch.randn(2, 16, frames, dtype=torch.float64)
        torch.testing.assert_close(stream(x, 5), tse(x), rtol=1e-9, atol=1e-10)
        peaks.append(stream.peak_live_bytes)
    assert not stream.whole
    assert peaks[0] == peaks[1]


def test_an_independent_sum_over_frames():
    """The attentive mean and deviation of what the body gives, in numpy, frame by frame and in float64."""
    model, plan = pooled(Attentive(16))
    x = torch.randn(1, 16, 50)
    got = ts.stream(model, plan, height=None)(x, 3)[0].detach().numpy()
    with torch.no_grad():
        body = (ts.convert(model, plan).body(x) + 3)[0].double().numpy()
    weights = [p.detach().double().numpy() for p in model.pool.parameters()]
    w1, b1, w2, b2 = weights[0][:, :, 0], weights[1], weights[2][:, :, 0], weights[3]
    expected = []
    for channel in range(16):
        logits = [float(w2[channel] @ np.tanh(w1 @ body[:, t] + b1) + b2[channel]) * 20 for t in range(50)]
        shares = np.exp(np.array(logits) - max(logits))
        shares /= shares.sum()
        mean = sum(share * body[channel, t] for t, share in enumerate(shares))
        spread = sum(share * (body[channel, t] - mean) ** 2 for t, share in enumerate(shares))
        expected.append((mean, np.sqrt(max(spread, 1e-7))))
    np.testing.assert_allclose(got[:16], [m for m, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(got[16:], [s for _, s in expected], rtol=1e-4, atol=1e-5)


def test_a_state_of_statistics_goes_on(tmp_path):
    model, plan = pooled(Attentive(16))
    x = torch.randn(1, 16, 41)
    one, other = ts.stream(model, plan, height=None), ts.stream(model, plan, height=None)
    one.push(x[:, :, :17])
    one.save(tmp_path / "state.safetensors")
    other.load(tmp_path / "state.safetensors")
    other.push(x[:, :, 17:])
    torch.testing.assert_close(other.finish(), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [Moments("std"), Attentive(16)], ids=["std", "attentive"])
def test_steps_have_statistics(tmp_path, pool):
    model, plan = pooled(pool)
    ts.export_step(model, plan, tmp_path / "step.onnx", rows=4, middle=False)
    x = torch.randn(1, 16, 45)
    got = ts.StepRunner(tmp_path / "step.onnx")(x)["output"]
    torch.testing.assert_close(torch.from_numpy(got), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)


class Context(Attentive):
    """With global context: the attention of each frame sees the mean of all frames."""

    def forward(self, x):
        context = x.mean(2, keepdim=True).expand(-1, -1, x.shape[2])
        alpha = torch.softmax(self.two(torch.tanh(self.one(x + context) + self.one(context))), dim=2)
        return (alpha * x).sum(2)


def test_attention_that_sees_the_whole_holds_it(tmp_path):
    """Its weights need the mean first, and all frames after it: no running sum can be that. So the map is held."""
    model, plan = pooled(Context(16))
    stream = ts.stream(model, plan.with_tile("1xT:running"), height=None)
    for frames in (60, 31):
        x = torch.randn(1, 16, frames)
        torch.testing.assert_close(stream(x, 7), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)
    assert max(h.rows for h in stream.held()) == 40  # of the plan's 40 frames
    with pytest.raises(ts.TiledSEError, match="joins a map with a mean of the whole of one"):
        ts.export_step(model, plan, tmp_path / "step.onnx")


class Between(nn.Module):
    """Operators on which a sum over frames cannot be followed, and one that is written in place afterwards."""

    def forward(self, x):
        centred = x - x.mean(2, keepdim=True)
        kept = centred.abs().sum(2)
        x.add_(1)
        return kept + centred.square().mean(2) + (torch.softmax(x, 2) * torch.softmax(x, 2)).sum(2)


def test_what_cannot_be_followed_is_built_as_it_stands():
    model, plan = pooled(Between())
    x = torch.randn(1, 16, 40)
    stream = ts.stream(model, plan)
    torch.testing.assert_close(stream(x, 6), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)
