"""The site: its pages are typed as they stand, its picture is what the simulator says, its commands can be typed."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys

import pytest
import typer

from tests.conftest import ROOT
from tiledse.cli import app
from tiledse.cli.verbs import VERBS
from website import notebook, pages, reference, rows

WAYS = sorted(path.name for path in (ROOT / "docs" / "start").glob("*.md"))


def test_four_ways_in():
    assert WAYS == ["attention.md", "onnx.md", "pytorch.md", "stream.md"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_way_in_prints_what_it_shows(name, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "start" / name).read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known: dict[str, object] = {}
    done = 0
    with contextlib.ExitStack() as stack:
        stack.callback(sys.modules.pop, "mynet", None)
        for step in pages.steps(page):
            printed = pages.typed(step, known)
            assert pages.agree(step, printed), f"$ {step.text}\n{printed}\nis not\n{step.shown}"
            done += bool(step.shown)
    assert done >= 4


def test_a_page_that_is_not_true_is_told():
    (step,) = pages.steps("```console\n$ tiledse --version\ntiledse 9.9\n```\n")
    assert not pages.agree(step, pages.typed(step, {}))
    (step,) = pages.steps("```console\n$ tiledse --version\ntiledse ...\n```\n")
    assert pages.agree(step, pages.typed(step, {}))


def test_the_picture_is_what_the_simulator_says():
    assert rows.PICTURE.read_text("utf-8") == rows.drawn()
    runs = rows.simulated()
    se, tse = (rows.row_times(runs[name]) for name in ("SE", "7xW"))
    last = max(made for made, _ in se)
    assert min(gated for _, gated in se) > last
    assert min(gated for _, gated in tse) < last
    most = [max(sum(m <= t < g for m, g in times) for t, _ in times) for times in (se, tse)]
    assert most == [14, 7]


def lines() -> list[str]:
    """Every command that a page shows at the start of a line, or in a block that is indented."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text("utf-8").replace("\\\n", " ")
        found += re.findall(r"^ *(?:\$ )?(tiledse [a-z][^|>&\n]*)", text, re.M)
    return sorted(set(found))


def test_every_command_that_a_page_shows_can_be_typed():
    """Parsed, not run: verbs and options are there, and take what they are given."""
    group = typer.main.get_command(app)
    checked = 0
    for line in lines():
        if " ..." in line or "VERB" in line:
            continue
        try:
            words = shlex.split(line, comments=True)[1:]
        except ValueError:
            continue  # a sentence with an apostrophe
        if words[0] not in VERBS:
            raise AssertionError(f"no verb: {line}")
        command = group.get_command(None, words[0])
        try:
            command.make_context(words[0], words[1:])
        except typer.Exit:
            continue
        except Exception as error:
            raise AssertionError(f"{line}: {error}") from error
        checked += 1
    assert checked > 40


def test_the_reference_has_every_public_name():
    text = reference.api()
    import tiledse

    for name in tiledse.__all__:
        assert re.search(rf"^::: tiledse[\w.]*\.{name}$", text, re.M), name


@pytest.mark.parametrize("verb", VERBS)
def test_a_page_a_verb_is_its_help(verb):
    text = reference.verbs()[verb]
    assert f"Usage: tiledse {verb}" in text
    assert "--help" in text
    assert verb in reference.overview()


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    cells = notebook.code_cells(json.loads(notebook.NOTEBOOK.read_text("utf-8")))
    assert len(cells) >= 6
    for cell in cells:
        assert notebook.run(cell, known) == notebook.shown(cell), "".join(cell["source"])


def test_every_example_has_its_line():
    text = (ROOT / "examples" / "README.md").read_text("utf-8")
    files = {
        path.name for path in (ROOT / "examples").iterdir() if path.is_file() and path.name != "README.md"
    }
    assert files == set(re.findall(r"\]\(([\w.]+)\)", text))
