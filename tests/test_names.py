"""Names from files: what a terminal would obey is drawn, what nobody would read is cut."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from tiledse.errors import TiledSEError
from tiledse.names import LONGEST_LINE, harmless, shown
from tiledse.report.terminal import Shown

ANY = st.text(st.characters())  # controls, halves of letters and all


def obeyed(text: str) -> list[str]:
    """Unicode's own word for what is no picture: controls, halves of letters, line and paragraph separators."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]


@given(ANY)
def test_no_control_is_left(text):
    assert obeyed(harmless(text)) == []
    assert len(harmless(text)) == len(text)
    harmless(text).encode("utf-8")


@given(st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=200))
def test_ordinary_names_stay_as_they_are(text):
    assert shown(text) == text


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\x9b31m", "\x1b]0;title\x07", "\r", "\b"])
def test_what_turns_or_rewrites_a_line_is_drawn(mark):
    assert mark not in harmless(f"a{mark}b")


@given(ANY)
def test_errors_are_one_harmless_line(text):
    line = str(TiledSEError(f"no layer {text}"))
    assert obeyed(line) == []
    assert len(line) <= LONGEST_LINE


def test_a_long_name_is_cut_in_an_error():
    line = str(TiledSEError(f"no layer '{'x' * 1_000_000}'"))
    assert len(line) < 600
    assert "more)" in line
    assert line.startswith("no layer 'xxx")


def printed(renderable, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, markup=False, emoji=False)
    console.print(Shown(renderable))
    return out.getvalue()


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\x1b]8;;http://x\x1b\\b", "a\rb", "a\x9b2Jb", "a\u202eb"])
def test_tables_hold_no_escape_of_a_name(name):
    table = Table(title=name, caption=name)
    table.add_column(name)
    table.add_row(name)
    text = printed(table, terminal=False)
    assert obeyed(text.replace("\n", "")) == []
    assert "\u202e" not in text
    # On a terminal rich's own colours are there, the name's are not.
    assert name not in printed(table, terminal=True)


def test_a_newline_in_a_name_draws_no_further_row():
    table = Table()
    table.add_column("block")
    table.add_row("real\nforged")
    assert printed(table, terminal=False).count("\n") == 5  # four rules and headers, one row
    assert "real␊forged" in printed(table, terminal=False)
