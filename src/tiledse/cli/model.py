"""Which network, with which tiles: MODEL and its options, --tile and --plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..errors import TiledSEError
from ..forms import FORMS
from .completion import complete_model

if TYPE_CHECKING:
    import torch

    from ..network import Network
    from ..plan import Plan

InputSize = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="CxHxW",
        help="Size of the image, such as 3x224x224; of sound CxT, of volumes and video CxDxHxW.",
    ),
]
PlanOutput = Annotated[Path, typer.Option("-o", "--output", metavar="plan.json", help="Where the plan goes.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="The library's own weights, from its hub.")]


@dataclass(frozen=True)
class Tiles:
    """One tile for all blocks, or a plan."""

    panel: ClassVar[str] = "Tiles"

    tile: Annotated[
        str | None,
        typer.Option(
            "--tile",
            metavar="T",
            help="One tile for every block: 7xW, Hx7, 7x7, HxW; 1xW:running+6 (each row by all rows above it and 6 "
            "below), 1xW:window-6+6; of video HxW:previous. Of sound 8xT, of volumes and clips 4xHxW.",
        ),
    ] = None
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="A plan: JSON, or safetensors from `convert`."),
    ] = None

    def of(self, found: Plan) -> Plan:
        """The plan that was asked for, checked against what was found.

        Raises:
            TiledSEError: see ``arguments.choose_plan``.
        """
        from .arguments import choose_plan

        return choose_plan(found, self.tile, self.plan)

    @property
    def size(self) -> tuple[int, ...] | None:
        """The size of the input that the plan was made for; None without one."""
        from ..plan import Plan

        return None if self.plan is None or self.tile is not None else Plan.load(self.plan).input_size


@dataclass(frozen=True)
class Model:
    """A network, the size of its image, and its weights."""

    panel: ClassVar[str] = "Network"

    model: Annotated[str, typer.Argument(metavar="MODEL", help=FORMS, autocompletion=complete_model)]
    input: InputSize = None
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="A state dict: safetensors or a torch checkpoint."),
    ] = None
    pretrained: Pretrained = False
    image: str | None = None
    sized_by: Path | None = None  # a plan

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What is read of it; a text that is no path names no file."""
        return self.model, self.weights

    @property
    def name(self) -> str:
        """MODEL as it is printed: a file without its folder."""
        from ..opening import shown_name

        return shown_name(self.model)

    @property
    def size(self) -> tuple[int, ...] | None:
        """--input as numbers."""
        from .arguments import parse_size

        return parse_size(self.input)

    def at(self, tiles: Tiles) -> Model:
        """The same, at the size of the plan where --input is left out.

        Raises:
            TiledSEError: the plan cannot be read.
        """
        size = None if self.input is not None else tiles.size
        return self if size is None else replace(self, input="x".join(map(str, size)), sized_by=tiles.plan)

    def open(self, where: torch.device | None = None, runs: bool = True) -> Network:
        """The network.

        Args:
            where: The device that it runs on; left out, where it is.
            runs: Whether it is to be run; else its weights may be without numbers.
        """
        from ..opening import open as open_network

        try:
            return open_network(
                self.model, self.size, weights=self.weights, pretrained=self.pretrained, image=self.image,
                device=None if where is None else str(where), runs=runs,
            )  # fmt: skip
        except TiledSEError as error:
            if self.sized_by is None:
                raise
            raise TiledSEError(f"{error} (the input of {self.sized_by} is {self.input})") from error


@dataclass(frozen=True)
class ModelWithImage(Model):
    """A network of which the input may be named that takes the image."""

    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="NAME", help="A file with several inputs: the one that takes the image."
        ),
    ] = None


@dataclass(frozen=True)
class Models:
    """Several networks, each with weights of its own."""

    panel: ClassVar[str] = "Network"

    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="One or more networks.", autocompletion=complete_model),
    ]
    weights: Annotated[
        list[Path] | None,
        typer.Option("--weights", metavar="FILE", help="A state dict for each network, in their order."),
    ] = None
    input: InputSize = None
    pretrained: Pretrained = False

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What is read of them."""
        return *self.models, *(self.weights or ())

    def each(self) -> list[Model]:
        """The networks one by one.

        Raises:
            TiledSEError: another number of weights than of networks.
        """
        files: Sequence[Path | None] = self.weights or [None] * len(self.models)
        if len(files) != len(self.models):
            raise TiledSEError(
                f"{len(self.models)} networks and {len(files)} --weights; give one for each, or none"
            )
        return [Model(model, self.input, own, self.pretrained) for model, own in zip(self.models, files)]
