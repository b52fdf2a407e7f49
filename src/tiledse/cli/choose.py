"""Verbs that choose: calibrate, search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import numpy as np
import torch
import typer
from torch import Tensor

from ..data.images import ListedImages
from ..errors import TiledSEError
from ..network import Form
from ..plan import Plan
from . import options
from .app import app, print_json, print_text, say
from .arguments import choose_plan, parse_tiles, tell_random
from .measuring import Setting, open_measured
from .outputs import Output, check_folder, check_outputs, drawing
from .progress import progress_bar

if TYPE_CHECKING:
    from ..network import Network

_CPU = torch.device("cpu")
Images = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Images as for eval; labels are not looked at. Without labels: any folder of images.",
    ),
]


@app.command()
def calibrate(
    model: options.Model,
    data: Images,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="plan.json, out.safetensors, or out.onnx of FILE.onnx"
        ),
    ],
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    images: Annotated[int, typer.Option("--images", metavar="N", help="Take at most N images.")] = 500,
    prior: Annotated[
        float, typer.Option("--prior", metavar="N", help="Ridge: the weight of changing nothing, in images.")
    ] = 300.0,
    task: options.TaskName = "classify",
    adapter: options.AdapterText = None,
    images_dir: options.ImagesDir = None,
    masks: options.Masks = None,
    preprocess: options.Preprocess = "network",
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 16,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Bring strips closer to the whole map's mean, from unlabelled images; a fifth of them checks the result."""
    from ..choose.calibration import calibrate as fit
    from ..choose.divergence import additive_divergence

    setting = Setting(data, task, adapter, images_dir, masks, preprocess, None, mean, std)
    check_outputs(
        force,
        [Output("-o", output, (".json", ".safetensors", ".onnx"))],
        [model, weights, plan, *setting.files],
    )
    if not 0 < prior < inf or images < 1 or batch_size < 1:
        raise TiledSEError(
            f"expected --prior above 0, --images and --batch-size of at least 1, got {prior}, {images} and {batch_size}"
        )
    opened = open_measured(model, input, weights, pretrained, _CPU, setting, labels=False)
    network = opened.network
    if output.suffix.lower() not in (".json", network.file_ending):
        raise TiledSEError(
            f"{model} does not go into {output}; write plan.json, then: tiledse convert {model} --plan plan.json -o ..."
        )
    chosen = choose_plan(network, tile, plan).uncalibrated
    source = opened.task.images
    if not isinstance(source, ListedImages):
        raise TiledSEError(f"calibration takes single images, not shards: unpack {data} into a folder")
    fitted, held = _split(source, images)

    def batches(which: list[int] | range) -> Iterator[Tensor]:
        for start in range(0, len(which), batch_size):
            yield torch.stack([source.sample(i).input for i in which[start : start + batch_size]])

    with progress_bar("blocks") as progress:
        calibrated = fit(network, chosen, lambda: batches(fitted), prior=prior, progress=progress)
    se, before, after = (network.tiled(p) for p in (network.se, chosen, calibrated))
    apart: list[list[float]] = [[], []]
    with torch.no_grad():
        for batch in batches(held):
            first = se(batch)
            for far, other in zip(apart, (before, after), strict=True):
                far += additive_divergence(opened.task, first, other(batch)).tolist()
    was, now = (float(np.mean(far)) for far in apart)
    _write(network, calibrated, output, force)
    tell_random(network.random)
    if now >= was:
        say(
            "calibration does not help here: on images that it was not fitted on, the plain strips are closer to SE"
        )
    numbers = sum(0 if c is None else c.numbers for c in calibrated.corrections)
    if json:
        print_json(
            {
                "calibrated": sum(c is not None for c in calibrated.corrections),
                "total": len(calibrated),
                "numbers": numbers,
                "fitted_on": len(fitted),
                "held_out": {"n": len(held), "divergence_before": was, "divergence_after": now},
                "output": str(output),
            }
        )
    else:
        print_text(
            f"{sum(c is not None for c in calibrated.corrections)} of {len(calibrated)} SE blocks calibrated on "
            f"{len(fitted)} images, {numbers} numbers: {output}",
            f"divergence from SE on {len(held)} other images: {was:.4g} before, {now:.4g} after",
        )


