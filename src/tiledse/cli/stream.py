"""Verbs on the row graph: stream, simulate."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated, Any, Literal, Optional

import numpy as np
import torch
import typer
from torch import Tensor, nn

from ..cost import cost as count_cost
from ..errors import TiledSEError
from ..networks.converter import convert_shared
from ..report.streaming import held_table, simulation_table, stages_table
from ..stream.executor import Stream
from ..stream.executor import stream as make_stream
from ..stream.hardware import Hardware
from ..stream.memory import peak_resident
from ..stream.simulator import compare
from ..stream.sources import ImageRows, OutputFile
from ..stream.trace_file import write_trace
from . import options
from .app import app, print_json, print_text, say
from .arguments import choose_plan, open_model
from .outputs import Output, check_outputs, drawing

Plot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf."),
]


@app.command()
def stream(
    model: options.Model,
    image: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="[IMAGE]", help="TIFF, .npy or another image; a random one if left out."),
    ] = None,
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Rows at a time.")] = 64,
    alone: Annotated[
        bool, typer.Option("--alone", help="Do not run the whole image for comparison.")
    ] = False,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "-o", "--output", metavar="FILE.npy", help="Where the network's output goes, row by row."
        ),
    ] = None,
    plot: Plot = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Run the network row by row, compare with the whole image, and count what each layer holds.

    Rows of integers are scaled by their largest value and then by the mean and deviation that timm gives the network.
    """
    read = [model, weights, plan, image]
    check_outputs(force, [Output("-o", output), drawing(plot)], read)
    network = open_model(model, input, weights, pretrained)
    module, chosen = network.module("stream"), choose_plan(network, tile, plan)
    config = network.config or {}
    source = None if image is None else ImageRows(image, config.get("mean"), config.get("std"))
    channels, height, width = chosen.input_size
    if source is not None:
        if source.channels != channels:
            raise TiledSEError(f"{image} has {source.channels} channels, the network takes {channels}")
        height, width = source.height, source.width
    s = make_stream(module, chosen, height=height, width=width, rows=rows)
    names = [] if output is None else _names(output, len(s.graph.outputs))
    if len(names) > 1:
        check_outputs(force, [*(Output("-o", name) for name in names), drawing(plot)], read)

    def chunks() -> Iterator[Tensor]:
        if source is not None:
            yield from source.chunks(rows)
            return
        generator = torch.Generator().manual_seed(0)
        for start in range(0, height, rows):
            yield torch.randn(1, channels, min(rows, height - start), width, generator=generator)

    # What torch loads at its first call of each operator is not the stream's.
    Stream(s.graph, s.plan, s.height, rows).push(torch.zeros(1, channels, min(height, 2 * rows), width))
    error = full = None
    with TemporaryDirectory() as folder:
        # Outputs that are kept for the comparison lie in files: in memory they would count as the stream's.
        target = output if output is not None or alone else Path(folder, "out.npy")
        gc.collect()
        with peak_resident() as grown:
            _run(s, _progress(chunks(), -(-height // rows)), target)
        if not alone:
            assert target is not None
            tse = convert_shared(module, chosen)
            gc.collect()
            with peak_resident() as whole_grown:
                expected = _whole(tse, chunks(), (1, channels, height, width))
            full = whole_grown()
            files = _names(target, len(expected))
            # numpy, whose maximum of something and nan is nan.
            error = float(np.max([_difference(*pair) for pair in zip(files, expected, strict=True)]))
            if not np.isfinite(error):
                raise TiledSEError(
                    f"{model} gives outputs that are not finite on this image; check its weights (--weights) and how "
                    "the image is normalised"
                )
    held = s.held()
    size = f"{channels}x{height}x{width}"
    if plot is not None:
        from ..report.pipeline_plots import draw_held

        draw_held(held, plot, f"{model} at {size}")
    closed = count_cost(s.plan).tse.buffer_row_order
    if json:
        print_json(
            {
                "model": model,
                "input": [channels, height, width],
                "max_rel_error": error,
                "peak_live_bytes": s.peak_live_bytes,
                "rss_delta_bytes": grown(),
                "full_rss_delta_bytes": full,
                "held": [dict(vars(item)) for item in held],
                "gate_buffer": sum(item.elements for item in held if item.kind == "gate"),
                "cost_buffer_row_order": closed,
                "whole": s.whole,
            }
        )
        return
    lines = [f"gates hold {closed:,} elements by the closed form of `tiledse cost` (row order)"]
    lines.append(
        f"rows alive at once, {rows} at a time: {s.peak_live_bytes / 1e6:.1f} MB; resident memory grew by "
        f"{_megabytes(grown())}" + ("" if alone else f", with the whole image by {_megabytes(full)}")
    )
    if error is not None:
        lines.append(f"largest difference from the whole image: {error:.1e} of the largest output (float32)")
    print_text(held_table(held, s.whole, f"{model} at {size}: what layers hold"), *lines)
    if output is not None:
        say(f"wrote {', '.join(map(str, _names(output, len(s.graph.outputs))))}")


def _megabytes(count: int | None) -> str:
    return "an amount that this system does not tell" if count is None else f"{count / 1e6:.0f} MB"


def _progress(parts: Iterator[Tensor], total: int) -> Iterator[Tensor]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        parts, "streaming", total=total, console=console, transient=True, disable=not console.is_terminal
    )


def _names(output: Path, count: int) -> list[Path]:
    """One file an output: out.npy, or out.0.npy, out.1.npy, ..."""
    return [output] if count == 1 else [output.with_suffix(f".{i}{output.suffix}") for i in range(count)]


def _whole(model: nn.Module, chunks: Iterator[Tensor], shape: tuple[int, ...]) -> list[Tensor]:
    """The outputs of the whole image at once, which is filled with its rows so as to be there only once."""
    image, row = torch.empty(shape), 0
    for rows in chunks:
        image[:, :, row : row + rows.shape[2]] = rows
        row += rows.shape[2]
    with torch.no_grad():
        return torch.utils._pytree.tree_flatten(model(image))[0]


def _difference(file: Path, expected: Tensor) -> float:
    """The largest difference of what was written from an output, relative to the output's largest value."""
    written = torch.from_numpy(np.load(file))
    return float((written - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _run(s: Stream, chunks: Iterator[Tensor], output: Path | None) -> None:
    """Stream, and write outputs as their rows come."""
    from ..files import written_whole

    values = [s.graph.values[i] for i in s.graph.outputs]
    with ExitStack() as stack:
        files: list[OutputFile] = []
        for path, value in zip(_names(output, len(values)) if output is not None else [], values):
            part = stack.enter_context(written_whole(path))
            file: IO[bytes] = stack.enter_context(part.open("r+b"))
            files.append(OutputFile(file, value.shape, value.row_dim))
        for out in s.run(chunks):
            for i, leaf in enumerate(torch.utils._pytree.tree_flatten(out, is_leaf=lambda x: x is None)[0]):
                if leaf is None:
                    continue
                if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
                    raise TiledSEError(
                        f"output {i} of the network is not finite; check its weights and the image's numbers"
                    )
                if files:
                    files[i].put(leaf)
        for open_file in files:
            open_file.close()


@app.command()
def simulate(
    model: options.Model,
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    hardware: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--hardware", metavar="FILE", help="Multipliers, rates and FIFOs: TOML or JSON."),
    ] = None,
    fifos: Annotated[
        Literal["unhindered", "minimum"],
        typer.Option("--fifos", help="FIFOs that lose no time, or the smallest without deadlock."),
    ] = "unhindered",
    stages: Annotated[bool, typer.Option("--stages", help="Show every stage.")] = False,
    plot: Plot = None,
    trace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--trace", metavar="FILE", help="A trace for ui.perfetto.dev or chrome://tracing."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Run the rows through a simulated pipeline: cycles, stalls and buffers, with SE and with tiles."""
    check_outputs(force, [drawing(plot), Output("--trace", trace)], [model, weights, plan, hardware])
    chip = Hardware() if hardware is None else Hardware.load(hardware)
    network = open_model(model, input, weights, pretrained, runs=False)
    module, chosen = network.module("simulate"), choose_plan(network, tile, plan)
    se, tse, sized = compare(module, chosen, hardware=chip, fifos=fifos)
    size = "x".join(map(str, chosen.input_size))
    if plot is not None:
        from ..report.pipeline_plots import draw_pipeline

        draw_pipeline({"SE": se, "TSE": tse}, plot, f"{model} at {size}")
    if trace is not None:
        write_trace(tse, trace)
    if json:
        plain = {stage.block: stage for stage in se.stages if stage.block is not None}
        tiled = {stage.block: stage for stage in tse.stages if stage.block is not None}
        blocks: list[dict[str, Any]] = [
            {
                "name": block.name,
                "tile": block.tile,
                "buffer_row_order": block.buffer_row_order,
                "se_peak": plain[block.name].peak,
                "peak": tiled[block.name].peak,
                "fifo_rows": tiled[block.name].fifo_rows,
            }
            for block in count_cost(sized).blocks
            if block.name in tiled
        ]
        print_json(
            {
                "model": model,
                "input": list(chosen.input_size),
                "fifos": fifos,
                "multipliers": tse.multipliers,
                "se": se.to_dict(),
                "tse": tse.to_dict(),
                "blocks": blocks,
                "stages": [dict(vars(stage)) for stage in tse.stages],
            }
        )
        return
    table = simulation_table(se, tse, f"{model} at {size}, {fifos} FIFOs")
    print_text(table, *([stages_table(tse)] if stages else []))
    for path in (plot, trace):
        if path is not None:
            say(f"wrote {path}")
