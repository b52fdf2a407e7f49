"""Images kept as WebDataset tar shards."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import TiledSEError, first_line
from ..extras import missing
from ..numerals import parse_whole
from .images import MOST_LABEL, Batch, ImageSet, Part, Preprocess, Sample, stack
from .preprocessing import read_image

IMAGE_KEYS = ("jpg", "jpeg", "png")
MOST_SHARDS = (
    100_000  # a pattern of ten characters can name a thousand million, which would all be kept in memory
)

# The innermost braces: a range of numbers, or anything else.
_BRACES = re.compile(r"\{(?:(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?|[^{}]*)\}")


class ShardedImages(ImageSet):
    """Tar files of ``KEY.jpg`` and ``KEY.cls``, plain or gzip-compressed.

    Whole shards go to processes, and within them to workers, as WebDataset does it; batches do not reach from
    one shard into the next. More processes than shards are idle.

    Args:
        shards: The tar files.
        preprocess: PIL image to tensor (C, H, W).
    """

    def __init__(self, shards: Sequence[Path], preprocess: Preprocess) -> None:
        _webdataset()
        self.shards, self.preprocess = tuple(shards), preprocess

    def dataset(self, batch_size: int, part: Part) -> Dataset[Batch | TiledSEError]:
        """Shard i belongs to part i modulo n."""
        return _ShardBatches(self, batch_size, part)

    def count(self, batch_size: int, part: Part = (0, 1)) -> None:
        """A tar file has no table of contents."""
        return

    def samples(self, number: int) -> Iterator[Sample]:
        """Read one shard.

        Raises:
            TiledSEError: the shard is cut off or no tar, a sample has no image or no label.
        """
        path = self.shards[number]
        try:
            for index, entry in enumerate(_read_entries(path)):
                name = f"{entry['__key__']} of {path.name}"
                data = next((entry[key] for key in IMAGE_KEYS if key in entry), None)
                label = entry.get("cls", b"").strip()
                place = _label(label)
                if data is None or place is None:
                    what = (
                        "no image (jpg, jpeg, png)"
                        if data is None
                        else f"no label: .cls holds {label[:20]!r}"
                    )
                    raise TiledSEError(
                        f"sample {name}: {what}; expected KEY.jpg and KEY.cls, a number from 0"
                    )
                image = read_image(io.BytesIO(data), name, self.preprocess)
                yield Sample(image, place, name, (number, index))
        except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
            # webdataset adds what it was reading from to the error's arguments and text.
            reason = str(error.args[0] if error.args else error).partition(" @ <")[0]
            raise TiledSEError(f"shard {path}: {reason}; it is cut off or no tar, make it again") from error


def _label(text: bytes) -> int | None:
    try:
        return parse_whole(text.decode("ascii"), "label", most=MOST_LABEL)
    except ValueError:
        return None


class _ShardBatches(IterableDataset[Batch | TiledSEError]):
    def __init__(self, images: ShardedImages, batch_size: int, part: Part) -> None:
        self.images, self.batch_size, self.part = images, batch_size, part

    def __iter__(self) -> Iterator[Batch | TiledSEError]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for number in range(len(self.images.shards))[self.part[0] :: self.part[1]][first::step]:
                held: list[Sample] = []
                for sample in self.images.samples(number):
                    held.append(sample)
                    if len(held) == self.batch_size:
                        yield stack(held)
                        held = []
                if held:
                    yield stack(held)
        except TiledSEError as error:
            yield error


class _Watched:
    """A stream that remembers the end of what was read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.tail = file, b""

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.tail = (self.tail + data[-1024:])[-1024:]
        return data


def _read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard, by WebDataset's rules: ``{"__key__": ..., "jpg": ..., "cls": ...}``.

    A tar file that ends between two members looks whole to tarfile, and a gzip stream that stops looks ended.
    So gzip is undone here, where a stream that stops raises, and the two blocks of zeros that end a tar file
    are asked for.
    """
    expand, group = _webdataset()
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = _Watched(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw)
        yield from group(expand([{"url": str(path), "stream": stream}]))
        while stream.read(1 << 16):
            pass
        if len(stream.tail) < 1024 or any(stream.tail):
            raise tarfile.ReadError("the blocks that end a tar file are missing")


def _webdataset() -> tuple[Any, Any]:
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError as error:
        raise missing("reading tar shards needs", "webdataset", error=error) from error
    return tar_file_expander, group_by_keys


def expand_shards(pattern: str) -> list[Path]:
    """The shards that a pattern with ``{0..9}`` or ``*`` names, in order.

    Raises:
        TiledSEError: a shard is missing, nothing matches, or the pattern names more than anyone has.
    """
    _webdataset()
    from braceexpand import braceexpand

    if _most_names(pattern) > MOST_SHARDS:
        raise TiledSEError(
            f"{pattern} names more than {MOST_SHARDS:,} shards; expected a range such as {{0000..0999}}"
        )
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise TiledSEError(f"no pattern of shards: {pattern} ({first_line(error)})") from error
    shards = []
    for name in names:
        matches = sorted(glob(name))
        if not matches:
            raise TiledSEError(f"no shard at {name}" + (f" (from {pattern})" if name != pattern else ""))
        shards += [Path(match) for match in matches]
    wrong = next((shard for shard in shards if not shard.name.endswith((".tar", ".tar.gz", ".tgz"))), None)
    if wrong is not None:
        raise TiledSEError(f"{wrong} is no shard: expected .tar, .tar.gz or .tgz")
    return shards


def _most_names(pattern: str) -> int:
    """At most as many names as a pattern stands for, told without making them."""
    count = 1
    while inner := _BRACES.search(pattern):
        first, last = (int(text[:18]) if text else 0 for text in inner.group(1, 2))
        if max(len(text or "") for text in inner.group(1, 2)) > 18:
            return MOST_SHARDS + 1
        count *= max(abs(last - first) + 1, inner[0].count(",") + 1)
        pattern = pattern[: inner.start()] + pattern[inner.end() :]
        if count > MOST_SHARDS:
            break
    return count
