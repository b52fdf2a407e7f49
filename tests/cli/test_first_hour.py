"""The first hour: what is printed to start with, what an error proposes, and what a missing package takes."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys

import pytest
import typer

from tests.cli.running import assert_refused, tiledse
from tiledse import extras
from tiledse.cli import app
from tiledse.cli.app import START
from tiledse.cli.model import Model
from tiledse.demo import NEXT


def parsed(line: str) -> None:
    """A command line that is shown is one that the parser takes; nothing runs."""
    program, *words = shlex.split(line, comments=True)
    assert program == "tiledse", line
    group = typer.main.get_command(app)
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version"), line
        return
    command = group.get_command(None, words[0])
    assert command is not None, line
    command.make_context(words[0], words[1:])


def test_tiledse_alone_says_how_to_start():
    done = tiledse()
    assert (done.code, done.out, done.err) == (0, START, "")
    lines = START.splitlines()
    assert len(lines) == 5
    for line in lines:
        parsed(line.split("   ")[0])


def test_what_the_demo_proposes_can_be_typed():
    assert len(NEXT) >= 3
    for line in NEXT:
        parsed(line)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ("find", "regnety_002"),
            ("no model 'regnety_002'; expected timm:NAME", "did you mean timm:regnety_002?"),
        ),
        (("find", "regnety_002.tag"), ("did you mean timm:regnety_002.tag?",)),
        (("find", "timm:regnety_02"), ("did you mean ", "regnety_002")),
        (("find", "net.safetensors"), ("timm:NAME --weights net.safetensors",)),
        (("find", "nett.onnx"), ("cannot read nett.onnx: No such file", "did you mean net.onnx?")),
        (("cost", "timm:lcnet_050"), ("such as --tile 7xW", "`tiledse plan` writes plans")),
        (
            ("cost", "timm:lcnet_050", "--plan", "absent.json"),
            ("`tiledse plan MODEL --tile 7xW -o plan.json` writes one",),
        ),
        (("cost", "timm:lcnet_050", "--plan", "planned.json"), ("did you mean plan.json?",)),
        (("find", "timm:lcnet_050", "--weights", "wights.pt"), ("did you mean weights.pt?",)),
        (("fimd", "timm:lcnet_050"), ("Did you mean find?",)),
    ],
)
def test_errors_propose_what_to_do(tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    for name in ("net.onnx", "plan.json", "weights.pt"):
        (tmp_path / name).touch()
    assert_refused(tiledse(*words), *parts)


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they had never been installed."""
    absent: set[str] = set()
    real = importlib.util.find_spec

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in absent:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    def take(*names: str) -> None:
        absent.update(names)
        for name in [one for one in sys.modules if one.partition(".")[0] in absent]:
            monkeypatch.delitem(sys.modules, name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in absent else real(name))
    return take


def test_a_figure_without_matplotlib_is_refused_before_the_work(tmp_path, without, monkeypatch):
    without("matplotlib")
    monkeypatch.setattr(Model, "open", lambda *args, **more: pytest.fail("the work had begun"))
    done = tiledse("simulate", "timm:lcnet_050", "--tile", "7xW", "--plot", tmp_path / "p.png")
    assert_refused(done, "figures need the package matplotlib", "pip install 'matplotlib>=3.10.7'")


def test_what_is_said_installs_what_is_missing(without):
    """The line names releases that pyproject.toml asks for, and a pip that is there."""
    line = str(extras.missing("the demo needs", "rapidocr")).partition("install it with: ")[2]
    *program, requirement = shlex.split(line)
    assert requirement == "rapidocr==3.10.0"
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
    assert "requirement specifier" in done.stdout
    assert extras.requirement("onnx_ir") == extras.requirement("onnx-ir") == "onnx-ir>=1.0"
    several = str(extras.missing("both need", "effdet", "webdataset"))
    assert "the packages effdet and webdataset; install them with" in several
    assert several.endswith("'effdet>=0.4.1' 'webdataset>=0.2.86'")


def test_a_package_that_is_there_and_does_not_load_says_why():
    error = ImportError("cannot import name 'x' from 'timm'")
    assert "(cannot import name 'x' from 'timm')" in str(extras.missing("a needs", "effdet", error=error))
    absent = ModuleNotFoundError("No module named 'effdet'", name="effdet")
    assert "(" not in str(extras.missing("a needs", "effdet", error=absent))
    deeper = ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")
    assert "(No module named 'omegaconf')" in str(extras.missing("a needs", "effdet", error=deeper))


def test_a_verb_whose_package_is_missing_is_one_line(without):
    without("effdet")
    assert_refused(
        tiledse("find", "effdet:efficientdet_d0"), "effdet:efficientdet_d0 needs the package effdet"
    )
    without("safetensors")
    done = tiledse("zoo", "--json")
    assert done.code in (0, 2)
    assert "Traceback" not in done.err
