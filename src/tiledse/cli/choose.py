"""Verbs that choose: calibrate, search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from ..errors import TiledSEError
from .app import say
from .data import Images
from .groups import verb
from .model import Model, PlanOutput, Tiles
from .outputs import Output, check_folder
from .results import Figure, Files

if TYPE_CHECKING:
    from ..choose.budget import Order
    from ..network import Network
    from .measuring import Opened

CalibratedOutput = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="plan.json, out.safetensors, or out.onnx of FILE.onnx (.tflite likewise)",
    ),
]
MostImages = Annotated[int, typer.Option("--images", metavar="N", help="Take at most N images.")]
Prior = Annotated[
    float, typer.Option("--prior", metavar="N", help="Ridge: the weight of changing nothing, in images.")
]


@verb("calibrate")
def calibrate(
    model: Model,
    data: Images,
    tiles: Tiles,
    result: Files,
    output: CalibratedOutput,
    images: MostImages = 500,
    prior: Prior = 300.0,
) -> None:
    """Bring strips closer to the whole map's mean, from unlabelled images; a fifth of them checks the result."""
    from ..choose.held_out import calibrate_held_out
    from ..network import Form
    from ..opening import written_endings
    from ..report.calibration import calibration_lines
    from .arguments import tell_random
    from .progress import progress_bar

    endings = (".json", *written_endings())
    result.check([Output("-o", output, endings)], [*model.files, tiles.plan, *data.files])
    if not 0 < prior < inf or images < 1 or data.batch_size < 1:
        raise TiledSEError(
            f"expected --prior above 0, --images and --batch-size of at least 1, got {prior}, {images} and "
            f"{data.batch_size}"
        )
    opened = _open(model.at(tiles), data, labels=False)
    network = opened.network
    if output.suffix.lower() not in (".json", network.file_ending):
        raise TiledSEError(
            f"{model.model} does not go into {output}; write plan.json, then: tiledse convert {model.model} "
            "--plan plan.json -o ..."
        )
    with progress_bar("blocks") as progress:
        found = calibrate_held_out(
            network, tiles.of(network.se), opened.task, images=images, prior=prior, batch_size=data.batch_size,
            progress=progress,
        )  # fmt: skip
    if output.suffix.lower() == ".json":
        found.plan.save(output)
    else:
        network.write(found.plan, output, Form(force=result.force))
    tell_random(network.random)
    if not found.helps:
        say(
            "calibration does not help here: on images that it was not fitted on, the plain strips are closer to SE"
        )
    result.show(lambda: {**found.to_dict(), "output": str(output)}, lambda: calibration_lines(found, output))


@dataclass(frozen=True)
class Budget:
    """What a search may spend, and what it may try for that."""

    panel: ClassVar[str] = "Budget"

    max_buffer: Annotated[
        int | None,
        typer.Option("--max-buffer", metavar="N", help="Elements that may be held in all (see --buffer)."),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="D", help="Percentage points that may be lost on the images."),
    ] = None
    buffer: Annotated[
        Literal["gates", "pipeline"],
        typer.Option(
            help="What is held: by the gates (the paper's), or by all FIFOs of a row pipeline at their smallest."
        ),
    ] = "gates"
    tiles: Annotated[
        str | None, typer.Option("--tiles", metavar="T,T,...", help="Tiles, such as 1xW,3xW,7xW.")
    ] = None
    uniform: Annotated[
        str,
        typer.Option("--uniform", metavar="T,T", help="Tiles measured for all blocks at once, to compare."),
    ] = "7xW,1xW:running+6"
    calibrate_on: Annotated[
        str | None,
        typer.Option(
            "--calibrate", metavar="DIR", help="Calibrate the measured plans on these other images."
        ),
    ] = None
    few: Annotated[
        int, typer.Option("--few", metavar="N", help="Images on which each block is measured alone.")
    ] = 128
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Where evaluations are kept, so that a search goes on."),
    ] = None

    def check(self, data: Images) -> None:
        """Refuse options that do not go together.

        Raises:
            TiledSEError: which, and what to do.
        """
        if self.cache is not None:
            check_folder("--cache", self.cache)
        if self.few < 1 or data.batch_size < 1:
            raise TiledSEError(
                f"expected --few and --batch-size of at least 1 image, got {self.few} and {data.batch_size}"
            )
        if self.max_drop is not None and not isfinite(self.max_drop):
            raise TiledSEError(
                f"--max-drop {self.max_drop}: expected a number of percentage points, such as 1.5"
            )

    def order(self, network: Network) -> Order:
        """What the budget counts."""
        from ..choose.budget import GATES, Order

        if self.buffer == "gates":
            return GATES
        from ..stream.minimum import PipelineBuffer

        return Order("pipeline", PipelineBuffer(network, network.se))


@verb("search")
def search(model: Model, data: Images, budget: Budget, result: Figure, output: PlanOutput) -> None:
    """Choose a tile for each block under a budget: of buffer, or of accuracy."""
    from ..choose.cache import Evaluations, default_folder
    from ..choose.evaluation import Evaluator
    from ..choose.search import search as choose
    from ..report.choose import draw_front, front_table
    from .arguments import parse_tiles, tell_random
    from .measuring import task_of
    from .progress import progress_bar

    result.check([Output("-o", output, (".json",))], [*model.files, budget.calibrate_on, *data.files])
    budget.check(data)
    opened = _open(model, data, labels=budget.max_drop is not None)
    network = opened.network
    order, kept = budget.order(network), Evaluations(budget.cache or default_folder())
    evaluator = Evaluator(network, opened.task, kept, few=budget.few, batch_size=data.batch_size)
    fitted_on = None
    if budget.calibrate_on is not None:
        if Path(budget.calibrate_on).resolve() == Path(data.data).resolve():
            raise TiledSEError(
                "--calibrate and --data are the same images; calibrate on others, or leave it out"
            )
        others = task_of(model.model, network, replace(data, data=budget.calibrate_on), labels=False)
        fitted_on = Evaluator(network, others, kept, batch_size=data.batch_size)
    found = choose(
        evaluator,
        max_buffer=budget.max_buffer,
        max_drop=budget.max_drop,
        tiles=None if budget.tiles is None else parse_tiles(budget.tiles),
        uniform=parse_tiles(budget.uniform) if budget.uniform else (),
        fitted_on=fitted_on,
        order=order,
        titled=progress_bar,
    )
    found.chosen.plan.save(output)
    result.draw(lambda path: draw_front(found, path, Path(network.name).name))
    tell_random(network.random)
    result.show(found.to_dict, lambda: front_table(found, network.name))
    if not result.json:
        say(f"wrote {output}")


def _open(model: Model, data: Images, labels: bool) -> Opened:
    import torch

    from .measuring import open_measured

    return open_measured(model, torch.device("cpu"), data, labels)
