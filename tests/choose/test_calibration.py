"""Calibration: the fit against numpy's least squares, blocks against loops, PyTorch against ONNX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.choose.networks import SIZE, images, in_batches, small
from tests.reference import rows_seen
from tiledse.choose.calibration import calibrate, calibrate_alone, fit_means, strip_means
from tiledse.correction import Correction
from tiledse.networks.converter import fingerprint
from tiledse.networks.network import TorchNetwork
from tiledse.onnx.network import OnnxNetwork
from tiledse.tile import Tile


@pytest.fixture(scope="module")
def torch_network() -> TorchNetwork:
    return TorchNetwork(small(), SIZE)


@pytest.fixture(scope="module")
def onnx_network(torch_network) -> OnnxNetwork:
    room = pytest.importorskip("tiledse.onnx")
    return OnnxNetwork(room.export_se(torch_network.model, torch_network.se), SIZE)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("prior", [0.5, 40.0])
def test_fit_is_ridge_regression(running, prior):
    """A ridge is least squares with more rows: one for each slope, that asks for the slope that changes nothing."""
    rng = np.random.default_rng(0)
    n = 50
    own, seen = rng.normal(size=(2, n, 3, 4)) + rng.normal(size=(2, 1, 3, 4))
    target = rng.normal(size=(n, 3)) + own[:, :, 0] + 0.5 * seen[:, :, 1]
    fit = fit_means(own, seen if running else None, target, prior)
    for channel in range(3):
        for strip in range(4):
            inputs = [own[:, channel, strip], seen[:, channel, strip]][: 1 + running]
            rows = [np.stack([*inputs, np.ones(n)], 1)]
            wanted = [target[:, channel]]
            nothing = (0.0, 1.0) if running else (1.0,)
            for number, x in enumerate(inputs):
                weight = np.sqrt(prior) * x.std()
                extra = np.zeros((1, len(inputs) + 1))
                extra[0, number] = weight
                rows.append(extra)
                wanted.append(np.array([weight * nothing[number]]))
            solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0]
            got = [fit.own, fit.running, fit.offset] if running else [fit.own, fit.offset]
            np.testing.assert_allclose([g[channel, strip] for g in got], solution, rtol=1e-6, atol=1e-8)


def test_a_strong_prior_and_a_dead_channel_change_no_slope():
    rng = np.random.default_rng(0)
    own, seen = rng.normal(size=(2, 40, 2, 3))
    own[:, 1], seen[:, 1] = 0, 0
    target = rng.normal(size=(40, 2))
    target[:, 1] = 0
    strong = fit_means(own, seen, target, 1e9)
    np.testing.assert_allclose(strong.own[0], 0, atol=1e-6)
    np.testing.assert_allclose(strong.running[0], 1, atol=1e-6)
    dead = fit_means(own, seen, target, 1.0)
    assert (dead.own[1], dead.running[1], dead.offset[1]) == pytest.approx((0, 1, 0)) or np.allclose(
        [dead.own[1], dead.running[1] - 1, dead.offset[1]], 0
    )


@pytest.mark.parametrize(
    "text",
    ["4xW:running", "1xW:running+6", "2xW:running+3", "1xW:window-2+3", "1xW:running-1", "2xW:window-3-1"],
)
def test_strip_means_by_loops(text):
    rows = np.random.default_rng(0).normal(size=(2, 3, 11))
    tile = Tile.parse(text)
    own, seen = strip_means(rows, tile)
    for strip in range(own.shape[2]):
        top = strip * tile.height
        taken = rows_seen(np.arange(11).reshape(1, 11, 1), top, tile.height, text.partition(":")[2]).ravel()
        np.testing.assert_allclose(seen[:, :, strip], rows[:, :, taken].mean(2))
        waiting = [row for row in taken if row >= top] or taken
        np.testing.assert_allclose(own[:, :, strip], rows[:, :, waiting].mean(2))


def test_plain_strips_see_their_own_rows():
    rows = np.random.default_rng(0).normal(size=(2, 3, 11))
    for known in strip_means(rows, Tile.parse("4xW")):
        for strip, (start, stop) in enumerate(((0, 4), (4, 8), (8, 11))):
            np.testing.assert_allclose(known[:, :, strip], rows[:, :, start:stop].mean(2))


@pytest.mark.parametrize(
    "text", ["4xW:running", "1xW:running+6", "4xW:running+3", "1xW:window-2+3", "1xW:running-1"]
)
def test_a_calibrated_block_by_loops(torch_network, text):
    """Descriptors as they are defined, strip by strip, through the block's own layers."""
    plan = calibrate(torch_network, torch_network.se.with_tile(text), lambda: in_batches(images()))
    tall = int(text[0])
    tse = ts.convert(torch_network.model, plan)
    correction = plan.corrections[0]
    x = torch.randn(2, 8, 22, 12)
    se = torch_network.model.se1
    expected = torch.empty_like(x)
    for strip, start in enumerate(range(0, 22, tall)):
        stop = min(start + tall, 22)
        a, b, c = (torch.tensor(v[:, strip]) for v in (correction.own, correction.running, correction.offset))
        taken = (
            rows_seen(np.arange(22).reshape(1, 22, 1), start, tall, text.partition(":")[2]).ravel().tolist()
        )
        waiting = [row for row in taken if row >= start] or taken
        z = a * x[:, :, waiting].mean((2, 3)) + b * x[:, :, taken].mean((2, 3)) + c
        gate = se.gate(se.fc2(se.act(se.fc1(z[:, :, None, None]))))
        expected[:, :, start:stop] = x[:, :, start:stop] * gate
    with torch.no_grad():
        torch.testing.assert_close(tse.se1(x), expected)


