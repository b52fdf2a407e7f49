"""Verbs on a network: find, plan, cost, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..cost import cost as count_cost
from ..errors import TiledSEError
from ..networks.converter import Converted, convert_verified
from ..networks.saving import save
from ..plan import Plan
from ..report.blocks import blocks_table, near_miss_lines
from ..report.text import cost_table
from . import options
from .app import app, print_json, print_text, say
from .arguments import choose_plan, load_planned, tell_random
from .onnx import OnnxForm, convert_to_onnx, find_any, is_onnx
from .outputs import Output, check_outputs


@app.command()
def find(
    model: options.Model,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    image: options.Image = None,
    json: options.Json = False,
) -> None:
    """List the SE blocks of a network, and why each near miss is none."""
    name, plan = find_any(model, input, weights, pretrained, image)
    if json:
        whole = plan.to_dict()
        blocks = [{k: v for k, v in block.items() if k != "excite_macs"} for block in whole["blocks"]]
        print_json(
            {
                "model": name,
                "input": whole["input_size"],
                "blocks": blocks,
                "near_misses": whole["near_misses"],
            }
        )
    else:
        print_text(blocks_table(plan, name), *near_miss_lines(plan))


@app.command()
def plan(
    model: options.Model,
    output: options.PlanOutput,
    tile: Annotated[str, typer.Option("--tile", metavar="T", help="The tile of every block.")] = "HxW",
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="GLOB=T", help="A tile for the blocks that match; may be repeated."),
    ] = None,
    first: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--first", metavar="N", help="Give --tile to the first N blocks only."),
    ] = None,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    image: options.Image = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Choose a tile for each block and write the plan."""
    check_outputs(force, [Output("-o", output, (".json",))], [model, weights])
    settings = [_setting(text) for text in set_ or []]
    name, found = find_any(model, input, weights, pretrained, image)
    chosen = _plan(found, tile, first, settings)
    chosen.save(output)
    if json:
        print_json(chosen.to_dict())
    else:
        print_text(blocks_table(chosen, name))
        say(f"wrote {output}")


def _setting(text: str) -> tuple[str, str]:
    glob, equals, tile = text.partition("=")
    if not equals or not glob or not tile:
        raise TiledSEError(f"no setting: --set '{text}'; expected GLOB=T, such as --set 'blocks.4.*=7xW'")
    return glob, tile


def _plan(found: Plan, tile: str, first: int | None, settings: list[tuple[str, str]]) -> Plan:
    chosen = found.with_tile(tile) if first is None else found.first(first, tile)
    for glob, special in settings:
        chosen = chosen.with_tile(special, glob)
    return chosen


@app.command()
def cost(
    model: options.Model,
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    image: options.Image = None,
    json: options.Json = False,
) -> None:
    """Count parameters, MACs and gate buffers of a network, with SE and with tiles."""
    _, found = find_any(model, input, weights, pretrained, image)
    counted = count_cost(choose_plan(found, tile, plan))
    if json:
        print_json(counted.to_dict())
    else:
        print_text(cost_table(counted))


@app.command()
def convert(
    model: options.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="out.onnx or out.safetensors")
    ],
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    image: options.Image = None,
    divisor_tiles: Annotated[
        bool,
        typer.Option(
            "--divisor-tiles", help="ONNX: for each block the divisor of its side nearest to the tile's."
        ),
    ] = False,
    alls: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--alls", metavar="FILE", help="ONNX: write the line for a Hailo model script as well."),
    ] = None,
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--batch", metavar="N", min=1, help="ONNX: fix the batch, and with it every size."),
    ] = None,
    ir_version: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--ir-version", metavar="N", help="ONNX: the version of the format; old tools want 8."),
    ] = None,
    verify: options.Verify = True,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write the network with tiles in place of its global pools, and verify it."""
    check_outputs(
        force,
        [Output("-o", output, (".onnx", ".safetensors")), Output("--alls", alls)],
        [model, weights, plan],
    )
    if is_onnx(output):
        form = OnnxForm(divisor_tiles, batch, ir_version, alls, verify, image)
        convert_to_onnx(model, output, tile, plan, input, weights, pretrained, form, force, json)
        return
    if is_onnx(model):
        raise TiledSEError(f"{model} is an ONNX network; give an output that ends in .onnx, got {output}")
    given = {
        "--divisor-tiles": divisor_tiles,
        "--alls": alls,
        "--batch": batch,
        "--ir-version": ir_version,
        "--image": image,
    }
    for option in (name for name, value in given.items() if value):
        raise TiledSEError(f"{option} goes with ONNX; give an output that ends in .onnx, got {output}")
    loaded, chosen = load_planned(model, input, weights, pretrained, tile, plan)
    made = convert_verified(loaded.model, chosen, verify=verify)
    save(made.model, made.plan, output, loaded.name)
    converted = sum(not tile.whole for tile in made.plan.tiles)
    tell_random(loaded.random)
    if json:
        print_json(
            {
                "converted": converted,
                "total": len(chosen),
                "refused": [{"name": miss.name, "reason": miss.reason} for miss in made.refused],
                "near_misses": chosen.to_dict()["near_misses"],
                "max_abs_diff_identity": made.difference,
                "verify_s": made.seconds,
                "output": str(output),
            }
        )
    else:
        print_text(
            f"{converted} of {len(chosen)} SE blocks have tiles now: {output}",
            *(f"block '{miss.name}' was left as it was: {miss.reason}" for miss in made.refused),
            _verified_line(made),
        )


def _verified_line(made: Converted) -> str:
    """What verifying gave, and how long it took."""
    if made.seconds is None:
        return "not verified (--no-verify)"
    if made.difference is None or made.largest is None:
        return f"verified in {made.seconds:.2f} s"
    return (
        f"verified in {made.seconds:.2f} s: each block is the SE block on each tile alone, in training too; with one "
        f"tile a map the network differs by at most {made.difference:.1e} (outputs up to {made.largest:.1e})"
    )
