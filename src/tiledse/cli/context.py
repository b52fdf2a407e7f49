"""The verbs on local context: correlate, sensitivity, sweep."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..context.agreement import Correlation
from ..context.correlation import correlate as measure_correlation
from ..context.sensitivity import Sensitivity
from ..context.sensitivity import sensitivity as measure_sensitivity
from ..context.sweep import Entry
from ..context.sweep import sweep as run_sweep
from ..context.sweep_file import SweepFile
from ..errors import TiledSEError
from ..evaluate.processes import own_device
from ..evaluate.tasks import Progress
from ..opening import shown_name
from ..report.context import correlation_table, sensitivity_tables, sweep_table
from . import options
from .app import app, print_json, print_text, say
from .arguments import choose_plan, parse_tiles
from .measuring import Opened, Setting, in_processes, open_measured, opened_together
from .outputs import Output, check_outputs, drawing
from .progress import progress_bar


@app.command()
def correlate(
    model: options.Model,
    data: options.Data,
    tiles: options.Tiles = None,
    tile: options.TileText = None,
    plan: options.PlanFile = None,
    channels: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--channels", metavar="FILE.csv", help="Write the correlation of each channel."),
    ] = None,
    plot: options.Plot = None,
    task: options.TaskName = "classify",
    adapter: options.AdapterText = None,
    images_dir: options.ImagesDir = None,
    masks: options.Masks = None,
    preprocess: options.Preprocess = "network",
    class_map: options.ClassMap = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 16,
    workers: options.Workers = 0,
    device: options.Device = "cpu",
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Correlate the descriptors and gates of tiles with those of the whole map, block by block (figure 4).

    Images need no labels. --tile or --plan look at one tile a block, --tiles at several.
    """
    where = own_device(device)
    setting = Setting(data, task, adapter, images_dir, masks, preprocess, class_map, mean, std)

    def work(speaks: bool) -> tuple[str, Correlation]:
        check_outputs(
            force, [Output("--channels", channels), drawing(plot)], [model, weights, plan, *setting.files]
        )
        wanted = None if tiles is None else parse_tiles(tiles)
        if (wanted is None) == (tile is None and plan is None):
            raise TiledSEError("give the tiles with --tiles T,T,..., --tile T or --plan FILE, one of them")
        opened = opened_together(
            lambda: open_measured(model, input, weights, pretrained, where, setting, labels=False), speaks
        )
        network = opened.network
        each = [wanted or [t] for t in (network.se if wanted else choose_plan(network, tile, plan)).tiles]
        with progress_bar("images", shown=speaks) as progress:
            found = measure_correlation(
                network, opened.task.images, each, batch_size=batch_size, workers=workers, device=where,
                progress=progress,
            )  # fmt: skip
        return opened.network.name, found

    done = in_processes(where, work)
    if done is None:
        return
    name, found = done
    if channels is not None:
        found.save_channels(channels)
        say(f"wrote {channels}")
    if plot is not None:
        from ..report.plots import draw_correlation

        draw_correlation(found, plot, name)
        say(f"wrote {plot}")
    if json:
        print_json({"model": name, **found.to_dict()})
    else:
        print_text(correlation_table(found, name))


