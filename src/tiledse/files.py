"""Output files that are written whole or not at all."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .errors import TiledSEError


def is_file(path: Path) -> bool:
    """Whether a file is there, whatever its name is.

    ``Path.is_file`` raises where a name out of a table is longer than names can be, or holds a NUL.

    Example:
        >>> is_file(Path("a" * 100_000)), is_file(Path("a\\0b"))
        (False, False)
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def near_files(path: Path) -> str:
    """Files beside a path that is not there, of the same ending and nearly its name, as a question; else ``""``.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "net.onnx").touch()
        >>> near_files(folder / "nett.onnx").replace(str(folder), "...")
        '; did you mean .../net.onnx?'
    """
    try:
        names = [name for name in os.listdir(path.parent) if name.endswith(path.suffix) and name != path.name]
    except (OSError, ValueError):
        return ""
    stems = {name.removesuffix(path.suffix): name for name in names}
    near = get_close_matches(path.stem, stems, 1, 0.7)
    return f"; did you mean {path.with_name(stems[near[0]])}?" if near else ""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, moved onto it only if the body succeeds.

    The move is atomic, so a reader sees the old file or the new one, never a part. A body that fails
    leaves ``path`` as it was and no temporary file behind.

    Raises:
        TiledSEError: the folder is missing or not writable, or the disk is full.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with written_whole(folder / "a.txt") as part:
        ...     _ = part.write_text("all of it")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('all of it', 1)
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise TiledSEError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise TiledSEError(f"cannot write {path}: it is a folder; give the name of a file")
    if path.exists() and not path.is_file():  # a device or a pipe would be replaced by a file
        raise TiledSEError(f"cannot write {path}: it is no regular file; give another name")
    # Named before it is made, so that whatever interrupts us finds it. The suffix is kept, because libraries
    # choose a format by it; the stem is cut, because a name may have 255 bytes and no more.
    part = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}{path.suffix}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        # While it is written it is for its owner only; a result has the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TiledSEError(
            f"cannot write {path}: {reason}; nothing was written, free some space or choose another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as CSV under a header, whole or not at all.

    Args:
        path: The file.
        rows: What each row has, by column.
        columns: The columns, in order; what else a row has is left out. By default all there are, as they first come.

    Raises:
        TiledSEError: the file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> write_csv(path, [{"tile": "7xW"}, {"tile": "HxW", "drop": 0.5}])
        >>> path.read_text().split()
        ['tile,drop', '7xW,', 'HxW,0.5']
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
