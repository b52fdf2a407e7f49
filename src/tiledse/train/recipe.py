"""Recipe: a training experiment as a frozen value, read from a short TOML file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..documents import read_json, read_toml, write_json
from ..errors import TiledSEError, first_line
from ..numerals import quoted
from ..tile import Tile
from .sections import Augment, Loss, Network, Optimizer, Schedule, Variant, check_range, check_trained
from .tables import made, merged

Task = Literal["classify", "segment", "detect", "distill"]


# Key, least, most.
_COUNTS = (
    ("epochs", 1, 10**6), ("batch_size", 1, 2**24), ("classes", 1, 2**24), ("steps_per_epoch", 0, 10**9),
    ("cache", 0, 2**14), ("restore_norm", 0, 10**6), ("backbone_stride", 1, 64),
)  # fmt: skip
# Section, key, and the tasks that read it.
_READ_BY = (
    ("loss", "smoothing", ("classify",)), ("loss", "temperature", ("distill",)),
    ("augment", "resize_range", ("segment", "detect")), ("augment", "crop_scale", ("classify", "distill")),
    ("augment", "crop_ratio", ("classify", "distill")), ("", "backbone_stride", ("segment",)),
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A training experiment: networks times variants times seeds.

    Args:
        task: ``classify``, ``segment``, ``detect``, or ``distill`` (no labels: the SE network teaches).
        about: What it is, and where in the paper.
        network: The networks; empty where MODEL is given on the command line.
        variant: The rows.
        input: ``CxHxW``.
        classes: Of the head.
        epochs: Passes over the data.
        steps_per_epoch: Optimizer steps that count as an epoch; 0 for the whole set.
        batch_size: Images of one optimizer step, over all processes and accumulated steps.
        seeds: One run each.
        subset: Share of the training images that is used, drawn once by the first seed of all, 0.
        as_is: Tiles that the trained SE networks are also measured with, weights as they are.
        cache: Side in pixels that images are stretched to and kept decoded with, on the device, where they are also
            varied; for sets that fit there. 0 reads them from disk each time.
        ema: Decay of the moving average of weights; 0 for none.
        trainable: Globs of the names of parameters that are trained, or ``attention`` for those of the SE blocks; the
            others stay as they are.
        freeze_norm: Normalisation keeps its statistics: for fine-tuning with small batches.
        restore_norm: Normalisation that was folded away (mean 0, variance 1, as in weights from a deployed file) gets
            the statistics of this many batches before the first step; the network's function stays. 0 leaves it.
        channels_last: Memory layout.
        backbone_stride: segment: output stride of the backbone.
        optimizer: See Optimizer.
        schedule: See Schedule.
        augment: See Augment.
        loss: See Loss.

    Example:
        >>> recipe = Recipe.parse('task = "classify"\\nclasses = 10\\nepochs = 2\\n[[variant]]\\nname = "se"')
        >>> recipe.epochs, recipe.variant[0].tile, recipe.optimizer.name
        (2, 'HxW', 'sgd')
        >>> Recipe.parse("epoch = 2")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: recipe: no key 'epoch'; did you mean 'epochs'?
    """

    task: Task = "classify"
    about: str = ""
    network: tuple[Network, ...] = ()
    variant: tuple[Variant, ...] = (Variant("se"),)
    input: str = "3x224x224"
    classes: int = 1000
    epochs: int = 100
    steps_per_epoch: int = 0
    batch_size: int = 1024
    seeds: tuple[int, ...] = (0,)
    subset: float = 1.0
    as_is: tuple[str, ...] = ()
    cache: int = 0
    ema: float = 0.0
    trainable: tuple[str, ...] = ("*",)
    freeze_norm: bool = False
    restore_norm: int = 0
    channels_last: bool = False
    backbone_stride: int = 16
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        for size in (self.input, *(network.input for network in self.network)):
            if size is not None:
                _size(size)
        for tile in self.as_is:
            check_trained(Tile.parse(tile))
        names = [variant.name for variant in self.variant]
        for name in names:
            if names.count(name) > 1:
                raise TiledSEError(
                    f"recipe: two variants are called '{name}'; their runs need names of their own"
                )
        for variant in self.variant:
            if variant.start not in ("scratch", "weights", *names):
                raise TiledSEError(
                    f"recipe: variant '{variant.name}' starts from '{variant.start}'; expected scratch, weights or "
                    f"another variant ({', '.join(names)})"
                )
        for key, least, most in _COUNTS:
            check_range(key, getattr(self, key), least, most)
        check_range("subset", self.subset, 0, 1, above=True)
        check_range("ema", self.ema, 0, 1, below=True)
        for seed in self.seeds:
            check_range("seeds", seed, 0, 2**31 - 1)
            if self.seeds.count(seed) > 1:
                raise TiledSEError(f"recipe: seeds has {seed} twice; each run needs one of its own")
        self._check_read()
        if not self.variant or not self.seeds:
            raise TiledSEError("recipe: expected at least one variant and one seed")

    def _check_read(self) -> None:
        """What a task does not read must not look as if it did something."""
        default = {"loss": Loss(), "augment": Augment(), "": Recipe}
        for section, key, tasks in _READ_BY:
            holder = getattr(self, section) if section else self
            if self.task not in tasks and getattr(holder, key) != getattr(default[section], key):
                where = f"[{section}] {key}" if section else key
                raise TiledSEError(
                    f"recipe: {where} does nothing for the task {self.task}, only for {' and '.join(tasks)}; "
                    "leave it out"
                )

    @classmethod
    def parse(cls, text: str, changes: Mapping[str, Any] | None = None, scale: str | None = None) -> Recipe:
        """A recipe from TOML.

        Args:
            text: The file's text.
            changes: By dotted key, such as ``{"optimizer.lr": 0.1}``, in place of what the file says.
            scale: The name of a table ``[scale.NAME]`` whose keys go in place of the file's.

        Raises:
            TiledSEError: no TOML, an unknown key or scale, a value of another type.
        """
        try:
            data = read_toml(text)
        except ValueError as error:
            raise TiledSEError(f"recipe: no TOML: {first_line(error)}") from error
        scales = data.pop("scale", {})
        if not isinstance(scales, Mapping) or not all(isinstance(part, Mapping) for part in scales.values()):
            raise TiledSEError("recipe: scale is no table of tables; expected [scale.NAME] and keys below it")
        if scale is not None:
            if scale not in scales:
                raise TiledSEError(f"recipe: no scale '{scale}'; it has {', '.join(scales) or 'none'}")
            data = merged(data, scales[scale])
        for key, value in (changes or {}).items():
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            data = merged(data, nested)
        recipe = made(cls, data, "recipe")
        for name in scales:  # a scale that nobody chose is checked too
            made(cls, merged(data, scales[name]), f"recipe, [scale.{name}]")
        return recipe

    def for_network(self, network: Network) -> Recipe:
        """The recipe of one of its networks alone."""
        changed = {
            key: getattr(network, key) for key in ("input", "batch_size") if getattr(network, key) is not None
        }
        if network.lr is not None:
            changed["optimizer"] = dataclasses.replace(self.optimizer, lr=network.lr)
        return dataclasses.replace(self, network=(Network(network.model),), **changed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, each key with its value."""
        return read_json(write_json(dataclasses.asdict(self)))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return _size(self.input)


def read_recipe(
    path: str | Path, changes: Mapping[str, Any] | None = None, scale: str | None = None
) -> Recipe:
    """A recipe from a file; see ``Recipe.parse``.

    Raises:
        TiledSEError: no such file, and what ``Recipe.parse`` refuses.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TiledSEError(
            f"cannot read recipe {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        return Recipe.parse(text, changes, scale)
    except TiledSEError as error:
        raise TiledSEError(f"{path}: {error}") from error


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts of ``--set`` as changes; values as TOML writes them, bare words as text.

    Example:
        >>> parse_changes(["epochs=2", "optimizer.lr=0.1", "input=3x64x64"])
        {'epochs': 2, 'optimizer.lr': 0.1, 'input': '3x64x64'}
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise TiledSEError(f"--set '{text}': expected key=value, such as epochs=2 or optimizer.lr=0.1")
        try:
            changes[key.strip()] = read_toml(f"v = {value}")["v"]
        except ValueError:
            changes[key.strip()] = value.strip()
    return changes


def _size(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text)
    if found is None:
        raise TiledSEError(f"recipe: input = {quoted(text)}; expected CxHxW, such as 3x224x224")
    channels, height, width = map(int, found.groups())
    return channels, height, width
