"""README.md is true: its Python runs, and its shell shows what is printed."""

from __future__ import annotations

import doctest
from pathlib import Path

from tests.cli.running import tiledse

README = Path(__file__).resolve().parent.parent / "README.md"


def test_its_python_gives_what_it_shows():
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted >= 5
    assert result.failed == 0


def test_its_shell_shows_what_is_printed():
    """The cost table is fixed by the network: every row of the README's stands in the real output."""
    text = README.read_text("utf-8")
    shown = text[text.index("$ tiledse cost") :].split("$ tiledse", 2)[1]
    real = tiledse("cost", "timm:tf_mobilenetv3_small_100", "--tile", "7xW").out
    rows = [
        line.split() for line in shown.splitlines() if line.startswith("  blocks.") or "the network" in line
    ]
    assert len(rows) >= 3
    assert all(row in [line.split() for line in real.splitlines()] for row in rows)


def test_it_is_short():
    assert len(README.read_text("utf-8").splitlines()) < 120
