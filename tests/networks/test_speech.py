"""Speech networks as wholes: what is found, converted and streamed of them, and what is refused by name."""

from __future__ import annotations

import pytest
import torch

import tiledse as ts
from tests.networks import speech_networks as speech
from tests.networks.over_time import Around

WHOLE = {name: getattr(speech, name) for name in ("citrinet", "contextnet", "titanet", "squeezeformer")}


def built(name):
    torch.manual_seed(0)
    model, size, blocks = WHOLE[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = (
                None  # with statistics of its own maps, so that they do not fade from block to block
            )
    with torch.no_grad():
        model(torch.randn(4, *size))
    return model.eval(), size, blocks


@pytest.mark.parametrize("name", list(WHOLE))
def test_all_blocks_are_found_and_converted(name):
    model, size, blocks = built(name)
    plan = ts.find(model, size)
    assert len(plan) == blocks
    made = ts.convert(model, plan.with_tile("1xT:running"))
    x = torch.randn(1, *size)
    assert not torch.allclose(made(x), model(x), atol=1e-3)
    same = ts.convert(model, plan.with_tile(f"{size[1]}xT"))
    torch.testing.assert_close(same(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("citrinet", marks=pytest.mark.slow), "contextnet"])
def test_encoders_stream_and_the_future_changes_nothing(name):
    model, size, _ = built(name)
    model.double()
    plan = ts.find(model, size).with_tile("1xT:running")
    # What the convolutions of all blocks see ahead, in frames of the input: the gates see none.
    ahead = sum(
        (m.kernel_size[0] // 2) * _stride(model, m) for m in model.modules() if getattr(m, "groups", 1) > 1
    )
    kept, frames = 20, -(-ahead // 8) * 8 + 160
    made, x = ts.convert(model, plan), torch.randn(1, size[0], frames + 100, dtype=torch.float64)
    stream = ts.stream(model, plan, height=None)
    with torch.no_grad():
        whole, prefix = made(x), made(x[..., :frames])
    torch.testing.assert_close(stream(x, 50), whole, rtol=1e-9, atol=1e-9)
    assert not stream.whole
    torch.testing.assert_close(prefix[..., :kept], whole[..., :kept], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(prefix[..., -1], whole[..., prefix.shape[2] - 1], rtol=1e-6, atol=1e-6)


def _stride(model, layer):
    """Frames of the input for a frame of what a layer reads."""
    total = 1
    for block in model:
        for module in block.mconv.modules():
            if module is layer:
                return total
            if isinstance(module, torch.nn.Conv1d):
                total *= module.stride[0]
    raise AssertionError(layer)


def test_titanet_streams_to_its_embedding(tmp_path):
    """Its pooling sees the mean and deviation of all frames first, so it holds the map before it."""
    model, size, _ = built("titanet")
    plan = ts.find(model, size).with_tile("1xT:running")
    x = torch.randn(1, *size)
    stream = ts.stream(model, plan, height=None)
    torch.testing.assert_close(stream(x, 16), ts.convert(model, plan)(x), rtol=1e-4, atol=1e-5)
    assert max(h.elements for h in stream.held()) >= 48 * size[1]
    with pytest.raises(ts.TiledSEError, match="'network.5' joins a map with a mean of the whole of one"):
        ts.export_step(model, plan, tmp_path / "step.onnx")


def test_squeezeformer_attends_to_all_frames():
    model, size, _ = built("squeezeformer")
    plan = ts.find(model, size).with_tile("1xT:running")
    with pytest.raises(ts.TiledSEError, match="the height must be known: .*attend"):
        ts.stream(model, plan, height=None)


@pytest.mark.parametrize("tile", ["1xT:running", "8xT", "T"])
def test_squeezeformer_streams_at_a_known_length_and_waits_for_its_end(tile):
    """Exactly, but tiles gain nothing there: attention takes all frames, and no output comes before the last frame."""
    model, size, _ = built("squeezeformer")
    model.double()
    plan, frames = ts.find(model, size).with_tile(tile), 113
    x = torch.randn(1, size[0], frames, dtype=torch.float64)
    stream = ts.stream(model, plan, height=frames)
    assert {name: elements // 57 for name, elements in stream.whole.items()} == {
        f"network.{i}.attend": 3 * 32 for i in (1, 2)
    }
    early = stream.push(x[..., :-1])
    assert early is None
    last = stream.push(x[..., -1:])
    stream.finish()
    with torch.no_grad():
        torch.testing.assert_close(last, ts.convert(model, plan)(x), rtol=1e-12, atol=1e-12)


def test_fullsubnets_plain_attention_has_tiles():
    model, size = speech.fullsubnet(speech.OneScale)
    plan = ts.find(model.eval(), size)
    assert [b.channels for b in plan.blocks] == [24]
    stream = ts.stream(model, plan.with_tile("1xT:running"), height=None)
    x = torch.randn(1, 24, 60)
    torch.testing.assert_close(
        stream(x, 7), ts.convert(model, plan.with_tile("1xT:running"))(x), rtol=1e-4, atol=1e-5
    )


def test_fullsubnets_multi_scale_attention_is_no_se():
    """It pools convolutions of the map, not the map: a tile would cut the convolutions."""
    model, size = speech.fullsubnet(speech.MultiScale)
    plan = ts.find(model.eval(), size)
    assert not len(plan)
    assert any("1" in miss.name for miss in plan.near_misses), plan.near_misses


def test_causal_movinet_keeps_its_own_state():
    torch.manual_seed(0)
    plan = ts.find(Around(speech.CausalSE(8, 4), 3).eval(), (4, 9, 3, 4))
    assert not len(plan)
    (miss,) = plan.near_misses
    assert miss.name == "se"
    assert miss.reason.startswith("it keeps a state from call to call")
