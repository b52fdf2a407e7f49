"""The built library is loaded from nowhere that somebody else can write."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from tiledse.op import cache_folder, compiled

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="users as POSIX has them")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache, and a compiler that only writes what a library would be."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho built > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TILEDSE_CACHE", str(tmp_path / "cache"))
    cache_folder._folder_of_process.cache_clear()
    yield tmp_path / "cache" / "kernels"
    cache_folder._folder_of_process.cache_clear()


def built(expected_warning: str | None = None) -> Path:
    if expected_warning is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return compiled.build()
    with pytest.warns(RuntimeWarning, match=expected_warning):
        return compiled.build()


def test_it_is_built_once_into_a_folder_of_the_owner_alone(cache):
    before = os.umask(0)
    try:
        file = built()
    finally:
        os.umask(before)
    assert file.parent == cache
    assert [oct(path.stat().st_mode & 0o777) for path in (cache, file)] == ["0o700", "0o700"]
    file.write_text("kept")
    assert built().read_text() == "kept"


def a_link(file: Path, theirs: Path) -> None:
    file.symlink_to(theirs)


def a_second_name(file: Path, theirs: Path) -> None:
    os.link(theirs, file)


def one_that_others_write(file: Path, theirs: Path) -> None:
    file.write_text("theirs")
    file.chmod(0o666)


@pytest.mark.parametrize("planted", [a_link, a_second_name, one_that_others_write])
def test_a_file_that_may_be_somebody_elses_is_built_again(cache, planted):
    theirs = cache.parent / "theirs.so"
    file = built()
    file.unlink()
    theirs.write_text("theirs")
    planted(file, theirs)
    assert built() == file
    assert file.read_text() == "built\n"
    assert not file.is_symlink()
    assert theirs.read_text() == "theirs"


def test_a_folder_that_others_write_is_not_used(cache):
    file = built()
    file.write_text("theirs")
    cache.chmod(0o777)
    private = built("other users can write to .*kernels; name another folder in TILEDSE_CACHE")
    assert private.parent != cache
    assert private.read_text() == "built\n"
    assert private.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch):
    built().write_text("theirs")
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert built("belongs to another user").read_text() == "built\n"
