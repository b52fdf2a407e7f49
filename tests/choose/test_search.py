"""Search: budgets kept, the best of what was measured taken, nothing measured twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiledse as ts
from tests.choose.networks import SIZE, images, small
from tests.cli.running import assert_refused, tiledse
from tiledse.choose.budget import Order, gate_buffer
from tiledse.choose.cache import Evaluations
from tiledse.choose.evaluation import Evaluator
from tiledse.choose.search import default_tiles, options_of, search
from tiledse.data.images import ImageSet, ListedImages, Sample
from tiledse.evaluate.classification import Classification
from tiledse.networks.network import TorchNetwork
from tiledse.plan import Plan, SEBlock
from tiledse.report.choose import draw_front
from tiledse.stream.minimum import PipelineBuffer
from tiledse.tile import Tile

TILES = [Tile.parse(t) for t in ("1xW:running", "4xW:running", "4xW", "7xW:running")]


class Drawn(ListedImages):
    """Images that were never files; labels are what the SE network says."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        with torch.no_grad():
            self.labels = small()(x).argmax(1).tolist()
        files = [(f"{i}.png", label) for i, label in enumerate(self.labels)]
        super().__init__(Path(), files, lambda image: torch.empty(0))

    def sample(self, index: int) -> Sample:
        return Sample(self.x[index], self.labels[index], f"{index}.png", (0, index))


class Counted(TorchNetwork):
    """Counts the plans that were run."""

    runs = 0
    looks = 0

    def branches(self, plans):
        self.runs += len(plans)
        return super().branches(plans)

    def rows(self, plan, blocks):
        self.looks += len(blocks) < len(plan)  # all blocks at once: each alone, which is one pass
        return super().rows(plan, blocks)


def evaluator(folder, network=None, data: ImageSet | None = None) -> Evaluator:
    data = data or Drawn(images(60))
    return Evaluator(
        network or TorchNetwork(small(), SIZE), Classification(data), Evaluations(folder), few=40
    )


def test_the_chosen_plan_keeps_the_budget_and_is_the_best_measured(tmp_path):
    judge = evaluator(tmp_path)
    plan = judge.network.se
    budget = gate_buffer(plan.with_tile("7xW"))
    found = search(judge, max_buffer=budget, tiles=TILES, uniform=[Tile.parse("7xW")])
    within = [p for p in found.points if p.buffer <= budget]
    assert found.chosen.buffer <= budget
    assert found.chosen.measured.divergence == min(p.measured.divergence for p in within)
    assert "uniform" in {p.kind for p in found.points}
    # What was said of a point is so, by running the converted network.
    x = judge.task.images.x
    with torch.no_grad():
        tse, se = ts.convert(judge.network.model, found.chosen.plan).eval()(x), judge.network.model(x)
    p, q = se.double().log_softmax(1), tse.double().log_softmax(1)
    assert found.chosen.measured.divergence == pytest.approx(
        float((p.exp() * (p - q)).sum(1).mean()), rel=1e-5
    )
    lost = 100 * float((tse.argmax(1) != se.argmax(1)).double().mean())
    assert found.chosen.measured.drop == pytest.approx(lost)
    assert found.chosen.buffer == ts.cost(found.chosen.plan).tse.buffer


def test_a_drop_is_kept_with_less_buffer_than_plain_se(tmp_path):
    judge = evaluator(tmp_path)
    found = search(judge, max_drop=10.0, tiles=TILES)
    assert found.chosen.measured.drop <= 10
    assert found.chosen.buffer < gate_buffer(judge.network.se)


def test_a_budget_of_the_whole_pipeline_is_kept_as_the_simulator_counts(tmp_path):
    judge = evaluator(tmp_path)
    model, plan = judge.network.model, judge.network.se
    order = Order("pipeline", PipelineBuffer(model, plan))
    least, most = (order.of(plan.with_tile(t)) for t in ("1xW", "HxW"))
    budget = (least + most) // 2
    found = search(judge, max_buffer=budget, tiles=TILES, uniform=[Tile.parse("7xW")], order=order)
    assert found.order == "pipeline"
    assert found.chosen.buffer <= budget
    for point in found.points:
        assert point.buffer == ts.simulate(model, point.plan, fifos="minimum").fifo > gate_buffer(point.plan)
    # No plan of these tiles that fits has a smaller sum of divergences.
    alone = [[d for _, _, d in own] for own in found.options]
    tiles = [[t for t, _, _ in own] for own in found.options]
    sums = [
        (alone[0][a] + alone[1][b], order.of(replace(plan, tiles=(tiles[0][a], tiles[1][b]))))
        for a in range(len(tiles[0]))
        for b in range(len(tiles[1]))
    ]
    best = min(cost for cost, held in sums if held <= budget)
    measured = [
        sum(alone[n][tiles[n].index(t)] for n, t in enumerate(p.plan.tiles))
        for p in found.points
        if p.kind == "front" and p.buffer <= budget
    ]
    assert min(measured) == pytest.approx(best)
    with pytest.raises(ts.TiledSEError, match=f"the smallest plan of these tiles holds {least} elements"):
        search(judge, max_buffer=least - 1, tiles=TILES, order=order)
    with pytest.raises(
        ts.TiledSEError, match="has the tile Hx4: the pipeline's buffer is counted for strips"
    ):
        search(judge, max_buffer=budget, tiles=TILES, order=order, uniform=[Tile.parse("Hx4")])


