"""Advice: quoted from what was measured, with its source; nothing where nothing was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tiledse import targets
from tiledse.choose.advising import advise, gain_of
from tiledse.targets import Measured, Target


def net(height=64, width=64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), ts.TiledSqueezeExcite(8, 4, "HxW"), nn.Conv2d(8, 8, 3, padding=1, stride=16),
        ts.TiledSqueezeExcite(8, 4, "HxW"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    return ts.open(model, (3, height, width))


def measured(kind, side, se, value, network="n"):
    return Measured(kind, network, (side, side), "form", se, value, "cycles", "tool 1.0")


def target(*known, **more):
    return Target("npu", "a tool", measured=known, static=True, **more)


@pytest.mark.parametrize(
    ("side", "word"),
    [(256, "gains"), (512, "gains"), (128, "nothing"), (64, "nothing"), (200, "nothing"), (32, "nothing")],
)
def test_a_gain_is_that_of_the_nearest_smaller_image(side, word):
    npu = target(measured("tiles", 128, 100, 100), measured("tiles", 256, 100, 80))
    assert gain_of(npu, "tiles", side * side).word == word


def test_what_was_not_measured_is_not_known():
    assert gain_of(target(), "tiles", 64).word == "unknown"
    # Measured on larger maps only: a smaller one may gain less.
    assert gain_of(target(measured("tiles", 256, 100, 80)), "tiles", 64 * 64).word == "unknown"
    # Nothing gained on small maps says nothing of much larger ones.
    assert gain_of(target(measured("tiles", 64, 100, 100)), "tiles", 1024 * 1024).word == "unknown"
    both = target(measured("tiles", 64, 100, 100), measured("tiles", 64, 100, 50, "m"))
    assert gain_of(both, "tiles", 64 * 64).word == "unclear"


def test_tiles_that_gain_nothing_are_said_to_gain_nothing():
    advice = advise(net(), target(measured("tiles", 64, 100, 100.5)))
    assert advice.summary == "tiles gain nothing here on npu: leave plain SE as it is"
    assert [str(t) for t in advice.plan.tiles] == ["HxW", "HxW"]


def test_two_steps_are_taken_where_tiles_gain_nothing_more():
    npu = target(measured("two-step", 64, 100, 80), measured("tiles", 64, 100, 80), two_step=True)
    advice = advise(net(), npu)
    assert advice.beyond == 0
    assert "take exact SE in two steps on npu: no loss at all, and tiles gain nothing more" in advice.summary
    assert {str(t) for t in advice.plan.tiles} == {"HxW:two-step"}


def test_tiles_are_taken_where_they_gain_more_but_not_where_one_covers_the_map():
    npu = target(measured("two-step", 64, 100, 90), measured("tiles", 64, 100, 70), two_step=True)
    advice = advise(net(), npu, tile="7xW")
    assert advice.beyond == pytest.approx(20)
    assert [str(t) for t in advice.plan.tiles] == ["7xW", "HxW:two-step"]
    assert "20.0 points beyond two-step SE" in advice.summary
    assert "accuracy was not measured" in advice.summary
    assert advice.blocks[0].buffers == (8 * 64 * 64, 8 * 7 * 64, 8 * 7 * 64)


def test_two_steps_that_gain_on_one_network_and_lose_on_another_are_left_to_the_compiler():
    known = measured("two-step", 64, 100, 90, "a"), measured("two-step", 64, 100, 107, "b")
    advice = advise(net(), target(*known, window=16, whole=True))
    assert "gained 10.0 % on one network and lost 7.0 % on another" in advice.summary
    assert "leave plain SE as it is" in advice.summary
    assert {str(t) for t in advice.plan.tiles} == {
        "HxW"
    }  # a map of 64 rows is beyond its window, and taken whole


def test_two_steps_that_gain_on_one_network_and_cost_nothing_on_another_are_taken():
    known = measured("two-step", 64, 100, 90, "a"), measured("two-step", 64, 100, 100.9, "b")
    advice = advise(net(), target(*known, window=16, whole=True))
    assert "it gained up to 10.0 % on one network, on another nothing (-0.9 %)" in advice.summary
    assert {str(t) for t in advice.plan.tiles} == {"HxW:two-step"}
    assert "cost none a percent" in advice.blocks[0].why


def test_tiles_are_compared_with_two_steps_network_by_network():
    two = [measured("two-step", 64, 100, v, n) for n, v in (("a", 80), ("b", 95))]
    tiles = [measured("tiles", 64, 100, v, n) for n, v in (("a", 90), ("b", 85), ("c", 10))]
    assert targets.beyond_two_step(two, tiles) == (-10, 10)
    assert advise(net(), target(*two, *tiles)).beyond == -10


def test_figures_of_different_networks_are_not_compared():
    npu = target(measured("two-step", 64, 100, 90, "a"), measured("tiles", 64, 100, 70, "b"), two_step=True)
    assert advise(net(), npu).beyond is None


def test_maps_beyond_a_window_take_two_steps():
    npu = target(measured("tiles", 64, 100, 100), window=32)
    advice = advise(net(), npu)
    assert [str(t) for t in advice.plan.tiles] == ["HxW:two-step", "HxW"]
    assert "maps beyond its pooling window take their mean in two steps" in advice.summary
    assert "a pool of 64x64 is beyond its window" in advice.blocks[0].why


def test_what_tiles_cost_on_images_decides(tmp_path):
    from PIL import Image

    from tiledse.data.opening import open_images

    generator = torch.Generator().manual_seed(0)
    names = []
    for i in range(6):
        pixels = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        names.append(f"{i}.png")
    network = net()

    def prepare(image):
        return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255

    labels = []
    for name in names:
        with Image.open(tmp_path / name) as image, torch.no_grad():
            labels.append(int(network.given(prepare(image)[None]).argmax()))
    rows = "".join(f"{n},{label}\n" for n, label in zip(names, labels))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    npu = target(measured("tiles", 64, 100, 70))
    advice = advise(network, npu, images=open_images(tmp_path, prepare), max_drop=100)
    assert set(advice.accuracy) == {"7xW", "1xW:running+6"}
    assert advice.accuracy["7xW"].n == 6
    assert "not measured" not in advice.summary
    assert str(advice.plan.tiles[0]) == "7xW"


def test_the_targets_that_come_with_tiledse():
    regnet = ts.open("timm:regnety_002", (3, 512, 1024), runs=False)
    assert {str(t) for t in advise(regnet, "ethos-u").plan.tiles} == {"HxW:two-step"}
    # At 640 x 640 tpu-mlir ran PP-OCR's detector alone, and strips gained 7 points more than two steps.
    assert {str(t) for t in advise(regnet, "sophgo", tile="8xW").plan.tiles} == {"8xW"}
    smaller = ts.open("timm:regnety_002", (3, 448, 448), runs=False)
    sophgo = advise(smaller, "sophgo", tile="8xW")
    assert {str(t) for t in sophgo.plan.tiles} == {"HxW:two-step"}  # none lost 1 % by it
    assert "it gained up to 40.8 % on one network, on another nothing (-0.1 %)" in sophgo.summary
    assert {str(t) for t in advise(regnet, "rockchip").plan.tiles} == {"HxW"}  # it takes any global pool
    assert "runs row by row" in advise(regnet, "hailo").summary
    for name in targets.names():
        assert advise(regnet, name).summary


def test_the_verb(tmp_path):
    out = tmp_path / "plan.json"
    done = tiledse(
        "advise", "timm:regnety_002", "--target", "ethos-u", "--input", "3x512x1024", "-o", out, "--json"
    )
    assert done.code == 0
    told = json.loads(done.out)
    assert told["gains"]["two_step"]["verdict"] == "gains"
    assert {m["source"] for m in told["gains"]["two_step"]["measured"]} == {
        "ethos-u-vela 5.2.0", "ethos-u-vela 5.2.0, onnx2tf 1.29.24",
    }  # fmt: skip
    assert ts.Plan.load(out) == ts.Plan.from_dict(told["plan"], "told")
    text = tiledse("advise", "timm:regnety_002", "--target", "rockchip").out
    assert "tiles gain nothing here on rockchip" in text
    assert "rknn-toolkit2 2.5.0" in text
    assert_refused(tiledse("advise", "timm:regnety_002", "--target", "npu"), "no target 'npu'", "ethos-u")
    typed = ("advise", "timm:regnety_002", "--target", "ncnn", "--mean", "0,0,0")
    assert_refused(tiledse(*typed), "options of images go with --data")
    assert_refused(
        tiledse("advise", "timm:regnety_002", "--target", "ncnn", "--tile", "HxW"), "tiles such as 7xW"
    )
