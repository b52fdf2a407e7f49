"""Each figure that eval, correlate, sensitivity, calibrate and search print, worked out again in plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiledse as ts
from tests.cli.known import Classifier, classifier
from tests.cli.running import tiledse
from tests.reference import tiled_squeeze_excite, two_layers
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.classification import open_unlabelled

MODEL = "tests.cli.known:classifier"
SIZE = (3, 20, 16)
COUNT = 45
TILE = "4xW"


@pytest.fixture(scope="module")
def model() -> Classifier:
    return classifier().eval().double()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model) -> Path:
    """Images whose upper and lower halves differ, each labelled as the network sees it but for every third."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    for number in range(COUNT):
        halves = [rng.integers(0, 256, 3) for _ in range(2)]
        pixels = np.concatenate([np.tile(half, (10, 16, 1)) for half in halves])
        noise = rng.integers(-25, 26, pixels.shape)
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    first = logits(model, folder, "HxW").argmax(1)
    rows = [f"{i:02}.png,{(c + (i % 3 == 0)) % 3}" for i, c in enumerate(first)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return folder


def inputs(folder: Path) -> torch.Tensor:
    """(images, 3, 20, 16) as the network's own preprocessing gives them."""
    prepare = Preprocessing.of(nn.Identity(), config={"input_size": SIZE})
    images = open_unlabelled(folder, prepare)
    return torch.stack([images.sample(i).input for i in range(COUNT)]).double()


def gates(model: Classifier):
    """The excitation of one vector."""
    down, up = model.se.down, model.se.up
    numbers = [down.weight[:, :, 0, 0], down.bias, up.weight[:, :, 0, 0], up.bias]
    return two_layers(*(n.detach().numpy() for n in numbers))


def maps(model: Classifier, folder: Path) -> np.ndarray:
    with torch.no_grad():
        return model.stem(inputs(folder)).relu().numpy()


def logits(model: Classifier, folder: Path, tile: str) -> np.ndarray:
    gated = tiled_squeeze_excite(maps(model, folder), tile, gates(model))
    weight, bias = (p.detach().numpy() for p in (model.head.weight, model.head.bias))
    return gated.mean((2, 3)) @ weight.T + bias


def labels(folder: Path) -> np.ndarray:
    return np.array([int(line.split(",")[1]) for line in (folder / "labels.csv").read_text().split()[1:]])


def kl(se: np.ndarray, tse: np.ndarray) -> np.ndarray:
    """Divergence of the second's probabilities from the first's, an image at a time."""
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (se, tse))
    return (p * np.log(p / q)).sum(1)


def run(verb: str, *arguments: object) -> tuple[dict, str]:
    """What a verb gives as JSON, and what it prints."""
    given = (verb, MODEL, "--input", "3x20x16", *arguments)
    again = ("--force",) if "-o" in arguments else ()
    done, shown = tiledse(*given, "--json"), tiledse(*given, *again)
    assert (done.code, shown.code) == (0, 0), done.err + shown.err
    return json.loads(done.out), " ".join(shown.out.split())


def test_eval(model, folder):
    right = labels(folder)
    se, tse = (logits(model, folder, tile).argmax(1) for tile in ("HxW", TILE))
    lost, gained = ((se == right) & (tse != right)).sum(), ((se != right) & (tse == right)).sum()
    assert lost > 0  # else the figures would say nothing
    found, text = run("eval", "--data", folder, "--tile", TILE)
    top1 = [100 * (guess == right).mean() for guess in (se, tse)]
    assert found["n"] == COUNT
    assert [found["se"]["top1"], found["tse"]["top1"]] == pytest.approx(top1)
    assert found["drop"] == pytest.approx(top1[0] - top1[1])
    paired = found["paired"]
    assert (paired["agree"], paired["lost"], paired["gained"]) == ((se == tse).sum(), lost, gained)
    # McNemar's exact test: a fair coin, thrown once for each image that only one of them gets right.
    from scipy.stats import binomtest

    assert paired["p_value"] == pytest.approx(binomtest(int(lost), int(lost + gained)).pvalue)
    for figure in (*(f"{t:.2f}" for t in top1), f"{top1[0] - top1[1]:.2f}"):
        assert figure in text