@pytest.mark.parametrize("tile", ["4xW", "4xW:running", "1xW:running", "1xW:running+3", "1xW:window-3+3"])
def test_descriptors_come_closer_to_the_mean_of_the_map_on_other_images(torch_network, tile):
    plan = torch_network.se.with_tile(tile)
    calibrated = calibrate(torch_network, plan, lambda: in_batches(images(200)), prior=20)
    (rows,) = torch_network.rows(plan, [0])(images(100, seed=1))
    own, seen = strip_means(rows, plan.tiles[0])
    c = calibrated.corrections[0]
    after = c.own * own + (0 if c.running is None else c.running * seen) + c.offset
    target = rows.mean(2)[:, :, None]
    assert ((after - target) ** 2).mean() < 0.3 * ((seen - target) ** 2).mean()


@pytest.mark.parametrize("tile", ["4xW:running", "1xW:running", "1xW:running+3"])
def test_a_network_of_running_strips_comes_closer_to_se_on_other_images(torch_network, tile):
    plan = torch_network.se.with_tile(tile)
    calibrated = calibrate(torch_network, plan, lambda: in_batches(images(200)), prior=20)
    x = images(100, seed=1)
    with torch.no_grad():
        se, before, after = (torch_network.tiled(p)(x) for p in (torch_network.se, plan, calibrated))
    assert (after - se).square().mean() < 0.7 * (before - se).square().mean()


