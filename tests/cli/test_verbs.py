"""The table of verbs: true, whole, and quick to print."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

import tiledse
from tiledse import cli
from tiledse.cli.verbs import LOADED, VERBS

HEAVY = ("torch", "torchvision", "timm", "scipy", "numpy", "onnx", "onnxruntime", "PIL", "matplotlib")


def test_the_table_says_what_the_functions_say():
    for module in pkgutil.iter_modules(cli.__path__):
        import_module(f"tiledse.cli.{module.name}")
    group = typer.main.get_group(LOADED)
    assert {name: command.help.split("\n\n")[0] for name, command in group.commands.items()} == {
        name: summary for name, (_, summary) in VERBS.items()
    }
    for name, (module, _) in VERBS.items():
        assert group.commands[name].callback.__module__ == f"tiledse.cli.{module}"


def test_help_and_typing_errors_load_nothing_heavy():
    typed = [["--help"], ["fimd"], [], *([verb, "--help"] for verb in VERBS)]
    code = f"""
import sys
from tiledse.cli import main
for argv in {typed}:
    main(argv)
    if found := {{*{HEAVY}}} & {{*sys.modules}}:
        raise SystemExit(f"{{argv}} loads {{found}}")
print("loaded nothing")
"""
    given = {**os.environ, "PYTHONPATH": str(Path(tiledse.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded nothing\n")


def test_a_typing_error_is_told_what_it_may_have_been(capsys):
    assert cli.main(["fimd", "timm:x"]) == 2
    assert "Did you mean find?" in capsys.readouterr().err


def test_the_verb_stream_stays_where_a_room_has_its_name():
    import tiledse.stream.engine  # the import system would put the room in the verb's place

    assert callable(tiledse.stream)
    assert tiledse.networks.TiledBlock is tiledse.TiledBlock
    assert {"find", "stream", "cost"} <= {*dir(tiledse)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tiledse.nothing
