"""Sound and clips on the command line and in steps: frames in, frames out, as the network gives them for the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import onnx
import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tests.networks.over_time import contextnet, x3d
from tiledse.stream.frame_files import FrameRows
from tiledse.stream.frames import as_rows


def sound():
    """ContextNet in small."""
    torch.manual_seed(0)
    return contextnet()[0].eval()


def clip():
    """X3D in small."""
    torch.manual_seed(0)
    return x3d()[0].eval()


SOUND = ("tests.stream.test_frames_in_files:sound", "--input", "16x40", "--tile", "1xT:running")
CLIP = ("tests.stream.test_frames_in_files:clip", "--input", "8x16x5x4", "--tile", "1xHxW:running")


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The step of the sound network, and the network with its tiles."""
    model = sound()
    plan = ts.find(model, (16, 40)).with_tile("1xT:running")
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    return path, ts.export_step(model, plan, path, rows=4), ts.convert(model, plan)


@pytest.mark.parametrize(("words", "shape"), [(SOUND, (16, 53)), (CLIP, (8, 21, 5, 4))])
def test_the_verb_streams_frames_of_unknown_length(tmp_path, words, shape):
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out.npy"
    done = tiledse(
        "stream", words[0], tmp_path / "x.npy", *words[1:], "--any-height", "-o", out, "--json"
    ).out
    record = json.loads(done)
    assert record["input"] == list(shape)
    assert record["max_rel_error"] < 1e-5
    # Causal sound is known with its first frame; each of the three convolutions of the clip sees one frame ahead.
    assert record["first_output_after"] == (1 if words is SOUND else 4)
    model = sound() if words is SOUND else clip()
    plan = ts.find(model, tuple(map(int, words[2].split("x")))).with_tile(words[4])
    expected = ts.convert(model, plan)(torch.from_numpy(x)[None])
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected, rtol=1e-4, atol=1e-5)