def test_calibration_takes_part_and_is_kept_only_where_it_is_better(tmp_path):
    judge = evaluator(tmp_path)
    other = evaluator(tmp_path, judge.network, Drawn(images(64, seed=2)))
    budget = gate_buffer(judge.network.se.with_tile("4xW"))
    found = search(judge, max_buffer=budget, tiles=TILES, fitted_on=other)
    assert any(p.calibrated for p in found.points)
    best = min((p for p in found.points if p.buffer <= budget), key=lambda p: p.measured.divergence)
    assert found.chosen.plan == best.plan


def test_what_was_measured_is_not_measured_again(tmp_path):
    network = Counted(small(), SIZE)
    first = search(evaluator(tmp_path, network), max_buffer=10**6, tiles=TILES)
    runs = network.runs
    assert runs > 8
    again = search(evaluator(tmp_path, network), max_buffer=10**6, tiles=TILES)
    assert network.runs == runs
    assert again.to_dict() == first.to_dict()
    # Other images, or other weights, are other evaluations.
    search(evaluator(tmp_path, network, Drawn(images(60, seed=5))), max_buffer=10**6, tiles=TILES)
    assert network.runs > runs
    # A file that was cut off is measured again.
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert search(evaluator(tmp_path, network), max_buffer=10**6, tiles=TILES).to_dict() == first.to_dict()


def test_what_was_calibrated_is_not_calibrated_again(tmp_path):
    network = Counted(small(), SIZE)

    def found():
        other = evaluator(tmp_path, network, Drawn(images(64, seed=2)))
        return search(evaluator(tmp_path, network), max_buffer=2000, tiles=TILES, fitted_on=other)

    first, looks = found().to_dict(), network.looks
    assert looks > 4
    assert found().to_dict() == first
    assert network.looks == looks
    for file in tmp_path.iterdir():
        if '"corrections"' in file.read_text():
            file.write_text(file.read_text().replace('"own": "', '"own": "A'))
    assert found().to_dict() == first
    assert network.looks == 2 * looks


def test_tiles_that_are_the_same_on_a_map_are_tried_once():
    """On 7 rows: a window of all rows above is running; what sees all rows is HxW; heights that differ stay."""
    plan = Plan((SEBlock("se", 8, 2, 7, 9, "timm.SEModule"),), (Tile.parse("HxW"),), (3, 56, 72))
    texts = [
        "1xW:running+2",
        "1xW:window-6+2",
        "1xW:window-2+2",
        "1xW:running+6",
        "2xW:running+1",
        "7xW",
        "9xW",
    ]
    (own,) = options_of(plan, [Tile.parse(t) for t in texts])
    assert [str(t) for t in own] == ["1xW:running+2", "1xW:window-2+2", "2xW:running+1", "HxW"]


def test_the_tiles_tried_hold_each_number_of_rows_with_a_gate_for_each_row():
    plan = Plan((SEBlock("se", 8, 2, 56, 9, "timm.SEModule"),), (Tile.parse("HxW"),), (3, 56, 72))
    (own,) = options_of(plan, default_tiles())
    rows = {t.buffer(1, 56, 1) for t in own if (t.height, t.above) == (1, None) and t.squeeze == "running"}
    assert rows == {1, 2, 3, 4, 5, 7, 10, 14, 20, 28}
    assert all(t.whole or t.slides for t in own)


