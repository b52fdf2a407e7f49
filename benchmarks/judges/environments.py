"""The environment of a judge: its own, with the pinned versions of NAME.txt, and nothing of ours on its PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tiledse.errors import TiledSEError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".venv-judges"
# Libraries that tpu_mlir ships and that do not go with the C library of this system.
_SET_ASIDE = ("libc.so.6", "libm.so.6", "libpthread.so.0")


def version(name: str) -> str:
    """The first pin of an environment: the judge itself, ``package==1.2``."""
    return pins(name).split()[0]


def pins(name: str) -> str:
    """The pinned packages of an environment: those that come without what they ask for, then the others."""
    return "".join(path.read_text("utf-8") for path in _files(name))


def _files(name: str) -> list[Path]:
    return [path for path in (HERE / f"{name}-alone.txt", HERE / f"{name}.txt") if path.exists()]


def environment(name: str, python: str) -> Path:
    """The Python of an environment, made where it is not there or its pins have changed.

    NAME-alone.txt has packages that are installed without what they ask for: tpu_mlir and pnnx ask for a torch with
    CUDA, which neither needs.

    Args:
        name: Of its pins, NAME.txt.
        python: The version of Python that the judge runs on, such as ``3.10``.

    Raises:
        TiledSEError: there is no such Python, or the packages cannot be installed; the environment is then not marked
            as ready, and the next run tries again.
    """
    folder = FOLDER / name
    own, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists() and ready.read_text("utf-8") == pins(name) and own.exists():
        return own
    ready.unlink(missing_ok=True)
    commands = [[str(interpreter(python)), "-m", "venv", "--clear", str(folder)]]
    for path in _files(name):
        alone = ("--no-deps",) if path.stem.endswith("-alone") else ()
        commands.append([str(own), "-m", "pip", "install", "--quiet", *alone, "-r", str(path)])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings(folder))
        if done.returncode:
            raise TiledSEError(f"{name}'s environment cannot be made: {last_line(done.stderr + done.stdout)}")
    for library in _SET_ASIDE:
        for path in folder.glob(f"lib/python*/site-packages/tpu_mlir/lib/third_party/{library}"):
            path.unlink()
    ready.write_text(pins(name), "utf-8")
    return own


def interpreter(python: str) -> Path:
    """A Python of a version, on PATH or among pyenv's.

    Raises:
        TiledSEError: there is none.
    """
    if python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return Path(sys.executable)
    found = [Path(p) for p in [shutil.which(f"python{python}")] if p]
    found += sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))
    for path in found:
        works = subprocess.run([str(path), "-c", ""], capture_output=True, check=False)
        if not works.returncode:
            return path
    raise TiledSEError(
        f"this judge wants Python {python}: expected python{python} on PATH or in ~/.pyenv/versions"
    )


def surroundings(folder: Path) -> dict[str, str]:
    """Variables for what runs in an environment: its own PATH, and no modules of ours.

    ``mnnconvert`` runs ``pip install`` by itself; on this PATH it meets its own environment only.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PATH": os.pathsep.join((str(folder / "bin"), "/usr/local/bin", "/usr/bin", "/bin"))}


def last_line(said: str) -> str:
    """The last line that says something, an error before anything else."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return ((errors or lines or ["it said nothing"])[-1])[:300]
