"""Verbs that choose: calibrate, search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import numpy as np
import torch
import typer
from torch import Tensor, nn

from ..errors import TiledSEError
from ..measure.images import ImageSet, ListedImages, open_images
from ..measure.preprocessing import Kind, Preprocessing, torchvision_config
from ..plan import Plan
from ..tile import Tile
from .app import app, print_json, print_text, say
from .onnx import is_onnx, open_onnx
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
    parse_size,
)
from .progress import progress_bar

if TYPE_CHECKING:
    from ..choose.network import Network
    from ..measure.tasks import Task
    from ..onnx import OnnxModel

Preprocess = Annotated[
    str,
    typer.Option(
        "--preprocess",
        metavar="network|crop",
        help="network: as it was evaluated by its makers. crop: the middle of images that are scaled already.",
    ),
]
Adapter = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--adapter", metavar="MODULE:NAME", help="A detector's pre- and post-processing."),
]
Mean = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--mean", metavar="R,G,B", help="FILE.onnx: subtracted from values in 0..1."),
]
Std = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--std", metavar="R,G,B", help="FILE.onnx: what values are divided by after that."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Images in a batch.")]


@app.command()
def calibrate(
    model: Model,
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="Images; labels are not looked at.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="plan.json, out.safetensors, or out.onnx of FILE.onnx"),
    ],
    tile: TileText = None,
    plan: PlanFile = None,
    images: Annotated[int, typer.Option("--images", metavar="N", help="Take at most N images.")] = 500,
    prior: Annotated[
        float, typer.Option("--prior", metavar="N", help="Ridge: the weight of changing nothing, in images.")
    ] = 100.0,
    preprocess: Preprocess = "network",
    adapter: Adapter = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 16,
    input: Input = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Bring strips closer to the whole map's mean, from unlabelled images; a fifth of them checks the result."""
    from ..choose.calibration import calibrate as fit
    from ..choose.divergence import divergence
    from ..choose.network import open_network
    from ..measure.classification import Comparison

    check_target(output, force)
    if output.suffix not in (".json", ".safetensors", ".onnx"):
        raise TiledSEError(f"cannot write {output}: expected a name that ends in .json, .safetensors or .onnx")
    if output.suffix == (".safetensors" if is_onnx(model) else ".onnx"):
        raise TiledSEError(
            f"{model} does not go into {output}; write plan.json, then: tiledse convert {model} --plan plan.json -o ..."
        )
    if prior <= 0 or images < 1:
        raise TiledSEError(f"expected --prior above 0 and --images of at least 1, got {prior} and {images}")
    opened, name, random = _open(model, input, weights, pretrained)
    network = open_network(opened, parse_size(input) or _own_size(opened))
    chosen = choose_plan(network.plan, tile, plan).uncalibrated
    source = _open_any(data, _prepare(opened, name, network, preprocess, adapter, mean, std))
    fitted, held = _split(source, images)

    def batches(which: list[int] | range) -> Iterator[Tensor]:
        for start in range(0, len(which), batch_size):
            yield torch.stack([source.sample(i).input for i in which[start : start + batch_size]])

    with progress_bar("blocks") as progress:
        calibrated = fit(network, chosen, lambda: batches(fitted), prior=prior, progress=progress)
    task = Comparison(source, logits=True)
    se, before, after = (network.run(p) for p in (network.plan, chosen, calibrated))
    apart: list[list[float]] = [[], []]
    with torch.no_grad():
        for batch in batches(held):
            first = se(batch)
            for far, other in zip(apart, (before, after), strict=True):
                far += divergence(task, first, other(batch)).tolist()
    was, now = (float(np.mean(far)) for far in apart)
    _write(opened, name, calibrated, output, force)
    if random:
        say("the weights are random: give --weights FILE or --pretrained for real ones")
    if now >= was:
        say("calibration does not help here: on images that it was not fitted on, the plain strips are closer to SE")
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
    model: Model,
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="Images, labelled for --max-drop.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="plan.json", help="Where the plan goes.")],
    max_buffer: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-buffer", metavar="N", help="Elements that the gates may hold in all."),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--max-drop", metavar="D", help="Percentage points that may be lost on the images."),
    ] = None,
    tiles: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--tiles", metavar="T,T", help="Tiles to choose from, besides HxW; strips of 1 to 28 rows."),
    ] = None,
    uniform: Annotated[
        str, typer.Option("--uniform", metavar="T,T", help="Tiles measured for all blocks at once, to compare.")
    ] = "7xW,7xW:running",
    calibrate_on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--calibrate", metavar="DIR", help="Calibrate the measured plans on these other images."),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="classify|detect|compare", help="compare: images without labels.")
    ] = "classify",
    few: Annotated[
        int, typer.Option("--few", metavar="N", help="Images on which each block is measured alone.")
    ] = 128,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--plot", metavar="FILE", help="Draw buffer against accuracy: .png, .svg or .pdf."),
    ] = None,
    cache: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--cache", metavar="DIR", help="Where evaluations are kept, so that a search goes on."),
    ] = None,
    preprocess: Preprocess = "network",
    adapter: Adapter = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 16,
    input: Input = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose a tile for each block under a budget: of buffer, or of accuracy."""
    from ..choose.cache import Evaluations, default_folder
    from ..choose.evaluation import Evaluator
    from ..choose.network import open_network
    from ..choose.search import search as choose
    from ..measure.classification import Comparison
    from ..report.choose import draw_front, front_table

    for target in (output, plot):
        if target is not None:
            check_target(target, force)
    if few < 1:
        raise TiledSEError(f"expected --few of at least 1 image, got {few}")
    opened, name, random = _open(model, input, weights, pretrained)
    network = open_network(opened, parse_size(input) or _own_size(opened))
    prepare = _prepare(opened, name, network, preprocess, adapter, mean, std)
    measured = _open_task(task, data, prepare, adapter, network)
    kept = Evaluations(cache or default_folder())
    evaluator = Evaluator(network, measured, kept, few=few, batch_size=batch_size)
    fitted_on = None
    if calibrate_on is not None:
        if Path(calibrate_on).resolve() == Path(data).resolve():
            raise TiledSEError("--calibrate and --data are the same images; calibrate on others, or leave it out")
        other = Comparison(_open_any(calibrate_on, prepare))
        fitted_on = Evaluator(network, other, kept, batch_size=batch_size)
    found = choose(
        evaluator,
        max_buffer=max_buffer,
        max_drop=max_drop,
        tiles=_tiles(tiles),
        uniform=_tiles(uniform) or (),
        fitted_on=fitted_on,
        titled=progress_bar,
    )
    found.chosen.plan.save(output)
    if plot is not None:
        draw_front(found, plot)
        say(f"wrote {plot}")
    if random:
        say("the weights are random: give --weights FILE or --pretrained for real ones")
    if json:
        print_json(found.to_dict())
    else:
        print_text(*front_table(found, name))
        say(f"wrote {output}")


def _tiles(text: str | None) -> tuple[Tile, ...] | None:
    return None if not text else tuple(Tile.parse(part.strip()) for part in text.split(","))


def _open(
    model: str, size: str | None, weights: Path | None, pretrained: bool
) -> tuple[nn.Module | OnnxModel, str, bool]:
    """The network of MODEL, its name, and whether its weights are random."""
    if is_onnx(model):
        return open_onnx(model, weights, pretrained), model, False
    loaded = load_model(model, size, weights, pretrained)
    loaded.model.pretrained_input_size = loaded.input_size  # type: ignore[assignment]
    return loaded.model, loaded.name, loaded.random


def _own_size(opened: Any) -> Any:
    return getattr(opened, "pretrained_input_size", None)


def _prepare(
    opened: nn.Module | OnnxModel, name: str, network: Network, kind: str, adapter: str | None,
    mean: str | None, std: str | None,
) -> Any:  # fmt: skip
    """PIL image to input."""
    if adapter is not None:
        from ..measure.adapters import Detector, load_adapter

        return load_adapter(adapter, Detector, network.plan.input_size).prepare
    size = network.plan.input_size
    if isinstance(opened, nn.Module):
        if mean is not None or std is not None:
            raise TiledSEError("--mean and --std go with FILE.onnx; a PyTorch network says them itself")
        source, _, rest = name.partition(":")
        config = torchvision_config(rest) if source == "torchvision" else None
        return Preprocessing.of(opened, size, cast(Kind, kind), config)
    if mean is None or std is None:
        say(f"{name} does not say how its images are normalised: taking ImageNet's mean and std; see --mean, --std")
    said = {"mean": _numbers("--mean", mean), "std": _numbers("--std", std), "input_size": size}
    config = {key: value for key, value in said.items() if value is not None}
    return Preprocessing.of(nn.Identity(), size, cast(Kind, kind), config)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TiledSEError(f"no numbers: {option} '{text}'; expected one a channel, such as 0.5,0.5,0.5") from None


def _open_any(data: str, prepare: Any) -> ListedImages:
    """Images without their labels: any folder of images, or a labels.csv."""
    from ..measure.classification import open_unlabelled

    path = Path(data)
    if path.is_file() and path.suffix == ".csv":
        return cast(ListedImages, open_images(path, prepare))
    return open_unlabelled(path, prepare)


def _open_task(task: str, data: str, prepare: Any, adapter: str | None, network: Network) -> Task[Any]:
    from ..measure.classification import Classification, Comparison

    if task == "classify":
        images: ImageSet = open_images(data, prepare)
        return Classification(images)
    if task == "compare":
        return Comparison(_open_any(data, prepare))
    if task == "detect":
        from ..measure.adapters import Detector, load_adapter
        from ..measure.detection import CocoImages, Detection

        if adapter is None:
            raise TiledSEError("--task detect needs the network's --adapter package.module:adapter")
        detector = load_adapter(adapter, Detector, network.plan.input_size)
        return Detection(CocoImages(data, detector), detector)
    raise TiledSEError(f"--task {task}: expected classify, detect or compare")


def _split(source: ListedImages, limit: int) -> tuple[list[int], list[int]]:
    """Numbers of images to fit on and, a fifth, to check with; drawn with a fixed seed."""
    drawn = np.random.default_rng(0).permutation(len(source.files))[:limit].tolist()
    held = max(1, len(drawn) // 5)
    return drawn[held:], drawn[:held]


def _write(opened: nn.Module | OnnxModel, name: str, plan: Plan, output: Path, force: bool) -> None:
    if output.suffix == ".json":
        plan.save(output)
    elif isinstance(opened, nn.Module):
        from ..networks import convert
        from ..networks.saving import save

        save(convert(opened, plan), plan, output, name)
    else:
        from .. import onnx as room

        room.save(room.convert(opened, plan), output, force=force)
