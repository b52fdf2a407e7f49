"""Put a trained run into the zoo: half-precision weights, measured as they will be shipped.

``python -m tiledse.train.publishing RUN --name NAME --recipe FILE --data DIR --trained-on TEXT --licence TEXT``
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..documents import read_json
from ..errors import TiledSEError, first_line
from ..locks import locked
from ..networks.modes import in_eval
from ..networks.weights import load_weights
from ..networks.zoo.catalogue import FOLDER, Entry, entries, write_index
from ..networks.zoo.opening import build
from ..networks.zoo.packing import LIMIT_BYTES, packed, write_packed
from ..plan import Plan
from .objective import Objective, Setting
from .recipe import Recipe, parse_changes, read_recipe
from .runs import objective_of


def publish(
    run: Path, name: str, recipe: Recipe, data: Path | None, trained_on: str, licence: str, folder: Path = FOLDER,
    weights: str = "best.safetensors", figures: dict[str, float] | None = None, n: int = 0,
) -> Entry:  # fmt: skip
    """Add a run to the zoo, or replace the network of that name.

    Args:
        run: Its folder, with best.safetensors and result.json.
        name: In the zoo.
        recipe: That trained it, with its scale and changes.
        data: The recipe's data; the weights are measured on its validation images as they will be shipped.
        trained_on: What it was trained on, in words.
        licence: Of the weights and the data, in words.
        folder: Where the zoo is.
        weights: The file in ``run``.
        figures: In place of ``data``, where the recipe has no labels: what ``tiledse eval`` measured, the metric first.
        n: On how many images.

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
    if (data is None) == (not figures) or (data is None and n < 1):
        raise TiledSEError("give the recipe's --data, or what `tiledse eval` measured with --figure and --n")
    if data is not None and own.task == "distill":
        raise TiledSEError(
            "distillation has no labels to measure by: give --figure top1=VALUE and --n, from `tiledse eval`"
        )
    task = "classify" if own.task == "distill" else own.task
    draft = Entry(
        name, task, network.model, own.classes, own.input, variant.tile, str(result.get("recipe", "")),
        str(result.get("scale", "")), tuple(result.get("changed", ())), trained_on, "", 0.0, 0, {},
        int(result["epochs"]), int(result["seed"]), licence, 0, f"{name}.safetensors", "",
        own.backbone_stride if own.task == "segment" else None, variant.kernel, variant.ratio, folder,
    )  # fmt: skip
    model, plan = build(dataclasses.replace(draft, file=source.name, folder=source.parent))
    load_weights(model, source)
    state = packed(model)
    model.load_state_dict(state)
    if data is not None:
        figures, n = _measured(own, data, in_eval(model))
    assert figures
    metric = next(iter(figures))
    size = sum(value.numel() * value.element_size() for value in state.values())
    # Read, changed and written alone: of two that publish at once the later would lose the earlier's network.
    with locked(folder / "index.json"):
        listed = [entry for entry in entries(folder) if entry.name != name]
        whole = size + sum(entry.path.stat().st_size for entry in listed)
        if whole > LIMIT_BYTES:
            raise TiledSEError(
                f"the zoo would hold {whole:,} bytes with '{name}' ({size:,}); it is to stay under {LIMIT_BYTES:,}"
            )
        entry = dataclasses.replace(
            draft, metric=metric, accuracy=figures[metric], figures=figures, n=n,
            params=sum(p.numel() for p in model.parameters()),
            sha256=write_packed(state, plan, folder / draft.file, network.model),
        )  # fmt: skip
        write_index([*listed, entry], folder)
    return entry


def _result(run: Path) -> dict[str, Any]:
    try:
        result = read_json((run / "result.json").read_text("utf-8"))
    except OSError as error:
        raise TiledSEError(f"{run} is no finished run: no result.json in it ({error.strerror})") from error
    except ValueError as error:
        raise TiledSEError(f"{run / 'result.json'} is damaged: {first_line(error)}") from error
    return result


def _measured(recipe: Recipe, data: Path, model: nn.Module) -> tuple[dict[str, float], int]:
    """The figures, that of the task first, and on how many images."""
    objective = objective_of(recipe, Setting((data,), torch.device("cpu")))
    with torch.no_grad():
        figures = objective.measure(model)
    first = {objective.metric: figures[objective.metric]}
    return {key: round(float(value), 4) for key, value in {**first, **figures}.items()}, _count(objective)


def _count(objective: Objective) -> int:
    """How many images it is judged by."""
    held = objective._held  # type: ignore[attr-defined]
    if isinstance(held, dict):
        held = held[""].pairs
    return len(held.ids if hasattr(held, "ids") else held)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TiledSEError(f"--figure {key}={value}: expected a number, such as top1=71.38")
    return float(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m tiledse.train.publishing", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run: best.safetensors and result.json")
    parser.add_argument("--name", required=True)
    parser.add_argument("--recipe", required=True, type=Path)
    parser.add_argument("--scale")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, help="the recipe's data: the weights are measured again")
    parser.add_argument(
        "--figure", action="append", default=[], metavar="METRIC=VALUE", help="measured, in place of --data"
    )
    parser.add_argument("--n", type=int, default=0, help="images that --figure was measured on")
    parser.add_argument("--trained-on", required=True, help="the training images, in words")
    parser.add_argument("--licence", required=True, help="of weights and data, in words")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="another zoo than the package's")
    given = parser.parse_args(argv)
    try:
        recipe = read_recipe(given.recipe, parse_changes(given.set), given.scale)
        figures = {key: _number(key, value) for key, value in parse_changes(given.figure).items()}
        entry = publish(
            given.run, given.name, recipe, given.data, given.trained_on, given.licence, given.folder,
            figures=figures, n=given.n,
        )  # fmt: skip
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
