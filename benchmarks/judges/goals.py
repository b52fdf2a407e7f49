"""What was asked of forms, beside what the judges say: ``python -m benchmarks.judges.goals`` prints the table.

No form takes over 2 % more than SE on the target that it is written for. On Ethos-U at 512 x 1024 each takes at least
5 % fewer cycles, and puts no operator on the CPU. On Sophgo at 448 x 448 strips take at least 20 % fewer than SE in
factors. rknn-toolkit2 counts no cycles for pools and products, so what it moves counts there as well. Rows are read
from results/judges; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .__main__ import RESULTS
from .table import Table

# Judges that are given the form of a target of their own.
JUDGED = ("vela", "tpu_mlir", "rknn", "openvino", "ncnn")
FORMS = ("HxW:two-step", "7xW", "8xW", "1xW:running+6")
WANTED = ("7xW", "1xW:running+6")
STRIPS = ("7xW", "8xW")
# What is compared where a row has it: a column, and what it is called.
FIGURES = {"rknn": (("cycles", "cycles"), ("moved_kib", "KiB moved"))}
MOST, LEAST, LEAST_OF_FACTORS = 2.0, -5.0, -20.0
_LARGE, _FACTORS = ("vela", "3x512x1024"), ("tpu_mlir", "3x448x448")

Row = Mapping[str, str]
Rows = dict[tuple[str, ...], dict[str, str]]


def difference(form: Row, se: Row | None, column: str = "cycles") -> float | None:
    """Per cent more than SE, below 0 less; None where one of them has no figure.

    Example:
        >>> difference({"cycles": "90"}, {"cycles": "100"})
        -10.0
        >>> difference({"of_se": "1.03"}, None)
        3.0
    """
    if form.get("of_se"):
        return round(100 * (float(form["of_se"]) - 1), 1)
    if se is None or not form.get(column) or not se.get(column):
        return None
    return round(100 * (float(form[column]) / float(se[column]) - 1), 1)


def verdict(judge: str, size: str, rows: Mapping[str, Row], se: Row | None, column: str = "cycles") -> str:
    """``met``, or each form that misses with its number.

    Args:
        judge: Its name.
        size: CxHxW.
        rows: The row of each form.
        se: The row of SE.
        column: What is compared.
    """
    large, missed = (judge, size) == _LARGE, []
    for form, row in rows.items():
        found = difference(row, se, column)
        if found is None:
            missed.append(f"{form} fails")
        elif found > (LEAST if large else MOST):
            missed.append(f"{form} {found:+.1f} %")
        on_cpu, before = int(row.get("cpu_operators") or 0), int((se or {}).get("cpu_operators") or 0)
        if on_cpu > (0 if large else before):
            missed.append(f"{form} has {on_cpu} operators on the CPU")
    if (judge, size) == _FACTORS and (factors := rows.get("HxW:two-step")):
        for form in STRIPS:
            found = difference(rows.get(form, {}), factors)
            if found is not None and found > LEAST_OF_FACTORS:
                missed.append(f"{form} {found:+.1f} % of SE in factors")
    return "missed: " + ", ".join(missed) if missed else "met"


def lines(judge: str, table: Rows) -> Iterable[str]:
    """The rows of one judge, in Markdown: each network, size and configuration."""
    for network, size, configuration in dict.fromkeys((k[0], k[1], k[3]) for k in table):
        se = table.get((network, size, "SE", configuration)) or table.get(
            (network, size, "HxW", configuration)
        )
        rows = {f: table[key] for f in FORMS if (key := (network, size, f, configuration)) in table}
        if not rows:
            continue
        what = f"{network.removesuffix('.tflite')} {size.removeprefix('3x')}"
        for column, name in FIGURES.get(judge, (("cycles", ""),)):
            found = {form: difference(row, se, column) for form, row in rows.items()}
            cells = ["" if f not in found else _cell(found[f]) for f in FORMS]
            asked = " ".join(filter(None, (configuration.removeprefix("ethos-"), name)))
            said = verdict(judge, size, rows, se, column)
            if said == "met" and (left := [f for f in WANTED if f not in rows]):
                said = f"met, {' and '.join(left)} not judged"
            yield f"| {judge} | {what} | {asked} | {' | '.join(cells)} | {said} |"


def _cell(found: float | None) -> str:
    return "fails" if found is None else f"{found:+.1f} %"


def table(results: Path = RESULTS) -> str:
    """The whole table in Markdown."""
    head = f"| judge | network | configuration | {' | '.join(f'`{form}`' for form in FORMS)} | asked for |"
    rule = "|---" * (len(FORMS) + 4) + "|"
    rows = [row for judge in JUDGED for row in lines(judge, Table(results / f"{judge}.csv").rows)]
    return "\n".join([head, rule, *rows])


if __name__ == "__main__":
    print(table())
