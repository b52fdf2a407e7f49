"""A recipe as it is to be run: from its file, or for the fine-tuning of one network; and what was changed in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..documents import write_json
from ..errors import TiledSEError
from .recipe import Recipe, parse_changes, read_recipe
from .sections import Network, Variant
from .tables import differences

# What docs/results.md was measured with: only the SE blocks learn, or a few hundred images are learnt by heart.
_DISTILL = """
task = "distill"
epochs = 6
steps_per_epoch = 40
batch_size = 32
freeze_norm = true
trainable = ["attention"]
[optimizer]
lr = 0.05
weight_decay = 0.0
clip_norm = 1.0
[schedule]
warmup_epochs = 0.3
[augment]
crop_scale = [0.15, 1.0]
"""
_FINETUNE = """
epochs = 40
batch_size = 256
freeze_norm = true
[optimizer]
lr = 0.01
"""


@dataclass(frozen=True)
class Experiment:
    """A recipe as it is to be run.

    Args:
        recipe: With all changes in it.
        networks: Those of the recipe that are trained; empty for all.
        file: Where the recipe was read; None for one of ours.
        scale: Its table for a smaller machine, if one was asked for.
        changed: What differs from the file, each as ``key = now (recipe: before)``.
    """

    recipe: Recipe
    networks: tuple[str, ...] = ()
    file: Path | None = None
    scale: str | None = None
    changed: tuple[str, ...] = ()

    @property
    def notes(self) -> dict[str, Any]:
        """What results say of the recipe."""
        name = self.file.name if self.file else "finetune"
        return {"recipe": name, "scale": self.scale or "", "changed": list(self.changed)}


def from_recipe(
    file: Path, changes: Sequence[str] = (), scale: str | None = None, networks: Sequence[str] = ()
) -> Experiment:
    """A recipe from its file.

    Args:
        file: TOML.
        changes: ``key=value``, such as ``optimizer.lr=0.1``.
        scale: The recipe's own table for a smaller machine.
        networks: Which of its networks; or the networks, for a recipe that names none.

    Raises:
        TiledSEError: see ``read_recipe``.
    """
    recipe, plain = read_recipe(file, parse_changes(changes), scale), read_recipe(file)
    changed = _changes(recipe.to_dict(), plain.to_dict())
    if not recipe.network and networks:
        recipe, networks = replace(recipe, network=tuple(Network(name) for name in networks)), ()
    return Experiment(recipe, tuple(networks), file, scale, changed)


def finetuning(
    model: str, tile: str, *, file: Path | None = None, changes: Sequence[str] = (), scale: str | None = None,
    distill: bool = False,
) -> Experiment:  # fmt: skip
    """The fine-tuning of a trained SE network with one tile for all blocks.

    Args:
        model: The network, as MODEL names it.
        tile: The tile.
        file: A recipe; ours, where it is left out.
        changes: See ``from_recipe``.
        scale: See ``from_recipe``; goes with a file.
        distill: No labels: the SE network teaches.

    Raises:
        TiledSEError: a scale without a file, or see ``read_recipe``.
    """
    if file is not None:
        recipe, plain = read_recipe(file, parse_changes(changes), scale), read_recipe(file)
    else:
        given = parse_changes(changes)
        if scale is not None:
            raise TiledSEError("--scale goes with --recipe; leave it out, or change keys with --set")
        text = _DISTILL if distill else _FINETUNE
        recipe, plain = Recipe.parse(text, given), Recipe.parse(text)
    if distill:
        recipe = replace(recipe, task="distill")
    row = Variant(tile.replace(":", "-"), tile, "weights")
    # A recipe that lists the network knows its input and rate.
    network = next((one for one in recipe.network if one.model == model), Network(model))
    recipe = replace(recipe, network=(network,), variant=(row,))
    unsaid = {"network": None, "variant": None}  # who calls says them, not the recipe
    changed = _changes({**recipe.to_dict(), **unsaid}, {**plain.to_dict(), **unsaid})
    return Experiment(recipe, (), file, scale, changed)


def _changes(chosen: dict[str, Any], plain: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{key} = {write_json(_said(now))} (recipe: {write_json(_said(was))})"
        for key, now, was in differences(chosen, plain)
    )


def _said(value: Any) -> Any:
    """A value without the keys that nobody set."""
    if isinstance(value, list):
        return [_said(one) for one in value]
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return value
