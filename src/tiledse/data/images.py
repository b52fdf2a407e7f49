"""Sets of labelled images: a tree of class folders, a list in a CSV file, or tar shards."""

from __future__ import annotations

import csv
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import TiledSEError
from ..files import is_file
from ..numerals import parse_whole, quoted
from .preprocessing import read_image

Preprocess = Callable[[Image.Image], Tensor]
Part = tuple[int, int]

MOST_LABEL = 2**31 - 1  # far above any number of classes
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class Batch(NamedTuple):
    """Images that a network meets together.

    Args:
        inputs: (N, C, H, W).
        labels: (N,) int64.
        names: One for each image, for messages and lists.
        places: (N, 2) int64: (shard, number in the shard), the order of the whole set; shard 0 for files.
    """

    inputs: Tensor
    labels: Tensor
    names: tuple[str, ...]
    places: Tensor


class Sample(NamedTuple):
    """One image of a batch."""

    input: Tensor
    label: int
    name: str
    place: tuple[int, int]


class ImageSet(ABC):
    """Labelled images in a fixed order and in fixed batches.

    The batches are the same for any number of processes and workers, so that a network's logits are too.

    Args:
        classes: How many classes the labels were numbered from; None where labels are given as numbers.
    """

    classes: int | None = None

    @abstractmethod
    def dataset(self, batch_size: int, part: Part) -> Dataset[Batch | TiledSEError]:
        """Whole batches; a failure is an item, for a worker cannot raise it across processes unharmed."""

    @abstractmethod
    def count(self, batch_size: int, part: Part = (0, 1)) -> int | None:
        """Images in a part, or None where only reading would tell."""

    def batches(
        self, batch_size: int, workers: int = 0, part: Part = (0, 1), pin_memory: bool = False
    ) -> Iterator[Batch]:
        """The batches of one part of the set.

        Args:
            batch_size: Images in a batch, at least 1.
            workers: Processes that read ahead; 0 reads in this one.
            part: (i, n): this is part i of n, which share no image and together are the set.
            pin_memory: Page-locked batches, for a GPU.

        Raises:
            TiledSEError: a size below 1, an image or shard that cannot be read.
        """
        if batch_size < 1 or workers < 0:
            raise TiledSEError(
                f"expected batches of at least 1 image and at least 0 workers, got {batch_size} and {workers}"
            )
        with warnings.catch_warnings():
            # More workers than cores: torch advises against it, and the caller asked for it.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                self.dataset(batch_size, part), batch_size=None, num_workers=workers, pin_memory=pin_memory
            )
            items = iter(loader)
        for item in items:
            if isinstance(item, TiledSEError):
                raise item
            yield item


def stack(samples: Sequence[Sample]) -> Batch:
    """Samples to a batch."""
    return Batch(
        torch.stack([s.input for s in samples]),
        torch.tensor([s.label for s in samples]),
        tuple(s.name for s in samples),
        torch.tensor([s.place for s in samples]),
    )


