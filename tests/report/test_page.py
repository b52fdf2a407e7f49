"""The report: its figures are those of the other verbs, it is one file, and names in it are only drawn."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import tiledse as ts
from tests.cli.known import Net
from tests.cli.running import assert_refused, tiledse
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.adapters import Segmenter
from tiledse.evaluate.segmentation import MaskedImages, Segmentation
from tiledse.report.page import making
from tiledse.report.page.charts import intervals, ticks
from tiledse.report.page.rows import leaving, most_held, outline
from tiledse.report.page.timeline import BLOCKED, DONE, IDLE, STARVED, WORKS, timelines
from tiledse.stream.simulator import simulate
from tiledse.tile import Tile

TILES = ["HxW", "1xW", "3xW", "7xW", "Hx3", "3x3", "3xW:upper", "3xW:middle", "2xW:running", "1xW:running+6",
         "1xW:running-1", "1xW:window-2+3", "2xW:window-1+1"]  # fmt: skip


class Page(HTMLParser):
    """What a page refers to, its ids, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.refers.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture(scope="module")
def page():
    return ts.report(Net(), input_size=(3, 20, 16))


@given(st.sampled_from(TILES), st.integers(1, 40))
def test_rows_wait_until_their_gate_is_there(text, height):
    """Row by row, by hand: a row leaves when all rows have come that its gate is the mean of."""
    tile, width = Tile.parse(text), 5
    tall, _ = tile.scaled(height, width)
    leaves = leaving(tile, height, width)
    for row in range(height):
        seen = np.flatnonzero(tile.weights(height)[row // tall])
        assert leaves[row] == max(seen.max() + 1, row + 1)
    held, most = set(), 0
    for come in range(1, height + 1):
        held.add(come - 1)
        most = max(most, len(held))
        held -= {row for row in held if leaves[row] <= come}
    assert most_held(leaves) == most
    if text not in ("1xW:running-1", "3xW:middle", "3xW:upper"):
        assert most == tile.held(height)
    points = outline(leaves)
    assert points[0] == (0, 0)
    assert points[-1] == (height, height)
    assert all(0 <= x <= height and 0 <= y <= height for x, y in points)


def test_its_figures_are_those_of_cost(page):
    model = Net()
    plan = ts.find(model, (3, 20, 16))
    for total in page.record["totals"]:
        tiled = plan.with_tile(total["tiles"][0])
        cost = ts.cost(tiled)
        assert (total["buffer"], total["macs"], total["params"]) == (
            cost.tse.buffer, cost.tse.macs, cost.tse.params
        )  # fmt: skip
        place = page.record["totals"].index(total)
        own = page.record["blocks"][0]["candidates"][place]
        assert own["buffer_row_order"] == cost.blocks[0].buffer_row_order == own["rows"] * 16 * 16
        text = f"{total['buffer']:,}"
        assert text in page.html
    assert [total["name"] for total in page.record["totals"]] == ["SE", "7xW", "1xW:running+6"]


def test_the_timeline_is_what_was_simulated():
    model = Net()
    plan = ts.find(model, (3, 20, 16))
    runs = [simulate(model, plan.with_tile(tile)) for tile in ("HxW", "3xW")]
    film = timelines(["SE", "3xW"], runs, 97)
    assert film["end"] == max(run.cycles for run in runs)
    for run, shown in zip(runs, film["pipelines"]):
        assert (shown["cycles"], shown["first"], shown["fifo"]) == (
            run.cycles, run.first_output_cycle, run.fifo
        )  # fmt: skip
        assert max(shown["gates"]) <= run.buffer
        for index, stage in enumerate(shown["stages"]):
            states = np.repeat(stage["states"][::2], stage["states"][1::2])
            rows = np.repeat(stage["rows"][::2], stage["rows"][1::2])
            assert len(states) == len(rows) == 97
            assert rows.max() <= stage["room"]
            done = run.done[index]
            cycles = run.stages[index].cycles_per_row
            for instant, state in enumerate(states):
                time = (instant + 0.5) * film["end"] / 97
                making = [when for when in done if when - cycles <= time < when]
                assert (state == WORKS) == bool(making)
                assert (state == DONE) == (time >= done[-1])
                assert not (state == IDLE and time > done[0])
        waited = {STARVED, BLOCKED} & {s for stage in shown["stages"] for s in stage["states"][::2]}
        assert waited
    # SE waits for the whole map: its gate works only after the last row of the convolution before it.
    gates = [next(s for s in p["stages"] if s["kind"] == "gate") for p in film["pipelines"]]
    first = [np.repeat(g["states"][::2], g["states"][1::2]).tolist().index(WORKS) for g in gates]
    assert first[0] > first[1]


def test_it_is_one_file_that_asks_for_nothing(page):
    parsed = Page(page.html)
    assert all(ref.startswith(("#", "data:")) for ref in parsed.refers), parsed.refers
    assert {ref[1:] for ref in parsed.refers if ref.startswith("#")} <= {*parsed.ids}
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not {"link", "iframe", "object", "embed"} & {*parsed.tags} - {"link"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.html)
    assert "default-src 'none'" in page.html
    assert len(page.html.encode()) < 200_000
    assert page.to_dict()["bytes"] == len(page.html.encode())
    json.dumps(page.to_dict(), allow_nan=False)


class Odd(nn.Module):
    """A network whose names would be markup, were they let."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("</script><script>alert(1)</script>", Net())

    def forward(self, x):
        return self.get_submodule("</script><script>alert(1)</script>")(x)


def test_names_are_only_drawn():
    page = ts.report(ts.open(Odd(), (3, 20, 16), name="<img src=x onerror=alert(2)>\x1b[31m"))
    assert page.html.count("<script") == 2
    assert "<img" not in page.html
    assert "\x1b" not in page.html
    assert "&lt;/script&gt;" in page.html


class Classifier(nn.Module):
    """Net as a classifier of two classes, which half of some images are in."""

    def __init__(self, middle: float = 0.0) -> None:
        super().__init__()
        self.net, self.middle = Net(), middle

    def forward(self, x):
        a, b = self.net(x).mean((2, 3)).unbind(1)
        return torch.stack([a - b - self.middle, torch.zeros_like(a)], 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows = ["file,label"]
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        pixels[:10] //= 1 + number % 5
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    size = (3, 20, 16)
    return open_images(folder, Preprocessing(size, (0.5,) * 3, (0.01,) * 3, kind="crop"))


@pytest.fixture(scope="module")
def classifier(images):
    """A network whose outputs lie so near each other that tiles change some."""
    (batch,) = images.batches(24)
    with torch.no_grad():
        return Classifier(float(Classifier()(batch.inputs)[:, 0].median()))


def test_a_page_that_would_be_too_large_shows_less(monkeypatch, images, classifier):
    full = ts.report(classifier, images=images, input_size=(3, 20, 16))
    monkeypatch.setattr(making, "MOST_BYTES", len(full.html) - 1)
    less = ts.report(classifier, images=images, input_size=(3, 20, 16))
    assert len(less.html) < len(full.html)
    shown = [len(sheet["images"]) for sheet in less.record["accuracy"]["sheets"]]
    assert sum(shown) < sum(len(sheet["images"]) for sheet in full.record["accuracy"]["sheets"])


def test_of_masks_the_images_that_changed_most_are_shown(images, tmp_path):
    rng = np.random.default_rng(0)
    for file in sorted(images.folder.glob("*.png")):
        Image.fromarray(rng.integers(0, 2, (20, 16), np.uint8)).save(tmp_path / file.name)
    # A threshold between the classes that gates decide upon.
    segmenter = Segmenter(
        ("a", "b"),
        lambda image: 100 * torch.from_numpy(np.asarray(image, np.float32) / 255 - 0.4).permute(2, 0, 1),
        lambda output, sizes: list(output.argmax(1)),
        lambda mask: torch.from_numpy(np.array(mask)).long(),
    )
    task = Segmentation(MaskedImages(images.folder, segmenter, tmp_path), segmenter)
    network = ts.open(Net(), (3, 20, 16))
    plan = network.plan.with_tile("2xW")
    page = ts.report(network, {"rows": plan}, task)

    def own(model, name):
        with Image.open(images.folder / name) as image, torch.no_grad():
            seen = model(segmenter.prepare(image)[None]).argmax(1)[0].numpy()
        true = np.asarray(Image.open(tmp_path / name))
        each = [np.sum((seen == c) & (true == c)) / np.sum((seen == c) | (true == c)) for c in (0, 1)]
        return 100 * np.mean(each)

    tiled = ts.convert(network.given, plan)
    change = {f.name: own(tiled, f.name) - own(network.given, f.name) for f in images.folder.glob("*.png")}
    sheets = {sheet["kind"]: sheet for sheet in page.record["accuracy"]["sheets"]}
    fell = sorted((name for name in change if change[name] < -1e-9), key=change.__getitem__)
    rose = sorted((name for name in change if change[name] > 1e-9), key=lambda name: -change[name])
    assert fell
    assert rose
    assert [image["name"] for image in sheets["lost"]["images"]] == fell
    assert [image["name"] for image in sheets["gained"]["images"]] == rose
    first = own(network.given, fell[0]), own(tiled, fell[0])
    assert sheets["lost"]["images"][0]["caption"] == "SE {:.1f}, tiles {:.1f}".format(*first)


def test_images_that_differ_are_those_of_evaluate(images, classifier):
    network = ts.open(classifier, (3, 20, 16))
    plan = network.plan.with_tile("1xW")
    page = ts.report(network, {"rows": plan}, images)
    found = ts.evaluate(network, plan, images)
    (own,) = [one for one in page.record["accuracy"]["candidates"] if one["name"] == "rows"]
    assert (own["lost"], own["gained"], own["drop"]) == (found.lost, found.gained, found.drop)
    assert own["drop_ci95"] == list(found.drop_ci95)
    assert found.lost + found.gained > 0
    for sheet in page.record["accuracy"]["sheets"]:
        expected = [image.name for image in found.images if image.outcome == sheet["kind"]]
        assert [image["name"] for image in sheet["images"]] == expected
        assert sheet["of"] == len(expected)
        assert all(image["picture"].startswith("data:image/jpeg;base64,") for image in sheet["images"])
    r = page.record["blocks"][0]["candidates"]
    assert r[0]["correlation"]["squeeze"] == pytest.approx(1)
    assert r[-1]["correlation"]["squeeze"] < 1
    plot = intervals(page.record["accuracy"]["candidates"])
    assert all(line["low"] < line["at"] < line["high"] for line in plot["lines"])


def test_operators_are_those_of_convert(tmp_path):
    """What the page says that a target gets is what `convert --target` writes."""
    model = ("tests.cli.known:small", "--input", "3x20x16")
    network = ts.open("tests.cli.known:small", (3, 20, 16))
    page = ts.report(network, {"strips": network.plan.with_tile("5xW")}, target="ethos-u")
    written = page.record["target"]
    assert [one["name"] for one in written["candidates"]] == ["SE", "7xW", "strips"]
    assert written["name"] == "ethos-u"
    done = tiledse(
        "convert", *model, "--tile", "5xW", "--target", "ethos-u", "-o", tmp_path / "t.onnx", "--json"
    )
    (block,) = json.loads(done.out)["target"]["blocks"]
    (own,) = written["candidates"][-1]["blocks"]
    assert sum(
        int(part.split()[0]) if part[0].isdigit() else 1 for part in own["operators"].split(", ")
    ) == len(block["operators"])
    assert own["operators"] in page.html
    assert_refused(tiledse("report", *model, "--target", "nowhere", "-o", tmp_path / "r.html"), "nowhere")


def test_round_ticks():
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(3, 3) == [3]


def test_the_verb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("tests.cli.known:small", "--input", "3x20x16")
    tiledse("plan", *model, "--tile", "2xW", "-o", "mine.json")
    done = tiledse("report", *model, "--plan", "mine.json", "-o", "r.html", "--json")
    found = json.loads(done.out)
    assert done.code == 0, done.err
    assert [one["name"] for one in found["totals"]] == ["SE", "7xW", "mine"]
    assert found["bytes"] == (tmp_path / "r.html").stat().st_size
    assert found["accuracy"] is None
    assert [p["name"] for p in found["pipelines"]] == ["SE", "7xW", "mine"]
    assert_refused(tiledse("report", *model, "-o", "r.html"), "exists; give --force")
    assert_refused(tiledse("report", *model, "-o", "r.pdf"), ".html or .htm")
    assert_refused(tiledse("report", *model, "--search", "mine.json", "-o", "s.html"), "no 'metric'")
    assert_refused(tiledse("report", *model, "--mean", "1,1,1", "-o", "s.html"), "go with --data")
    assert_refused(tiledse("report", "timm:resnet18", "-o", "s.html"), "no squeeze-and-excite block")
    twice = ("--plan", "mine.json", "--plan", tmp_path / "mine.json")
    assert_refused(tiledse("report", *model, *twice, "-o", "s.html"), "two plans are called 'mine'")
    assert not (tmp_path / "s.html").exists()
