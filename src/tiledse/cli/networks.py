"""Verbs on a network: find, plan, cost, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..cost import cost as count_cost
from ..errors import TiledSEError
from ..network import Form
from ..plan import Plan
from ..report.blocks import blocks_table, near_miss_lines
from ..report.text import cost_table
from ..writing import write
from . import options
from .app import app, print_json, print_text, say
from .arguments import choose_plan, open_model, tell_random
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
    network = open_model(model, input, weights, pretrained, image, runs=False)
    name, plan = model, network.plan
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
    chosen = _plan(
        open_model(model, input, weights, pretrained, image, runs=False).plan, tile, first, settings
    )
    chosen.save(output)
    if json:
        print_json(chosen.to_dict())
    else:
        print_text(blocks_table(chosen, model))
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
    counted = count_cost(
        choose_plan(open_model(model, input, weights, pretrained, image, runs=False), tile, plan)
    )
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
    form = Form(divisor_tiles, batch, ir_version, alls, verify, force)
    if output.suffix.lower() != ".onnx":
        form.check_plain(output)
    network = open_model(model, input, weights, pretrained, image)
    # What lies beside a file is read too, and what is written may have a file beside it.
    beside = Output("-o", output.with_name(f"{output.name}.data"))
    check_outputs(True, [Output("-o", output), Output("--alls", alls), beside], network.files)
    written = write(network, choose_plan(network, tile, plan), output, form)
    tell_random(network.random)
    if json:
        print_json(written.to_dict())
        return
    print_text(*written.lines())
    if alls is not None:
        say(f"wrote {alls}")
