"""What bench measures with: turns, ratios, the paper's code, memory, targets. No test here depends on a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.reference import tiled_squeeze_excite as by_loops
from tests.reference import two_layers
from tiledse.bench.interleave import Ratio, Timing, interleave
from tiledse.bench.operator import PaperBlock, Shape, compare, peak_bytes, saved_bytes
from tiledse.bench.targets import verdicts
from tiledse.bench.whole_networks import _share


def test_cases_take_turns_and_the_first_turn_does_not_count():
    calls = []
    timings = interleave(
        {name: lambda name=name: calls.append(name) for name in "ab"}, 3, lambda: calls.append("prepare")
    )
    assert calls == ["prepare", "a", "prepare", "b"] * 4
    assert {name: len(timing.cpu_s) for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_a_turn():
    slow, fast = Timing((2.0, 20.0, 4.0), (6.0, 6.0, 6.0)), Timing((1.0, 10.0, 2.0), (2.0, 3.0, 6.0))
    shared = Timing(slow.cpu_s, slow.wall_s, threads=2)
    assert (
        shared.ratio(fast) == shared.ratio(fast, wall=True) == slow.ratio(fast, wall=True) != slow.ratio(fast)
    )
    assert slow.ratio(fast) == Ratio(2.0, 2.0, 2.0)
    assert slow.ratio(fast, wall=True).median == 2.0


@pytest.mark.parametrize("tile", ["7xW", "Hx7", "7x7"])
def test_the_paper_s_code_is_the_paper_s_operator(tile):
    torch.manual_seed(0)
    sizes = {"7xW": (7, 9), "Hx7": (10, 7), "7x7": (7, 7)}
    block = PaperBlock(5, 3, sizes[tile]).double()
    x = torch.randn(2, 5, 10, 9, dtype=torch.float64)
    arrays = [p.detach().numpy() for p in block.parameters()]
    arrays = [a[:, :, 0, 0] if a.ndim == 4 else a for a in arrays]
    expected = torch.from_numpy(by_loops(x.numpy(), tile, two_layers(*arrays)))
    torch.testing.assert_close(block(x).detach(), expected)


def test_memory_of_a_step():
    x = torch.randn(1, 4, 64, 64, requires_grad=True)

    class Square(torch.nn.Module):
        def forward(self, x):
            return (x * 1).square()  # keeps x * 1

    assert saved_bytes(Square(), x) == x.nbytes
    with torch.no_grad():
        assert peak_bytes(lambda: (x + 1) + (x + 2)) == 3 * x.nbytes
    assert peak_bytes(lambda: None) == 0


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_a_comparison_and_its_verdicts(layout):
    shape = Shape("a small one", 2, 8, 2, 64, 64)
    comparison = compare(shape, layout, "7xW", repeats=2)
    assert set(comparison.inference) == {"copy", "se", "paper", "tse", "tse in place"}
    assert set(comparison.training) == {"copy", "se", "paper", "tse"}
    record = comparison.to_dict()
    median, low, high = record["inference"]["to_se"]["tse"]["cpu"]
    assert 0 < low <= median <= high
    assert comparison.saved_bytes["paper"] > 1.9 * comparison.saved_bytes["se"]  # it keeps the repeated gate
    judged = verdicts([comparison])
    assert [v.target for v in judged] == [
        "7xW inference, small maps, in times of timm's SE, at most 0.9",
        "7xW training, small maps, in times of timm's SE, at most 1",
        "any map, inference, times as fast as the paper's code, at least 1",
        "any map, training, times as fast as the paper's code, at least 1",
    ]  # the others are about larger maps
    assert all(v.where == f"2x8x64x64 {layout} 7xW" for v in judged)


def test_a_missed_target_is_told_with_its_figure():
    def timings(**seconds):
        return {name.replace("_", " "): Timing((s, s), (s, s)) for name, s in seconds.items()}

    from tiledse.bench.operator import Comparison

    inference = timings(copy=1.0, se=2.0, paper=5.0, tse=1.6, tse_in_place=1.2)
    training = timings(copy=1.0, se=7.0, paper=10.0, tse=8.0)
    bytes_of = {"se": 100, "paper": 200, "tse": 100}
    large = Shape("large", 8, 64, 8, 112, 112)
    lines = [
        str(v) for v in verdicts([Comparison(large, "NCHW", "7xW", inference, training, bytes_of, bytes_of)])
    ]
    where = "(8x64x112x112 NCHW 7xW)"
    assert (
        f"pass    7xW inference, in times of timm's SE, NCHW, at most 0.85: 0.80, worst 0.80 {where}" in lines
    )
    assert (
        f"MISSED  7xW training, in times of timm's SE, NCHW, at most 0.55: 1.14, worst 1.14 {where}" in lines
    )


def test_the_table_of_compiled_code_has_both_times():
    from rich.console import Console

    from tiledse.bench.compiled_operator import CompiledComparison
    from tiledse.report.timing import compiled_table

    def timings(**seconds):
        return {name: Timing((s, s), (s, s)) for name, s in seconds.items()}

    shape = Shape("small", 1, 8, 2, 14, 14)
    found = CompiledComparison(shape, "NCHW", timings(copy=1.0, se=2.0), timings(copy=2.0, se=7.0))
    with (console := Console(width=120)).capture() as printed:
        console.print(compiled_table([found]))
    assert "2.0 / 3.5" in printed.get()
    assert found.to_dict()["training"] == {"se": [3.5, 3.5, 3.5]}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_share_of_blocks_counts_what_other_threads_compute(monkeypatch, threads):
    """A block that waits for others: nothing of the calling thread's time, and most of the clock's."""

    class Waits(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.05)
            return x

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), Waits())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with torch.no_grad():
        share = _share(model, ["1"], torch.zeros(8, 3, 64, 64))
    assert share > 0.5 if threads == 2 else share < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="page faults as Linux counts them")
def test_whether_freed_memory_is_kept_is_found_out_by_its_cost(monkeypatch):
    from tiledse.bench import machine

    # Blocks above this size are mapped for each use, whatever else the C library is told.
    script = "from tiledse.bench.machine import keeps_freed_memory; print(keeps_freed_memory())"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "LD_PRELOAD": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n"
    memory = torch.zeros(40 << 20, dtype=torch.uint8)
    monkeypatch.setattr(machine.torch, "zeros", lambda size, dtype=None: memory[:size].zero_())
    assert machine.keeps_freed_memory()
