"""Sets of labelled images, which come in batches of a fixed order; image files with labels are one."""

from __future__ import annotations

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


class ChosenImages(ListedImages):
    """Some images of a set, which keep their labels and names.

    Args:
        images: The set.
        indices: Which ones, in the order of this set.
    """

    def __init__(self, images: ListedImages, indices: Sequence[int]) -> None:
        super().__init__(images.folder, [images.files[i] for i in indices], images.preprocess, images.classes)
        self._images, self._indices = images, tuple(indices)

    def sample(self, index: int) -> Sample:
        """Read one image, as the whole set reads it."""
        return self._images.sample(self._indices[index])._replace(place=(0, index))


class FirstImages(ImageSet):
    """The first batches of a set that is read in order, until there are enough images.

    Args:
        images: The set.
        enough: Images, in each part; the last batch is a whole one.
    """

    def __init__(self, images: ImageSet, enough: int) -> None:
        self._images, self._enough, self.classes = images, enough, images.classes

    def dataset(self, batch_size: int, part: Part) -> Dataset[Batch | TiledSEError]:
        """Those of the whole set."""
        return self._images.dataset(batch_size, part)

    def count(self, batch_size: int, part: Part = (0, 1)) -> None:
        """Only reading tells."""

    def batches(
        self, batch_size: int, workers: int = 0, part: Part = (0, 1), pin_memory: bool = False
    ) -> Iterator[Batch]:
        """See ImageSet."""
        seen = 0
        for batch in self._images.batches(batch_size, workers, part, pin_memory):
            yield batch
            seen += len(batch.names)
            if seen >= self._enough:
                return


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
