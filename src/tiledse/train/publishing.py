"""Put a trained run into the zoo: half-precision weights, measured as they will be shipped.

``python -m tiledse.train.publishing RUN --name NAME --recipe FILE --data DIR --trained-on TEXT --licence TEXT``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import TiledSEError, first_line
from ..networks.loading import load_weights
from ..networks.zoo.catalogue import FOLDER, Entry, entries, write_index
from ..networks.zoo.opening import build
from ..networks.zoo.packing import LIMIT_BYTES, packed, write_packed
from ..plan import Plan
from .objective import Objective, Setting
from .recipe import Recipe, parse_changes, read_recipe
from .runs import objective_of


def publish(
    run: Path, name: str, recipe: Recipe, data: Path, trained_on: str, licence: str, folder: Path = FOLDER,
    weights: str = "best.safetensors",
) -> Entry:  # fmt: skip
    """Add a run to the zoo, or replace the network of that name.

    Args:
        run: Its folder, with best.safetensors and result.json.
        name: In the zoo.
        recipe: That trained it, with its scale and changes.
        data: Where its validation images are; the weights are measured on them as they will be shipped.
        trained_on: What it was trained on, in words.
        licence: Of the weights and the data, in words.
        folder: Where the zoo is.
        weights: The file in ``run``.

    Returns:
        What the index says of it now.

    Raises:
        TiledSEError: the run is not complete, the recipe is of another run, the zoo would grow over 20 MB.
    """
    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise TiledSEError(f"no name for the zoo: '{name}'; expected letters, digits, - _ .")
    source, result = run / weights, _result(run)
    variant = next((one for one in recipe.variant if one.name == result["variant"]), None)
    network = next((one for one in recipe.network if one.model == result["network"]), None)
    if variant is None or network is None or variant.tile != result["tile"]:
        raise TiledSEError(
            f"{run} is a run of {result['network']}, variant '{result['variant']}' ({result['tile']}); the recipe has "
            f"no such row: give the recipe that trained it, with --scale and --set as they were"
        )
    own = recipe.for_network(network)
    if own.task == "distill":
        raise TiledSEError("a distilled network is a classifier: give its recipe with --set task=classify")
    draft = Entry(
        name, own.task, network.model, own.classes, own.input, variant.tile, str(result.get("recipe", "")),
        str(result.get("scale", "")), tuple(result.get("changed", ())), trained_on, "", 0.0, 0, {},
        int(result["epochs"]), int(result["seed"]), licence, 0, f"{name}.safetensors", "",
        own.backbone_stride if own.task == "segment" else None, variant.kernel, variant.ratio, folder,
    )  # fmt: skip
    model, plan = build(dataclasses.replace(draft, file=source.name, folder=source.parent))
    load_weights(model, source)
    state = packed(model)
    model.load_state_dict(state)
    objective, figures = _measured(own, data, model.eval())
    listed = [entry for entry in entries(folder) if entry.name != name]
    size = sum(value.numel() * value.element_size() for value in state.values())
    whole = size + sum(entry.path.stat().st_size for entry in listed)
    if whole > LIMIT_BYTES:
        raise TiledSEError(
            f"the zoo would hold {whole:,} bytes with '{name}' ({size:,}); it is to stay under {LIMIT_BYTES:,}"
        )
    entry = dataclasses.replace(
        draft, metric=objective.metric, accuracy=figures[objective.metric], figures=figures, n=_count(objective),
        params=sum(p.numel() for p in model.parameters()),
        sha256=write_packed(state, plan, folder / draft.file, network.model),
    )  # fmt: skip
    write_index([*listed, entry], folder)
    return entry


def _result(run: Path) -> dict[str, Any]:
    try:
        result = json.loads((run / "result.json").read_text("utf-8"))
    except OSError as error:
        raise TiledSEError(f"{run} is no finished run: no result.json in it ({error.strerror})") from error
    except ValueError as error:
        raise TiledSEError(f"{run / 'result.json'} is damaged: {first_line(error)}") from error
    return result


def _measured(recipe: Recipe, data: Path, model: nn.Module) -> tuple[Objective, dict[str, float]]:
    objective = objective_of(recipe, Setting((data,), torch.device("cpu")))
    with torch.no_grad():
        figures = objective.measure(model)
    return objective, {key: round(float(value), 4) for key, value in figures.items()}


def _count(objective: Objective) -> int:
    """How many images it is judged by."""
    held = objective._held  # type: ignore[attr-defined]
    if isinstance(held, dict):
        held = held[""].pairs
    return len(held.ids if hasattr(held, "ids") else held)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m tiledse.train.publishing", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run: best.safetensors and result.json")
    parser.add_argument("--name", required=True)
    parser.add_argument("--recipe", required=True, type=Path)
    parser.add_argument("--scale")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--data", required=True, type=Path, help="the recipe's data: the weights are measured again"
    )
    parser.add_argument("--trained-on", required=True, help="the training images, in words")
    parser.add_argument("--licence", required=True, help="of weights and data, in words")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="another zoo than the package's")
    given = parser.parse_args(argv)
    try:
        recipe = read_recipe(given.recipe, parse_changes(given.set), given.scale)
        entry = publish(
            given.run, given.name, recipe, given.data, given.trained_on, given.licence, given.folder
        )
    except TiledSEError as error:
        print(f"tiledse: {error}", file=sys.stderr)
        return 2
    plan = Plan.load(entry.path)
    print(
        f"zoo:{entry.name}: {entry.metric} {entry.accuracy:.2f} % on {entry.n:,} images, {entry.params:,} parameters, "
        f"{entry.path.stat().st_size:,} bytes, {len(plan)} blocks at {entry.tile}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
