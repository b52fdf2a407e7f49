"""Standard output that is closed, full or narrow; each in a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from tiledse import Plan, SEBlock, Tile
from tiledse.cli.app import print_text
from tiledse.report.blocks import blocks_table


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = line.replace("TILEDSE", f"{sys.executable} -m tiledse")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ})


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("TILEDSE zoo --json >&-", 2, "standard output is closed"),
        ("TILEDSE zoo --json | true; exit ${PIPESTATUS[0]}", 2, "closed before the JSON was whole"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # a process of some seconds each
            for case in (
                ("TILEDSE zoo >&-", 2, "standard output is closed"),
                ("TILEDSE zoo | true; exit ${PIPESTATUS[0]}", 0, ""),
                ("TILEDSE zoo --json > /dev/full", 2, "No space left"),
                ("TILEDSE zoo > /dev/full", 2, "No space left"),
            )
        ),
    ],
)
def test_a_result_that_nobody_gets(line, code, error):
    done = shell(line)
    assert done.returncode == code, done
    assert error in done.stderr
    assert done.stderr.count("\n") == (1 if error else 0)


def test_a_closed_standard_error_puts_nothing_into_the_result():
    done = shell("TILEDSE zoo nowhere 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.fixture
def long_names() -> Plan:
    names = ["a" * 400, "a" * 399 + "b"]
    blocks = tuple(SEBlock(name, 64, 16, 56, 56, "timm.SEModule") for name in names)
    return Plan(blocks, (Tile.parse("7xW"),) * 2, (3, 224, 224))


def test_long_names_are_whole_in_a_file(long_names, capsys):
    print_text(blocks_table(long_names, "m"), " ".join(b.name for b in long_names.blocks))
    out = capsys.readouterr().out
    for block in long_names.blocks:
        assert out.count(block.name) == 2
    assert out.splitlines()[-1] == " ".join(b.name for b in long_names.blocks)


@pytest.mark.parametrize("columns", [1, 20, 79])
def test_a_narrow_terminal_keeps_every_column(long_names, monkeypatch, columns):
    screen = io.StringIO()

    def terminal(**given):
        return Console(**given, file=screen, force_terminal=True, width=columns, color_system=None)

    monkeypatch.setattr(sys.modules["tiledse.cli.app"], "_Console", terminal)
    table = Table("words", "number")
    table.add_row("many words that a narrow terminal breaks", "1,234,567")
    print_text(blocks_table(long_names, "m"), table)
    out = screen.getvalue()
    for cell in (
        "64",
        "56",
        "timm.SEModule",
        "7xW",
        "dialect",
        "1,234,567",
        *(b.name for b in long_names.blocks),
    ):
        assert cell in out
