"""The verb paper."""

from __future__ import annotations

import json

import pytest

from tests.cli.running import assert_refused, tiledse


def test_table_as_text() -> None:
    done = tiledse("paper", "1")
    out = done.out
    assert (done.code, done.err) == (0, "")
    (row,) = [" ".join(line.split()) for line in out.splitlines() if " TSE_7xW " in line]
    assert row.startswith("RegNetY-800MF TSE_7xW 6.2M 6,263,168 =t 797.88M 797,635,864 [1] 0.42M 426,496 =t")
    assert row.endswith("=t 76.29")
    assert "not measured here" in out
    assert "[1] fractional tiles: " in out
    assert "elements" in out
    assert "multiply-adds" in out
    assert out.splitlines()[-1].startswith("Cells: ")


def test_table_as_json() -> None:
    done = tiledse("paper", "2", "--json")
    assert (done.code, done.err) == (0, "")
    answer = json.loads(done.out)
    assert {cell["table"] for cell in answer["cells"]} == {"2"}
    assert sum(answer["verdicts"].values()) == len(answer["cells"]) == 60


@pytest.mark.parametrize("name", ["7", "B3", "Table 1", ""])
def test_no_such_table(name: str) -> None:
    assert_refused(
        tiledse("paper", name), f"no table '{name}'; the paper's are 1, 2, 3, 4, 5, 6, B1, B2, abstract"
    )
