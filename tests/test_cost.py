"""Cost: the closed form against counts of the converted network, and against rows counted one by one."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from functools import cache

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tiledse as ts
from tests.networks.over_time import PoolSE
from tiledse.networks.converter import convert_shared
from tiledse.networks.counting import MacCounter
from tiledse.report.text import cost_table

TILES = ["7xW", "1xW", "3xW", "Hx7", "7x7", "1x1", "7xW:upper", "7xW:middle", "7xW:running", "HxW"]
NETWORKS = {
    "regnety_002": (lambda: timm.create_model("regnety_002"), (3, 224, 224), TILES),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_100"), (3, 97, 131), ["5xW", "Hx3", "3x2"]),
    "efficientnet": (lambda: timm.create_model("efficientnet_b0"), (3, 260, 130), ["7xW:running"]),
    "ese": (lambda: timm.create_model("ese_vovnet19b_dw"), (3, 96, 64), ["4x4"]),
    "senet": (lambda: timm.create_model("legacy_seresnet18"), (3, 96, 96), ["7xW"]),
    "torchvision": (
        lambda: torchvision.models.mobilenet_v3_small(),
        (3, 120, 88),
        ["1xW:running"],
    ),
}
# Each has a cousin that stays: another tile of its kind, or another network.
LONGER = {
    *(("regnety_002", tile) for tile in ("1xW", "3xW", "7x7", "7xW:middle", "HxW")),
    ("efficientnet", "7xW:running"),
    ("mobilenetv3", "5xW"),
}


@cache
def found(name: str) -> tuple[nn.Module, ts.Plan]:
    build, size, _ = NETWORKS[name]
    model = build().to("meta")  # built there, timm's RegNetY fails on torch 2.9
    return model, ts.find(model, size)


def count(model: nn.Module, size: tuple[int, int, int]) -> tuple[int, int]:
    """MACs of one forward: by torch's counter, and by hooks on the layers that know nothing of it."""
    by_hooks = 0

    def note(layer: nn.Module, args: object, out: torch.Tensor) -> None:
        nonlocal by_hooks
        weights = layer.weight[0].numel()  # of one output value
        by_hooks += out.numel() * (weights + (layer.bias is not None))

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(note)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), MacCounter() as counter:
        model.eval()(torch.empty(1, *size, device="meta"))
    return counter.macs, by_hooks


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        pytest.param(name, tile, marks=pytest.mark.slow if (name, tile) in LONGER else ())
        for name, row in NETWORKS.items()
        for tile in row[2]
    ],
)
def test_macs_are_those_of_the_converted_network(name: str, tile: str) -> None:
    model, plan = found(name)
    plan = plan.with_tile(tile)
    expected = ts.cost(plan).tse
    assert count(convert_shared(model, plan), plan.input_size) == (expected.macs, expected.macs)
    assert expected.params == sum(p.numel() for p in model.parameters())


def test_macs_of_a_mixed_plan() -> None:
    model, plan = found("regnety_002")
    plan = plan.with_tile("1xW").with_tile("Hx5", "s2.*").with_tile("3x4", "s3.*").first(1, "HxW")
    assert count(convert_shared(model, plan), plan.input_size)[1] == ts.cost(plan).tse.macs


@pytest.mark.parametrize("tile", ["2xW", pytest.param("2xW:window-1+2", marks=pytest.mark.slow)])
def test_se_macs_do_not_depend_on_the_tiles_that_the_network_has(tile: str) -> None:
    model = timm.create_model("regnety_002")
    plan = ts.find(model, (3, 64, 96))
    converted = ts.convert(model, plan.with_tile(tile))
    again = ts.cost(ts.find(converted, (3, 64, 96)))
    assert again.se == ts.cost(plan).se
    assert again == ts.cost(plan.with_tile(tile))


# Buffer, element by element.


