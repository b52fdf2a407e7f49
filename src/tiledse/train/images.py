"""Training images in the order of an epoch, each varied by its own random numbers.

What an image looks like in an epoch depends on (seed, epoch, image) alone. So a run that is resumed sees the same, and
so does one with other workers or more processes.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import TiledSEError
from .sections import Augment
from .sources import Source

Ticket = tuple[int, int]  # (epoch, index)


class Epochs(Sampler[list[Ticket]]):
    """Batches of (epoch, index): a new order each epoch, whole batches only.

    Args:
        length: Images.
        batch_size: Of one process and one accumulated step.
        batches: In an epoch.
        seed: Of the order.
    """

    drop_last = True

    def __init__(self, length: int, batch_size: int, batches: int, seed: int) -> None:
        self.length, self.batch_size, self.batches, self.seed, self.epoch = (
            length,
            batch_size,
            batches,
            seed,
            0,
        )

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Ticket]]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order: list[int] = []
        for _ in range(self.batches):
            while len(order) < self.batch_size:
                order += torch.randperm(self.length, generator=generator).tolist()
            yield [(self.epoch, index) for index in order[: self.batch_size]]
            order = order[self.batch_size :]


def mix(*numbers: int) -> int:
    """One seed from several numbers.

    Example:
        >>> mix(0, 1) != mix(1, 0)
        True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class TrainingImages(Dataset[Any], ABC):
    """What a loader reads, and how a batch becomes what the loss takes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, ticket: Ticket) -> Any: ...

    def ready(self, batch: Any, device: torch.device) -> tuple[Any, Any]:
        """(inputs, targets) on the device."""
        inputs, targets = batch
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def loader(self, batches: Epochs, workers: int, pinned: bool) -> DataLoader[Any]:
        """A loader of these batches."""
        return DataLoader(
            self,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=pinned,
            persistent_workers=workers > 0,
        )


class Pictures(TrainingImages):
    """Images read from disk and varied one by one, by timm's training transform.

    Args:
        source: The images.
        size: (H, W) of the input.
        augment: How they vary.
        mean: Of each channel, of values in 0..1.
        std: Likewise.
        seed: Of the variation.
    """

    def __init__(
        self, source: Source, size: tuple[int, int], augment: Augment, mean: Any, std: Any, seed: int
    ) -> None:
        from timm.data import create_transform

        self._source, self._seed = source, seed
        self._transform = create_transform(
            (3, *size), is_training=True, scale=augment.crop_scale, ratio=augment.crop_ratio, hflip=augment.flip,
            color_jitter=augment.jitter or None, interpolation="bilinear", mean=mean, std=std,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, ticket: Ticket) -> tuple[Tensor, int]:
        epoch, index = ticket
        image = self._source.read(index)
        with _seeded(mix(self._seed, epoch, index)):
            return self._transform(image), self._source.labels[index]


class _seeded:
    """Random numbers of python and torch from one seed, and as they were afterwards."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._states = random.getstate(), torch.get_rng_state()
        random.seed(self._seed)
        torch.random.default_generator.manual_seed(self._seed)

    def __exit__(self, *exc: object) -> None:
        random.setstate(self._states[0])
        torch.set_rng_state(self._states[1])


class KeptImages(TrainingImages):
    """Images kept decoded on the device, cropped, resized and flipped there, a batch at a time.

    Args:
        pixels: (n, 3, S, S) uint8.
        labels: (n,) int64.
        size: (H, W) of the input.
        augment: How they vary; ``jitter`` is not done here.
        mean: Of each channel, of values in 0..1.
        std: Likewise.
        seed: Of the variation.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        augment: Augment,
        mean: Any,
        std: Any,
        seed: int,
    ) -> None:
        if augment.jitter:
            raise TiledSEError(
                "recipe: augment.jitter is not done on kept images; set cache = 0 or jitter = 0"
            )
        self._pixels, self._labels, self._size, self._augment, self._seed = (
            pixels,
            labels,
            size,
            augment,
            seed,
        )
        self._epoch, self._table = -1, torch.empty(0)
        self._mean = 255 * torch.tensor(mean, device=pixels.device)[:, None, None]
        self._std = 255 * torch.tensor(std, device=pixels.device)[:, None, None]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, ticket: Ticket) -> Ticket:
        return ticket

    def loader(self, batches: Epochs, workers: int, pinned: bool) -> DataLoader[Any]:
        """A loader of numbers; what they stand for is on the device already."""
        return DataLoader(self, batch_sampler=batches, collate_fn=torch.tensor)

    def ready(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """(inputs, labels)."""
        epoch, index = int(batch[0, 0]), batch[:, 1]
        if epoch != self._epoch:
            # One table of random numbers an epoch, so that a row belongs to its image and to nothing else.
            generator = torch.Generator().manual_seed(mix(self._seed, epoch, 1))
            self._table, self._epoch = torch.rand(len(self), 5, generator=generator).to(device), epoch
        index = index.to(device)
        rows = self._table[index]
        images = (self._pixels[index].float() - self._mean) / self._std
        return crop_resized(images, self._size, rows, self._augment), self._labels[index]


def crop_resized(images: Tensor, size: tuple[int, int], rows: Tensor, augment: Augment) -> Tensor:
    """Inception's random crop and flip, for a batch: bilinear, one crop an image.

    Args:
        images: (N, C, S, S).
        size: (H, W) of the result.
        rows: (N, 5) in 0..1: the random numbers of area, aspect ratio, place (x, y) and flip.
        augment: Ranges.

    Returns:
        (N, C, H, W).

    Example:
        >>> same = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
        >>> image = torch.rand(1, 3, 4, 4)
        >>> torch.allclose(crop_resized(image, (4, 4), torch.rand(1, 5), same), image, atol=1e-6)
        True
    """
    low, high = augment.crop_scale
    area = low + (high - low) * rows[:, 0]
    first, last = (float(np.log(ratio)) for ratio in augment.crop_ratio)
    ratio = (first + (last - first) * rows[:, 1]).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # Centres of the crop in grid_sample's coordinates, -1 to 1.
    x, y = ((2 * place - 1) * (1 - side) for place, side in ((rows[:, 2], width), (rows[:, 3], height)))
    mirror = torch.where(rows[:, 4] < augment.flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def keep(source: Source, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Decode all images of a source, stretched to (side, side): pixels (n, 3, S, S) uint8 and labels, on the device.

    Raises:
        TiledSEError: an image cannot be read.
    """
    from PIL import Image

    pixels = torch.empty(len(source), 3, side, side, dtype=torch.uint8)
    for index in range(len(source)):
        image = source.read(index)
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        pixels[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(device), torch.tensor(source.labels, device=device)
