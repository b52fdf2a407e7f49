"""The sections of a recipe, as frozen values: how weights move, how images vary, what is minimised, the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import TiledSEError
from ..tile import Tile


@dataclass(frozen=True)
class Optimizer:
    """How weights are moved; made by ``timm.optim``.

    Args:
        name: timm's name.
        lr: Base rate, of the global batch that the recipe names.
        momentum: Of SGD.
        weight_decay: L2.
        nesterov: Nesterov's momentum, as pycls and timm's ``sgd`` have it.
        decay_all: Whether biases and normalisation decay too, as in pycls.
        clip_norm: Largest norm of the gradient; 0 leaves it.
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-5
    nesterov: bool = True
    decay_all: bool = True
    clip_norm: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """How the rate moves, step by step; made by ``timm.scheduler``.

    Args:
        name: ``cosine``, ``poly`` or ``constant``.
        warmup_epochs: Epochs of linear warm-up.
        warmup_factor: The rate at its beginning, relative to the base rate.
        power: Of ``poly``.
        min_factor: The rate at the end, relative to the base rate.
    """

    name: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_factor: float = 0.1
    power: float = 0.9
    min_factor: float = 0.0


@dataclass(frozen=True)
class Augment:
    """How training images vary.

    Args:
        crop_scale: Smallest and largest share of the image's area that a crop keeps; (1, 1) crops nothing.
        crop_ratio: Smallest and largest aspect ratio of a crop.
        flip: Probability of a horizontal flip.
        resize_range: segment and detect: smallest and largest factor of the resize before the crop.
        jitter: Strength of brightness, contrast and saturation changes; 0 for none.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    resize_range: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.0


@dataclass(frozen=True)
class Loss:
    """What is minimised.

    Args:
        smoothing: classify: label smoothing.
        temperature: distill: of the teacher's and the student's softmax.
    """

    smoothing: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Variant:
    """One row of a table: what stands where the network has SE blocks.

    Args:
        name: Of the row, in file names and results.
        tile: ``HxW`` (SE), a tile, or ``none`` for the network without attention.
        start: ``scratch``; ``weights`` (those given, such as ImageNet's, at the shapes that fit); or the name of
            another variant whose trained weights it starts from (the paper's fine-tuning).
        kernel: (along, across) the tiles, of the excitation's convolutions; the paper's C3x1 is [3, 1].
        ratio: The paper's R; the width between the convolutions is that of the network's own SE times 4 / R.
    """

    name: str
    tile: str = "HxW"
    start: str = "scratch"
    kernel: tuple[int, int] | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.tile != "none":
            Tile.parse(self.tile)
        if not self.name or any(mark in self.name for mark in "/\\ *"):
            raise TiledSEError(f"no name of a variant: '{self.name}'; it names a folder")


@dataclass(frozen=True)
class Network:
    """One network of a recipe, and what differs for it.

    Args:
        model: MODEL.
        input: Its input, where it is not the recipe's.
        batch_size: Its global batch, where it is not the recipe's.
        lr: Its base rate, where it is not the recipe's.
    """

    model: str
    input: str | None = None
    batch_size: int | None = None
    lr: float | None = None
