"""The options that verbs share, and how MODEL, --tile and --plan become a network and a plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import TiledSEError
from ..networks.loading import FORMS, Loaded, load
from ..plan import Plan

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
    typer.Option("--tile", metavar="T", help="One tile for every block: 7xW, Hx7, 7x7, 7xW:running, HxW."),
]
PlanFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plan", metavar="FILE", help="A plan: JSON, or safetensors from `convert`."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")]


def parse_size(text: str | None) -> tuple[int, int, int] | None:
    """``3x224x224`` as (3, 224, 224).

    Raises:
        TiledSEError: no such size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise TiledSEError(f"no size: --input '{text}'; expected CxHxW, such as 3x224x224")
    channels, height, width = (int(side) for side in match.groups())
    return channels, height, width


def load_model(model: str, size: str | None, weights: Path | None, pretrained: bool) -> Loaded:
    """The network of MODEL, and the size of image it is looked at with.

    Raises:
        TiledSEError: see ``networks.loading.load``; also when no size is known.
    """
    loaded = load(model, weights=weights, pretrained=pretrained, input_size=parse_size(size))
    if loaded.input_size is None:
        raise TiledSEError(
            f"{model} does not say which image it takes; give it with --input, such as 3x224x224"
        )
    return loaded


def choose_plan(found: Plan, tile: str | None, plan: Path | None) -> Plan:
    """The plan that --tile or --plan asks for, checked against what was found.

    Raises:
        TiledSEError: neither or both were given, or the plan was made for another network or size.
    """
    if (tile is None) == (plan is None):
        raise TiledSEError("give the tiles either with --tile T or with --plan FILE")
    if not len(found):
        near = len(found.near_misses)
        raise TiledSEError(
            f"the network has no squeeze-and-excite block ({near} near misses; `tiledse find` gives the reasons)"
        )
    if tile is not None:
        return found.with_tile(tile)
    assert plan is not None
    chosen = Plan.load(plan)
    chosen.check_network(found)
    return chosen


def check_target(path: Path, force: bool) -> None:
    """Check that an output may be written before the work for it begins.

    Raises:
        TiledSEError: the file exists and --force was not given, or its folder does not exist.
    """
    if path.is_dir():
        raise TiledSEError(f"cannot write {path}: it is a folder; give the name of a file")
    if path.exists() and not force:
        raise TiledSEError(f"{path} exists; give --force to replace it, or another name")
    if not path.parent.is_dir():
        raise TiledSEError(f"cannot write {path}: there is no folder {path.parent}; make it first")
