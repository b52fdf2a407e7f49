"""The sections of a recipe, as frozen values: how weights move, how images vary, what is minimised, the rows."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from ..errors import TiledSEError
from ..numerals import quoted
from ..tile import Tile


def check_trained(tile: Tile) -> None:
    """Check that a network can be trained, and measured on images, with a tile.

    Raises:
        TiledSEError: it keeps a state from frame to frame.
    """
    if tile.previous:
        raise TiledSEError(
            f"recipe: {tile} runs on the frames of a stream and is not trained; train with HxW or 1xW:running, and "
            "convert what comes of it"
        )


def check_range(
    what: str, value: Any, least: float, most: float = inf, *, above: bool = False, below: bool = False
) -> None:
    """Check a number of a recipe.

    Args:
        what: Its key, for the message.
        value: The number.
        least: The least that it may be.
        most: The most.
        above: Whether ``least`` itself is too little.
        below: Whether ``most`` itself is too much.

    Raises:
        TiledSEError: it is out of range, or no finite number.

    Example:
        >>> check_range("[optimizer] lr", -1.0, 0, above=True)
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: recipe: [optimizer] lr = -1.0; expected a number above 0
    """
    fits = least <= value <= most and value not in ((least,) * above + (most,) * below + (inf, -inf))
    if not fits:
        lower = f"above {least}" if above else f"of at least {least}"
        upper = "" if most == inf else f", below {most}" if below else f", at most {most}"
        raise TiledSEError(f"recipe: {what} = {quoted(value)}; expected a number {lower}{upper}")


def _check_pair(what: str, pair: tuple[float, float], most: float = inf) -> None:
    for value in pair:
        check_range(what, value, 0, most, above=True)
    if pair[0] > pair[1]:
        raise TiledSEError(f"recipe: {what} = {list(pair)}; expected the smallest first")


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

    def __post_init__(self) -> None:
        check_range("[optimizer] lr", self.lr, 0)  # 0: statistics of normalisation alone
        check_range("[optimizer] momentum", self.momentum, 0, 1, below=True)
        check_range("[optimizer] weight_decay", self.weight_decay, 0)
        check_range("[optimizer] clip_norm", self.clip_norm, 0)


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

    def __post_init__(self) -> None:
        check_range("[schedule] warmup_epochs", self.warmup_epochs, 0)
        check_range("[schedule] warmup_factor", self.warmup_factor, 0, 1)
        check_range("[schedule] power", self.power, 0, above=True)
        check_range("[schedule] min_factor", self.min_factor, 0, 1)


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

    def __post_init__(self) -> None:
        _check_pair("[augment] crop_scale", self.crop_scale, 1)
        _check_pair("[augment] crop_ratio", self.crop_ratio)
        _check_pair("[augment] resize_range", self.resize_range)
        check_range("[augment] flip", self.flip, 0, 1)
        check_range("[augment] jitter", self.jitter, 0)


@dataclass(frozen=True)
class Loss:
    """What is minimised.

    Args:
        smoothing: classify: label smoothing.
        temperature: distill: of the teacher's and the student's softmax.
    """

    smoothing: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_range("[loss] smoothing", self.smoothing, 0, 1, below=True)
        check_range("[loss] temperature", self.temperature, 0, above=True)


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
            check_trained(Tile.parse(self.tile))
        controls = any(unicodedata.category(mark)[0] in "CZ" for mark in self.name)
        if not self.name.strip(".") or len(self.name) > 100 or controls or set(self.name) & set("/\\*"):
            raise TiledSEError(
                f"no name of a variant: {quoted(self.name)}; it names a folder: expected at most 100 letters, digits "
                "and marks, without blanks, slashes, stars and control characters"
            )
        for side in self.kernel or ():
            check_range(f"kernel of variant '{self.name}'", side, 1, 99)
        if self.ratio is not None:
            check_range(f"ratio of variant '{self.name}'", self.ratio, 0, above=True)


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

    def __post_init__(self) -> None:
        if not self.model or "\0" in self.model:
            raise TiledSEError(f"recipe: no MODEL {quoted(self.model)} in [[network]]")
        if self.batch_size is not None:
            check_range(f"batch_size of {self.model}", self.batch_size, 1, 2**24)
        if self.lr is not None:
            check_range(f"lr of {self.model}", self.lr, 0, above=True)
