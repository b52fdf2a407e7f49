"""What a verb writes, checked before the work for it begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TiledSEError

DRAWINGS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Output:
    """A file that a verb writes.

    Args:
        option: The option that names it.
        path: The file; None where nobody asked for it.
        endings: What its name may end in, where that decides the format; any, where left out.
        grows: Whether it is added to where it exists.
    """

    option: str
    path: Path | None
    endings: tuple[str, ...] = ()
    grows: bool = False


def drawing(path: Path | None) -> Output:
    """What --plot draws."""
    return Output("--plot", path, DRAWINGS)


def check_outputs(force: bool, outputs: Sequence[Output], inputs: Iterable[str | Path | None] = ()) -> None:
    """Check that all outputs of a verb may be written.

    Args:
        force: Whether files that exist may be replaced.
        outputs: The files.
        inputs: What the verb reads: files, folders, patterns of shards. A text that is no path, such as ``timm:NAME``,
            names no file and so is never met.

    Raises:
        TiledSEError: two outputs are one file, one is an input, a name of another ending, a file that exists without
            --force, no folder, or one that cannot be written to.
    """
    there = [(one, one.path) for one in outputs if one.path is not None]
    for output, path in there:
        _check_file(output, path, force)
    for place, (output, path) in enumerate(there):
        for other, before in there[:place]:
            if _same(path, before):
                raise TiledSEError(
                    f"{other.option} {before} and {output.option} {path} are one file; give each a name of its own"
                )
    for given in inputs:
        for output, path in there:
            if given is not None and _reads(given, path):
                raise TiledSEError(
                    f"{output.option} {path} would replace what is read ({given}); give another name"
                )


def check_folder(option: str, folder: Path) -> None:
    """Check that a folder can be made and written to.

    Raises:
        TiledSEError: it is a file, or what it would lie in cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise TiledSEError(f"cannot write to {folder}: it is a file; give {option} the name of a folder")
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise TiledSEError(f"cannot write to {folder}: {nearest} is no folder that you may write to")


def _check_file(output: Output, path: Path, force: bool) -> None:
    if path.is_dir():
        raise TiledSEError(f"cannot write {path}: it is a folder; give the name of a file")
    if output.endings and path.suffix.lower() not in output.endings:
        *others, last = output.endings
        expected = f"{', '.join(others)} or {last}" if others else last
        raise TiledSEError(
            f"cannot write {path}: expected {output.option} with a name that ends in {expected}"
        )
    if path.exists():
        if not path.is_file():
            raise TiledSEError(f"cannot write {path}: it is no regular file; give another name")
        if not force and not output.grows:
            raise TiledSEError(f"{path} exists; give --force to replace it, or another name")
    if not path.parent.is_dir():
        raise TiledSEError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise TiledSEError(f"cannot write {path}: you may not write to the folder {path.parent}")


def _same(a: Path, b: Path) -> bool:
    if a.resolve() == b.resolve():
        return True
    try:
        return a.samefile(b)  # hard links, and names that differ in case where that is nothing
    except OSError:
        return False


def _of_set(output: Path, folder: Path) -> bool:
    """Whether a file in a folder of images is one of the set; our own results may lie beside them."""
    from ..data.images import SHARD_SUFFIXES
    from ..evaluate.classification import SUFFIXES

    labels = folder / "labels.csv"
    if labels.is_file():
        name = output.resolve().relative_to(folder.resolve()).as_posix()
        return _same(output, labels) or name in labels.read_text("utf-8", "replace")
    return output.name.endswith(SHARD_SUFFIXES) or output.suffix.lower() in SUFFIXES


def _reads(given: str | Path, output: Path) -> bool:
    """Whether an output is a file that the verb reads."""
    from ..data.images import SHARD_SUFFIXES

    path = Path(given)
    if path.is_dir():
        return output.exists() and output.resolve().is_relative_to(path.resolve()) and _of_set(output, path)
    if any(mark in str(given) for mark in "*?{") and not path.exists():
        return output.name.endswith(SHARD_SUFFIXES) and output.exists() and _same(output.parent, path.parent)
    return _same(output, path)
