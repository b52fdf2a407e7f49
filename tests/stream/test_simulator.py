"""The simulated pipeline: a pipeline worked out by hand, and three ways to each buffer figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tiledse as ts
from tests.stream.networks import build
from tiledse.stream.building import build_graph
from tiledse.stream.flow import Flow
from tiledse.stream.hardware import Hardware
from tiledse.stream.row_times import Deadlock, row_times
from tiledse.stream.simulator import fifo_rows, run_pipeline, simulate_graph
from tiledse.stream.sizes import free_running, minimum_rows
from tiledse.stream.stages import build_pipeline

TILES = [
    *("HxW", "7xW", "1xW", "1xW:running+2"),
    *(pytest.param(tile, marks=pytest.mark.slow) for tile in ("3xW:middle", "2xW:running", "2xW:window-3+1")),
]


class Graphs(dict):
    """Row graphs of one network by tile, each built when it is asked for."""

    def __init__(self):
        self.model = build("timm:mobilenetv3_small_050")
        self.plan = ts.find(self.model, (3, 131, 64))

    def __missing__(self, tile):
        plan = self.plan.with_tile(tile)
        self[tile] = plan, build_graph(self.model, plan)
        return self[tile]


@pytest.fixture(scope="module")
def graphs():
    return Graphs()


def two_stages():
    """A 3-row convolution after the image: 4 rows; image a row each 10 cycles, convolution 7 cycles a row."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.se = ts.TiledSqueezeExcite(1, 1, "2xW")

        def forward(self, x):
            return self.se(self.conv(x))

    torch.manual_seed(0)
    model = Two().eval()
    plan = ts.find(model, (1, 4, 5))
    chip = Hardware(multipliers=100, image_cycles_per_row=10, cycles_per_row={"conv": 7, "se*": 1})
    return build_graph(model, plan), chip


def test_two_stages_by_hand():
    graph, chip = two_stages()
    pipeline = build_pipeline(graph, chip)
    done = free_running(pipeline)
    names = [stage.name for stage in pipeline.stages]
    # Rows of the image at 10, 20, 30, 40. The convolution needs rows 1-2, 1-3, 2-4, 3-4: it begins at 20, 30, 40
    # and, busy until 47, again then. It is done at 27, 37, 47, 54.
    assert done[0].tolist() == [10, 20, 30, 40]
    assert done[names.index("conv")].tolist() == [27, 37, 47, 54]
    # Tiles of 2 rows: squeezed at 37 and 54, a cycle each in squeeze, two layers of the excitation, and the gate.
    gate = next(i for i, stage in enumerate(pipeline.stages) if stage.kind == "gate")
    steps = sum(1 for stage in pipeline.stages if stage.name.startswith("se") and stage.kind != "gate")
    assert done[gate].tolist() == [38 + steps, 39 + steps, 55 + steps, 56 + steps]
    # The smallest FIFOs: 3 rows for the window, 2 for the tile. The image's fourth row has no room until the
    # convolution is done with the first, at 37; the convolution's third none until the gate has taken its first.
    sizes = fifo_rows(pipeline, "minimum")
    conv = names.index("conv")
    assert (sizes[0], sizes[conv]) == (3, 2)
    tight = row_times(pipeline, sizes, 1)
    assert tight[0].tolist() == [10, 20, 30, 47]
    begin = max(47, 38 + steps)
    assert tight[conv].tolist() == [27, 37, begin + 7, begin + 14]


@pytest.mark.parametrize("tile", TILES)
def test_three_ways_to_each_gate_buffer(graphs, tile):
    plan, graph = graphs[tile]
    closed = {block.name: block.buffer_row_order for block in ts.cost(plan).blocks}
    flow = Flow(graph)
    for _ in range(graph.values[0].height):
        flow.feed(1)
    flow.end()
    rows = {
        graph.nodes[i].block: (most, graph.values[graph.nodes[i].inputs[0]])
        for i, most in flow.progress.held_for.items()
    }
    counted = {block: most * value.row_elements for block, (most, value) in rows.items()}
    simulated = simulate_graph(graph, Hardware(), "minimum", 3)
    peaks = {stage.block: stage.peak for stage in simulated.stages if stage.block is not None}
    assert closed == counted == peaks
    assert simulated.buffer == ts.cost(plan).tse.buffer_row_order


