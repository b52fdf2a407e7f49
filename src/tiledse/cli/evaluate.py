"""The verb on accuracy: eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional, cast

import torch
import typer

from ..errors import TiledSEError
from ..measure.accuracy import Runner
from ..measure.accuracy import evaluate as evaluate_pair
from ..measure.images import ImageSet, open_images
from ..measure.preprocessing import Kind, Preprocessing, torchvision_config
from ..measure.processes import joined_processes, own_device, part, together
from ..networks import find as find_blocks
from ..networks.converter import convert_shared
from ..networks.loading import Loaded
from ..plan import Plan
from .app import app, print_json, print_text, say
from .onnx import is_onnx, open_pair
from .options import (
    Force,
    Input,
    Json,
    Model,
    PlanFile,
    Pretrained,
    TileText,
    Weights,
    check_target,
    choose_plan,
    load_model,
)
from .progress import progress_bar


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Labelled images: class folders, a folder with labels.csv (file,label), or tar shards, also "
            "as a pattern such as 'val-{0000..0009}.tar'.",
        ),
    ],
    tile: TileText = None,
    plan: PlanFile = None,
    task: Annotated[
        str, typer.Option("--task", metavar="classify", help="What the network does.")
    ] = "classify",
    preprocess: Annotated[
        str,
        typer.Option(
            "--preprocess",
            metavar="network|crop",
            help="network: as it was evaluated by its makers. crop: the middle of images that are scaled already.",
        ),
    ] = "network",
    class_map: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--class-map",
            metavar="FILE",
            help="For class folders: one folder a line, in the order of labels.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images in a batch.")] = 64,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Processes that read ahead.")] = 0,
    device: Annotated[str, typer.Option("--device", metavar="D", help="cpu, cuda or cuda:N.")] = "cpu",
    amp: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--amp", metavar="bfloat16|float16", help="Autocast, for speed on a GPU."),
    ] = None,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--images", metavar="FILE.csv", help="Write both predictions for each image."),
    ] = None,
    mean: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--mean", metavar="R,G,B", help="FILE.onnx: subtracted from values in 0..1."),
    ] = None,
    std: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--std", metavar="R,G,B", help="FILE.onnx: what values are divided by after that."),
    ] = None,
    input: Input = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure the accuracy of SE and TSE on the same images, and what the difference is worth.

    Start it with torchrun for several processes: torchrun --nproc-per-node 4 -m tiledse eval ...
    """
    where = own_device(device)

    def prepare() -> tuple[Loaded, Plan, Runner, ImageSet]:
        if task != "classify":
            raise TiledSEError(f"--task {task}: expected classify; other tasks are not built yet")
        if amp not in (None, "bfloat16", "float16"):
            raise TiledSEError(f"--amp {amp}: expected bfloat16 or float16")
        if images is not None:
            check_target(images, force)
        if is_onnx(model):
            if where.type != "cpu" or amp is not None:
                raise TiledSEError(f"{model} runs in ONNX Runtime on the CPU; leave --device and --amp out")
            numbers = _numbers("--mean", mean), _numbers("--std", std)
            loaded, chosen, tiled = open_pair(model, tile, plan, input, weights, pretrained, *numbers)
            return (
                loaded,
                chosen,
                tiled,
                open_images(data, _preprocessing(loaded, preprocess), class_map=class_map),
            )
        if mean is not None or std is not None:
            raise TiledSEError("--mean and --std go with FILE.onnx; a PyTorch network says them itself")
        loaded = load_model(model, input, weights, pretrained)
        opened = open_images(data, _preprocessing(loaded, preprocess), class_map=class_map)
        chosen = choose_plan(find_blocks(loaded.model, loaded.input_size), tile, plan)
        loaded.model.to(where)
        return loaded, chosen, convert_shared(loaded.model, chosen), opened

    with joined_processes(where):
        speaks = part()[0] == 0
        try:
            loaded, chosen, tse, opened = together(prepare)
            if loaded.random and speaks:
                say("the weights are random: give --weights FILE or --pretrained for real ones")
            with progress_bar("images", shown=speaks) as progress:
                evaluation = evaluate_pair(
                    loaded.model,
                    tse,
                    opened,
                    batch_size=batch_size,
                    workers=workers,
                    device=where,
                    amp=None if amp is None else getattr(torch, amp),
                    progress=progress,
                )
        except TiledSEError:
            # All processes have this error. One says so and fails; were another to fail first, torchrun would
            # kill the one that speaks.
            if speaks:
                raise
            return
    if not speaks:
        return
    if images is not None:
        evaluation.save_images(images)
        say(f"wrote {images}")
    if json:
        print_json(evaluation.to_dict())
    else:
        print_text(f"{loaded.name}, {chosen}", str(evaluation))


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TiledSEError(
            f"no numbers: {option} '{text}'; expected one a channel, such as 0.5,0.5,0.5"
        ) from None


def _preprocessing(loaded: Loaded, kind: str) -> Preprocessing:
    source, _, name = loaded.name.partition(":")
    config = torchvision_config(name) if source == "torchvision" else None
    return Preprocessing.of(loaded.model, loaded.input_size, cast(Kind, kind), config)