def test_correlate(model, folder):
    x, excite = maps(model, folder), gates(model)
    whole = x.mean((2, 3))
    strips = x.reshape(COUNT, 16, 5, 4 * 16).mean(3)
    gate = np.array([excite(z) for z in whole])
    tiled = np.array([[excite(strips[i, :, t]) for t in range(5)] for i in range(COUNT)]).transpose(0, 2, 1)
    found, text = run("correlate", "--data", folder, "--tile", TILE)
    (block,) = found["blocks"]
    for name, one, many in (("squeeze", whole, strips), ("excite", gate, tiled)):
        spread = np.broadcast_to(one[:, :, None], many.shape)
        r = np.corrcoef(spread.ravel(), many.ravel())[0, 1]
        assert block[name] == pytest.approx(r, abs=1e-5)
        assert f"{r:.3f}" in text
    assert block["delta"] == pytest.approx(np.sqrt(((strips - whole[:, :, None]) ** 2).mean()), rel=1e-4)


def test_sensitivity(model, folder):
    right = labels(folder)
    se, tse = (logits(model, folder, tile) for tile in ("HxW", TILE))
    found, text = run("sensitivity", "--data", folder, "--tiles", TILE)
    (block,) = found["blocks"]
    drop = 100 * ((se.argmax(1) == right).mean() - (tse.argmax(1) == right).mean())
    assert block["drop"] == pytest.approx(drop)
    assert block["divergence"] == pytest.approx(kl(se, tse).mean(), rel=1e-3)
    assert f"{drop:.2f}" in text


def test_calibrate(model, folder, tmp_path):
    """What it says of the held-out fifth is what the plan that it wrote does there."""
    found, text = run("calibrate", "--data", folder, "--tile", TILE, "-o", tmp_path / "plan.json")
    held = found["held_out"]
    drawn = np.random.default_rng(0).permutation(COUNT)[: COUNT // 5]
    assert (found["fitted_on"], held["n"]) == (COUNT - COUNT // 5, COUNT // 5)
    se, tse = (logits(model, folder, tile)[drawn] for tile in ("HxW", TILE))
    assert held["divergence_before"] == pytest.approx(kl(se, tse).mean(), rel=1e-3)
    plan = ts.Plan.load(tmp_path / "plan.json")
    corrected = ts.convert(classifier().eval(), plan)
    with torch.no_grad():
        after = corrected(inputs(folder).float()).double().numpy()[drawn]
    assert held["divergence_after"] == pytest.approx(kl(se, after).mean(), rel=1e-3)
    assert f"{held['divergence_before']:.4g} before, {held['divergence_after']:.4g} after" in text


def test_search(model, folder, tmp_path):
    """Of four tiles the budget leaves two; the one of them that is nearer to SE is chosen."""
    right, se = labels(folder), logits(model, folder, "HxW")
    held = {"2xW": 2, "4xW": 4, "10xW": 10, "HxW": 20}
    tse = {tile: logits(model, folder, tile) for tile in held}
    far = {tile: kl(se, tse[tile]).mean() for tile in held}
    given = ("--data", folder, "--tiles", "2xW,4xW,10xW", "--uniform", "10xW", "--cache", tmp_path / "kept")
    found, text = run("search", *given, "--max-buffer", 16 * 4 * 16, "-o", tmp_path / "plan.json")
    (options,) = found["options"]
    assert {o["tile"]: o["buffer"] for o in options["tiles"]} == {
        t: 16 * rows * 16 for t, rows in held.items()
    }
    for option in options["tiles"]:
        assert option["divergence"] == pytest.approx(far[option["tile"]], rel=1e-3, abs=1e-9)
    best = min(("2xW", "4xW"), key=lambda tile: far[tile])
    assert found["chosen"]["tiles"] == [best] == [str(t) for t in ts.Plan.load(tmp_path / "plan.json").tiles]
    for point in [*found["points"], found["chosen"]]:
        (tile,) = point["tiles"]
        drop = 100 * ((se.argmax(1) == right).mean() - (tse[tile].argmax(1) == right).mean())
        assert point["buffer"] == 16 * held[tile] * 16
        assert point["divergence"] == pytest.approx(far[tile], rel=1e-3, abs=1e-9)
        assert point["drop"] == pytest.approx(drop)
    assert f"chosen │ {16 * held[best] * 16:,} │ {far[best]:.5f}" in text