def gate_of(tile: ts.Tile, height: int, width: int) -> list[list[int]]:
    """For each element of a map, which of its gates it is scaled with."""
    if tile.single:
        return [[0] * width for _ in range(height)]
    tall, wide = tile.height or height, tile.width or width
    across = -(-width // wide)
    return [[i // tall * across + j // wide for j in range(width)] for i in range(height)]


def needed_rows(tile: ts.Tile, gate: list[list[int]], height: int) -> dict[int, int]:
    """For each gate, the last row that its descriptor needs."""
    if tile.squeeze == "middle":
        tall = min(tile.height or height, height)
        return {0: (height - tall) // 2 + tall - 1}
    if tile.squeeze == "upper":
        return {0: min(tile.height or height, height) - 1}
    last: dict[int, int] = {}
    for i, row in enumerate(gate):
        for g in row:
            last[g] = i
    return last


def held_by_rows(tile: ts.Tile, height: int, width: int) -> int:
    """The most elements of a channel that wait for a gate, rows arriving from the top."""
    gate = gate_of(tile, height, width)
    last = needed_rows(tile, gate, height)
    most, waiting = 0, []
    for i, row in enumerate(gate):
        waiting += row
        most = max(most, len(waiting))
        waiting = [g for g in waiting if last[g] > i]
    return most


@st.composite
def tiles(draw: st.DrawFn) -> ts.Tile:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    text = draw(
        st.sampled_from(
            [
                "HxW",
                f"{height}xW",
                f"Hx{width}",
                f"{height}x{width}",
                f"{height}xW:upper",
                f"{height}xW:middle",
                f"{height}xW:running",
            ]
        )
    )
    return ts.Tile.parse(text)


@given(tiles(), st.integers(1, 5), st.integers(1, 14), st.integers(1, 14))
def test_buffers_are_those_of_a_loop(tile: ts.Tile, channels: int, height: int, width: int) -> None:
    block = ts.SEBlock("b", channels, 1, height, width, "test")
    counted = ts.cost(ts.Plan((block,), (tile,), (3, 32, 32)))
    (row,) = counted.blocks
    gate = gate_of(tile, height, width)
    flat = [g for line in gate for g in line]
    assert row.tiles == len(set(flat))
    assert row.buffer_row_order == channels * held_by_rows(tile, height, width)
    if not tile.single:
        assert row.buffer == channels * max(flat.count(g) for g in set(flat))
    assert row.se_buffer == channels * height * width
    assert row.buffer <= row.buffer_row_order <= row.se_buffer
    assert row.running_sums == (channels if tile.squeeze == "running" else 0)
    assert row.macs == row.tiles * row.se_macs


def test_sliding_strips_hold_what_plain_strips_hold_and_take_a_gate_for_each_row() -> None:
    plan = ts.find(timm.create_model("tf_mobilenetv3_small_100"), (3, 224, 224))
    plain, sliding, two = (ts.cost(plan.with_tile(t)) for t in ("7xW", "1xW:running+6", "2xW:running+5"))
    assert plain.tse.buffer == sliding.tse.buffer == two.tse.buffer == two.tse.buffer_row_order == 159_152
    for block, half in zip(sliding.blocks, two.blocks, strict=True):
        gates = 1 if block.height == 7 else block.height
        assert block.macs == gates * block.se_macs
        assert half.macs == -(-gates // 2) * half.se_macs


def test_known_networks() -> None:
    plan = ts.find(timm.create_model("regnety_008"), (3, 224, 224))
    strips = ts.cost(plan.with_tile("7xW")).tse
    assert strips == ts.TSECost(6_263_168, 797_635_864, 426_496, 426_496, 0, 0)
    assert ts.cost(plan.with_tile("7xW:upper")).tse.buffer_row_order == 426_496
    assert ts.cost(plan.with_tile("7xW:middle")).tse.buffer_row_order == 727_552
    assert ts.cost(plan).se == ts.SECost(6_263_168, 797_183_328, 1_078_784)
    b0 = ts.cost(ts.find(timm.create_model("efficientnet_b0"), (3, 224, 224)).with_tile("7xW"))
    assert (b0.se.buffer, b0.tse.buffer) == (2_306_528, 749_504)


LARGE = """
import json, resource, sys, warnings
warnings.simplefilter("ignore")
import timm, tiledse as ts
from tiledse.networks.loading import load

name, *size = sys.argv[1:]
loaded = load(name)
ts.find(timm.create_model("regnety_002"), (3, 64, 64))  # imports what finding imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cost = ts.cost(ts.find(loaded.model, tuple(map(int, size))).with_tile("7xW"))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([cost.se.buffer, cost.tse.buffer, grown * 1024]))
"""


@pytest.mark.parametrize(
    ("name", "size", "se", "tse"),
    [
        pytest.param("effdet:efficientdet_d2", (3, 768, 768), 43_600_896, 4_185_216, marks=pytest.mark.slow),
        # 72, 120 and 120 channels at stride 8, 480 and 672 at 16, 672, 960 and 960 at 32.
        (
            "timm:mobilenetv3_large_100",
            (3, 20000, 1024),
            312 * 2500 * 128 + 1152 * 1250 * 64 + 2592 * 625 * 32,
            312 * 7 * 128 + 1152 * 7 * 64 + 2592 * 7 * 32,
        ),
    ],
)
def test_large_images_take_no_memory(name: str, size: tuple[int, int, int], se: int, tse: int) -> None:
    if name.startswith("effdet"):
        pytest.importorskip("effdet")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, name, *map(str, size)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    se_buffer, tse_buffer, grown_bytes = json.loads(done.stdout)
    assert (se_buffer, tse_buffer) == (se, tse)
    # The image of 20000 x 1024 alone is 246 MB, what a real run of the network holds is 3 GB.
    assert grown_bytes < 100e6


def test_a_plan_without_totals_still_counts_its_blocks() -> None:
    block = ts.SEBlock("se", 64, 16, 56, 56, "timm.SEModule")
    counted = ts.cost(ts.Plan((block,), (ts.Tile.parse("7xW"),), (3, 224, 224)))
    assert counted.se.params is counted.se.macs is counted.tse.macs is None
    assert counted.blocks[0].macs == 8 * (2 * 64 * 16 + 64 + 16)
    assert "not counted" in str(counted)


def test_the_plan_on_disk_costs_the_same(tmp_path) -> None:
    plan = ts.find(timm.create_model("regnety_002"), (3, 64, 64)).with_tile("3xW:running")
    plan.save(tmp_path / "plan.json")
    assert ts.cost(ts.Plan.load(tmp_path / "plan.json")) == ts.cost(plan)


def test_json_keys_are_those_of_the_design() -> None:
    plan = ts.find(timm.create_model("regnety_002"), (3, 64, 64)).with_tile("7xW")
    counted = json.loads(json.dumps(ts.cost(plan).to_dict()))
    assert {"params", "macs", "buffer"} <= counted["se"].keys()
    assert {"params", "macs", "buffer", "buffer_row_order"} <= counted["tse"].keys()
    block = {"name", "channels", "height", "width", "tile", "tiles", "se_buffer", "buffer", "se_macs", "macs"}
    assert block <= counted["blocks"][0].keys()
    assert sum(b["buffer"] for b in counted["blocks"]) == counted["tse"]["buffer"]


def test_the_table_says_units_and_what_is_not_counted() -> None:
    block = ts.SEBlock("layer.se", 64, 16, 56, 56, "timm.SEModule")
    network = ts.Totals(10_000, 123_456, ("aten.einsum",))
    plan = ts.Plan((block,), (ts.Tile.parse("7xW:running"),), (3, 224, 224), network=network)
    console = Console(width=150, file=io.StringIO())
    console.print(cost_table(ts.cost(plan)))
    text = console.file.getvalue()
    for part in (
        "layer.se",
        "64x56x56",
        "25,088",
        "elements",
        "multiply-adds",
        "64 sums of rows",
        "aten.einsum",
    ):
        assert part in text
    assert "aten.einsum" in str(ts.cost(plan))
    window = str(ts.cost(plan.with_tile("1xW:window-6+6")))
    assert "25,088" in window  # seven rows wait
    assert re.search(r"sums of rows +0 +832$", window, re.M)  # and 13 sums a channel


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)])
def test_dense_layers_on_frames_are_counted_with_their_biases(axes: tuple[int, ...]) -> None:
    """Torch's counter leaves the biases out where channels do not lie last in memory."""
    layer = torch.nn.Linear(8, 5)
    x = torch.zeros(2, 7, 8) if axes == (0, 1, 2) else torch.zeros(2, 8, 7).permute(axes)
    by_hand = 0
    for _ in range(2 * 7):  # frames
        for _ in range(5):  # outputs
            by_hand += 8 + 1
    with MacCounter() as counter:
        layer(x)
    assert counter.macs == by_hand


def test_totals_of_sound_are_plain_counts() -> None:
    """A convolution of 3 frames, a dense excitation of one descriptor, a dense layer on each frame."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = torch.nn.Conv1d(4, 8, 3, padding=1), torch.nn.Linear(8, 5)
            self.se = PoolSE(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.se(self.conv(x)).transpose(1, 2))

    plan = ts.find(Net().eval(), (4, 21))
    excite = 8 * 4 + 4 + 4 * 8 + 8
    assert plan.blocks[0].excite_macs == excite
    assert ts.cost(plan).se.macs == 21 * (8 * 4 * 3 + 8) + excite + 21 * (5 * 8 + 5)
    assert ts.cost(plan.with_tile("7xT")).tse.macs == ts.cost(plan).se.macs + 2 * excite
