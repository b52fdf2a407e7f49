"""Output files are written whole or not at all, on a full disk too."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from tiledse import TiledSEError
from tiledse.files import written_whole


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="midway"), written_whole(path) as part:
        part.write_text("half")
        raise ValueError("midway")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    with written_whole(tmp_path / "a.txt") as part:
        part.write_text("x")
    (tmp_path / "b.txt").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "b.txt")}
    assert len(modes) == 1


def test_no_folder(tmp_path):
    with pytest.raises(TiledSEError, match="there is no folder"), written_whole(tmp_path / "no" / "a.txt"):
        pass


def test_a_full_disk(tmp_path):
    """A limit on the size of files fails a write just as a full disk does, in a process of its own."""
    code = f"""
import resource, signal
from tiledse import TiledSEError
from tiledse.files import written_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with written_whole({str(tmp_path / "a.bin")!r}) as part:
        part.write_bytes(bytes(100_000))
except TiledSEError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "nothing was written" in done.stdout
    assert os.listdir(tmp_path) == []
