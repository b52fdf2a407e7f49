"""Cells: what the paper prints, what the network as defined has, and whether or why the two differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .networks import Networks
from .printed import Method, Number, Printed, choose_tables, printed_cells
from .rules import RULES

Verdict = Literal["equal", "explained", "not explained", "not measured", "not printed"]
_COUNTED = ("params", "macs", "buffer", "resolution")


@dataclass(frozen=True)
class RuleValue:
    """What one rule gives for a cell.

    Args:
        name: The rule.
        value: Its number, in single units; a rule may give a fraction.
        how: "rounded" or "truncated" to the printed number, or both; None where it is another number.
    """

    name: str
    value: float
    how: str | None


@dataclass(frozen=True)
class Cell:
    """One cell of the paper, checked.

    Args:
        printed: The cell as printed.
        ours: The value of the network as it is defined, in single units; None for accuracies.
        verdict: "equal": the printed number is ours; "explained": it is that of a rule which is not the
            definition; "not explained"; "not measured": an accuracy; "not printed": no number stands here.
        how: How the number, ours or the rule's, becomes the printed one.
        reason: The rule that explains it.
        rules: What every rule that speaks of this cell gives.
    """

    printed: Printed
    ours: int | None
    verdict: Verdict
    how: str | None = None
    reason: str | None = None
    rules: tuple[RuleValue, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON types."""
        return {
            "table": self.printed.table,
            "model": self.printed.model,
            "method": self.printed.method,
            "quantity": self.printed.quantity,
            "printed": self.printed.text,
            "unit": self.printed.unit,
            "ours": self.ours,
            "verdict": self.verdict,
            "how": self.how,
            "reason": self.reason,
            "rules": [dict(vars(rule)) for rule in self.rules],
        }


def paper_cells(
    tables: Sequence[str] | None = None, progress: Callable[[int, int | None], None] | None = None
) -> list[Cell]:
    """Check the cells of the paper's tables.

    Args:
        tables: Names such as "1" or "B1" ("abstract" is one too); all where None.
        progress: Called with (cells done, cells in all) after each cell.

    Returns:
        Every cell that the paper prints in them, in its order.

    Raises:
        TiledSEError: the paper has no such table, or effdet is missing (tables 5 and B2, the abstract).

    Example:
        >>> cell = paper_cells(["1"])[4]
        >>> cell.printed.text, cell.ours, cell.verdict, cell.how
        ('797.18', 797183328, 'equal', 'rounded or truncated')
    """
    chosen = choose_tables(tables)
    networks = Networks()
    wanted = [cell for cell in printed_cells() if cell.table in chosen]
    cells = []
    for cell in wanted:
        cells.append(check_cell(cell, networks))
        if progress is not None:
            progress(len(cells), len(wanted))
    return cells


def check_cell(printed: Printed, networks: Networks) -> Cell:
    """Check one printed cell.

    Args:
        printed: The cell.
        networks: Builds what the cell is about, and keeps it for the next one.

    Raises:
        TiledSEError: effdet is missing, and the cell is about a detector.
    """
    if printed.quantity not in _COUNTED:
        return Cell(printed, None, "not printed" if printed.value is None else "not measured")
    ours = _ours(printed, networks)
    if printed.value is None:
        return Cell(printed, ours, "not printed")
    values: list[tuple[str, Number]] = []
    for rule in RULES:
        value = rule.value(printed, networks)
        if value is not None:
            values.append((rule.name, value))
    rules = tuple(RuleValue(name, float(value), printed.says(value)) for name, value in values)
    how = printed.says(ours)
    if how is not None:
        return Cell(printed, ours, "equal", how, None, rules)
    for given in rules:
        if given.how is not None:
            return Cell(printed, ours, "explained", given.how, given.name, rules)
    return Cell(printed, ours, "not explained", None, None, rules)


def _ours(printed: Printed, networks: Networks) -> int:
    if printed.quantity == "resolution":
        return networks.resolution(printed.model)
    method = Method.parse(printed.method)
    counted = networks.cost(printed.model, method).tse
    # A single strip lies within the map, so what it holds is known only where the map's rows have an order.
    single = method.tile is not None and method.tile.single
    value = {
        "params": counted.params,
        "macs": counted.macs,
        "buffer": counted.buffer_row_order if single else counted.buffer,
    }[printed.quantity]
    assert value is not None
    return value


def summarise(cells: Iterable[Cell]) -> dict[str, Any]:
    """Count the cells by verdict, and for each rule the cells it speaks of, gives and is needed for.

    ``distinct`` counts complexity cells only, and once what one table prints more than once: the same
    network, quantity, printed number and own value (row and column strips, as-is weights, a table's one
    parameter count).

    Example:
        >>> summary = summarise(paper_cells(["2"]))
        >>> summary["verdicts"]["equal"], summary["distinct"]
        (10, {'cells': 0, 'equal': 0})
    """
    cells = list(cells)
    verdicts = Counter(cell.verdict for cell in cells)
    distinct = {}
    for cell in cells:
        printed = cell.printed
        if printed.quantity in ("params", "macs", "buffer") and cell.verdict != "not printed":
            key = (printed.table, printed.model, printed.quantity, printed.text, cell.ours)
            distinct[key] = cell.verdict == "equal"
    rules = {}
    for rule in RULES:
        given = [value for cell in cells for value in cell.rules if value.name == rule.name]
        rules[rule.name] = {
            "text": rule.text,
            "speaks_of": len(given),
            "gives": sum(value.how is not None for value in given),
            "explains": sum(cell.reason == rule.name for cell in cells),
        }
    return {
        "verdicts": {name: verdicts[name] for name in get_args(Verdict)},
        "distinct": {"cells": len(distinct), "equal": sum(distinct.values())},
        "rules": rules,
    }
