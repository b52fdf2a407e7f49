"""What is shipped: the wheel holds the package and nothing else and runs alone; the floors are those that were run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tiledse.documents import tomllib

NETWORK = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """``make wheel-test`` names the wheel that ``make wheel`` made; otherwise one is made here."""
    if made := os.environ.get("TILEDSE_WHEEL"):
        return Path(made).resolve()
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


def run(program: Path, folder: Path, *arguments: str) -> str:
    """What a program prints; PYTHONPATH would show it the tiledse of this clone."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory) -> Path:
    """``tiledse`` in an environment that holds this wheel alone.

    Its dependencies are gigabytes, so they are read from the environment of the tests. A line in a .pth file adds
    that folder without the .pth files in it: the editable tiledse there stays out of reach.
    """
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, folder, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    packages = run(python, folder, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin" / "tiledse"


def test_the_floors_that_run_are_those_of_pyproject_toml():
    """`make floors` installs tests/floors.txt: the first release of each `name>=release`.

    Ruff and mypy look at the code and never run it; `make lint` takes the newest.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    found = [match for text in asked if (match := re.match(r"([\w.-]+)(?:\[.*?\])?>=([\w.]+)", text))]
    expected = {f"{match[1]}=={match[2]}" for match in found if match[1] not in ("ruff", "mypy")}
    assert len(expected) > 20
    assert set((ROOT / "tests" / "floors.txt").read_text("utf-8").split()) == expected


@pytest.mark.slow
def test_the_wheel_holds_what_git_has_of_the_package(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "src/tiledse"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    expected = {path.removeprefix("src/") for path in tracked}
    assert {"tiledse/py.typed", "tiledse/op/cpp/squeeze_excite.cpp"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        libraries = {name for name in names if name.endswith(".so")}
        assert all(name.startswith("tiledse/op/kernels_") for name in libraries)
        if any(map(shutil.which, ("c++", "g++", "clang++"))):
            assert libraries
        assert wheel.name.split("-")[-3:-1] == ["py3", "none"]
        about = next(name for name in names if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
        further = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
        assert names - libraries == expected | {f"{about}/{name}" for name in further}
        for name in names:
            held = archive.read(name)
            assert str(ROOT).encode() not in held, name
            assert str(Path.home()).encode() + b"/" not in held, name


@pytest.mark.slow
def test_the_commands_run_from_the_wheel_alone(command, tmp_path):
    python = command.with_name("python")
    where = run(python, tmp_path, "-c", "import tiledse; print(tiledse.__file__)")
    assert Path(where).is_relative_to(command.parent.parent)
    if any(map(shutil.which, ("c++", "g++", "clang++"))):
        script = "import torch, tiledse as ts; print(ts.explain(ts.TiledSqueezeExcite(8, 4), torch.zeros(1, 8, 7, 7)))"
        assert "the operator in cpp" in run(python, tmp_path, "-c", script)
    assert "blocks.0.0.se" in run(command, tmp_path, "find", NETWORK)
    assert "the network" in run(command, tmp_path, "cost", NETWORK, "--tile", "7xW")
    assert "have tiles now" in run(command, tmp_path, "convert", NETWORK, "--tile", "7xW", "-o", "x.onnx")
    assert (tmp_path / "x.onnx").stat().st_size > 1_000_000
    assert "camvid" in run(command, tmp_path, "zoo")
