"""tiledse bench: what it prints and writes, and wrong use. No test here depends on a time."""

from __future__ import annotations

import json

import pytest

from tests.cli.running import assert_refused, tiledse


def test_bench_writes_what_it_measured(tmp_path, monkeypatch):
    from tiledse.bench import timings as bench
    from tiledse.bench.operator import Shape

    monkeypatch.setattr(bench, "SHAPES", (Shape("small", 1, 8, 2, 14, 14),))
    monkeypatch.setattr(bench, "NETWORKS", (("mobilenetv3_small_100", (1, 3, 64, 64), "7xW"),))
    file = tmp_path / "bench.json"
    arguments = ("bench", "--repeats", "2", "--shapes", "1", "--tiles", "7xW,7x7", "--allocator", "system")
    printed = json.loads(tiledse(*arguments, "--json", "-o", file).out)
    assert json.loads(file.read_text()) == printed
    assert printed["format"] == "tiledse.bench/1"
    assert printed["machine"]["allocator"] == "system"
    assert printed["machine"]["threads"] == 1
    assert [(o["layout"], o["tile"]) for o in printed["operator"]] == [
        (layout, tile) for layout in ("NCHW", "channels_last") for tile in ("7xW", "7x7")
    ]
    for network in printed["networks"]:
        assert 0 < network["share_in_blocks"]["tse"] < 1
    text = tiledse(*arguments).out
    assert "1x8x14x14" in text
    assert "whole networks, TSE in times of SE" in text


def test_bench_compiles(monkeypatch):
    """By a backend that runs the graph as it is: inductor takes minutes, and a C++ compiler."""
    from functools import partial

    from tiledse.bench import timings as bench
    from tiledse.bench.compiled_operator import compare_compiled
    from tiledse.bench.operator import Shape

    monkeypatch.setattr(bench, "COMPILED_SHAPES", (Shape("small", 1, 8, 2, 14, 14),))
    monkeypatch.setattr(bench, "LAYOUTS", ("channels_last",))
    monkeypatch.setattr(bench, "compare_compiled", partial(compare_compiled, backend="aot_eager"))
    arguments = ("bench", "--only", "compile", "--repeats", "2", "--allocator", "system")
    printed = json.loads(tiledse(*arguments, "--json").out)
    assert not printed["operator"]
    assert [c["layout"] for c in printed["compile"]] == ["channels_last"]
    ways = {"se", "paper", "tse", "compiled se", "compiled paper", "compiled tse"}
    assert set(printed["compile"][0]["inference"]) == set(printed["compile"][0]["training"]) == ways


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "all"), "expected operator, networks or compile"),
        (("--tiles", "7xW,9"), "expected some of 7xW, Hx7, 7x7"),
        (("--repeats", "1"), "at least 2 repeats"),
        (("--allocator", "mine"), "expected keep or system"),
    ],
)
def test_wrong_use(arguments, message):
    assert_refused(tiledse("bench", *arguments), message)
