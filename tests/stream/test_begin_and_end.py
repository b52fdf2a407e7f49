"""Where a sound ends and the next begins: what is refused, and that nothing of one is left in the other."""

from __future__ import annotations

import pytest
import torch

import tiledse as ts
from tests.networks.over_time import contextnet, x3d


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model, size, _ = contextnet()
    model = model.eval()
    return model, ts.find(model, size).with_tile("1xT:running+2")


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def unknown(request, network):
    """A stream of unknown length."""
    return ts.stream(*network, height=None, backend=request.param, rows=8)


def sound(frames, seed):
    return torch.randn(1, 16, frames, generator=torch.Generator().manual_seed(seed))


def streamed(stream, x, chunk=7):
    """All outputs of a sound that is pushed piece by piece."""
    parts = [stream.push(part) for part in x.split(chunk, 2)] + [stream.finish()]
    return torch.cat([part for part in parts if part is not None], 2)


def test_nothing_of_a_sound_is_left_in_the_next(network, unknown):
    """Running sums are those of its own frames: pushing goes on after finish, with another sound of another length."""
    model, plan = network
    whole = ts.convert(model, plan)
    for frames, seed in ((50, 0), (23, 1), (90, 2)):
        x = sound(frames, seed) + 3 * seed
        with torch.no_grad():
            expected = whole(x)
        torch.testing.assert_close(torch.as_tensor(streamed(unknown, x)), expected, rtol=1e-4, atol=1e-5)


def test_without_finish_the_next_frames_are_of_the_same_sound(network):
    """No stream can know it; the end must be said, and then the outputs are those of both, joined."""
    model, plan = network
    stream, (a, b) = ts.stream(model, plan, height=None), (sound(40, 0), sound(30, 1))
    first = stream.push(a)
    rest = [stream.push(b), stream.finish()]
    with torch.no_grad():
        both = ts.convert(model, plan)(torch.cat([a, b], 2))
    got = torch.cat([part for part in (first, *rest) if part is not None], 2)
    torch.testing.assert_close(got, both, rtol=1e-4, atol=1e-5)
    assert stream.seen == 0


def test_an_end_without_a_beginning(unknown):
    with pytest.raises(ts.TiledSEError, match="the sound ended before its first frame; push frames first"):
        unknown.finish()
    streamed(unknown, sound(40, 0))
    with pytest.raises(ts.TiledSEError, match="the sound ended before its first frame; push frames first"):
        unknown.finish()


def test_a_known_length_is_kept_to(network):
    model, plan = network
    stream = ts.stream(model, plan, height=40)
    stream.push(sound(30, 0))
    with pytest.raises(
        ts.TiledSEError, match="the sound ended after 30 frames, expected 40; push the missing"
    ):
        stream.finish()
    with pytest.raises(ts.TiledSEError, match=r"41 frames came, the sound has 40.*finish\(\) ends it"):
        stream.push(sound(11, 0))
    with pytest.raises(ts.TiledSEError, match="expected frame 30 next, got frame 32: 2 dropped"):
        stream.push(sound(4, 0), 32)
    wrong = sound(4, 0)
    wrong[0, 3, 1] = torch.nan
    with pytest.raises(ts.TiledSEError, match="frame 31 holds a value that is not finite"):
        stream.push(wrong)
    stream.push(sound(10, 0))
    with pytest.raises(ts.TiledSEError, match="41 frames came, the sound has 40"):
        stream.push(sound(1, 0))
    stream.finish()
    assert stream.seen == 0


def test_another_batch_or_frame_than_the_stream_s(network):
    model, plan = network
    stream = ts.stream(model, plan, height=None, batch=2)
    stream.push(torch.zeros(2, 16, 5))
    for shape in ((1, 16, 5), (2, 15, 5), (2, 16), (2, 16, 5, 2)):
        with pytest.raises(ts.TiledSEError, match=r"frames 5 and on: expected \(2, 16, frames\), got"):
            stream.push(torch.zeros(shape))
    torch.manual_seed(0)
    clip, size, _ = x3d()
    stream = ts.stream(clip.eval(), ts.find(clip, size).with_tile("1xHxW:running"), height=None)
    frame = (1, size[0], 1, *size[2:])
    stream.push(torch.zeros(frame))
    with pytest.raises(ts.TiledSEError, match=r"frames 1 and on: expected \(1, 8, frames, 5, 4\), got"):
        stream.push(torch.zeros(*frame[:3], size[3], size[2] + 1))
    with pytest.raises(ts.TiledSEError, match="expected frame 1 next, got frame 0: 1 sent twice"):
        stream.push(torch.zeros(frame), 0)
