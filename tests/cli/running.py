"""Run the command line in this process and give back what a shell would see."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from tiledse.cli import main


@dataclass
class Done:
    """Exit status, standard output, standard error."""

    code: int
    out: str
    err: str


def tiledse(*arguments: object) -> Done:
    """One call of ``tiledse``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def assert_refused(done: Done, *parts: str) -> None:
    """Wrong use: exit 2, nothing on standard output, one line that says all of ``parts``."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("tiledse: ")
    for part in parts:
        assert part in done.err, done.err