class ListedImages(ImageSet):
    """Image files with labels.

    Args:
        folder: What names are relative to.
        files: (name, label) of each image.
        preprocess: PIL image to tensor (C, H, W).
        classes: See ImageSet.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[tuple[str, int]],
        preprocess: Preprocess,
        classes: int | None = None,
    ) -> None:
        self.folder, self.files, self.preprocess, self.classes = folder, tuple(files), preprocess, classes

    def dataset(self, batch_size: int, part: Part) -> Dataset[Batch | TiledSEError]:
        """Batch i of the whole set belongs to part i modulo n."""
        return _ListedBatches(self, self._starts(batch_size, part), batch_size)

    def count(self, batch_size: int, part: Part = (0, 1)) -> int:
        """Images in a part."""
        return sum(min(batch_size, len(self.files) - start) for start in self._starts(batch_size, part))

    def _starts(self, batch_size: int, part: Part) -> range:
        return range(part[0] * batch_size, len(self.files), part[1] * batch_size)

    def sample(self, index: int) -> Sample:
        """Read one image."""
        name, label = self.files[index]
        return Sample(read_image(self.folder / name, name, self.preprocess), label, name, (0, index))


class _ListedBatches(Dataset[Batch | TiledSEError]):
    def __init__(self, images: ListedImages, starts: range, batch_size: int) -> None:
        self.images, self.starts, self.batch_size = images, starts, batch_size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> Batch | TiledSEError:
        start = self.starts[number]
        end = min(start + self.batch_size, len(self.images.files))
        try:
            return stack([self.images.sample(index) for index in range(start, end)])
        except TiledSEError as error:
            return error


def open_images(path: str | Path, preprocess: Preprocess, *, class_map: str | Path | None = None) -> ImageSet:
    """Open a set of labelled images.

    ==============================  ==================================================================
    a folder with ``labels.csv``    columns ``file`` (relative to it) and ``label`` (a number from 0);
                                    the path of any such CSV file will do
    a folder of class folders       labels are the places of the folders' names in sorted order
    a folder of tar shards          WebDataset: ``KEY.jpg`` (jpeg, png) and ``KEY.cls``, a number;
                                    also one shard, or a pattern such as ``val-{0000..0001}.tar``
    ==============================  ==================================================================

    Args:
        path: The folder, file or pattern.
        preprocess: PIL image to tensor (C, H, W), such as Preprocessing.
        class_map: For class folders: a text file with one folder's name a line, the label being the number
            of the line from 0, as timm has it.

    Raises:
        TiledSEError: nothing there, no images, labels that are none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "black.png")
        >>> _ = (folder / "labels.csv").write_text("file,label\\nblack.png,3\\n")
        >>> images = open_images(folder, lambda image: torch.zeros(3, 8, 8))
        >>> [batch.labels for batch in images.batches(batch_size=2)]
        [tensor([3])]
    """
    from .shards import ShardedImages, expand_shards

    text, path = str(path), Path(path)
    if class_map is not None and (not path.is_dir() or (path / "labels.csv").is_file()):
        raise TiledSEError(
            f"--class-map goes with a folder of class folders, and {path} is none; leave it out"
        )
    if any(mark in text for mark in "*?{") and not path.exists():
        return ShardedImages(expand_shards(text), preprocess)
    if not path.exists():
        raise TiledSEError(f"no images at {path}: there is no such file or folder")
    if path.is_file():
        if path.suffix == ".csv":
            return ListedImages(path.parent, _read_labels(path), preprocess)
        if path.name.endswith(SHARD_SUFFIXES):
            return ShardedImages([path], preprocess)
    elif (path / "labels.csv").is_file():
        return ListedImages(path, _read_labels(path / "labels.csv"), preprocess)
    elif shards := sorted(file for file in path.iterdir() if file.name.endswith(SHARD_SUFFIXES)):
        return ShardedImages(shards, preprocess)
    elif names := sorted(d.name for d in path.iterdir() if d.is_dir() and not d.name.startswith(".")):
        labels = (
            _number_classes(path, names) if class_map is None else _read_class_map(Path(class_map), names)
        )
        files = _list_class_folders(path, labels)
        return ListedImages(path, files, preprocess, classes=len(names) if class_map is None else None)
    raise TiledSEError(
        f"no labelled images in {path}: expected a labels.csv with columns file,label, one folder of images "
        "a class, or tar shards"
    )


def _read_labels(path: Path) -> list[tuple[str, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"file", "label"} <= set(columns):
                raise TiledSEError(
                    f"{path}: expected the columns file,label in its first line, got "
                    f"{','.join(columns) or 'nothing'}"
                )
            rows = [(reader.line_num, row["file"], row["label"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TiledSEError(f"cannot read {path}: {error}") from error
    if not rows:
        raise TiledSEError(f"{path} lists no image")
    files: dict[str, int] = {}
    for line, name, label in rows:
        try:
            number = parse_whole(label or "", "label", most=MOST_LABEL)
        except ValueError as error:
            raise TiledSEError(
                f"{path}, line {line}: expected a label that is a number from 0, got {quoted(label)}"
            ) from error
        if name in files:
            raise TiledSEError(f"{path}, line {line}: {name} is listed twice")
        if not name or not is_file(path.parent / name):
            raise TiledSEError(f"{path}, line {line}: there is no file {quoted(name)} in {path.parent}")
        files[name] = number
    return list(files.items())


def _number_classes(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Labels in sorted order, if there is one: torchvision sorts as text, timm as people do (2 before 10)."""
    from timm.utils.misc import natural_key

    if sorted(names, key=natural_key) != list(names):
        raise TiledSEError(
            f"{path}: the class folders sort in two ways (such as 10 before 2, or B before a), "
            "so their labels are not known; give --class-map with one name a line, in the order of the "
            "network's classes"
        )
    return {name: label for label, name in enumerate(names)}


def _read_class_map(path: Path, names: Sequence[str]) -> dict[str, int]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TiledSEError(f"cannot read class map {path}: {error}") from error
    labels: dict[str, int] = {}
    for label, name in enumerate(lines):
        if name in labels:
            raise TiledSEError(
                f"class map {path}: '{name}' stands in lines {labels[name] + 1} and {label + 1}"
            )
        labels[name] = label
    missing = [name for name in names if name not in labels]
    if missing:
        raise TiledSEError(
            f"class map {path} lacks {len(missing)} of {len(names)} class folders, such as '{missing[0]}'; "
            "expected one folder's name a line"
        )
    return {name: labels[name] for name in names}


def _list_class_folders(path: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    found = make_dataset(str(path), labels, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise TiledSEError(f"no image in the {len(labels)} class folders of {path}")
    return [(Path(file).relative_to(path).as_posix(), label) for file, label in found]
