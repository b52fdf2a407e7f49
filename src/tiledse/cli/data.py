"""What is measured on what: --data and the options that say how its images are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..errors import TiledSEError
from ..numerals import parse_reals

if TYPE_CHECKING:
    from ..evaluate.opening import TaskImages


@dataclass(frozen=True)
class Images:
    """Images, the task that they are for, and how they become inputs."""

    panel: ClassVar[str] = "Images"

    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images as for eval; labels are not looked at. Without labels: any folder of images.",
        ),
    ]
    task: Annotated[
        str, typer.Option("--task", metavar="classify|detect|segment", help="What the network does.")
    ] = "classify"
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="package.module:adapter",
            help="detect, segment: a function of the input size that gives the network's pre- and post-processing.",
        ),
    ] = None
    images_dir: Annotated[
        Path | None,
        typer.Option(
            "--images-dir", metavar="DIR", help="detect: the annotated images; else beside the annotations."
        ),
    ] = None
    masks: Annotated[
        Path | None,
        typer.Option("--masks", metavar="DIR", help="segment: PNG masks named as the images in --data."),
    ] = None
    preprocess: Annotated[
        str,
        typer.Option(
            "--preprocess",
            metavar="network|crop",
            help="network: as it was evaluated by its makers. crop: the middle of images that are scaled already.",
        ),
    ] = "network"
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean", metavar="R,G,B", help="FILE.onnx, FILE.tflite: subtracted from values in 0..1."
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            "--std", metavar="R,G,B", help="FILE.onnx, FILE.tflite: what values are divided by after that."
        ),
    ] = None
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images in a batch.")] = 16
    class_map: Path | None = None

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What is read of images and labels."""
        return self.data, self.images_dir, self.masks, self.class_map

    def source(self) -> TaskImages:
        """What the options say, checked.

        Raises:
            TiledSEError: options that do not go together, or numbers that are none.
        """
        from ..evaluate.opening import TaskImages

        return TaskImages(
            self.data,
            self.task,
            self.adapter,
            self.images_dir,
            self.masks,
            self.preprocess,
            self.class_map,
            _numbers("--mean", self.mean),
            _numbers("--std", self.std),
        )


ClassMap = Annotated[
    Path | None,
    typer.Option(
        "--class-map", metavar="FILE", help="For class folders: one folder a line, in the order of labels."
    ),
]


@dataclass(frozen=True)
class Data(Images):
    """Images with labels, the processes that read them, and the device that looks at them."""

    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="classify: class folders, a folder with labels.csv (file,label), or tar shards, also as a pattern "
            "such as 'val-{0000..0009}.tar'. detect: COCO's annotations.json. segment: a folder with images and "
            "masks, or a CSV file with file,mask.",
        ),
    ]
    class_map: ClassMap = None
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Processes that read ahead.")] = 0
    device: Annotated[str, typer.Option("--device", metavar="D", help="cpu, cuda or cuda:N.")] = "cpu"


@dataclass(frozen=True)
class OptionalData(Images):
    """Images, for a verb that measures on them where there are any."""

    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Images, as for eval; without them nothing is measured."),
    ] = None  # type: ignore[assignment]  # the one group of images that may be left out
    class_map: ClassMap = None

    def check(self) -> bool:
        """Whether there are images, their options checked.

        Raises:
            TiledSEError: options of images without images, or see ``source``.
        """
        if self.data is None and self != type(self)():
            raise TiledSEError("options of images go with --data DATA; give it, or leave them out")
        if self.data is not None:
            self.source()
        return self.data is not None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers.

    Raises:
        TiledSEError: they are none.
    """
    if text is None:
        return None
    try:
        found = parse_reals(text, "each")
        if option == "--std" and min(found) <= 0:
            raise ValueError("expected each to be above 0")
    except ValueError as error:
        raise TiledSEError(
            f"no numbers: {option} '{text}': {error}; expected one a channel, such as 0.5,0.5,0.5"
        ) from None
    return found
