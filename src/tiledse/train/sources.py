"""Where training images lie: class folders, lists, tar shards, folders without labels; read in any order."""

from __future__ import annotations

import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.images import SHARD_SUFFIXES, ListedImages
from ..data.opening import open_images
from ..data.pixels import BROKEN, opened
from ..data.shards import IMAGE_KEYS, ShardedImages
from ..errors import TiledSEError, first_line
from ..evaluate.classification import open_unlabelled

# Compressed shards cannot be read in any order, so their bytes are kept in memory.
_MOST_BYTES = 8 << 30


class Source(ABC):
    """Images with a label each; label 0 where there are none."""

    labels: Sequence[int]
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call an image."""

    @abstractmethod
    def _file(self, index: int) -> Path | io.BytesIO: ...

    def read(self, index: int) -> Image.Image:
        """One image, as RGB.

        Raises:
            TiledSEError: it cannot be read.
        """
        try:
            with opened(self._file(index)) as image:
                return image.convert("RGB")
        except TiledSEError as error:
            raise TiledSEError(f"image {self.name(index)}: {error}") from error
        except BROKEN as error:
            raise TiledSEError(
                f"image {self.name(index)}: cannot be read: {first_line(error)}; replace it or take it out of the set"
            ) from error


class Files(Source):
    """Image files."""

    def __init__(self, images: ListedImages) -> None:
        self._images = images
        self.labels = [label for _, label in images.files]
        self.classes = images.classes

    def name(self, index: int) -> str:
        """See Source."""
        return self._images.files[index][0]

    def _file(self, index: int) -> Path:
        return self._images.folder / self._images.files[index][0]


class Shards(Source):
    """``KEY.jpg`` and ``KEY.cls`` in tar files: read by their offsets, or from memory where they are compressed."""

    def __init__(self, images: ShardedImages) -> None:
        self.labels: list[int] = []
        self._places: list[tuple[str, Path, int, int]] = []
        self._kept: dict[int, bytes] = {}
        for path in images.shards:
            self._index(path)
        if not self.labels:
            raise TiledSEError(f"no image in {images.shards[0]}: the set is empty")

    def name(self, index: int) -> str:
        """See Source."""
        key, path, _, _ = self._places[index]
        return f"{key} of {path.name}"

    def _file(self, index: int) -> io.BytesIO:
        if index in self._kept:
            return io.BytesIO(self._kept[index])
        _, path, offset, size = self._places[index]
        with path.open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def _index(self, path: Path) -> None:
        packed = path.suffix != ".tar"
        pictures: dict[str, tuple[int, int, bytes | None]] = {}  # offset, size, and what is kept
        labels: dict[str, int] = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    key, _, kind = member.name.rpartition("/")[2].partition(".")
                    if kind == "cls" or (packed and kind in IMAGE_KEYS):
                        stream = tar.extractfile(member)
                        data = stream.read() if stream is not None else b""
                    if kind == "cls":
                        if not data.strip().isdigit():
                            raise TiledSEError(
                                f"sample {key} of {path.name}: expected a number from 0 in .cls"
                            )
                        labels[key] = int(data)
                    elif kind in IMAGE_KEYS:
                        pictures[key] = (member.offset_data, member.size, data if packed else None)
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            raise TiledSEError(
                f"shard {path}: {first_line(error)}; it is cut off or no tar, make it again"
            ) from error
        if alone := sorted(pictures.keys() ^ labels.keys()):
            raise TiledSEError(
                f"sample {alone[0]} of {path.name}: expected KEY.jpg and KEY.cls, one is missing"
            )
        for key, (offset, size, kept) in pictures.items():
            if kept is not None:
                self._kept[len(self.labels)] = kept
            self._places.append((key, path, offset, size))
            self.labels.append(labels[key])
        if packed and sum(map(len, self._kept.values())) > _MOST_BYTES:
            raise TiledSEError(
                f"{path} and the shards before it are compressed and hold over 8 GiB; gunzip them"
            )


class Several(Source):
    """Sources one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._rows = [(source, index) for source in sources for index in range(len(source))]
        self.labels = [source.labels[index] for source, index in self._rows]
        self.classes = sources[0].classes

    def name(self, index: int) -> str:
        """See Source."""
        source, place = self._rows[index]
        return source.name(place)

    def _file(self, index: int) -> Path | io.BytesIO:
        source, place = self._rows[index]
        return source._file(place)


class Part(Source):
    """Some images of a source, in the order of ``indices``."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self._indices = source, list(indices)
        self.labels = [source.labels[index] for index in self._indices]
        self.classes = source.classes

    def name(self, index: int) -> str:
        """See Source."""
        return self._source.name(self._indices[index])

    def _file(self, index: int) -> Path | io.BytesIO:
        return self._source._file(self._indices[index])


def split_path(data: str | Path, part: str) -> Path | str:
    """Where the part ``train`` or ``val`` of a data folder lies.

    ``DIR/train`` and ``DIR/val`` are class folders, lists or shards; or the shards lie side by side as
    ``DIR/train-*.tar`` and ``DIR/val-*.tar``.

    Raises:
        TiledSEError: neither.
    """
    data = Path(data)
    if not data.is_dir():
        raise TiledSEError(f"no data at {data}: there is no such folder")
    for name in (part, "validation") if part == "val" else (part,):
        if (data / name).is_dir():
            return data / name
    if any(
        file.name.startswith(f"{part}-") and file.name.endswith(SHARD_SUFFIXES) for file in data.iterdir()
    ):
        return f"{data}/{part}-*"
    raise TiledSEError(
        f"no '{part}' images in {data}: expected the folders train and val in it (class folders, or a labels.csv "
        "with the columns file,label in each), or shards named train-*.tar and val-*.tar"
    )


def open_source(path: str | Path, labelled: bool = True) -> Source:
    """The images at a path, in any layout that ``tiledse.open_images`` takes; without labels, any tree of images too.

    Raises:
        TiledSEError: see ``open_images``.
    """

    def refuse(image: Image.Image) -> None:
        raise AssertionError("sources decode images themselves")

    try:
        images = open_images(path, refuse)  # type: ignore[arg-type]
    except TiledSEError as error:
        if labelled or "no labelled images" not in str(error):
            raise
        images = open_unlabelled(path, refuse)  # type: ignore[arg-type]
    if isinstance(images, ShardedImages):
        return Shards(images)
    assert isinstance(images, ListedImages)
    return Files(images)
