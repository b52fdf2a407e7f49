"""What is shipped: the wheel holds the package and nothing else and runs alone; the floors are those that were run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from tests.conftest import ROOT
from tiledse.cli.verbs import VERBS
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


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """``tiledse`` in an environment of this wheel and what it asks for, without any extra.

    What ``pip install tiledse-*.whl`` would fetch is linked, package by package, from the environment of the tests.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, folder, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    packages = Path(
        run(python, folder, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    about = next(packages.glob("tiledse-*.dist-info"))
    wanted, seen = list(PathDistribution(about).requires or []), set()
    while wanted:
        asked = Requirement(wanted.pop())
        name = asked.name.lower()
        if name in seen or (asked.marker is not None and not asked.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        held = distribution(asked.name)
        wanted += held.requires or []
        for top in {file.parts[0] for file in held.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists() and Path(held.locate_file(top)).exists():
                (packages / top).symlink_to(held.locate_file(top))
    assert {"torch", "timm", "onnxruntime", "onnxscript", "jinja2"} <= seen
    assert not seen & {
        "matplotlib",
        "effdet",
        "rapidocr",
        "accelerate",
        "tensorboard",
        "pycocotools",
        "tifffile",
    }
    run(python, folder, "-m", "pip", "check")
    return folder / "bin" / "tiledse"


SMALL = ("timm:lcnet_050", "--input", "3x64x64")
IMAGES = ("--data", "images", "--batch-size", "20")
# What each verb is typed as, and the package without which it says so in a line.
VERBS_ALONE = {
    "find": (("find", *SMALL), None),
    "cost": (("cost", *SMALL, "--tile", "7xW"), None),
    "paper": (("paper", "1"), None),
    "plan": (("plan", *SMALL, "--tile", "3xW", "-o", "plan.json"), None),
    "convert": (("convert", *SMALL, "--tile", "3xW", "-o", "tse.onnx"), None),
    "eval": (("eval", *SMALL, "--tile", "3xW", *IMAGES), None),
    "correlate": (("correlate", *SMALL, "--tile", "3xW", *IMAGES), None),
    "sensitivity": (("sensitivity", *SMALL, "--tiles", "3xW", *IMAGES), None),
    "sweep": (("sweep", *SMALL, "--tiles", "3xW", *IMAGES, "-o", "sweep.csv"), None),
    "bench": (("bench", "--only", "operator", "--shapes", "1", "--repeats", "2", "--tiles", "7xW"), None),
    "calibrate": (("calibrate", *SMALL, "--tile", "1xW", *IMAGES, "-o", "fitted.json"), None),
    "search": (("search", *SMALL, "--max-buffer", "5000", *IMAGES, "-o", "found.json", "--tiles", "1xW"), None),
    "advise": (("advise", *SMALL, "--target", "ethos-u"), None),
    "stream": (("stream", *SMALL, "--tile", "3xW"), None),
    "simulate": (("simulate", *SMALL, "--tile", "3xW"), None),
    "zoo": (("zoo",), None),
    "report": (("report", *SMALL, *IMAGES, "-o", "report.html"), None),
    "demo": (("demo",), "rapidocr"),
    "train": (("train", "recipe.toml", "--data", "images", "-o", "runs"), "accelerate"),
    "finetune": (
        ("finetune", "timm:lcnet_050", "--tile", "3xW", "--distill", "--weights", "w.safetensors", "--data", "images",
         "-o", "runs"),
        "accelerate",
    ),
    "figures": (("simulate", *SMALL, "--tile", "3xW", "--plot", "p.png"), "matplotlib"),
    "effdet": (("find", "effdet:efficientdet_d0"), "effdet"),
    "tables of effdet": (("paper", "5"), "effdet"),
    "shards": (("eval", *SMALL, "--tile", "3xW", "--data", "shards.tar"), "webdataset"),
    "TensorFlow Lite": (("find", "net.tflite"), "ai-edge-litert"),
    "TIFF": (("stream", *SMALL, "tall.tif", "--tile", "3xW"), "tifffile"),
    "detect": (
        ("eval", *SMALL, "--tile", "3xW", "--task", "detect", "--data", "coco.json", "--adapter", "adapt:detector"),
        "pycocotools",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(bare, tmp_path_factory) -> Path:
    """A folder with a few images, a recipe, weights and what else a verb reads."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "images").mkdir()
    rows = ["file,label"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (72, 72, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,{number}")
    (folder / "images" / "labels.csv").write_text("\n".join(rows) + "\n")
    Image.fromarray(pixels).save(folder / "tall.tif")
    (folder / "net.tflite").write_bytes(b"\x10\0\0\0TFL3" + bytes(64))
    (folder / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (folder / "adapt.py").write_text(
        "from tiledse.evaluate.adapters import Detector\n"
        "def detector(size):\n    return Detector(prepare=lambda image: None, detect=lambda output, sizes: [])\n"
    )
    shutil.copy(ROOT / "recipes" / "table1_tiles.toml", folder / "recipe.toml")
    with tarfile.open(folder / "shards.tar", "w") as tar:
        tar.add(folder / "images" / "0.png", "0.png")
    run(
        bare.with_name("python"), folder, "-c",
        "import timm, safetensors.torch as s\n"
        "s.save_file(timm.create_model('lcnet_050').state_dict(), 'w.safetensors')",
    )  # fmt: skip
    return folder


def test_every_verb_is_tried_without_extras():
    assert {*VERBS} <= {*VERBS_ALONE}


@pytest.mark.slow
@pytest.mark.parametrize("case", VERBS_ALONE)
def test_each_verb_without_extras(bare, workplace, case):
    words, package = VERBS_ALONE[case]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bare, *words], cwd=workplace, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    if package is None:
        assert done.returncode == 0, done.stderr
        assert done.stdout
        return
    assert done.returncode == 2, done
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("tiledse: ")
    assert f" the package {package}" in line
    *program, wanted = shlex.split(line.partition("install it with: ")[2])
    assert wanted.startswith(package)
    # The line works as it is: pip is there, and takes the requirement; nothing is fetched here.
    where = {**environment, "PATH": f"{bare.parent}:{environment['PATH']}"}
    plan = [*program, "--dry-run", "--no-deps", "--no-index", wanted]
    tried = subprocess.run(plan, cwd=workplace, env=where, capture_output=True, text=True, check=False)
    assert "No matching distribution found" in tried.stderr


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
