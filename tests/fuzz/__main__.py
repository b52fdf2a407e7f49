"""Fuzz the readers: ``python -m tests.fuzz --seconds 600``; it goes on where it ended, and ends with 1 on a finding.

Each input is made from its format, a seed and its number alone. A finding names all three:
``python -m tests.fuzz --case 'plan.json:0:1234'`` runs that input again and keeps the file.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .formats import case, names, opened
from .judge import Outcome, judge
from .mutate import Dice

KEPT = 5  # findings of one kind that are written down for a format; all are counted


def run(name: str, seed: int, numbers: range, seconds: float, folder: Path, row: dict[str, Any]) -> None:
    """Try inputs of one format for a time; ``row`` counts them."""
    kind = opened(name, folder)
    kind.path.write_bytes(kind.sound(Dice(0)))
    if (first := judge(kind.read, kind.path)).kind != "read":
        sys.exit(f"{name}: a sound file is not read: {first}")
    until = time.monotonic() + seconds  # networks are built by now
    for number in numbers:
        if time.monotonic() > until:
            return
        kind.path.write_bytes(case(kind, seed, number))
        outcome = judge(kind.read, kind.path)
        row["tried"] += 1
        row[outcome.kind] = row.get(outcome.kind, 0) + 1
        if outcome.wrong:
            kept = row.setdefault("findings", [])
            if sum(text.startswith(outcome.kind) for _, text in kept) < KEPT:
                kept.append([f"{name}:{seed}:{number}", f"{outcome.kind}: {outcome.text}"])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """What was tried, as Markdown."""
    lines = ["| format | inputs | refused in one line | read | findings |", "|---|---|---|---|---|"]
    total = {"tried": 0, "refused": 0, "read": 0}
    for name, row in rows.items():
        counts = [row.get(key, 0) for key in total]
        total = {key: total[key] + n for key, n in zip(total, counts, strict=True)}
        wrong = counts[0] - counts[1] - counts[2]
        lines.append(f"| {name} | {counts[0]:,} | {counts[1]:,} | {counts[2]:,} | {wrong} |")
    wrong = total["tried"] - total["refused"] - total["read"]
    return "\n".join(
        [*lines, f"| all | {total['tried']:,} | {total['refused']:,} | {total['read']:,} | {wrong} |"]
    )


def main() -> int:
    """Run from the command line."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seconds", type=float, default=600, help="time in all, shared by the formats")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", nargs="*", help="formats; all, unless given")
    asked.add_argument(
        "--table", type=Path, default=Path("build/fuzz.json"), help="counts; they are added to"
    )
    asked.add_argument("--case", help="FORMAT:SEED:NUMBER, one input again")
    given = asked.parse_args()
    # A reader that asks for all memory gets an error, which is a finding, and not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if given.case:
        return again(given.case)
    rows = json.loads(given.table.read_text()) if given.table.exists() else {}
    if rows.setdefault("seed", given.seed) != given.seed:
        sys.exit(f"{given.table} is of seed {rows['seed']}; name another --table")
    chosen = given.only or names()
    with tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(chosen):
            row = rows.setdefault("formats", {}).setdefault(name, {"tried": 0})
            share = given.seconds / len(chosen)
            numbers = range(row["tried"], sys.maxsize)
            run(name, given.seed, numbers, share, Path(folder, str(place)), row)
            print(f"{name}: { ({k: v for k, v in row.items() if k != 'findings'}) }", flush=True)
            for reproduce, text in row.get("findings", []):
                print(f"  --case '{reproduce}'  {text!a}", flush=True)
            given.table.parent.mkdir(parents=True, exist_ok=True)
            given.table.write_text(json.dumps(rows, indent=1))
    print(table(rows["formats"]))
    return any(row.get("findings") for row in rows["formats"].values())


def again(text: str) -> int:
    """One input once more; its file stays for a look."""
    name, seed, number = text.rsplit(":", 2)
    kind = opened(name, Path(tempfile.mkdtemp()))
    kind.path.write_bytes(case(kind, int(seed), int(number)))
    print(f"the input: {kind.path}")
    outcome: Outcome = judge(kind.read, kind.path)
    print(ascii(outcome))
    if outcome.kind == "traceback":
        kind.read(kind.path)
    return outcome.wrong


if __name__ == "__main__":
    sys.exit(main())
