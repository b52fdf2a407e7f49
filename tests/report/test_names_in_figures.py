"""Names in figures are drawn letter by letter: no formula, no TeX, no control character, no warning."""

from __future__ import annotations

import re
import sys
import types
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
import timm
from PIL import Image
from torch import nn

from tests.cli.running import tiledse
from tiledse.errors import TiledSEError
from tiledse.report.figures import as_drawn, figure

NAMES = [
    "net$_{",
    "a$b$c",
    r"$\frac{1}$",
    r"\$x\$ and $",
    "$$",
    "<b>&amp;</b>",
    "\x1b[31mred\n\u202e",
    "漢字 😀",
    r"\input{/etc/passwd}",
    "_hidden",
    "n" * 700,
]


def texts(path) -> str:
    """All that an SVG says, in one string."""
    return " ".join(" ".join(element.itertext()) for element in ET.parse(path).getroot().iter())


@pytest.fixture
def as_text(monkeypatch):
    """Letters stay letters in SVG, so that they can be read back; and the user's own file asks for TeX."""
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_as_a_title_a_label_and_a_tick(tmp_path, as_text, name):
    path = tmp_path / "figure.svg"
    with figure(path, 4, 3) as made:
        axes = made.subplots()
        axes.set(title=as_drawn(name), xlabel=as_drawn(name))
        axes.set_yticks([0], [as_drawn(name)])
        axes.set_xscale("log")
    if len(name) < 100:
        letters = re.sub(r"[\x00-\x1f\u202e]", "", name)
        for letter in "\x1b\n":
            letters = letters.replace(letter, "")
        drawn = re.sub("[␛␊\ufffd]", "", texts(path))
        assert drawn.count(letters) >= 3, drawn


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_other_formats(tmp_path, as_text, ending):
    with figure(tmp_path / f"figure.{ending}", 6, 4) as made:
        axes = made.subplots()
        axes.set(title=as_drawn(NAMES[0]), xlabel=as_drawn(NAMES[3]))
        axes.set_yticks(range(len(NAMES)), map(as_drawn, NAMES))
    assert (tmp_path / f"figure.{ending}").stat().st_size > 1000


@pytest.fixture
def odd(monkeypatch):
    """A factory and a network whose blocks have odd names."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            se = timm.layers.SEModule(8, rd_channels=4)
            self.add_module("a$_{", nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), se))
            self.add_module(
                "b$^{", nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), timm.layers.SEModule(8, rd_channels=4))
            )
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.get_submodule("b$^{")(self.get_submodule("a$_{")(x))
            return self.head(x.mean((2, 3)))

    monkeypatch.setitem(sys.modules, "oddnames", types.SimpleNamespace(**{"net$_{": Net}))
    return "oddnames:net$_{"


@pytest.mark.parametrize(
    ("verb", "words", "drawn"),
    [
        ("stream", ("--tile", "2xW"), ("oddnames:net$_{",)),
        ("simulate", ("--tile", "2xW"), ("oddnames:net$_{",)),
        ("correlate", ("--tile", "2xW", "--data", "{}"), ("oddnames:net$_{", "a$_{.1")),
        ("sensitivity", ("--tiles", "2xW", "--data", "{}"), ("oddnames:net$_{", "a$_{.1")),
        ("sweep", ("--tiles", "2xW", "--data", "{}", "-o", "{}.csv"), ("oddnames:net$_{",)),
        ("search", ("--max-buffer", "900", "--data", "{}", "-o", "{}.json"), ("oddnames:net$_{",)),
    ],
)
def test_every_verb_that_draws(tmp_path, as_text, odd, verb, words, drawn):
    data = tmp_path / "images"
    data.mkdir()
    lines = ["file,label"]
    for number in range(6):
        Image.effect_noise((20, 20), 80 + number).convert("RGB").save(data / f"{number}.png")
        lines.append(f"{number}.png,{number % 4}")
    (data / "labels.csv").write_text("\n".join(lines))
    picture = tmp_path / "p.svg"
    size = ("--input", "3x20x20")
    done = tiledse(verb, odd, *size, *(word.format(data) for word in words), "--plot", picture)
    assert done.code == 0, done.err
    said = texts(picture)
    for name in drawn:
        assert name in said, said


def test_another_ending(tmp_path):
    message = r"cannot draw .*p\.jpeg: expected a name that ends in"
    with pytest.raises(TiledSEError, match=message), figure(tmp_path / "p.jpeg", 1, 1):
        pass
