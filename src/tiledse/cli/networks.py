"""Verbs on a network: find, plan, cost, convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ..errors import TiledSEError
from .app import say
from .groups import verb
from .model import ModelWithImage, PlanOutput, Tiles
from .onnx import is_onnx
from .outputs import Output, check_outputs
from .results import Files, Result

EveryTile = Annotated[str, typer.Option("--tile", metavar="T", help="The tile of every block.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="GLOB=T", help="A tile for the blocks that match; may be repeated."),
]
First = Annotated[
    int | None, typer.Option("--first", metavar="N", help="Give --tile to the first N blocks only.")
]
ConvertedOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="out.onnx or out.safetensors")
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

    name, plan = model.find()
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
    name, found = model.find()
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

    counted = count_cost(tiles.of(model.find()[1]))
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
    outputs = [Output("-o", output, (".onnx", ".safetensors")), Output("--alls", form.alls)]
    result.check(outputs, [*model.files, tiles.plan])
    if is_onnx(output):
        _convert_to_onnx(model, tiles, form, result, output, verify)
    else:
        _check_no_onnx(model, form, output)
        _convert_to_safetensors(model, tiles, result, output, verify)


def _check_no_onnx(model: ModelWithImage, form: OnnxForm, output: Path) -> None:
    if model.is_onnx:
        raise TiledSEError(
            f"{model.model} is an ONNX network; give an output that ends in .onnx, got {output}"
        )
    given = {
        "--divisor-tiles": form.divisor_tiles,
        "--alls": form.alls,
        "--batch": form.batch,
        "--ir-version": form.ir_version,
        "--image": model.image,
    }
    for option in (name for name, value in given.items() if value):
        raise TiledSEError(f"{option} goes with ONNX; give an output that ends in .onnx, got {output}")


def _convert_to_safetensors(
    model: ModelWithImage, tiles: Tiles, result: Files, output: Path, verify: bool
) -> None:
    from ..networks.converter import convert_verified
    from ..networks.saving import save
    from ..report.conversion import conversion_lines, conversion_record
    from .arguments import tell_random

    loaded, chosen = model.planned(tiles)
    made = convert_verified(loaded.model, chosen, verify=verify)
    save(made.model, made.plan, output, loaded.name)
    tell_random(loaded.random)
    result.show(lambda: conversion_record(made, chosen, output), lambda: conversion_lines(made, output))


def _convert_to_onnx(
    model: ModelWithImage, tiles: Tiles, form: OnnxForm, result: Files, output: Path, verify: bool
) -> None:
    from .. import onnx as room
    from ..files import written_whole
    from ..report.conversion import onnx_lines, onnx_record
    from .arguments import tell_random

    loaded = None
    if model.is_onnx:
        source = model.read_onnx()
        # What lies beside the file is read too, and what is written may have a file beside it.
        data = Output("-o", output.with_name(f"{output.name}.data"))
        check_outputs(True, [Output("-o", output), Output("--alls", form.alls), data], source.data_files)
        chosen = tiles.of(room.find(source, model.size))
    else:
        from ..onnx.from_torch import export_planned

        loaded, ours = model.planned(tiles)
        say("exporting ...")
        source, chosen = export_planned(loaded.model, ours)
    made = room.convert_verified(
        source, chosen, divisor_tiles=form.divisor_tiles, batch=form.batch, ir_version=form.ir_version, verify=verify
    )  # fmt: skip
    line = None if form.alls is None else room.alls(made.plan)
    difference = None
    if loaded is not None and verify:
        from ..onnx.from_torch import difference_to_torch

        difference = difference_to_torch(loaded.model, made)
    room.save(made.model, output, force=result.force)
    if form.alls is not None and line is not None:
        with written_whole(form.alls) as part:
            part.write_text(line + "\n", encoding="utf-8")
    tell_random(loaded is not None and loaded.random)
    result.show(
        lambda: onnx_record(source, made, difference, output, form.alls),
        lambda: ["\n".join(onnx_lines(source, made, difference, output))],
    )
    if form.alls is not None and not result.json:
        say(f"wrote {form.alls}")