@pytest.mark.parametrize("tile", ["HxW", "7xW", "1xW"])
def test_each_smallest_fifo_less_one_row_deadlocks(graphs, tile):
    _, graph = graphs[tile]
    pipeline = build_pipeline(graph, Hardware())
    sizes = fifo_rows(pipeline, "minimum")
    row_times(pipeline, sizes, 3)
    tried = 0
    for index, stage in enumerate(pipeline.stages):
        if sizes[index] > 1:
            less = [*sizes]
            less[index] -= 1
            with pytest.raises(Deadlock) as stuck:
                row_times(pipeline, less, 1)
            assert f"'{stage.name}' has {less[index]} rows and needs {sizes[index]}" in str(stuck.value)
            tried += 1
    assert tried >= 15


def test_fifos_that_block_each_other_grow_together():
    # RegNetY's shortcut has a convolution: rows wait before it or after it, so one by one a row suffices.
    model = build("timm:regnety_002")
    plan = ts.find(model, (3, 64, 64)).with_tile("7xW")
    pipeline = build_pipeline(build_graph(model, plan), Hardware())
    sizes, alone = fifo_rows(pipeline, "minimum"), minimum_rows(pipeline)
    assert any(a < b for a, b in zip(alone, sizes))
    assert all(a <= b for a, b in zip(alone, sizes))
    with pytest.raises(Deadlock):
        row_times(pipeline, alone, 1)
    for index in range(len(sizes)):
        if sizes[index] > 1:
            less = [*sizes]
            less[index] -= 1
            with pytest.raises(Deadlock):
                row_times(pipeline, less, 1)


@pytest.mark.parametrize("tile", ["HxW", "7xW", pytest.param("2xW:running", marks=pytest.mark.slow)])
def test_unhindered_fifos_lose_no_time(graphs, tile):
    _, graph = graphs[tile]
    pipeline = build_pipeline(graph, Hardware())
    free, sizes = free_running(pipeline, 4), fifo_rows(pipeline, "unhindered", 4)
    bounded = row_times(pipeline, sizes, 4)
    for stage, a, b in zip(pipeline.stages, free, bounded):
        if stage.output:
            assert np.array_equal(a, b)
    result = run_pipeline(pipeline, sizes, 4)
    tight = run_pipeline(pipeline, fifo_rows(pipeline, "minimum"), 4)
    # Frames come as fast as the slowest stage allows; smaller FIFOs are never faster.
    assert result.period_cycles <= 1.01 * result.frame_cycles
    assert tight.cycles >= result.cycles
    assert tight.fifo < result.fifo


def test_tiles_shorten_the_way_and_stall_less(graphs):
    runs = {
        tile: simulate_graph(graphs[tile][1], Hardware(), "unhindered", 3) for tile in ("HxW", "7xW", "1xW")
    }
    assert runs["HxW"].cycles > runs["7xW"].cycles > runs["1xW"].cycles
    assert runs["HxW"].buffer > runs["7xW"].buffer > runs["1xW"].buffer
    assert len({run.frame_cycles for run in runs.values()}) == 1


def test_shares_stay_in_the_budget(graphs):
    for budget in (64, 1000, 100_000):
        pipeline = build_pipeline(graphs["7xW"][1], Hardware(multipliers=budget))
        assert pipeline.multipliers <= budget
        assert all(stage.cycles >= 1 for stage in pipeline.stages)


@pytest.mark.parametrize("tile", TILES)
def test_sum_of_macs_is_that_of_cost(graphs, tile):
    plan, graph = graphs[tile]
    assert sum(node.macs for node in graph.nodes) == ts.cost(plan).tse.macs


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ({"cycles_per_row": {"nothing*": 3}}, r"cycles_per_row 'nothing\*' matches no layer"),
        (
            {"fifo_rows": {"image": 2}},
            "deadlock after \\d rows of the image: .* 'image' has 2 rows and needs 3",
        ),
        ({"multipliers": 5}, "5 multipliers for .* layers"),
    ],
)
def test_hardware_that_does_not_fit(graphs, hardware, message):
    with pytest.raises(ts.TiledSEError, match=message):
        simulate_graph(graphs["7xW"][1], Hardware.from_dict(hardware))


def test_wrong_use(graphs):
    graph = graphs["7xW"][1]
    with pytest.raises(ts.TiledSEError, match="fifos"):
        simulate_graph(graph, Hardware(), "roomy")  # type: ignore[arg-type]
    with pytest.raises(ts.TiledSEError, match="at least 3 frames"):
        simulate_graph(graph, Hardware(), "minimum", 1)