@app.command()
def sensitivity(
    model: options.Model,
    data: options.Data,
    tiles: options.Tiles = None,
    plot: options.Plot = None,
    task: options.TaskName = "classify",
    adapter: options.AdapterText = None,
    images_dir: options.ImagesDir = None,
    masks: options.Masks = None,
    preprocess: options.Preprocess = "network",
    class_map: options.ClassMap = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 16,
    workers: options.Workers = 0,
    device: options.Device = "cpu",
    input: options.Input = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Give tiles to each block alone, to each stage alone and to all, and measure what each costs (table 3)."""
    where = own_device(device)
    setting = Setting(data, task, adapter, images_dir, masks, preprocess, class_map, mean, std)

    def work(speaks: bool) -> tuple[str, Sensitivity]:
        check_outputs(force, [drawing(plot)], [model, weights, *setting.files])
        wanted = parse_tiles(tiles)
        opened = opened_together(
            lambda: open_measured(model, input, weights, pretrained, where, setting, labels=False), speaks
        )
        with progress_bar("images", shown=speaks) as progress:
            found = measure_sensitivity(
                opened.network, opened.task, wanted, batch_size=batch_size, workers=workers, device=where,
                progress=progress,
            )  # fmt: skip
        return opened.network.name, found

    done = in_processes(where, work)
    if done is None:
        return
    name, found = done
    if plot is not None:
        from ..report.plots import draw_sensitivity

        draw_sensitivity(found, plot, name)
        say(f"wrote {plot}")
    if json:
        print_json({"model": name, **found.to_dict()})
    else:
        print_text(*sensitivity_tables(found, name))


@app.command()
def sweep(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="One or more networks.")],
    data: options.Data,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="sweep.csv", help="Results, one a row.")],
    tiles: options.Tiles = None,
    plot: options.Plot = None,
    weights: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--weights", metavar="FILE", help="A state dict for each network, in their order."),
    ] = None,
    task: options.TaskName = "classify",
    adapter: options.AdapterText = None,
    images_dir: options.ImagesDir = None,
    masks: options.Masks = None,
    preprocess: options.Preprocess = "network",
    class_map: options.ClassMap = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 32,
    workers: options.Workers = 0,
    device: options.Device = "cpu",
    input: options.Input = None,
    pretrained: options.Pretrained = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure many tiles on many networks: figures 2 and 5b, table 2's weights as they are.

    A row is written as soon as it is measured. Called again with the same -o, it goes on with what is missing.
    """
    where = own_device(device)
    setting = Setting(data, task, adapter, images_dir, masks, preprocess, class_map, mean, std)
    wanted = parse_tiles(tiles)
    setting.check()
    check_outputs(
        force, [Output("-o", output, grows=True), drawing(plot)], [*models, *(weights or ()), *setting.files]
    )
    if weights and len(weights) != len(models):
        raise TiledSEError(f"{len(models)} networks and {len(weights)} --weights; give one for each, or none")
    file = SweepFile(output)

    labels = [
        {
            "model": shown_name(model),
            "weights": "pretrained" if pretrained else weights[number].name if weights else "",
            "task": task,
            "data": Path(data).name,
            "preprocess": preprocess if adapter is None else adapter,
            "input": input or "",
        }
        for number, model in enumerate(models)
    ]
    for one in labels:
        if labels.count(one) > 1:
            raise TiledSEError(
                f"two of the networks are called '{one['model']}' in the results, with the same weights; give them one "
                "by one with an -o each"
            )

    def entry(number: int, speaks: bool) -> Entry:
        model, own = models[number], weights[number] if weights else None

        def open_() -> tuple[object, object]:
            opened: Opened = opened_together(
                lambda: open_measured(model, input, own, pretrained, where, setting), speaks
            )
            return opened.network, opened.task

        return Entry(labels[number], open_)  # type: ignore[arg-type]

    def work(speaks: bool) -> int:
        had = len(file.rows)
        with ExitStack() as bars:

            def progress(title: str) -> Progress:
                bars.close()
                return bars.enter_context(progress_bar(title, shown=speaks))

            entries = [entry(number, speaks) for number in range(len(models))]
            for row in run_sweep(
                entries, wanted, file, batch_size=batch_size, workers=workers, device=where, progress=progress
            ):
                if speaks:
                    say(f"{row['model']} {row['tile']}: drop {row['drop']:.2f} of {row['se']:.2f}")
        return had

    had = in_processes(where, work)
    if had is None:
        return
    say(f"{len(file.rows) - had} new rows in {output}, {had} were there")
    # The file may hold results of other images or weights; a table has no column for those.
    asked = [row for row in file.rows if any(one.items() <= row.items() for one in labels)]
    if plot is not None:
        from ..report.plots import draw_sweep

        draw_sweep(asked, plot)
        say(f"wrote {plot}")
    if json:
        print_json({"rows": asked})
    else:
        print_text(sweep_table(asked))
