"""The verbs that train: train, finetune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..documents import write_json
from ..errors import TiledSEError
from ..train.recipe import Recipe, parse_changes, read_recipe
from ..train.sections import Network, Variant
from ..train.tables import differences
from . import options
from .app import Interrupted, app, print_json, print_text, say
from .outputs import Output, check_folder, check_outputs

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/table1_tiles.toml.")
]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", metavar="DIR", help="With train and val in it; distill: images, may be given again."
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the runs have their folders.")]
Scale = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--scale", metavar="NAME", help="The recipe's own table for a smaller machine, such as small."
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as optimizer.lr=0.1."),
]
Names = Optional[list[str]]  # noqa: UP045
Seeds = Annotated[
    Optional[list[int]],  # noqa: UP045
    typer.Option("--seed", metavar="N", help="One of the seeds; may be given again. All by default."),
]
Weights = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--weights", metavar="FILE", help="For variants that start from weights: what fits is loaded."
    ),
]
Workers = Annotated[int, typer.Option("--workers", metavar="N", help="Processes that read images.")]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--device", metavar="D", help="cpu or cuda; what there is by default."),
]
Amp = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--amp", metavar="bfloat16|float16", help="Mixed precision."),
]
Accumulate = Annotated[int, typer.Option("--accumulate", metavar="N", help="Micro-batches of one step.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin again, though there is a checkpoint.")]


@app.command("train")
def train(
    recipe: RecipeFile,
    data: Data,
    out: Out,
    scale: Scale = None,
    change: Set = None,
    variant: Annotated[
        Names, typer.Option("--variant", metavar="NAME", help="One row of the recipe; may be given again.")
    ] = None,
    model: Annotated[
        Names, typer.Option("--model", metavar="MODEL", help="One network of the recipe; may be given again.")
    ] = None,
    seed: Seeds = None,
    weights: Weights = None,
    workers: Workers = 0,
    device: Device = None,
    amp: Amp = None,
    accumulate: Accumulate = 1,
    restart: Restart = False,
    json: options.Json = False,
) -> None:
    """Train what a recipe says: networks, variants and seeds, each in its folder; resumes what was begun.

    Start it with torchrun or accelerate launch for several processes:
    torchrun --nproc-per-node 8 -m tiledse train recipes/table4_regnet.toml --data imagenet -o runs --amp float16
    """
    changes = parse_changes(change or [])
    chosen = read_recipe(recipe, changes, scale)
    plain = read_recipe(recipe)
    notes = {
        "recipe": recipe.name,
        "scale": scale or "",
        "changed": _changes(chosen.to_dict(), plain.to_dict()),
    }
    names = list(model or [])
    if not chosen.network and names:
        chosen, names = dataclasses.replace(chosen, network=tuple(Network(name) for name in names)), []
    _run(
        chosen,
        data,
        out,
        names,
        variant,
        seed,
        weights,
        workers,
        device,
        amp,
        accumulate,
        restart,
        notes,
        json,
        recipe,
    )


@app.command("finetune")
def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The network, as for the other verbs.")],
    data: Data,
    out: Out,
    weights: Annotated[Path, typer.Option("--weights", metavar="FILE", help="The trained SE network's.")],
    tile: Annotated[
        str, typer.Option("--tile", metavar="T", help="The tile of every block: 7xW, 3xW:running.")
    ],
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--recipe", metavar="FILE", help="A recipe; recipes/table2_finetune.toml is the paper's."
        ),
    ] = None,
    distill: Annotated[bool, typer.Option("--distill", help="No labels: the SE network teaches.")] = False,
    scale: Scale = None,
    change: Set = None,
    seed: Seeds = None,
    workers: Workers = 0,
    device: Device = None,
    amp: Amp = None,
    accumulate: Accumulate = 1,
    restart: Restart = False,
    json: options.Json = False,
) -> None:
    """Give a trained SE network tiles, and train it on: with labels, or taught by the SE network without any.

    Without --recipe it takes 40 epochs at a rate of 0.01, or for --distill 240 steps of 32 images in which only the SE
    blocks learn; the statistics of normalisation stay as they are.
    """
    changes = parse_changes(change or [])
    if recipe is not None:
        chosen = read_recipe(recipe, changes, scale)
        plain = read_recipe(recipe)
    else:
        if scale is not None:
            raise TiledSEError("--scale goes with --recipe; leave it out, or change keys with --set")
        text = _DISTILL if distill else _FINETUNE
        plain, chosen = Recipe.parse(text), Recipe.parse(text, changes)
    if distill:
        chosen = dataclasses.replace(chosen, task="distill")
    row = Variant(tile.replace(":", "-"), tile, "weights")
    # A recipe that lists the network knows its input and rate.
    network = next((one for one in chosen.network if one.model == model), Network(model))
    chosen = dataclasses.replace(chosen, network=(network,), variant=(row,))
    unsaid = {"network": None, "variant": None}  # the command line says them, not the recipe
    changed = _changes({**chosen.to_dict(), **unsaid}, {**plain.to_dict(), **unsaid})
    notes = {"recipe": recipe.name if recipe else "finetune", "scale": scale or "", "changed": changed}
    _run(
        chosen, data, out, [], None, seed, weights, workers, device, amp, accumulate, restart, notes, json, recipe
    )  # fmt: skip


def _changes(chosen: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    return [
        f"{key} = {write_json(_said(now))} (recipe: {write_json(_said(was))})"
        for key, now, was in differences(chosen, plain)
    ]


def _said(value: Any) -> Any:
    """A value without the keys that nobody set."""
    if isinstance(value, list):
        return [_said(one) for one in value]
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return value


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


def _run(
    recipe: Recipe, data: list[Path], out: Path, models: list[str], variants: list[str] | None, seeds: list[int] | None,
    weights: Path | None, workers: int, device: str | None, amp: str | None, accumulate: int, restart: bool,
    notes: dict[str, Any], json: bool, recipe_file: Path | None,
) -> None:  # fmt: skip
    from ..report.training import results_table
    from ..train.objective import Setting
    from ..train.runs import accelerator, outputs_of, run_all

    if recipe.task != "distill" and len(data) != 1:
        raise TiledSEError(f"--data was given {len(data)} times; only distillation takes several folders")
    if workers < 0:
        raise TiledSEError(f"--workers {workers}: expected at least 0")
    if weights is not None and not weights.is_file():
        raise TiledSEError(f"no weights file {weights}; expected .safetensors or a torch checkpoint")
    check_folder("-o", out)
    written = outputs_of(recipe, out, variants=variants or (), seeds=seeds or (), networks=models)
    there = [Output("-o", path) for path in written if path.exists()]
    check_outputs(True, there, [weights, recipe_file])
    engine = accelerator(device, amp, accumulate)
    speaks = engine.is_main_process
    if speaks and notes["changed"]:
        say(f"not the recipe's own size: {'; '.join(notes['changed'])}")
    setting = Setting(tuple(data), engine.device, workers, start=weights)
    try:
        results = run_all(
            recipe, setting, out, engine, variants=variants or (), seeds=seeds or (), networks=models,
            restart=restart, notes=notes, say=say if speaks else lambda line: None,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"the same command goes on from the last whole epoch in {out}") from None
    if not speaks:
        return
    if json:
        print_json({"results": results})
    else:
        print_text(*results_table(results))
