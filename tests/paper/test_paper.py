"""The paper's tables: the data, the definition, and rules that give printed numbers and are never stated."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

import tiledse as ts
from tiledse.paper import RULES, Cell, paper_cells, summarise
from tiledse.paper.cells import check_cell
from tiledse.paper.networks import Networks
from tiledse.paper.printed import Printed, printed_cells

pytest.importorskip("effdet")


class Checked(dict[tuple[str, str, str, str], Cell]):
    """Cells by table, model, method and quantity, checked when they are first asked for."""

    def __init__(self) -> None:
        self.networks = Networks()
        self.printed = {(p.table, p.model, p.method, p.quantity): p for p in printed_cells()}
        assert len(self.printed) == len(printed_cells())

    def __missing__(self, key: tuple[str, str, str, str]) -> Cell:
        self[key] = check_cell(self.printed[key], self.networks)
        return self[key]


@pytest.fixture(scope="module")
def cells() -> Checked:
    return Checked()


@pytest.fixture(scope="module")
def every(cells) -> list[Cell]:
    return [cells[key] for key in cells.printed]


def test_the_data_are_those_that_were_read_from_the_paper(shared) -> None:
    theirs = json.loads((shared / "paper" / "tables.json").read_text())
    wanted = sorted(
        (
            e["table"],
            f"{e['model']} {e['method']}".strip(),
            e["quantity"],
            e.get("unit", ""),
            _number(e["printed"]),
        )
        for e in (*theirs["complexity"], *theirs["accuracy"])
    )
    ours = sorted(
        (c.table, f"{c.model} {c.method}".strip(), c.quantity, c.unit, _number(c.text))
        for c in printed_cells()
    )
    assert ours == wanted


def _number(printed: object) -> str:
    return "-" if printed in (None, "-", "N/A") else str(float(printed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "unit", "value", "how"),
    [
        ("6.2", "M", 6_263_168, "truncated"),
        ("0.30", "M", 304_640, "rounded or truncated"),
        ("0.30", "M", 309_999, "truncated"),
        ("0.30", "M", 310_000, None),
        ("0.30", "M", 295_000, "rounded"),
        ("0.30", "M", 294_999, None),
        ("11", "G", 10_842_867_594, "rounded"),
        ("797.88", "M", Fraction(1_595_778_096, 2), "truncated"),
        ("N/A", "M", 0, None),
    ],
)
def test_rounding_and_truncation(text: str, unit: str, value: int, how: str | None) -> None:
    assert Printed("1", "", "", "", text, unit).says(value) == how


@pytest.mark.slow
def test_every_cell_has_a_verdict_that_its_numbers_bear_out(every) -> None:
    assert len(every) == 319
    bear_out(every)


def test_the_cells_of_table_1(cells) -> None:
    bear_out([cells[key] for key in cells.printed if key[0] == "1"])


def bear_out(checked: list[Cell]) -> None:
    for cell in checked:
        p = cell.printed
        if cell.verdict == "equal":
            assert p.says(cell.ours) == cell.how is not None
        elif cell.verdict == "explained":
            assert p.says(cell.ours) is None
            (rule,) = [r for r in cell.rules if r.name == cell.reason]
            assert rule.how == cell.how
            assert p.says(Fraction(rule.value)) == cell.how
        elif cell.verdict == "not explained":
            assert p.says(cell.ours) is None
            assert all(rule.how is None for rule in cell.rules)
        elif cell.verdict == "not measured":
            assert cell.ours is None
            assert p.quantity in ("top1", "mAP", "mIoU")
        else:
            assert p.text in ("-", "N/A")


@pytest.mark.slow
def test_params_are_the_definition(every) -> None:
    equal = [c for c in every if c.printed.quantity == "params"]
    assert {c.verdict for c in equal} == {"equal"}
    assert {c.how for c in equal if c.printed.text == "6.2"} == {"truncated"}


def test_se_macs_are_the_definition(cells) -> None:
    for method, macs in (("Vanilla", 796_359_656), ("SE", 797_183_328)):
        cell = cells["1", "RegNetY-800MF", method, "macs"]
        assert (cell.ours, cell.verdict) == (macs, "equal")


@pytest.mark.parametrize(
    ("key", "ours", "verdict", "reason"),
    [
        # The figures of an independent recomputation (shared/paper/checked.md).
        (("1", "RegNetY-800MF", "TSE_7xW", "macs"), 797_635_864, "explained", "fractional tiles"),
        (("1", "RegNetY-800MF", "TSE_1xW", "macs"), 805_293_112, "explained", "fractional tiles"),
        (("1", "RegNetY-800MF", "TSE_9x9", "buffer"), 318_912, "explained", "unclamped tile"),
        (("1", "RegNetY-800MF", "TSE_7xW-upper", "buffer"), 426_496, "explained", "SE's buffer"),
        (("1", "RegNetY-800MF", "TSE_7xW-middle", "buffer"), 727_552, "explained", "SE's buffer"),
        (("1", "RegNetY-800MF", "TSE_7xW", "buffer"), 426_496, "equal", None),
        (("4", "RegNetY-200MF", "SE", "buffer"), 364_560, "not explained", None),
        (("4", "EfficientNet-B0", "SE", "buffer"), 2_306_528, "explained", "stage table"),
        (("4", "EfficientNet-B0", "TSE_7xW", "buffer"), 749_504, "explained", "stage table"),
        (("5", "EfficientDet-D2", "SE", "buffer"), 43_600_896, "explained", "stage table"),
        (("abstract", "EfficientDet-D2", "TSE_7xW", "buffer"), 4_185_216, "explained", "stage table"),
        (
            ("6", "MobileNetV3-L", "SE", "buffer"),
            132_907_008,
            "explained",
            "undilated, before the stride",
        ),
        (
            ("6", "MobileNetV3-L", "TSE_7xW", "buffer"),
            7_268_352,
            "explained",
            "undilated, before the stride",
        ),
        (("B1", "RegNetY-800MF", "TSE_1x1 C1x1 R2", "macs"), 1_025_872_520, "explained", "row below"),
        (("2", "EfficientNet-B3", "input", "resolution"), 300, "equal", None),
    ],
)
def test_cells_that_were_checked_elsewhere(cells, key, ours, verdict, reason) -> None:
    cell = cells[key]
    assert (cell.ours, cell.verdict, cell.reason) == (ours, verdict, reason)


def test_rules_by_hand(cells) -> None:
    """Two rules' values, worked out here from the shapes of the networks' definitions."""
    # EfficientNet-B0: (blocks, widest expansion, floor(224 / stride)) of its seven stages.
    stages = [
        (1, 32, 112),
        (2, 144, 56),
        (2, 240, 28),
        (3, 480, 14),
        (3, 672, 14),
        (4, 1152, 7),
        (1, 1152, 7),
    ]
    (rule,) = cells["4", "EfficientNet-B0", "SE", "buffer"].rules
    assert rule.value == sum(n * c * s * s for n, c, s in stages) == 2_640_512
    # MobileNetV3-L: (channels, rows that enter) of its eight gates, the map being twice as wide as high.
    gates = [(72, 256), (120, 128), (120, 128), (480, 64), (672, 64), (672, 64), (960, 32), (960, 32)]
    (rule,) = cells["6", "MobileNetV3-L", "SE", "buffer"].rules
    assert rule.value == sum(c * h * 2 * h for c, h in gates) == 36_175_872
    (rule,) = cells["6", "MobileNetV3-L", "TSE_7xW", "buffer"].rules
    assert rule.value == sum(7 * h * c for c, h in gates) == 1_591_296


def test_a_reason_follows_from_the_printed_number(monkeypatch) -> None:
    """Were another number printed, the same cell would not be explained."""
    changed = tuple(
        Printed(c.table, c.model, c.method, c.quantity, "797.89", c.unit)
        if (c.table, c.method, c.quantity) == ("1", "TSE_9xW", "macs")
        else c
        for c in printed_cells()
    )
    monkeypatch.setattr("tiledse.paper.cells.printed_cells", lambda: changed)
    (cell,) = [c for c in paper_cells(["1"]) if c.printed.text == "797.89"]
    assert (cell.verdict, cell.reason) == ("not explained", None)


@pytest.mark.slow
def test_summary(every) -> None:
    summary = summarise(every)
    assert sum(summary["verdicts"].values()) == len(every)
    assert summary["verdicts"] == {
        "equal": 109,
        "explained": 51,
        "not explained": 16,
        "not measured": 135,
        "not printed": 8,
    }
    assert summary["distinct"] == {"cells": 119, "equal": 65}
    assert summary["rules"].keys() == {rule.name for rule in RULES}
    for rule in summary["rules"].values():
        assert rule["explains"] <= rule["gives"] <= rule["speaks_of"]
        assert rule["explains"] >= 1  # a rule that explains nothing should go


def test_cells_are_json(cells) -> None:
    entry = json.loads(json.dumps(cells["1", "RegNetY-800MF", "TSE_9x9", "macs"].to_dict()))
    assert entry["printed"] == "798.03"
    assert {rule["name"]: rule["how"] for rule in entry["rules"]} == {
        "fractional tiles": None,
        "unclamped tile": "rounded or truncated",
    }


def test_no_such_table() -> None:
    with pytest.raises(
        ts.TiledSEError, match=r"^no table '7'; the paper's are 1, 2, 3, 4, 5, 6, B1, B2, abstract$"
    ):
        paper_cells(["7"])