def test_pytorch_and_onnx_calibrate_alike(torch_network, onnx_network):
    x = images()
    plans = [
        calibrate(n, n.plan.with_tile("4xW:running"), lambda: in_batches(x))
        for n in (torch_network, onnx_network)
    ]
    for a, b in zip(*(p.corrections for p in plans), strict=True):
        for name in ("own", "running", "offset"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        one, other = (n.tiled(p)(x) for n, p in zip((torch_network, onnx_network), plans, strict=True))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "tile", ["1xW:running+6", "4xW:running+3", "1xW:window-2+3", "1xW:running-1", "4xW:window-3-2"]
)
def test_the_probe_slides_as_the_pytorch_network_does(torch_network, onnx_network, tile):
    plan, x = torch_network.se.with_tile(tile), images(5)
    for numbers in (None, calibrate(torch_network, plan, lambda: in_batches(images())).corrections):
        one, other = (
            n.tiled(replace(n.se.with_tile(tile), corrections=numbers or ()).with_weights(n.weights))(x)
            for n in (torch_network, onnx_network)
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["torch", "onnx", "onnx, strips"])
def test_forms_that_share_what_comes_before_their_tiles(torch_network, onnx_network, kind):
    network, x = torch_network if kind == "torch" else onnx_network, images(5)
    plan, both = network.se, network.se.with_tile("1xW:running+3")
    plans = [
        plan,
        both,
        plan.with_tile("1xW:window-2+2", network.se.blocks[1].name),
        plan.with_tile("4xW", network.se.blocks[0].name),
        calibrate(network, both, lambda: in_batches(images())),
    ]
    if kind != "onnx, strips":
        plans.insert(4, plan.with_tile("4x4"))
    run = network.branches(plans)
    for _ in range(2):  # the first batch may be prepared for
        got = list(run(x))
        assert len(got) == 1 + len(plans)
        for form, output in zip([plan, *plans], got, strict=True):
            with torch.no_grad():
                expected = network.tiled(form)(x)
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        got[3], got[0], atol=1e-3
    )  # tiles of the last block alone change what the network gives


def test_a_probe_is_cut_behind_the_blocks_before_the_first_tiles(onnx_network):
    """The part that runs for each form holds no convolution that comes before its tiles."""
    probe = onnx_network.probe
    list(onnx_network.branches([onnx_network.se.with_tile("4xW", onnx_network.se.blocks[1].name)])(images(2)))
    cut = probe._cut(1)
    assert cut.outputs == probe.outputs
    assert probe.image.name not in cut.taken


def test_files_that_do_not_state_the_tile_of_a_correction(torch_network):
    """They are older than look-ahead: read for the tiles that there were, refused for others."""
    for text, read in (("4xW:running", True), ("4xW", True), ("1xW:running+6", False)):
        plan = calibrate(torch_network, torch_network.se.with_tile(text), lambda: in_batches(images()))
        data = plan.to_dict()
        for block in data["blocks"]:
            assert block["correction"].pop("tile") == text
        if read:
            assert ts.Plan.from_dict(data) == plan
        else:
            with pytest.raises(ts.TiledSEError, match=r"another tile than 1xW:running\+6"):
                ts.Plan.from_dict(data)


@pytest.mark.parametrize(
    "tile",
    [
        "4xW",
        "4xW:running",
        "11xW",
        "11xW:running",
        "HxW",
        "3xW:middle",
        "1xW:running+6",
        "4xW:window-3+2",
        "3xW:running-1",
    ],
)
def test_the_probe_is_the_converted_network(onnx_network, tile):
    from tiledse import onnx as room

    plan, x = onnx_network.se.with_tile(tile), images(5)
    plans = [plan]
    if not plan.tiles[0].single and not plan.tiles[0].whole:
        plans.append(calibrate(onnx_network, plan, lambda: in_batches(images())))
    for each in plans:
        converted = room.convert(onnx_network.model, each)
        torch.testing.assert_close(list(onnx_network.branches([each])(x))[1], room.OnnxModule(converted)(x))
        assert room.find(converted, SIZE) == each
        assert room.verify(onnx_network.model, converted, each).worst_block < 1e-5


def test_alone_is_calibrate_with_one_tiled_block(torch_network):
    x = images()
    fits = calibrate_alone(torch_network, [[Tile.parse("4xW")]] * 2, lambda: in_batches(x))
    for number, block in enumerate(torch_network.se.blocks):
        plan = torch_network.se.with_tile("4xW", block.name)
        expected = calibrate(torch_network, plan, lambda: in_batches(x)).corrections[number]
        np.testing.assert_allclose(fits[number][0].own, expected.own, rtol=1e-4, atol=1e-5)


