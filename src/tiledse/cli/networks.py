"""Verbs on a network: find, plan, cost, convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..errors import TiledSEError
from .app import say
from .groups import verb
from .model import ModelWithImage, PlanOutput, Tiles
from .outputs import Output, check_outputs
from .results import Files, Result

if TYPE_CHECKING:
    from ..network import Form

EveryTile = Annotated[str, typer.Option("--tile", metavar="T", help="The tile of every block.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="GLOB=T", help="A tile for the blocks that match; may be repeated."),
]
First = Annotated[
    int | None, typer.Option("--first", metavar="N", help="Give --tile to the first N blocks only.")
]
ConvertedOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="out.onnx, out.tflite or out.safetensors")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Try what was made on random numbers before it is written, or do not."
    ),
]


@verb("find")
def find(model: ModelWithImage, result: Result) -> None:
    """List the SE blocks of a network, and why each near miss is none."""
    from ..report.blocks import blocks_record, blocks_table, near_miss_lines

    name, plan = model.model, model.open(runs=False).plan
    result.show(lambda: blocks_record(plan, name), lambda: [blocks_table(plan, name), *near_miss_lines(plan)])


@verb("plan")
def plan(
    model: ModelWithImage,
    result: Files,
    output: PlanOutput,
    tile: EveryTile = "HxW",
    set_: Settings = None,
    first: First = None,
) -> None:
    """Choose a tile for each block and write the plan."""
    from ..report.blocks import blocks_table

    result.check([Output("-o", output, (".json",))], model.files)
    settings = [_setting(text) for text in set_ or []]
    name, found = model.model, model.open(runs=False).plan
    chosen = found.with_tile(tile) if first is None else found.first(first, tile)
    for glob, special in settings:
        chosen = chosen.with_tile(special, glob)
    chosen.save(output)
    result.show(chosen.to_dict, lambda: [blocks_table(chosen, name)])
    if not result.json:
        say(f"wrote {output}")


def _setting(text: str) -> tuple[str, str]:
    glob, equals, tile = text.partition("=")
    if not equals or not glob or not tile:
        raise TiledSEError(f"no setting: --set '{text}'; expected GLOB=T, such as --set 'blocks.4.*=7xW'")
    return glob, tile


@verb("cost")
def cost(model: ModelWithImage, tiles: Tiles, result: Result) -> None:
    """Count parameters, MACs and gate buffers of a network, with SE and with tiles."""
    from ..cost import cost as count_cost
    from ..report.text import cost_table

    counted = count_cost(tiles.of(model.at(tiles).open(runs=False).plan))
    result.show(counted.to_dict, lambda: [cost_table(counted)])


@dataclass(frozen=True)
class OnnxForm:
    """How an ONNX file is to be written."""

    panel: ClassVar[str] = "ONNX"

    divisor_tiles: Annotated[
        bool,
        typer.Option(
            "--divisor-tiles", help="ONNX: for each block the divisor of its side nearest to the tile's."
        ),
    ] = False
    alls: Annotated[
        Path | None,
        typer.Option("--alls", metavar="FILE", help="ONNX: write the line for a Hailo model script as well."),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, help="ONNX: fix the batch, and with it every size."),
    ] = None
    ir_version: Annotated[
        int | None,
        typer.Option("--ir-version", metavar="N", help="ONNX: the version of the format; old tools want 8."),
    ] = None

    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="ONNX: the form that a compiler takes: onnxruntime, ethos-u, generic, hailo, ncnn, openvino, "
            "rockchip, sophgo, tensorrt, or a file of yours, NAME.toml.",
        ),
    ] = None

    def form(self, verify: bool, force: bool) -> Form:
        """The form, with what goes with every file.

        Raises:
            TiledSEError: no such target.
        """
        from ..network import Form
        from ..targets import load

        target = None if self.target is None else load(self.target)
        return Form(self.divisor_tiles, self.batch, self.ir_version, self.alls, verify, force, target)


@verb("convert")
def convert(
    model: ModelWithImage,
    tiles: Tiles,
    form: OnnxForm,
    result: Files,
    output: ConvertedOutput,
    verify: Verify = True,
) -> None:
    """Write the network with tiles in place of its global pools, and verify it."""
    from ..opening import written_endings
    from ..writing import write
    from .arguments import tell_random

    outputs = [Output("-o", output, written_endings()), Output("--alls", form.alls)]
    result.check(outputs, [*model.files, tiles.plan])
    how = form.form(verify, result.force)
    how.check_ending(output)
    network = model.at(tiles).open()
    # What lies beside a file is read too, and what is written may have a file beside it.
    beside = Output("-o", output.with_name(f"{output.name}.data"))
    check_outputs(True, [Output("-o", output), Output("--alls", form.alls), beside], network.files)
    written = write(network, tiles.of(network.plan), output, how)
    tell_random(network.random)
    result.show(written.to_dict, lambda: ["\n".join(written.lines())])
    if form.alls is not None and not result.json:
        say(f"wrote {form.alls}")
