"""The verb on accuracy: eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import torch
import typer

from ..errors import TiledSEError
from ..evaluate.comparison import TaskComparison
from ..evaluate.comparison import evaluate as measure
from ..evaluate.evaluation import Evaluation
from ..evaluate.processes import own_device
from ..plan import Plan
from . import options
from .app import app, print_json, print_text, say
from .arguments import choose_plan
from .measuring import Opened, Setting, in_processes, open_measured, opened_together
from .outputs import Output, check_outputs
from .progress import progress_bar


@app.command("eval")
def evaluate(
    model: options.Model,
    data: options.Data,
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    task: options.TaskName = "classify",
    adapter: options.AdapterText = None,
    images_dir: options.ImagesDir = None,
    masks: options.Masks = None,
    preprocess: options.Preprocess = "network",
    class_map: options.ClassMap = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 0,
    device: options.Device = "cpu",
    amp: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--amp", metavar="bfloat16|float16", help="Autocast, for speed on a GPU."),
    ] = None,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--images", metavar="FILE.csv", help="classify: write both predictions for each image."),
    ] = None,
    mean: options.Mean = None,
    std: options.Std = None,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure the accuracy of SE and TSE on the same images, and what the difference is worth.

    Top-1 and top-5, COCO's AP, or mean IoU, as --task says. Start it with torchrun for several processes:
    torchrun --nproc-per-node 4 -m tiledse eval ...
    """
    where = own_device(device)
    setting = Setting(data, task, adapter, images_dir, masks, preprocess, class_map, mean, std)

    def work(speaks: bool) -> tuple[Plan, Evaluation | TaskComparison]:
        setting.check()
        if amp not in (None, "bfloat16", "float16"):
            raise TiledSEError(f"--amp {amp}: expected bfloat16 or float16")
        if images is not None:
            if task != "classify":
                raise TiledSEError("--images goes with --task classify; leave it out")
            check_outputs(force, [Output("--images", images)], [model, weights, plan, *setting.files])
        chosen: list[Plan] = []

        def open_() -> Opened:
            opened = open_measured(model, input, weights, pretrained, where, setting)
            if amp is not None and not opened.network.casts:
                raise TiledSEError(
                    f"{model} runs in its own numbers ({opened.network.kind}); leave --amp out"
                )
            chosen.append(choose_plan(opened.network, tile, plan))
            return opened

        opened = opened_together(open_, speaks)
        kind = None if amp is None else getattr(torch, amp)
        with progress_bar("images", shown=speaks) as progress:
            return chosen[0], measure(
                opened.network, chosen[0], opened.task, batch_size=batch_size, workers=workers, device=where, amp=kind,
                progress=progress,
            )  # fmt: skip

    done = in_processes(where, work)
    if done is None:
        return
    chosen, evaluation = done
    if images is not None and isinstance(evaluation, Evaluation):
        evaluation.save_images(images)
        say(f"wrote {images}")
    if json:
        print_json(evaluation.to_dict())
    else:
        print_text(f"{model}, {chosen}", str(evaluation))
