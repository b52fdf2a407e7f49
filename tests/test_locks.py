"""Two processes that write one file lose nothing of each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tiledse.context.sweep_file import COLUMNS, SweepFile
from tiledse.errors import TiledSEError
from tiledse.locks import locked

ADD = """
import sys
from tiledse.context.sweep_file import COLUMNS, SweepFile
file = SweepFile(sys.argv[1])
print(flush=True); sys.stdin.readline()
for number in range(15):
    file.add(dict.fromkeys(COLUMNS, "") | {"model": sys.argv[2], "tile": f"{number + 1}xW"})
"""


def test_two_sweeps_into_one_file(tmp_path):
    path = tmp_path / "sweep.csv"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, path, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    for one in both:
        one.stdout.readline()  # both have read the file that is not there yet
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.wait() for one in both] == [0, 0]
    for one in both:
        one.stdin.close()
        one.stdout.close()
    rows = {(row["model"], row["tile"]) for row in SweepFile(path).rows}
    assert rows == {(name, f"{number + 1}xW") for name in "ab" for number in range(15)}


def test_a_row_that_another_sweep_had_first_stays_once(tmp_path):
    mine, other = SweepFile(tmp_path / "s.csv"), SweepFile(tmp_path / "s.csv")
    row = dict.fromkeys(COLUMNS, "") | {"model": "m", "tile": "7xW"}
    other.add(row | {"se": "1.0"})
    mine.add(row | {"se": "2.0"})
    assert [r["se"] for r in mine.rows] == ["1.0"]
    assert mine.rows == SweepFile(tmp_path / "s.csv").rows


def test_a_folder_that_is_trained_in(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with (
        locked(path),
        pytest.raises(TiledSEError, match="trains here"),
        locked(path, 0, "another trains here"),
    ):
        pass
    with locked(path, 0):
        pass
