"""The verbs that train: train, finetune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..errors import TiledSEError
from ..files import near_files
from .app import Interrupted, say
from .groups import verb
from .outputs import Output, check_folder, check_outputs
from .results import Result

if TYPE_CHECKING:
    from ..train.experiment import Experiment

Names = list[str] | None

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/table1_tiles.toml.")
]
Variants = Annotated[
    Names, typer.Option("--variant", metavar="NAME", help="One row of the recipe; may be given again.")
]
Models = Annotated[
    Names, typer.Option("--model", metavar="MODEL", help="One network of the recipe; may be given again.")
]
StartWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="For variants that start from weights: what fits is loaded."
    ),
]
TrainedModel = Annotated[str, typer.Argument(metavar="MODEL", help="The network, as for the other verbs.")]
TrainedWeights = Annotated[Path, typer.Option("--weights", metavar="FILE", help="The trained SE network's.")]
Tile = Annotated[str, typer.Option("--tile", metavar="T", help="The tile of every block: 7xW, 3xW:running.")]
OwnRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="A recipe; recipes/table2_finetune.toml is the paper's."),
]
Distill = Annotated[bool, typer.Option("--distill", help="No labels: the SE network teaches.")]


@dataclass(frozen=True)
class Changes:
    """What is changed in a recipe."""

    panel: ClassVar[str] = "Recipe"

    scale: Annotated[
        str | None,
        typer.Option(
            "--scale", metavar="NAME", help="The recipe's own table for a smaller machine, such as small."
        ),
    ] = None
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as optimizer.lr=0.1."
        ),
    ] = None


@dataclass(frozen=True)
class Run:
    """Images, folder and machine of a training."""

    panel: ClassVar[str] = "Run"

    data: Annotated[
        list[Path],
        typer.Option(
            "--data", metavar="DIR", help="With train and val in it; distill: images, may be given again."
        ),
    ]
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where the runs have their folders.")
    ]
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", metavar="N", help="One of the seeds; may be given again. All by default."),
    ] = None
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Processes that read images.")] = 0
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="D", help="cpu or cuda; what there is by default."),
    ] = None
    amp: Annotated[str | None, typer.Option("--amp", metavar="bfloat16|float16", help="Mixed precision.")] = (
        None
    )
    accumulate: Annotated[
        int, typer.Option("--accumulate", metavar="N", help="Micro-batches of one step.")
    ] = 1
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, though there is a checkpoint.")] = (
        False
    )


@verb("train")
def train(
    recipe: RecipeFile,
    run: Run,
    changes: Changes,
    result: Result,
    variant: Variants = None,
    model: Models = None,
    weights: StartWeights = None,
) -> None:
    """Train what a recipe says: networks, variants and seeds, each in its folder; resumes what was begun.

    Start it with torchrun or accelerate launch for several processes:
    torchrun --nproc-per-node 8 -m tiledse train recipes/table4_regnet.toml --data imagenet -o runs --amp float16
    """
    from ..train.experiment import from_recipe

    experiment = from_recipe(recipe, changes.change or (), changes.scale, model or ())
    _run(experiment, run, weights, variant or [], result)


@verb("finetune")
def finetune(
    model: TrainedModel,
    run: Run,
    changes: Changes,
    result: Result,
    weights: TrainedWeights,
    tile: Tile,
    recipe: OwnRecipe = None,
    distill: Distill = False,
) -> None:
    """Give a trained SE network tiles, and train it on: with labels, or taught by the SE network without any.

    Without --recipe it takes 40 epochs at a rate of 0.01, or for --distill 240 steps of 32 images in which only the SE
    blocks learn; the statistics of normalisation stay as they are.
    """
    from ..train.experiment import finetuning

    experiment = finetuning(
        model, tile, file=recipe, changes=changes.change or (), scale=changes.scale, distill=distill
    )
    _run(experiment, run, weights, [], result)


def _run(experiment: Experiment, run: Run, weights: Path | None, variants: list[str], result: Result) -> None:
    from ..report.training import results_table
    from ..train.objective import Setting
    from ..train.runs import accelerator, outputs_of, run_all

    recipe, models = experiment.recipe, experiment.networks
    if recipe.task != "distill" and len(run.data) != 1:
        raise TiledSEError(f"--data was given {len(run.data)} times; only distillation takes several folders")
    if run.workers < 0:
        raise TiledSEError(f"--workers {run.workers}: expected at least 0")
    if weights is not None and not weights.is_file():
        raise TiledSEError(
            f"no weights file {weights}{near_files(weights)}; expected .safetensors or a torch checkpoint"
        )
    check_folder("-o", run.out)
    written = outputs_of(recipe, run.out, variants=variants, seeds=run.seed or (), networks=models)
    check_outputs(True, [Output("-o", path) for path in written if path.exists()], [weights, experiment.file])
    engine = accelerator(run.device, run.amp, run.accumulate)
    speaks = engine.is_main_process
    if speaks and experiment.changed:
        say(f"not the recipe's own size: {'; '.join(experiment.changed)}")
    setting = Setting(tuple(run.data), engine.device, run.workers, start=weights)
    try:
        results = run_all(
            recipe, setting, run.out, engine, variants=variants, seeds=run.seed or (), networks=models,
            restart=run.restart, notes=experiment.notes, say=say if speaks else lambda line: None,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"the same command goes on from the last whole epoch in {run.out}") from None
    if speaks:
        result.show(lambda: {"results": results}, lambda: results_table(results))
