"""Verbs on the row graph: stream, simulate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import TiledSEError
from .app import say
from .groups import verb
from .model import Model, Tiles
from .outputs import Output
from .results import Figure

if TYPE_CHECKING:
    from torch import Tensor

    from ..network import Network
    from ..plan import Plan
    from ..stream.comparison import Rows

Image = Annotated[
    Path | None,
    typer.Argument(metavar="[IMAGE]", help="TIFF, .npy or another image; a random one if left out."),
]
RowsAtATime = Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Rows at a time.")]
Alone = Annotated[bool, typer.Option("--alone", help="Do not run the whole image for comparison.")]
ArrayOutput = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE.npy", help="Where the network's output goes, row by row."),
]
HardwareFile = Annotated[
    Path | None,
    typer.Option("--hardware", metavar="FILE", help="Multipliers, rates and FIFOs: TOML or JSON."),
]
Fifos = Annotated[
    Literal["unhindered", "minimum"],
    typer.Option("--fifos", help="FIFOs that lose no time, or the smallest without deadlock."),
]
Stages = Annotated[bool, typer.Option("--stages", help="Show every stage.")]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="A trace for ui.perfetto.dev or chrome://tracing."),
]


@verb("stream")
def stream(
    model: Model,
    tiles: Tiles,
    result: Figure,
    image: Image = None,
    rows: RowsAtATime = 64,
    alone: Alone = False,
    output: ArrayOutput = None,
) -> None:
    """Run the network row by row, compare with the whole image, and count what each layer holds.

    Rows of integers are scaled by their largest value, then by the mean and deviation that the network's library says.
    """
    from ..report.pipeline_plots import draw_held
    from ..report.streaming import streamed_parts
    from ..stream.comparison import output_files, stream_image
    from ..stream.executor import stream as make_stream

    read = [*model.files, tiles.plan, image]
    result.check([Output("-o", output)], read)
    network = model.open()
    module, plan = network.module("stream"), tiles.of(network.plan)
    source = _rows(image, network, plan)
    s = make_stream(module, plan, height=source.height, width=source.width, rows=rows)
    files = [] if output is None else output_files(output, s)
    if len(files) > 1:
        result.check([Output("-o", file) for file in files], read)
    whole = None if alone else (module, plan)
    found = stream_image(s, source, whole=whole, outputs=files, name=model.model, watched=_watched)
    title = f"{model.model} at {'x'.join(map(str, found.input_size))}"
    result.draw(lambda path: draw_held(found.held, path, title))
    result.show(lambda: {"model": model.model, **found.to_dict()}, lambda: streamed_parts(found, model.model))
    if output is not None and not result.json:
        say(f"wrote {', '.join(map(str, files))}")


def _rows(image: Path | None, network: Network, plan: Plan) -> Rows:
    """The image, normalised as the network's library says; a random one where none is given."""
    from ..stream.comparison import RandomRows
    from ..stream.sources import ImageRows

    if image is None:
        return RandomRows(*plan.input_size)
    config = network.config or {}
    source = ImageRows(image, config.get("mean"), config.get("std"))
    if source.channels != plan.input_size[0]:
        raise TiledSEError(f"{image} has {source.channels} channels, the network takes {plan.input_size[0]}")
    return source


def _watched(chunks: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    from .progress import progress_bar

    with progress_bar("streaming") as progress:
        for number, chunk in enumerate(chunks):
            progress(number, count)
            yield chunk


@verb("simulate")
def simulate(
    model: Model,
    tiles: Tiles,
    result: Figure,
    hardware: HardwareFile = None,
    fifos: Fifos = "unhindered",
    stages: Stages = False,
    trace: Trace = None,
) -> None:
    """Run the rows through a simulated pipeline: cycles, stalls and buffers, with SE and with tiles."""
    from ..report.pipeline_plots import draw_pipeline
    from ..report.streaming import simulation_record, simulation_table, stages_table
    from ..stream.hardware import Hardware
    from ..stream.simulator import compare
    from ..stream.trace_file import write_trace

    result.check([Output("--trace", trace)], [*model.files, tiles.plan, hardware])
    chip = Hardware() if hardware is None else Hardware.load(hardware)
    network = model.open(runs=False)
    plan = tiles.of(network.plan)
    se, tse, sized = compare(network.module("simulate"), plan, hardware=chip, fifos=fifos)
    title = f"{model.model} at {'x'.join(map(str, plan.input_size))}"
    result.draw(lambda path: draw_pipeline({"SE": se, "TSE": tse}, path, title))
    if trace is not None:
        write_trace(tse, trace)
        say(f"wrote {trace}")
    table = simulation_table(se, tse, f"{title}, {fifos} FIFOs")
    result.show(
        lambda: {"model": model.model, **simulation_record(se, tse, plan, sized, fifos)},
        lambda: [table, *([stages_table(tse)] if stages else [])],
    )
