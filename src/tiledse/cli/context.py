"""The verbs on local context: correlate, sensitivity, sweep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TiledSEError
from .app import say
from .data import Data
from .groups import verb
from .model import Model, Models, Tiles
from .outputs import Output
from .results import Figure

if TYPE_CHECKING:
    import torch

    from ..context.agreement import Correlation
    from ..context.sensitivity import Sensitivity
    from ..context.sweep_file import SweepFile
    from ..evaluate.tasks import Progress
    from ..plan import Plan
    from ..tile import Tile
    from .measuring import Opened

TileList = Annotated[
    str | None, typer.Option("--tiles", metavar="T,T,...", help="Tiles, such as 1xW,3xW,7xW.")
]
Channels = Annotated[
    Path | None,
    typer.Option("--channels", metavar="FILE.csv", help="Write the correlation of each channel."),
]
SweepOutput = Annotated[Path, typer.Option("-o", "--output", metavar="sweep.csv", help="Results, one a row.")]


@verb("correlate")
def correlate(
    model: Model,
    data: Data,
    tiles: Tiles,
    result: Figure,
    several: TileList = None,
    channels: Channels = None,
) -> None:
    """Correlate the descriptors and gates of tiles with those of the whole map, block by block (figure 4).

    Images need no labels. --tile or --plan look at one tile a block, --tiles at several.
    """
    from ..context.correlation import correlate as measure_correlation
    from ..report.context import correlation_table
    from .arguments import parse_tiles
    from .measuring import measured

    def check() -> None:
        result.check([Output("--channels", channels)], [*model.files, tiles.plan, *data.files])
        if (several is None) == (tiles == Tiles()):
            raise TiledSEError("give the tiles with --tiles T,T,..., --tile T or --plan FILE, one of them")
        if several is not None:
            parse_tiles(several)

    def choose(found: Plan) -> list[list[Tile]]:
        if several is not None:
            return [parse_tiles(several)] * len(found)
        return [[tile] for tile in tiles.of(found).tiles]

    def measure(opened: Opened, each: list[list[Tile]], **how: Any) -> Correlation:
        return measure_correlation(opened.network, opened.task.images, each, **how)

    done = measured(model.at(tiles), data, check, choose, measure)
    if done is None:
        return
    name, _, found = done
    if channels is not None:
        found.save_channels(channels)
        say(f"wrote {channels}")
    result.draw(lambda path: _plots().draw_correlation(found, path, name))
    result.show(lambda: {"model": name, **found.to_dict()}, lambda: [correlation_table(found, name)])


@verb("sensitivity")
def sensitivity(model: Model, data: Data, result: Figure, tiles: TileList = None) -> None:
    """Give tiles to each block alone, to each stage alone and to all, and measure what each costs (table 3)."""
    from ..context.sensitivity import sensitivity as measure_sensitivity
    from ..report.context import sensitivity_tables
    from .arguments import parse_tiles
    from .measuring import measured

    def check() -> None:
        result.check([], [*model.files, *data.files])
        parse_tiles(tiles)

    def measure(opened: Opened, chosen: list[Tile], **how: Any) -> Sensitivity:
        return measure_sensitivity(opened.network, opened.task, chosen, **how)

    done = measured(model, data, check, lambda found: parse_tiles(tiles), measure)
    if done is None:
        return
    name, _, found = done
    result.draw(lambda path: _plots().draw_sensitivity(found, path, name))
    result.show(lambda: {"model": name, **found.to_dict()}, lambda: sensitivity_tables(found, name))


@verb("sweep", batch_size=32)
def sweep(models: Models, data: Data, result: Figure, output: SweepOutput, tiles: TileList = None) -> None:
    """Measure many tiles on many networks: figures 2 and 5b, table 2's weights as they are.

    A row is written as soon as it is measured. Called again with the same -o, it goes on with what is missing.
    """
    from ..context.sweep_file import SweepFile
    from ..evaluate.processes import own_device
    from ..report.context import sweep_table
    from .arguments import parse_tiles
    from .measuring import in_processes

    where = own_device(data.device)
    wanted = parse_tiles(tiles)
    data.source()
    result.check([Output("-o", output, grows=True)], [*models.files, *data.files])
    each, file = models.each(), SweepFile(output)
    labels = _labels(each, data)

    had = in_processes(where, lambda speaks: _sweep(each, labels, data, wanted, file, where, speaks))
    if had is None:
        return
    say(f"{len(file.rows) - had} new rows in {output}, {had} were there")
    rows = file.rows_of(labels)
    result.draw(lambda path: _plots().draw_sweep(rows, path))
    result.show(lambda: {"rows": rows}, lambda: [sweep_table(rows)])


def _labels(models: list[Model], data: Data) -> list[dict[str, str]]:
    """What the file says of each network.

    Raises:
        TiledSEError: two networks could not be told from each other.
    """
    labels = [
        {
            "model": model.name,
            "weights": "pretrained" if model.pretrained else model.weights.name if model.weights else "",
            "task": data.task,
            "data": Path(data.data).name,
            "preprocess": data.preprocess if data.adapter is None else data.adapter,
            "input": model.input or "",
        }
        for model in models
    ]
    for one in labels:
        if labels.count(one) > 1:
            raise TiledSEError(
                f"two of the networks are called '{one['model']}' in the results, with the same weights; give them one "
                "by one with an -o each"
            )
    return labels


def _sweep(
    models: list[Model], labels: list[dict[str, str]], data: Data, tiles: list[Tile], file: SweepFile,
    where: torch.device, speaks: bool,
) -> int:  # fmt: skip
    """Measure what the file does not have; how many rows it had."""
    from ..context.sweep import Entry
    from ..context.sweep import sweep as run_sweep
    from .measuring import open_measured, opened_together
    from .progress import progress_bar

    had = len(file.rows)

    def opener(model: Model) -> Callable[[], tuple[Any, Any]]:
        def open_() -> tuple[Any, Any]:
            opened = opened_together(lambda: open_measured(model, where, data), speaks)
            return opened.network, opened.task

        return open_

    with ExitStack() as bars:

        def progress(title: str) -> Progress:
            bars.close()
            return bars.enter_context(progress_bar(title, shown=speaks))

        entries = [Entry(*pair) for pair in zip(labels, map(opener, models), strict=True)]
        how: dict[str, Any] = {"batch_size": data.batch_size, "workers": data.workers, "device": where}
        for row in run_sweep(entries, tiles, file, progress=progress, **how):
            if speaks:
                say(f"{row['model']} {row['tile']}: drop {row['drop']:.2f} of {row['se']:.2f}")
    return had


def _plots() -> ModuleType:
    from ..report import plots

    return plots