def test_a_search_among_sliding_strips_holds_what_it_says(tmp_path):
    """At 7xW's buffer a sliding plan is nearer to SE than 7xW and than running strips of seven rows."""
    judge = evaluator(tmp_path)
    plan = judge.network.se
    budget = gate_buffer(plan.with_tile("4xW"))
    found = search(judge, max_buffer=budget, uniform=[Tile.parse(t) for t in ("4xW", "4xW:running")])
    assert found.chosen.buffer == ts.cost(found.chosen.plan).tse.buffer <= budget
    assert any(t.ahead > 0 for t in found.chosen.plan.tiles)
    others = [p.measured.divergence for p in found.points if p.kind == "uniform"]
    assert found.chosen.measured.divergence < min(others)
    draw_front(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000


def test_wrong_use(tmp_path):
    judge = evaluator(tmp_path)
    least = gate_buffer(judge.network.se.with_tile("1xW"))
    with pytest.raises(ts.TiledSEError, match=f"the smallest plan of these tiles holds {least} elements"):
        search(judge, max_buffer=least - 1, tiles=TILES)
    with pytest.raises(ts.TiledSEError, match="give one budget"):
        search(judge, tiles=TILES)
    with pytest.raises(ts.TiledSEError, match="give one budget"):
        search(judge, max_buffer=1, max_drop=1.0, tiles=TILES)
    with pytest.raises(ts.TiledSEError, match="tile 7x7: a search chooses among strips of rows"):
        search(judge, max_buffer=10**6, tiles=[Tile.parse("7x7")])
    with pytest.raises(ts.TiledSEError, match="--max-drop -100.0: no plan that was measured keeps it"):
        search(judge, max_drop=-100.0, tiles=TILES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A factory to load by name, and labelled images as files."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    (tmp_path / "data").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 256, (44, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
        lines.append(f"{number}.png,{number % 5}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


MODEL = ("tests.choose.networks:small", "--input", "3x44x24")


def test_search_command(folder):
    pytest.importorskip("matplotlib")
    given = (
        "search",
        *MODEL,
        "--data",
        "data",
        "--preprocess",
        "crop",
        "--tiles",
        "1xW:running,4xW",
        "--cache",
        "kept",
    )
    done = tiledse(*given, "--max-buffer", 1000, "-o", "plan.json", "--plot", "front.png", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["chosen"]["buffer"] <= 1000
    assert {"buffer", "drop"} <= set(found["points"][0])
    plan = ts.Plan.load("plan.json")
    assert plan.to_dict() == found["chosen"]["plan"]
    with Image.open("front.png") as figure:
        assert figure.size[0] > 100
    table = tiledse(*given, "--max-drop", 50, "-o", "plan2.json")
    assert table.code == 0
    assert "chosen" in table.out
    assert "percentage points" in table.out
    pipeline = tiledse(*given, "--max-buffer", 5000, "--buffer", "pipeline", "-o", "plan4.json")
    assert pipeline.code == 0, pipeline.err
    assert "gates" in pipeline.out
    held = ts.simulate(small(), ts.Plan.load("plan4.json"), fifos="minimum").fifo
    assert f"{held:,}" in pipeline.out
    assert held <= 5000
    net = ts.open("tests.choose.networks:small", (3, 44, 24))
    ts.write(net, net.plan, "net.onnx")
    read = (
        "net.onnx",
        "--mean",
        "0,0,0",
        "--std",
        "1,1,1",
        "--data",
        "data",
        "--preprocess",
        "crop",
        "--max-buffer",
        5000,
    )
    done = tiledse("search", *read, "--buffer", "pipeline", "-o", "plan5.json")
    assert done.code == 0, done.err
    held = ts.simulate("net.onnx", ts.Plan.load("plan5.json"), fifos="minimum").fifo
    assert f"{held:,}" in done.out
    assert held <= 5000
    refused = tiledse(*given, "--max-buffer", 3, "-o", "plan3.json")
    assert_refused(refused, "the smallest plan of these tiles holds")
    assert not (folder / "plan3.json").exists()
    assert_refused(tiledse(*given, "--max-buffer", 1000, "-o", "plan.json"), "plan.json exists")
    assert_refused(
        tiledse(*given, "--max-buffer", 1000, "-o", "p.json", "--calibrate", "data"), "are the same images"
    )


def test_calibrate_command(folder):
    given = ("calibrate", *MODEL, "--data", "data", "--preprocess", "crop")
    done = tiledse(*given, "--tile", "4xW:running", "-o", "plan.json", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["calibrated"] == 2
    # 6 and 3 strips of 8 and 12 channels, three numbers each
    assert record["numbers"] == 3 * (6 * 8 + 3 * 12)
    assert (record["fitted_on"], record["held_out"]["n"]) == (32, 8)
    assert ts.Plan.load("plan.json").calibrated
    assert tiledse(*given, "--plan", "plan.json", "-o", "out.safetensors").code == 0
    assert ts.Plan.load("out.safetensors") == ts.Plan.load("plan.json")
    assert tiledse("cost", *MODEL, "--plan", "plan.json").code == 0
    assert_refused(tiledse(*given, "--tile", "4xW", "--images", 30, "-o", "p.json"), "24 images are too few")
    assert_refused(tiledse(*given, "--tile", "Hx4", "-o", "p.json"), "strips of rows")
    assert_refused(tiledse(*given, "--tile", "4xW", "-o", "p.txt"), "expected -o with a name that ends in")
    assert_refused(tiledse(*given, "--tile", "4xW", "-o", "p.onnx"), "write plan.json, then: tiledse convert")
    assert not (folder / "p.json").exists()