def test_a_calibrated_plan_is_a_value(torch_network, tmp_path):
    model = torch_network.model
    plan = calibrate(torch_network, torch_network.se.with_tile("4xW:running"), lambda: in_batches(images()))
    tse = ts.convert(model, plan)
    assert ts.find(tse, SIZE) == plan
    assert tse.state_dict().keys() == model.state_dict().keys()
    assert fingerprint(tse) == fingerprint(model)
    assert ts.find(ts.convert(tse, plan.with_tile("HxW")), SIZE) == torch_network.se
    plan.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == plan != plan.uncalibrated
    from tiledse.networks.saving import save

    save(tse, plan, tmp_path / "tse.safetensors")
    assert ts.Plan.load(tmp_path / "tse.safetensors") == plan
    half = ts.convert(model, plan).half()
    assert half(images(2).half()).dtype == torch.float16
    assert not plan.with_tile("3xW", "se1").calibrated


def test_wrong_use(torch_network):
    model, plan = torch_network.model, torch_network.se

    def fit(tile, x, blocks="*"):
        return calibrate(torch_network, plan.with_tile(tile, blocks), lambda: in_batches(x))

    calibrated = fit("4xW:running", images())
    with pytest.raises(ts.TiledSEError, match="20 images are too few to calibrate: expected at least 32"):
        fit("4xW", images(20))
    with pytest.raises(ts.TiledSEError, match="the images are 3x40x24, but the plan was made for 3x44x24"):
        fit("4xW", images(40, (3, 40, 24)))
    with pytest.raises(ts.TiledSEError, match="has the tile Hx4: calibration goes with strips of rows"):
        fit("Hx4", images())
    with pytest.raises(ts.TiledSEError, match="has the tile 4xW:middle: calibration goes with strips"):
        fit("4xW:middle", images())
    with pytest.raises(ts.TiledSEError, match="nothing to calibrate"):
        fit("22xW", images())
    other = small()
    with torch.no_grad():
        other.head.bias.add_(1)
    with pytest.raises(ts.TiledSEError, match="the plan's calibration belongs to other weights"):
        ts.convert(other, calibrated)
    with pytest.raises(ts.TiledSEError, match="calibrated for maps of 22 rows, but got a map of"):
        ts.convert(model, calibrated)(torch.zeros(1, 3, 48, 24))
    with pytest.raises(ts.TiledSEError, match="its correction was fitted for another tile than 3xW"):
        replace(calibrated, tiles=(Tile.parse("3xW"),) * 2)
    # As many strips, rows and channels, and yet another tile.
    for text, other in (("1xW:running+6", "1xW:running+2"), ("1xW:running+6", "1xW:running"), ("7xW", "6xW")):
        with pytest.raises(ts.TiledSEError, match="fitted for another tile") as caught:
            replace(fit(text, images()), tiles=(Tile.parse(other),) * 2)
        assert "\n" not in str(caught.value)
    with pytest.raises(ts.TiledSEError, match="a correction needs finite numbers"):
        Correction(np.full((2, 2), np.nan), None, np.zeros((2, 2)), 4, "")
    with pytest.raises(ts.TiledSEError, match="':running' goes with strips of rows only"):
        plan.with_tile("Hx4:running")


def test_onnx_refuses_other_weights_and_ragged_divisors(onnx_network):
    from tiledse import onnx as room

    plan = calibrate(onnx_network, onnx_network.se.with_tile("4xW"), lambda: in_batches(images()))
    with pytest.raises(ts.TiledSEError, match="belongs to other weights"):
        room.convert(onnx_network.model, plan.with_weights("0" * 32))
    with pytest.raises(ts.TiledSEError, match="calibrated for strips that do not divide their maps"):
        room.convert(onnx_network.model, plan, divisor_tiles=True)
    with pytest.raises(ts.TiledSEError, match="fails on a batch of"):
        room.OnnxModule(room.convert(onnx_network.model, plan))(torch.zeros(1, 3, 48, 24))
