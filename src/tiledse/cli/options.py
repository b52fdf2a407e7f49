"""The options that verbs share, as annotations: a verb lists them in its signature, as typer reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..networks.sources import FORMS

Model = Annotated[str, typer.Argument(metavar="MODEL", help=FORMS)]
Input = Annotated[
    Optional[str],  # noqa: UP045  (typer reads the annotation at run time, on Python 3.10 too)
    typer.Option("--input", metavar="CxHxW", help="Size of the image, such as 3x224x224."),
]
Weights = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--weights", metavar="FILE", help="A state dict: safetensors or a torch checkpoint."),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="The library's own weights, from its hub.")]
TileText = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--tile",
        metavar="T",
        help="One tile for every block: 7xW, Hx7, 7x7, HxW; 1xW:running+6 (each row by all rows above it and 6 below), "
        "1xW:window-6+6.",
    ),
]
Image = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--image", metavar="NAME", help="FILE.onnx with several inputs: the one that takes the image."
    ),
]
PlanFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plan", metavar="FILE", help="A plan: JSON, or safetensors from `convert`."),
]
PlanOutput = Annotated[Path, typer.Option("-o", "--output", metavar="plan.json", help="Where the plan goes.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object for programs.")]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Try what was made on random numbers before it is written, or do not."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")]

# Of the verbs that measure on images.
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="classify: class folders, a folder with labels.csv (file,label), or tar shards, also as a pattern such "
        "as 'val-{0000..0009}.tar'. detect: COCO's annotations.json. segment: a folder with images and masks, or a "
        "CSV file with file,mask.",
    ),
]
TaskName = Annotated[
    str, typer.Option("--task", metavar="classify|detect|segment", help="What the network does.")
]
AdapterText = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--adapter",
        metavar="package.module:adapter",
        help="detect, segment: a function of the input size that gives the network's pre- and post-processing.",
    ),
]
ImagesDir = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--images-dir", metavar="DIR", help="detect: the annotated images; else beside the annotations."
    ),
]
Masks = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--masks", metavar="DIR", help="segment: PNG masks named as the images in --data."),
]
Preprocess = Annotated[
    str,
    typer.Option(
        "--preprocess",
        metavar="network|crop",
        help="network: as it was evaluated by its makers. crop: the middle of images that are scaled already.",
    ),
]
ClassMap = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--class-map", metavar="FILE", help="For class folders: one folder a line, in the order of labels."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Images in a batch.")]
Workers = Annotated[int, typer.Option("--workers", metavar="N", help="Processes that read ahead.")]
Device = Annotated[str, typer.Option("--device", metavar="D", help="cpu, cuda or cuda:N.")]
Mean = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--mean", metavar="R,G,B", help="FILE.onnx: subtracted from values in 0..1."),
]
Std = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--std", metavar="R,G,B", help="FILE.onnx: what values are divided by after that."),
]
Tiles = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--tiles", metavar="T,T,...", help="Tiles, such as 1xW,3xW,7xW."),
]
Plot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plot", metavar="FILE", help="Draw it: .png, .pdf or .svg."),
]
