"""eval, sweep and sensitivity with sliding tiles, against the same network in numpy loops, image by image."""

from __future__ import annotations

import csv
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from tests.cli.running import tiledse
from tests.reference import tiled_squeeze_excite, two_layers

SIZE, COUNT = (3, 10, 5), 40
TILES = ["1xW:running+2", "1xW:window-2+2", "2xW:running+1"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Net(nn.Module):
    """1 x 1 convolutions, so that only the SE blocks see more than a pixel; the second map has 5 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.se1 = nn.Conv2d(3, 6, 1), SqueezeExcitation(6, 4, scale_activation=nn.Sigmoid)
        self.body, self.se2 = (
            nn.Conv2d(6, 6, 1, stride=2),
            SqueezeExcitation(6, 3, scale_activation=nn.Sigmoid),
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se1(self.stem(x).relu())
        x = self.se2(self.body(x).relu())
        return self.head((x * torch.linspace(0, 1, x.shape[2])[:, None]).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(9)
    model = Net().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # gates that differ between rows, and so predictions that change
    return model


def by_loops(model: nn.Module, x: np.ndarray, tiles: tuple[str, str]) -> np.ndarray:
    """Log-probabilities (N, classes) with a tile in each of the two blocks."""
    weights = {key: value.double().numpy() for key, value in model.state_dict().items()}

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = weights[f"{name}.weight"][:, :, 0, 0], weights[f"{name}.bias"]
        return np.maximum(np.einsum("oc,nchw->nohw", kernel, x) + bias[:, None, None], 0)

    def se(x: np.ndarray, name: str, tile: str) -> np.ndarray:
        layers = [
            weights[f"{name}.{layer}"] for layer in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        ]
        return tiled_squeeze_excite(
            x, tile, two_layers(*(w[:, :, 0, 0] if w.ndim == 4 else w for w in layers))
        )

    x = se(conv(x, "stem"), "se1", tiles[0])
    x = se(conv(x[:, :, ::2, ::2], "body"), "se2", tiles[1])
    logits = (x * np.linspace(0, 1, x.shape[2])[:, None]).mean((2, 3)) @ weights["head.weight"].T
    logits += weights["head.bias"]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


class Judge:
    """What each form should give."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.model, self.labels = net(), labels
        self.x = (pixels / 255 - MEAN).transpose(0, 3, 1, 2) / STD[:, None, None]
        self.se = by_loops(self.model, self.x, ("HxW", "HxW"))

    def __call__(self, first: str, second: str) -> dict[str, float]:
        tse = by_loops(self.model, self.x, (first, second))
        before, after = (p.argmax(1) == self.labels for p in (self.se, tse))
        return {
            "se": 100 * before.mean(),
            "tse": 100 * after.mean(),
            "agree": int((self.se.argmax(1) == tse.argmax(1)).sum()),
            "lost": int((before & ~after).sum()),
            "gained": int((~before & after).sum()),
            "drop": 100 * (before.mean() - after.mean()),
            "divergence": (np.exp(self.se) * (self.se - tse)).sum(1).mean(),
        }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Images that are bright at the top or at the bottom, with labels that SE gets right for the most part."""
    folder, rng = tmp_path_factory.mktemp("sliding"), np.random.default_rng(0)
    ramp = np.linspace(-1, 1, SIZE[1])[:, None, None] * rng.uniform(-90, 90, (COUNT, 1, 1, 3))
    pixels = np.clip(128 + ramp + rng.normal(0, 50, (COUNT, SIZE[1], SIZE[2], 3)), 0, 255).astype(np.uint8)
    judge = Judge(pixels, np.zeros(COUNT))
    labels = np.where(rng.random(COUNT) < 0.8, judge.se.argmax(1), rng.integers(0, 4, COUNT))
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    lines = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines]))
    return folder, Judge(pixels, labels)


@pytest.fixture
def words(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "slidingnet", types.SimpleNamespace(net=net))
    size = "x".join(map(str, SIZE))
    return ["slidingnet:net", "--input", size, "--data", measured[0], "--preprocess", "crop"]


def test_the_tiles_change_predictions(measured):
    """Else nothing below would tell one tile from another."""
    found = [measured[1](tile, tile) for tile in [*TILES, "1xW", "2xW"]]
    assert all(one["agree"] < COUNT for one in found)
    assert len({round(one["divergence"], 4) for one in found}) == len(found)


@pytest.mark.parametrize("tile", TILES)
def test_eval(measured, words, tile):
    done = tiledse("eval", *words, "--tile", tile, "--json")
    assert done.code == 0, done.err
    found, expected = json.loads(done.out), measured[1](tile, tile)
    assert found["n"] == COUNT
    assert found["se"]["top1"] == pytest.approx(expected["se"])
    assert found["tse"]["top1"] == pytest.approx(expected["tse"])
    assert found["drop"] == pytest.approx(expected["drop"])
    for key in ("agree", "lost", "gained"):
        assert found["paired"][key] == expected[key]


def test_sweep(measured, words, tmp_path):
    out = tmp_path / "s.csv"
    done = tiledse("sweep", *words, "--tiles", ",".join(TILES), "-o", out)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["tile"] for row in rows] == TILES
    # Rows held, of 5 and 3 columns: the strip and what is past it, and of a window no more.
    for row, rows_held in zip(rows, (3, 3, 3), strict=True):
        expected = measured[1](row["tile"], row["tile"])
        for key in ("se", "tse", "drop"):
            assert float(row[key]) == pytest.approx(expected[key], abs=1e-3)
        for key in ("agree", "lost", "gained"):
            assert int(row[key]) == expected[key]
        assert int(row["buffer"]) == rows_held * 6 * (5 + 3)
        assert int(row["se_buffer"]) == 6 * (10 * 5 + 5 * 3)


def test_sensitivity(measured, words):
    done = tiledse("sensitivity", *words, "--tiles", ",".join(TILES), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["blocks"]
    assert sorted((one["name"], one["tile"]) for one in found) == sorted(
        (name, tile) for name in ("se1", "se2") for tile in TILES
    )
    for one in found:
        tiles = (one["tile"], "HxW") if one["name"] == "se1" else ("HxW", one["tile"])
        expected = measured[1](*tiles)
        assert one["divergence"] == pytest.approx(expected["divergence"], rel=1e-3, abs=1e-7)
        assert one["drop"] == pytest.approx(expected["drop"], abs=1e-6)
        assert (one["lost"], one["gained"]) == (expected["lost"], expected["gained"])
