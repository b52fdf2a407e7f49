"""Ctrl-C and SIGTERM, from the first import to the last write: one line, a status, no file left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiledse

SOURCE = str(Path(tiledse.__file__).parent.parent)

# Stands where torch is: it says that it is being imported, and swallows what is raised meanwhile, as some libraries do.
SLOW_TORCH = """
import pathlib, time
pathlib.Path("sign").touch()
for _ in range(600):
    try:
        time.sleep(0.1)
    except BaseException:
        pass
"""
WRITING = """
import pathlib, time
from tiledse.files import written_whole
from tiledse.signals import raised
with raised(), written_whole("out.txt") as part:
    part.write_text("half")
    pathlib.Path("sign").touch()
    time.sleep(60)
"""


def stopped(arguments: list[str], folder: Path, kind: int, path: str = SOURCE) -> tuple[int, str]:
    """Start python in a folder, wait for its sign of work, send a signal; status and standard error."""
    given = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=given, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            started = time.monotonic()
            while not (folder / "sign").exists():
                assert process.poll() is None
                assert time.monotonic() < started + 60
                time.sleep(0.01)
            process.send_signal(kind)
            _, err = process.communicate(timeout=180)
        finally:
            process.kill()
    return process.returncode, err


@pytest.mark.parametrize(("kind", "line"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_while_python_still_imports(tmp_path, kind, line):
    stand_in = tmp_path / "stand_in"
    (stand_in / "torch").mkdir(parents=True)
    (stand_in / "torch" / "__init__.py").write_text(SLOW_TORCH)
    verb = ["-m", "tiledse", "find", "timm:regnety_002"]
    code, err = stopped(verb, tmp_path, kind, f"{stand_in}{os.pathsep}{SOURCE}")
    assert (code, err) == (128 + kind, f"tiledse: {line}\n")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_inside_a_write_nothing_is_left(tmp_path, kind):
    code, _ = stopped(["-c", WRITING], tmp_path, kind)
    assert code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["sign"]


def test_what_the_parent_ignores_stays_ignored():
    """Under nohup a closed terminal must not end a search."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        from tiledse.signals import raised

        with raised() as came:
            signal.raise_signal(signal.SIGHUP)
        assert came == []
    finally:
        signal.signal(signal.SIGHUP, before)
