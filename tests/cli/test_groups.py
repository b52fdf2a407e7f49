"""Options that come together: what the decorator makes of a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from tiledse.cli.groups import Command, expanded

seen: list[tuple] = []


@dataclass(frozen=True)
class Base:
    panel: ClassVar[str] = "Where"

    name: Annotated[str, typer.Argument(metavar="NAME", help="A name.")]
    size: Annotated[int, typer.Option("--size", help="A size.")] = 1
    hidden: int = 5


@dataclass(frozen=True)
class More(Base):
    hidden: Annotated[int, typer.Option("--hidden", help="No longer hidden.")] = 6


def run(function, defaults, *arguments):
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(cls=Command)(expanded(function, defaults))
    seen.clear()
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def plain(where: Base, own: Annotated[bool, typer.Option("--own", help="Its own.")] = False) -> None:
    seen.append((where, own))


def more(where: More) -> None:
    seen.append((where,))


def test_options_become_the_value():
    assert run(plain, {}, "a", "--own").exit_code == 0
    assert seen == [(Base("a", 1, 5), True)]
    assert run(plain, {"size": 3}, "a").exit_code == 0
    assert seen == [(Base("a", 3, 5), False)]
    assert run(more, {}, "--hidden", 8, "--size", 2, "b").exit_code == 0
    assert seen == [(More("b", 2, 8),)]


def test_a_field_that_is_no_option_is_refused_on_the_command_line():
    done = run(plain, {}, "a", "--hidden", 8)
    assert done.exit_code == 2
    assert seen == []


def test_help_is_in_groups():
    text = run(plain, {"size": 3}, "--help").output
    assert [line for line in text.splitlines() if line.endswith(":")] == ["Arguments:", "Where:", "Options:"]
    assert text.index("Where:") < text.index("--size") < text.index("Options:") < text.index("--own")
    assert "[default: 3]" in text


def test_a_default_for_no_option_is_our_own_error():
    with pytest.raises(AssertionError):
        expanded(plain, {"sise": 3})
