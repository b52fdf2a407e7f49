"""The verb on speed: bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import torch
import typer

from ..bench.compiled_operator import COMPILED_SHAPES, compare_compiled
from ..bench.machine import keep_freed_memory, machine
from ..bench.operator import LAYOUTS, SHAPES, TILES, compare
from ..bench.targets import verdicts
from ..bench.whole_networks import NETWORKS, compare_network
from ..documents import write_json
from ..errors import TiledSEError
from ..evaluate.tasks import Progress
from ..files import written_whole
from ..report.timing import compiled_table, networks_table, operator_table
from . import options
from .app import app, print_json, print_text, say
from .outputs import Output, check_outputs
from .progress import progress_bar

T = TypeVar("T")


@app.command()
def bench(
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--only",
            metavar="operator|networks|compile",
            help="One part; operator and networks, unless given. compile: torch.compile of all on three maps.",
        ),
    ] = None,
    tiles: Annotated[
        str, typer.Option("--tiles", metavar="T,T", help="Tiles for the operator, of 7xW, Hx7, 7x7.")
    ] = ",".join(TILES),
    shapes: Annotated[
        int, typer.Option("--shapes", metavar="N", help="The first N maps only, for a quick look.")
    ] = len(SHAPES),
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Turns that the cases take.")] = 15,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Threads of torch.")] = 1,
    allocator: Annotated[
        str,
        typer.Option(
            "--allocator", metavar="keep|system", help="keep: freed memory is kept (glibc's mallopt)."
        ),
    ] = "keep",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--output", metavar="FILE.json", help="Write all figures."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Time the operator and whole networks: ratios to a copy, to SE and to the paper's code, in one run."""
    if only not in (None, "operator", "networks", "compile"):
        raise TiledSEError(f"--only {only}: expected operator, networks or compile")
    if allocator not in ("keep", "system"):
        raise TiledSEError(f"--allocator {allocator}: expected keep or system")
    chosen = tuple(tiles.split(","))
    if not set(chosen) <= set(TILES):
        raise TiledSEError(f"--tiles {tiles}: expected some of {', '.join(TILES)}")
    if repeats < 2 or threads < 1 or not 1 <= shapes <= len(SHAPES):
        raise TiledSEError(
            f"expected at least 2 repeats, 1 thread and 1 to {len(SHAPES)} shapes, got {repeats}, {threads}, {shapes}"
        )
    check_outputs(force, [Output("-o", output)])
    if allocator == "keep" and not keep_freed_memory():
        say("the C library has no mallopt: timings are with its own allocator settings")
        allocator = "system"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        operator = _operator(shapes, chosen, repeats) if only in (None, "operator") else []
        networks = _networks(max(2, repeats // 2)) if only in (None, "networks") else []
        compiled = _compiled(repeats) if only == "compile" else []
    finally:
        torch.set_num_threads(before)
    judged = verdicts(operator, networks)
    figures: dict[str, Any] = {
        "format": "tiledse.bench/1",
        "machine": {**machine(allocator), "threads": threads, "repeats": repeats},
        "targets": [verdict.to_dict() for verdict in judged],
        "operator": [comparison.to_dict() for comparison in operator],
        "networks": [comparison.to_dict() for comparison in networks],
        **({"compile": [comparison.to_dict() for comparison in compiled]} if compiled else {}),
    }
    if output is not None:
        with written_whole(output) as part:
            part.write_text(write_json(figures) + "\n")
        say(f"wrote {output}")
    if json:
        print_json(figures)
        return
    if operator:
        print_text(operator_table(operator, training=False), operator_table(operator, training=True))
    if networks:
        print_text(networks_table(networks))
    if compiled:
        print_text(compiled_table(compiled))
    facts = ", ".join(f"{key} {value}" for key, value in figures["machine"].items() if value is not None)
    print_text(facts, "", *map(str, judged))


def _operator(shapes: int, tiles: tuple[str, ...], repeats: int) -> list:
    work = [(shape, layout, tile) for shape in SHAPES[:shapes] for layout in LAYOUTS for tile in tiles]
    with progress_bar("operator") as progress:
        return [compare(shape, layout, tile, repeats) for shape, layout, tile in _counted(work, progress)]


def _networks(repeats: int) -> list:
    work = [(name, shape, layout) for name, shape in NETWORKS for layout in LAYOUTS]
    with progress_bar("networks") as progress:
        return [
            compare_network(name, shape, layout, repeats=repeats)
            for name, shape, layout in _counted(work, progress)
        ]


def _compiled(repeats: int) -> list:
    work = [(shape, layout) for shape in COMPILED_SHAPES for layout in LAYOUTS]
    with progress_bar("compile") as progress:
        return [compare_compiled(shape, layout, repeats) for shape, layout in _counted(work, progress)]


def _counted(work: Sequence[T], progress: Progress) -> Iterator[T]:
    for number, case in enumerate(work):
        progress(number, len(work))
        yield case
