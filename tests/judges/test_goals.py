"""The table of what was asked of forms: its arithmetic, worked out by hand, and that docs/hardware.md shows it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.judges import goals
from benchmarks.judges.table import Table

SE = {"cycles": "1000", "cpu_operators": "0"}


def row(cycles: int, on_cpu: int = 0) -> dict[str, str]:
    return {"cycles": str(cycles), "cpu_operators": str(on_cpu)}


@pytest.mark.parametrize(
    ("judge", "size", "rows", "said"),
    [
        ("rknn", "3x8x8", {"7xW": row(1020)}, "met"),
        ("rknn", "3x8x8", {"7xW": row(1021)}, "missed: 7xW +2.1 %"),
        ("rknn", "3x8x8", {"7xW": row(900, 1)}, "missed: 7xW has 1 operators on the CPU"),
        ("rknn", "3x8x8", {"7xW": {"error": "no such operator"}}, "missed: 7xW fails"),
        ("vela", "3x512x1024", {"7xW": row(950), "8xW": row(960)}, "missed: 8xW -4.0 %"),
        ("vela", "3x512x1024", {"7xW": row(900, 2)}, "missed: 7xW has 2 operators on the CPU"),
        ("tpu_mlir", "3x448x448", {"HxW:two-step": row(900), "7xW": row(720)}, "met"),
        ("tpu_mlir", "3x448x448", {"HxW:two-step": row(900), "7xW": row(810)},
         "missed: 7xW -10.0 % of SE in factors"),
    ],
)  # fmt: skip
def test_a_miss_is_said_with_its_number(judge: str, size: str, rows: dict, said: str):
    assert goals.verdict(judge, size, rows, SE) == said


def test_operators_that_se_has_on_the_cpu_count_at_512x1024_only():
    before = {"cycles": "1000", "cpu_operators": "1"}
    assert goals.verdict("vela", "3x224x224", {"7xW": row(900, 1)}, before) == "met"
    assert "on the CPU" in goals.verdict("vela", "3x512x1024", {"7xW": row(900, 1)}, before)


def test_the_table_is_read_from_the_results(tmp_path: Path):
    table = Table(tmp_path / "rknn.csv")
    table.add(("net", "3x8x8", "SE", "chip"), {"cycles": 200, "moved_kib": 10.0}, "rknn==1")
    table.add(("net", "3x8x8", "7xW", "chip"), {"cycles": 190, "moved_kib": 10.3}, "rknn==1")
    table.add(("other", "3x8x8", "SE", "chip"), {"cycles": 200}, "rknn==1")
    assert goals.table(tmp_path).splitlines()[2:] == [
        "| rknn | net 8x8 | chip cycles |  | -5.0 % |  |  | met, 1xW:running+6 not judged |",
        "| rknn | net 8x8 | chip KiB moved |  | +3.0 % |  |  | missed: 7xW +3.0 % |",
    ]


def test_the_page_shows_the_rows_that_are_there():
    page = (ROOT / "docs" / "hardware.md").read_text("utf-8")
    assert goals.table() in page, "put what python -m benchmarks.judges.goals prints into docs/hardware.md"
