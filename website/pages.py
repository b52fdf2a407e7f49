"""The pages of docs/start as sessions: their files are written, their commands typed, and what is printed comes back.

``python -m website.pages docs/start/onnx.md`` types a page and writes what it printed into it; figures that differ from
run to run are then replaced by ``...`` by hand. tests/test_website.py types every page and compares.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiledse.cli import main

_FENCE = re.compile(r'^```(console|python)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Step:
    """One thing to do, and what the page says that it prints.

    Args:
        kind: ``file`` (text goes into ``name``), ``typed`` (a command) or ``python`` (an example of doctest).
        text: What is written, typed or run.
        shown: What the page shows of what is printed.
        place: Where ``shown`` stands in the page.
        name: Of the file.
    """

    kind: str
    text: str
    shown: str = ""
    place: tuple[int, int] = (0, 0)
    name: str = ""


def steps(page: str) -> Iterator[Step]:
    """What a page does, from top to bottom; a block of Python without prompts is only read."""
    for block in _FENCE.finditer(page):
        language, name, body = block.groups()
        start = block.start(3)
        if language == "console":
            for command in re.finditer(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", body, re.M):
                text = command[1].replace("\\\n", " ")
                yield Step("typed", text, command[2], (start + command.start(2), start + command.end(2)))
        elif name:
            yield Step("file", body, name=name)
        else:
            for example in doctest.DocTestParser().get_examples(body):
                yield Step("python", example.source, example.want)


def typed(step: Step, known: dict[str, object]) -> str:
    """Do one step in the working folder, and give what it prints on standard output."""
    if step.kind == "file":
        Path(step.name).write_text(step.text, encoding="utf-8")
        return ""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        if step.kind == "python":
            exec(compile(step.text, "<page>", "single"), known)
        else:
            program, *words = shlex.split(step.text)
            assert program == "tiledse", step.text
            code = main(words)
            assert code == 0, f"{step.text}: {err.getvalue()}"
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().strip("\n").splitlines())


def agree(step: Step, printed: str) -> bool:
    """Whether what was printed is what the page shows, where ``...`` stands for anything."""
    if step.kind == "file" or not (step.shown or step.kind == "python"):
        return True
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(step.shown.strip() + "\n", printed.strip() + "\n", flags)


def filled(page: str) -> str:
    """A page with what its commands print now."""
    known: dict[str, object] = {}
    printed = [(step, typed(step, known)) for step in steps(page)]
    for step, text in reversed(printed):
        if step.kind == "typed" and step.shown.strip() != "":
            page = page[: step.place[0]] + text + page[step.place[1] :]
    return page


if __name__ == "__main__":
    for path in [Path(name).absolute() for name in sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
            path.write_text(filled(path.read_text("utf-8")), encoding="utf-8")
