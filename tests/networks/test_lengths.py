"""Blocks that are called with lengths: means over the valid frames of each tile, or a refusal that says why."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.networks.over_time import ConvSE, CountSE, ShareSE, Utterances
from tests.networks.test_over_time import block_by_loops
from tiledse.networks.dialects import _TABLE

FRAMES = 20
REAL = {
    ShareSE: "speechbrain.lobes.models.ECAPA_TDNN.SEBlock",
    CountSE: "nemo.collections.asr.parts.submodules.jasper.SqueezeExcite",
}


@pytest.fixture(params=[ShareSE, CountSE])
def model(request, monkeypatch):
    """A network whose block has the call, and the registered name, of a real one."""
    cls = request.param
    monkeypatch.setitem(_TABLE, f"{cls.__module__}.{cls.__qualname__}", _TABLE[REAL[cls]])
    torch.manual_seed(0)
    return Utterances(cls(8, 4)).eval()


def lengths_of(model, *valid):
    valid = torch.tensor(valid)
    return valid / FRAMES if isinstance(model.se, ShareSE) else valid


@pytest.mark.parametrize("tile", ["4xT", "4xT:running", "1xT:running+3", "1xT:window-2+2"])
def test_valid_frames_are_gated_as_if_the_sound_stood_alone(model, tile):
    example = (torch.randn(2, 4, FRAMES), lengths_of(model, FRAMES, 13))
    plan = ts.find(model, example_inputs=example)
    assert [b.name for b in plan.blocks] == ["se"]
    made = ts.convert(model, plan.with_tile(tile), example_inputs=example)
    assert ts.find(made, example_inputs=example) == plan.with_tile(tile)
    x = torch.randn(3, 8, FRAMES) + torch.arange(FRAMES)
    given = lengths_of(model, FRAMES, 13, 3)
    got = made.se(x, given)
    if isinstance(model.se, CountSE):
        got, again = got
        assert torch.equal(again, given)
        assert not got[2, :, 3:].any()
    for image, stop in enumerate((FRAMES, 13, 3)):
        alone = block_by_loops(model.se, x[image : image + 1, :, :stop], tile)
        np.testing.assert_allclose(got[image : image + 1, :, :stop].detach(), alone, rtol=2e-4, atol=2e-5)


def test_with_one_tile_the_network_is_what_it_was(model):
    example = (torch.randn(2, 4, FRAMES), lengths_of(model, 9, 20))
    network = ts.open(model, example_inputs=example)
    verdict = network.verify(network.plan.with_tile("4xT"))
    assert not verdict.refused
    assert verdict.difference < 1e-6
    made = pickle.loads(pickle.dumps(network.convert(network.plan.with_tile("99xT")).given))
    torch.testing.assert_close(made(*example), model(*example))


def test_a_mask_that_nobody_explained_is_refused_with_the_reason():
    class Unknown(ShareSE):
        def forward(self, x, lengths=None):
            return super().forward(x, lengths)

    model = Utterances(Unknown(8, 4)).eval()
    plan = ts.find(model, example_inputs=(torch.randn(2, 4, FRAMES), torch.tensor([1.0, 0.5])))
    assert not len(plan)
    assert [miss.name for miss in plan.near_misses] == ["se"]
    assert "called with more than its map" in plan.near_misses[0].reason
    # Without lengths it is SE; with them a converted one says that it does not follow.
    made = ts.convert(model, ts.find(model, (4, FRAMES)).with_tile("4xT"))
    with pytest.raises(
        ts.TiledSEError, match="takes its map 'x' and defaults, but was called with 'lengths'"
    ):
        made(torch.randn(2, 4, FRAMES), torch.tensor([1.0, 0.5]))


def test_a_wrong_mask_is_found_out_by_the_network():
    """A mask that is not the block's own: the network with one tile is not what it was."""

    class Wrong(ShareSE):
        def forward(self, x, lengths=None):
            return super().forward(x, lengths)

    def frames(block, x, lengths=None):
        return torch.ones_like(x[:, :1])

    def shape(block, x, lengths=None):
        return torch.ones(len(x), x.shape[-1])

    example = (torch.randn(2, 4, FRAMES), torch.tensor([1.0, 0.4]))
    model = Utterances(Wrong(8, 4)).eval()
    name = f"{Wrong.__module__}.{Wrong.__qualname__}"
    try:
        for function, message in (
            (frames, "its valid frames are not those that its own forward takes"),
            (shape, "expected a mask"),
        ):
            _TABLE.pop(name, None)
            ts.register_dialect("test.Wrong", Wrong, axes=1, valid=ts.ValidFrames(function))
            plan = ts.find(model, example_inputs=example)
            with pytest.raises(ts.TiledSEError, match=message):
                ts.convert(model, plan.with_tile("4xT"), example_inputs=example)
    finally:
        _TABLE.pop(name, None)


def test_a_subclass_without_a_forward_of_its_own_has_its_own_dialect():
    """It was read by the dialect of its parent, or by none, whatever was registered for it."""

    class Child(ShareSE):
        pass

    def none(block, x, lengths=None):
        return torch.ones_like(x[:, :1])

    example = (torch.randn(2, 4, FRAMES), torch.tensor([1.0, 0.4]))
    model = Utterances(Child(8, 4)).eval()
    assert not len(ts.find(model, example_inputs=example))
    dialect = ts.register_dialect("test.Child", Child, axes=1, valid=ts.ValidFrames(none))
    try:
        plan = ts.find(model, example_inputs=example)
        assert [block.dialect for block in plan.blocks] == ["test.Child"]
        with pytest.raises(
            ts.TiledSEError, match="its valid frames are not those that its own forward takes"
        ):
            ts.convert(model, plan.with_tile("4xT"), example_inputs=example)
    finally:
        _TABLE.pop(dialect.cls)


def test_a_gate_of_no_valid_frame_is_finite():
    model = Utterances(ConvSE(8, 4)).eval()
    assert ts.find(model.first, (4, FRAMES)).blocks == ()
    block = ShareSE(8, 4)
    _TABLE[f"{ShareSE.__module__}.ShareSE"] = _TABLE[REAL[ShareSE]]
    try:
        outer = Utterances(block).eval()
        made = ts.convert(outer, ts.find(outer, (4, FRAMES)).with_tile("4xT"))
        y = made.se(
            torch.full((1, 8, FRAMES), float("nan")).index_fill(2, torch.arange(5), 1.0), torch.tensor([0.25])
        )
        assert y[:, :, :5].isfinite().all()
    finally:
        _TABLE.pop(f"{ShareSE.__module__}.ShareSE")
