"""--version, and what the Tab key gives in bash; each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import timm

import tiledse
from tests.cli.running import tiledse as call
from tiledse.cli.completion import complete_model

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(tiledse.__file__).parents[1])}
HEAVY = ("torch", "torchvision", "timm", "scipy", "numpy", "onnx", "onnxruntime", "matplotlib")


def test_version():
    done = call("--version")
    assert (done.code, done.out, done.err) == (0, f"tiledse {version('tiledse')}\n", "")
    assert tiledse.__version__ == version("tiledse")


def test_names_are_those_that_timm_lists():
    names = {name.removeprefix("timm:") for name in complete_model("timm:")}
    assert names == set(timm.list_models())


@pytest.fixture
def tab(tmp_path):
    """What typer's script for bash puts into COMPREPLY, for words as bash breaks them and the cursor at the last."""
    command = tmp_path / "tiledse"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tiledse "$@"\n')
    command.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def press(*words: str) -> list[str]:
        script = f"""
            source <(_TILEDSE_COMPLETE=source_bash tiledse)
            COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
            COMP_CWORD={len(words) - 1}
            _tiledse_completion tiledse
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == "", done.stderr
        return done.stdout.split()

    return press


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("tiledse", "s"), {"sensitivity", "sweep", "search", "stream", "simulate"}),
        (("tiledse", "--ver"), {"--version"}),
        (("tiledse", "find", "ti"), {"timm:"}),
        (("tiledse", "find", "timm", ":", "regnetz_00"), {"regnetz_005"}),
        (("tiledse", "find", "zoo", ":"), {"camvid-se", "camvid-7xW", "camvid-1xW"}),
        (("tiledse", "eval", "timm", ":", "regnety_002", "--im"), {"--images-dir", "--images"}),
    ],
)
def test_the_tab_key(tab, words, expected):
    assert set(tab(*words)) == expected


def test_the_tab_key_loads_nothing_heavy():
    words = "tiledse\neval\ntimm\n:\nreg"
    code = (
        "import atexit, sys; from tiledse.cli import main; "
        f"atexit.register(lambda: print('loaded', sorted({{*{HEAVY}}} & {{*sys.modules}}))); main([])"
    )
    given = {**ENVIRONMENT, "_TILEDSE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=60)
    assert "regnety_002" in done.stdout
    assert done.stdout.endswith("loaded []\n"), done
