"""The verb paper."""

from __future__ import annotations

import json

import pytest

from tiledse.cli import main


def test_table_as_text(capsys) -> None:
    assert main(["paper", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (row,) = [" ".join(line.split()) for line in out.splitlines() if " TSE_7xW " in line]
    assert row.startswith("RegNetY-800MF TSE_7xW 6.2M 6,263,168 =t 797.88M 797,635,864 [1] 0.42M 426,496 =t")
    assert row.endswith("76.29 not measured")
    assert "[1] fractional tiles: " in out
    assert "elements" in out
    assert "multiply-adds" in out
    assert out.splitlines()[-1].startswith("Cells: ")


def test_table_as_json(capsys) -> None:
    assert main(["paper", "b1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    assert {cell["table"] for cell in answer["cells"]} == {"B1"}
    assert sum(answer["verdicts"].values()) == len(answer["cells"]) == 32


@pytest.mark.parametrize("name", ["7", "B3", "Table 1", ""])
def test_no_such_table(name: str, capsys) -> None:
    assert main(["paper", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"tiledse: no table '{name}'; the paper's are 1, 2, 3, 4, 5, 6, B1, B2, abstract\n"
