"""Verbs on the row graph: stream, simulate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
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
    typer.Argument(
        metavar="[IMAGE]",
        help="TIFF, .npy or another image; of sound .npy of floats (C, T), of clips (C, D, H, W). Random if left out.",
    ),
]
RowsAtATime = Annotated[
    int | None,
    typer.Option(
        "--rows",
        metavar="N",
        min=1,
        help="Rows at a time: 64 if left out; of a step, the fewest that it can take.",
    ),
]
Alone = Annotated[bool, typer.Option("--alone", help="Do not run the whole image for comparison.")]
ArrayOutput = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE.npy", help="Where the network's output goes, row by row."),
]
Export = Annotated[
    Path | None,
    typer.Option(
        "--export",
        metavar="STEP.onnx",
        help="Write one step of the network, rows and state in, rows and state out, and stream nothing.",
    ),
]
AnyHeight = Annotated[
    bool,
    typer.Option(
        "--any-height",
        help="Of any height or length, not that of --input or of the file: it shows at the end.",
    ),
]
Backend = Annotated[
    Literal["torch", "onnxruntime", "openvino"] | None,
    typer.Option("--backend", help="What computes; a step takes onnxruntime if left out, a network torch."),
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FILE",
        help="Of a step: go on from a saved state; IMAGE has the rows from there on.",
    ),
]
SaveState = Annotated[
    Path | None,
    typer.Option(
        "--save-state", metavar="FILE", help="Of a step: the image goes on after IMAGE; save the state there."
    ),
]
FirstRow = Annotated[
    int | None,
    typer.Option(
        "--first-row",
        metavar="N",
        min=0,
        help="With --state: the number of IMAGE's first row, to be checked.",
    ),
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
    rows: RowsAtATime = None,
    alone: Alone = False,
    output: ArrayOutput = None,
    export: Export = None,
    any_height: AnyHeight = False,
    backend: Backend = None,
    state: State = None,
    save_state: SaveState = None,
    first_row: FirstRow = None,
) -> None:
    """Run the network row by row, compare with the whole image, and count what each layer holds.

    Sound, as --input 80x1000 says it, comes frame by frame: its file holds the features that the network takes.

    Rows of integers are scaled by their largest value, then by the mean and deviation that the network's library says.
    With --export one step of it is written as ONNX, for any runtime; MODEL may be such a file, which is then run on the
    image as it is, or on the next rows of one that comes in several files.
    """
    from ..report.pipeline_plots import draw_held
    from ..report.streaming import streamed_parts
    from ..stream.comparison import output_files, stream_image
    from ..stream.executor import stream as make_stream
    from ..stream.step.runner import is_step

    _check_options(export, image, output, backend, alone)
    if is_step(model.model):
        pages = _Pages(state, save_state, first_row, any_height)
        _run_step(Path(model.model), model, tiles, result, image, rows, output, export, backend, pages)
        return
    for option, given in (("--state", state), ("--save-state", save_state), ("--first-row", first_row)):
        if given is not None:
            raise TiledSEError(f"{option} is for the file of a step; make one with --export STEP.onnx")
    read = [*model.files, tiles.plan, image]
    result.check([Output("-o", output), Output("--export", export, (".onnx",))], read)
    network = model.at(tiles).open()
    plan = tiles.of(network.plan)
    if export is not None:
        _export(network, plan, export, rows, None if any_height else plan.input_size[1], model, result)
        return
    source = _rows(image, network, plan)
    s = make_stream(
        network, plan, height=None if any_height else source.height, width=source.width,
        rows=rows or 64, backend=backend or "torch",
    )  # fmt: skip
    files = [] if output is None else output_files(output, s)
    if len(files) > 1:
        result.check([Output("-o", file) for file in files], read)
    whole = None if alone else partial(network.tiled, plan)
    found = stream_image(s, source, whole=whole, outputs=files, name=model.model, watched=_watched)
    if image is not None and len(plan.input_size) == 3 and not network.says_images:
        say(
            f"{network.name} does not say how images are normalised: rows of integers are scaled to 0..1 alone"
        )
    title = f"{model.model} at {'x'.join(map(str, found.input_size))}"
    result.draw(lambda path: draw_held(found.held, path, title))
    result.show(lambda: {"model": model.model, **found.to_dict()}, lambda: streamed_parts(found, model.model))
    if output is not None and not result.json:
        say(f"wrote {', '.join(map(str, files))}")


@dataclass(frozen=True)
class _Pages:
    """An image in several files: what came before this one, and where the next goes on."""

    state: Path | None
    save: Path | None
    first: int | None
    any_height: bool

    def height(self, rows: int) -> int | None:
        """Of the whole image, which is known where it is one file, or where a state says it."""
        from ..stream.step.saved import height_in

        if self.state is not None:
            return height_in(self.state)
        return rows if self.save is None and not self.any_height else None


def _check_options(
    export: Path | None, image: Path | None, output: Path | None, backend: str | None, alone: bool
) -> None:
    """What goes with writing a step, and what with running one."""
    if export is not None:
        options = {"IMAGE": image, "-o": output, "--backend": backend, "--alone": alone or None}
        for option in (name for name, given in options.items() if given is not None):
            raise TiledSEError(f"{option} runs an image, and --export writes a step; run the step afterwards")


def _export(
    network: Network,
    plan: Plan,
    path: Path,
    rows: int | None,
    height: int | None,
    model: Model,
    result: Figure,
) -> None:
    """Write one step."""
    from ..report.steps import exported_lines, exported_record
    from ..stream.step.exporting import export_step, middle_of

    result.check([Output("--export", middle_of(path))], model.files)
    if result.plot is not None:
        raise TiledSEError("--plot draws what a stream holds; leave it out with --export")
    made = export_step(network, plan, path, rows=rows, height=height, force=result.force)
    result.show(
        lambda: {"model": model.model, **exported_record(made)}, lambda: exported_lines(made, model.name)
    )


def _run_step(
    path: Path, model: Model, tiles: Tiles, result: Figure, image: Path | None, rows: int | None, output: Path | None,
    export: Path | None, backend: str | None, pages: _Pages,
) -> None:  # fmt: skip
    """Run the file of a step on an image."""
    from ..report.steps import run_lines
    from ..stream.frame_files import FrameRows
    from ..stream.sources import ImageRows
    from ..stream.step.files import run_file, step_files
    from ..stream.step.runner import StepRunner, header_of

    options = {
        "--tile": tiles.tile, "--plan": tiles.plan, "--input": model.input, "--weights": model.weights,
        "--rows": rows, "--export": export, "--plot": result.plot,
    }  # fmt: skip
    for option in (name for name, given in options.items() if given is not None):
        raise TiledSEError(
            f"{path} is a step, which has its rows, tiles and weights in it; leave {option} out"
        )
    if backend == "torch":
        raise TiledSEError(f"{path} is a step; it runs in onnxruntime or openvino")
    if image is None:
        raise TiledSEError(f"{path} is a step; give an image for it")
    read = [path, image, pages.state]
    result.check([Output("-o", output), Output("--save-state", pages.save, (".safetensors",))], read)
    header = header_of(path)
    sides = header.row_shape
    source = ImageRows(image) if len(sides) == 1 else FrameRows(image, header.channels, sides)
    runner = StepRunner(path, pages.height(source.height), backend=backend or "onnxruntime")  # type: ignore[arg-type]
    if pages.state is not None:
        runner.load(pages.state)
    files = [] if output is None else step_files(output, runner.header)
    if len(files) > 1:
        result.check([Output("-o", file) for file in files], read)
    found = run_file(runner, source, files, _watched, pages.first, ends=pages.save is None)
    if pages.save is not None:
        runner.save(pages.save)
    result.show(lambda: {"model": str(path), **found.to_dict()}, lambda: run_lines(found, path.name))
    written = [file for file, shape in zip(files, found.shapes.values()) if shape is not None]
    written += [] if pages.save is None else [pages.save]
    if written and not result.json:
        say(f"wrote {', '.join(map(str, written))}")


def _rows(image: Path | None, network: Network, plan: Plan) -> Rows:
    """The image, normalised as the network's library says; a random one where none is given."""
    from ..stream.comparison import RandomRows
    from ..stream.frame_files import FrameRows
    from ..stream.frames import row_shape, row_size
    from ..stream.sources import ImageRows

    if image is None:
        return RandomRows(*row_size(plan))
    if len(row_shape(plan)) != 1:
        return FrameRows(image, plan.input_size[0], row_shape(plan))
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
    network = model.at(tiles).open(runs=False)
    plan = tiles.of(network.plan)
    se, tse, sized = compare(network, plan, hardware=chip, fifos=fifos)
    title = f"{model.model} at {'x'.join(map(str, plan.image_size))}"
    result.draw(lambda path: draw_pipeline({"SE": se, "TSE": tse}, path, title))
    if trace is not None:
        write_trace(tse, trace)
        say(f"wrote {trace}")
    table = simulation_table(se, tse, f"{title}, {fifos} FIFOs")
    result.show(
        lambda: {"model": model.model, **simulation_record(se, tse, plan, sized, fifos)},
        lambda: [table, *([stages_table(tse)] if stages else [])],
    )
