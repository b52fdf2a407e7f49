"""The verb on accuracy: eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TiledSEError
from .app import say
from .data import Data
from .groups import verb
from .model import Model, Tiles
from .outputs import Output
from .results import Files

if TYPE_CHECKING:
    from ..evaluate.comparison import TaskComparison
    from ..evaluate.evaluation import Evaluation
    from ..network import Network
    from ..plan import Plan
    from .measuring import Opened

Amp = Annotated[
    str | None, typer.Option("--amp", metavar="bfloat16|float16", help="Autocast, for speed on a GPU.")
]
ImagesFile = Annotated[
    Path | None,
    typer.Option("--images", metavar="FILE.csv", help="classify: write both predictions for each image."),
]
FramesOf = Annotated[
    bool,
    typer.Option(
        "--frames",
        help="The images are frames, one at a time: names that differ in their last number only are one video.",
    ),
]


@verb("eval", batch_size=64)
def evaluate(
    model: Model, data: Data, tiles: Tiles, result: Files, amp: Amp = None, images: ImagesFile = None,
    frames: FramesOf = False,
) -> None:  # fmt: skip
    """Measure the accuracy of SE and TSE on the same images, and what the difference is worth.

    Top-1 and top-5, COCO's AP, or mean IoU, as --task says. Start it with torchrun for several processes:
    torchrun --nproc-per-node 4 -m tiledse eval ...
    """
    import torch

    from ..evaluate.comparison import evaluate as measure_both
    from .measuring import measured

    def check() -> None:
        data.source()
        _check_amp(amp)
        if images is not None:
            if data.task != "classify":
                raise TiledSEError("--images goes with --task classify; leave it out")
            result.check([Output("--images", images)], [*model.files, tiles.plan, *data.files])

    def admit(network: Network) -> None:
        if amp is not None and not network.casts:
            raise TiledSEError(f"{model.model} runs in its own numbers ({network.kind}); leave --amp out")

    def measure(opened: Opened, plan: Plan, **how: Any) -> Evaluation | TaskComparison:
        if amp is not None and not opened.network.casts:
            raise TiledSEError(
                f"{model.model} runs in its own numbers ({opened.network.kind}); leave --amp out"
            )
        kind = None if amp is None else getattr(torch, amp)
        return measure_both(opened.network, plan, opened.task, amp=kind, frames=frames, **how)

    done = measured(model.at(tiles), data, check, tiles.of, measure, labels=True, admit=admit)
    if done is None:
        return
    _, plan, evaluation = done
    if images is not None:
        evaluation.save_images(images)  # type: ignore[union-attr]
        say(f"wrote {images}")
    result.show(evaluation.to_dict, lambda: (f"{model.model}, {plan}", str(evaluation)))


def _check_amp(amp: str | None) -> None:
    if amp not in (None, "bfloat16", "float16"):
        raise TiledSEError(f"--amp {amp}: expected bfloat16 or float16")