@app.command()
def search(
    model: options.Model,
    data: Images,
    output: options.PlanOutput,
    max_buffer: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-buffer", metavar="N", help="Elements that may be held in all (see --buffer)."),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--max-drop", metavar="D", help="Percentage points that may be lost on the images."),
    ] = None,
    buffer: Annotated[
        Literal["gates", "pipeline"],
        typer.Option(
            help="What is held: by the gates (the paper's), or by all FIFOs of a row pipeline at their smallest."
        ),
    ] = "gates",
    tiles: options.Tiles = None,
    uniform: Annotated[
        str,
        typer.Option("--uniform", metavar="T,T", help="Tiles measured for all blocks at once, to compare."),
    ] = "7xW,1xW:running+6",
    calibrate_on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--calibrate", metavar="DIR", help="Calibrate the measured plans on these other images."
        ),
    ] = None,
    few: Annotated[
        int, typer.Option("--few", metavar="N", help="Images on which each block is measured alone.")
    ] = 128,
    plot: options.Plot = None,
    cache: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--cache", metavar="DIR", help="Where evaluations are kept, so that a search goes on."),
    ] = None,
    task: options.TaskName = "classify",
    adapter: options.AdapterText = None,
    images_dir: options.ImagesDir = None,
    masks: options.Masks = None,
    preprocess: options.Preprocess = "network",
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 16,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Choose a tile for each block under a budget: of buffer, or of accuracy."""
    from ..choose.budget import GATES, Order
    from ..choose.cache import Evaluations, default_folder
    from ..choose.evaluation import Evaluator
    from ..choose.search import search as choose
    from ..report.choose import draw_front, front_table

    setting = Setting(data, task, adapter, images_dir, masks, preprocess, None, mean, std)
    check_outputs(
        force,
        [Output("-o", output, (".json",)), drawing(plot)],
        [model, weights, calibrate_on, *setting.files],
    )
    if cache is not None:
        check_folder("--cache", cache)
    if few < 1 or batch_size < 1:
        raise TiledSEError(f"expected --few and --batch-size of at least 1 image, got {few} and {batch_size}")
    if max_drop is not None and not isfinite(max_drop):
        raise TiledSEError(f"--max-drop {max_drop}: expected a number of percentage points, such as 1.5")
    opened = open_measured(model, input, weights, pretrained, _CPU, setting, labels=max_drop is not None)
    network = opened.network
    order = GATES
    if buffer == "pipeline":
        from ..stream.minimum import PipelineBuffer

        order = Order("pipeline", PipelineBuffer(network.module("--buffer pipeline"), network.se))
    kept = Evaluations(cache or default_folder())
    evaluator = Evaluator(network, opened.task, kept, few=few, batch_size=batch_size)
    fitted_on = None
    if calibrate_on is not None:
        if Path(calibrate_on).resolve() == Path(data).resolve():
            raise TiledSEError(
                "--calibrate and --data are the same images; calibrate on others, or leave it out"
            )
        images = open_measured(
            model, input, weights, pretrained, _CPU, replace(setting, data=calibrate_on), labels=False
        ).task
        fitted_on = Evaluator(network, images, kept, batch_size=batch_size)
    found = choose(
        evaluator,
        max_buffer=max_buffer,
        max_drop=max_drop,
        tiles=None if tiles is None else parse_tiles(tiles),
        uniform=parse_tiles(uniform) if uniform else (),
        fitted_on=fitted_on,
        order=order,
        titled=progress_bar,
    )
    found.chosen.plan.save(output)
    if plot is not None:
        draw_front(found, plot, Path(network.name).name)
        say(f"wrote {plot}")
    tell_random(network.random)
    if json:
        print_json(found.to_dict())
    else:
        print_text(*front_table(found, network.name))
        say(f"wrote {output}")


def _split(source: ListedImages, limit: int) -> tuple[list[int], list[int]]:
    """Numbers of images to fit on and, a fifth, to check with; drawn with a fixed seed."""
    drawn = np.random.default_rng(0).permutation(len(source.files))[:limit].tolist()
    held = max(1, len(drawn) // 5)
    return drawn[held:], drawn[:held]


def _write(network: Network, plan: Plan, output: Path, force: bool) -> None:
    if output.suffix.lower() == ".json":
        plan.save(output)
    else:
        network.write(plan, output, Form(force=force))