def test_figures_are_those_of_the_sound_that_came(tmp_path):
    """With whole-map SE nothing comes before the end, and each gate holds all frames: 53, not the 40 of --input."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((16, 53), dtype=np.float32))
    words = [*SOUND[1:-1], "HxW", "--any-height", "--json"]
    record = json.loads(tiledse("stream", SOUND[0], tmp_path / "x.npy", *words).out)
    assert record["first_output_after"] == 53
    gates = [held for held in record["held"] if held["kind"] == "gate"]
    model = sound()
    channels = {block.name: block.channels for block in ts.find(model, (16, 40)).blocks}
    assert {held["name"]: (held["rows"], held["elements"]) for held in gates} == {
        name: (53, 53 * count) for name, count in channels.items()
    }
    assert record["gate_buffer"] == record["cost_buffer_row_order"] == 53 * sum(channels.values())


def test_the_words_speak_of_sound(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((16, 40), np.float32))
    text = " ".join(tiledse("stream", SOUND[0], tmp_path / "x.npy", *SOUND[1:]).out.split())
    assert "the first output is known after 1 of 40 frames" in text
    assert "largest difference from the whole sound" in text
    assert "image by" not in text


def test_the_file_of_a_step_takes_frames(step):
    path, made, tse = step
    assert made.max_rel_error < 1e-5
    ends = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(path).graph.input}
    assert ends["image"] == [1, 16, 4]
    assert made.header.sides == ()
    runner = ts.StepRunner(path)
    x = torch.randn(1, 16, 30)
    got = [part["output"] for part in runner.run(x.split(7, 2))]
    assert len(got) > 4
    torch.testing.assert_close(torch.from_numpy(np.concatenate(got, 2)), tse(x), rtol=1e-4, atol=1e-5)


def test_a_step_of_sound_on_the_command_line(step, tmp_path):
    path, _, tse = step
    x = np.random.default_rng(1).standard_normal((16, 35), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    text = tiledse("stream", path, tmp_path / "x.npy", "-o", tmp_path / "out.npy").out
    assert "4 frames at a time" in text
    expected = tse(torch.from_numpy(x)[None])
    got = torch.from_numpy(np.load(tmp_path / "out.npy"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_state_of_sound_goes_on(step, tmp_path):
    path, _, tse = step
    x = torch.randn(1, 16, 33)
    one, other = ts.StepRunner(path), ts.StepRunner(path)
    first = one.push(x[:, :, :14])["output"]
    one.save(tmp_path / "state.safetensors")
    other.load(tmp_path / "state.safetensors")
    rest = [
        part for part in (other.push(x[:, :, 14:])["output"], other.finish()["output"]) if part is not None
    ]
    got = torch.from_numpy(np.concatenate([first, *rest], 2))
    torch.testing.assert_close(got, tse(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_step_of_a_clip(tmp_path):
    model = clip()
    plan = ts.find(model, (8, 16, 5, 4)).with_tile("4xHxW")
    made = ts.export_step(model, plan, tmp_path / "step.onnx", rows=8)
    assert made.header.window_shape == (1, 8, made.header.window, 5, 4)
    x = torch.randn(1, 8, 37, 5, 4)
    got = torch.from_numpy(ts.StepRunner(tmp_path / "step.onnx")(x)["output"])
    torch.testing.assert_close(got, ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)


def test_a_clip_in_chunks():
    model = clip()
    plan = ts.find(model, (8, 16, 5, 4)).with_tile("4xHxW:running+2")
    stream = ts.stream(model, plan, height=None, batch=2)
    x = torch.randn(2, 8, 27, 5, 4)
    torch.testing.assert_close(stream(x, 5), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)
    assert not stream.whole
    assert stream.plan.blocks[0].sides == (16, 5, 4)
    with pytest.raises(
        ts.TiledSEError, match=r"frames 0 and on: expected \(2, 8, frames, 5, 4\), got \(2, 8, 3, 4, 5\)"
    ):
        stream.push(torch.zeros(2, 8, 3, 4, 5))


@pytest.mark.parametrize("turned", [False, True])
def test_files_of_features_are_read_as_they_lie(tmp_path, turned):
    x = np.random.default_rng(0).standard_normal((70, 16) if turned else (16, 70))
    x = x.T if turned else x
    np.save(tmp_path / "x.npy", x)
    read = np.concatenate([chunk.numpy() for chunk in FrameRows(tmp_path / "x.npy", 16).chunks(32)], 2)
    assert np.array_equal(read, x.astype(np.float32)[None, :, :, None])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((40, 16), np.float32),
            "(40, 16); expected .npy of floats (C, T): (16, frames); save its transpose",
        ),
        (np.zeros((16, 40), np.int16), "(16, frames): make the features that the network was trained on"),
        (np.zeros((8, 40), np.float32), "float32 of (8, 40); expected .npy of floats"),
        (np.zeros((16, 0), np.float32), "which has no frame"),
    ],
)
def test_other_files_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    assert_refused(tiledse("stream", SOUND[0], tmp_path / "x.npy", *SOUND[1:]), message)


def test_wrong_use(step, tmp_path):
    path, _, _ = step
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    assert_refused(
        tiledse("stream", path, tmp_path / "x.wav"), "no sound that can be read; expected .npy of floats"
    )
    assert_refused(tiledse("stream", path, tmp_path / "none.npy"), "no sound", "none.npy")
    np.save(tmp_path / "cut.npy", np.zeros((16, 40), np.float32))
    with (tmp_path / "cut.npy").open("r+b") as file:
        file.truncate(500)
    assert_refused(tiledse("stream", path, tmp_path / "cut.npy"), "was cut off")
    assert_refused(tiledse("stream", *SOUND[:3], "--tile", "7xW"), "write 7xT")
    with pytest.raises(
        ts.TiledSEError, match=r"frames 0 and on: expected \(1, 16, frames\), got \(1, 8, 5\)"
    ):
        ts.StepRunner(path).push(np.zeros((1, 8, 5), np.float32))


def test_frames_are_rows():
    x = np.arange(24).reshape(1, 2, 3, 2, 2)
    assert np.array_equal(as_rows(x, (2, 2)), x.reshape(1, 2, 3, 4))
    assert as_rows(x[..., 0, 0], ()).shape == (1, 2, 3, 1)
    assert as_rows(x[..., 0], (2,)) is not None
    assert as_rows(x, (3, 2)) is x
