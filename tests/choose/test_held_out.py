"""Calibration that is checked on images which it was not fitted on: which these are, and how far they are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.choose.networks import SIZE, images, small
from tiledse.choose.calibration import calibrate
from tiledse.choose.held_out import calibrate_held_out
from tiledse.data.images import ListedImages, Sample
from tiledse.data.shards import ShardedImages
from tiledse.evaluate.classification import Classification
from tiledse.evaluate.opening import TaskImages


class Read(ListedImages):
    """Images in memory, and how often each was read."""

    def __init__(self, count: int) -> None:
        super().__init__(Path(), [(str(i), 0) for i in range(count)], lambda image: image)
        self.inputs, self.times = images(count), np.zeros(count, int)

    def sample(self, index: int) -> Sample:
        self.times[index] += 1
        return Sample(self.inputs[index], 0, str(index), (0, index))


def test_a_fifth_is_held_out_and_measured_alone():
    model, source = small(), Read(60)
    plan = ts.find(model, SIZE).with_tile("4xW:running")
    found = calibrate_held_out(ts.open(model, SIZE), plan, Classification(source), images=50, batch_size=7)
    # The two blocks read the images that they are fitted on once each; the others are read once, to compare.
    assert np.bincount(source.times).tolist() == [10, 10, 40]
    assert (found.fitted_on, found.n, found.calibrated) == (40, 10, 2)
    fitted = source.inputs[np.flatnonzero(source.times == 2)]
    again = calibrate(model, plan, lambda: iter(fitted.split(40)), prior=300.0)
    np.testing.assert_allclose(found.plan.corrections[0].own, again.corrections[0].own, rtol=1e-5, atol=1e-6)

    held = source.inputs[np.flatnonzero(source.times == 1)]
    with torch.no_grad():
        outputs = [
            m(held).double().numpy() for m in (model, *(ts.convert(model, p) for p in (plan, found.plan)))
        ]
    p, before, after = (np.exp(o) / np.exp(o).sum(1, keepdims=True) for o in outputs)
    apart = [float((p * np.log(p / q)).sum(1).mean()) for q in (before, after)]
    assert [found.before, found.after] == pytest.approx(apart, rel=1e-3)
    assert found.helps is (apart[1] < apart[0])
    assert found.to_dict()["held_out"] == {
        "n": 10, "divergence_before": found.before, "divergence_after": found.after
    }  # fmt: skip


def test_shards_cannot_be_drawn_from(tmp_path):
    shards = ShardedImages([tmp_path / "a.tar"], lambda image: image)
    network = ts.open(small(), SIZE)
    with pytest.raises(ts.TiledSEError, match="single images, not shards: unpack them into a folder"):
        calibrate_held_out(network, network.plan.with_tile("4xW"), Classification(shards))


def test_a_task_opens_for_python_users_too(tmp_path):
    from PIL import Image

    Image.new("RGB", (SIZE[2], SIZE[1])).save(tmp_path / "grey.png")
    network = ts.open(small(), SIZE)
    assert TaskImages(str(tmp_path), preprocess="crop").open(network, labels=False).name == "compare"
    with pytest.raises(ts.TiledSEError, match="no labelled images"):
        TaskImages(str(tmp_path), preprocess="crop").open(network)
    with pytest.raises(ts.TiledSEError, match="does not say how its outputs become boxes"):
        TaskImages(str(tmp_path), "detect").open(network)
