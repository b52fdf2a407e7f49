"""The verb on speed: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import say
from .groups import verb
from .outputs import Output
from .progress import progress_bar
from .results import Files

Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="operator|networks|compile",
        help="One part; operator and networks, unless given. compile: torch.compile of all on three maps.",
    ),
]
OperatorTiles = Annotated[
    str, typer.Option("--tiles", metavar="T,T", help="Tiles for the operator, of 7xW, Hx7, 7x7.")
]
Shapes = Annotated[
    int | None, typer.Option("--shapes", metavar="N", help="The first N maps only, for a quick look.")
]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", help="Turns that the cases take.")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", help="Threads of torch.")]
Allocator = Annotated[
    str,
    typer.Option("--allocator", metavar="keep|system", help="keep: freed memory is kept, if it can be."),
]
Figures = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write all figures.")
]


@verb("bench")
def bench(
    result: Files,
    only: Only = None,
    tiles: OperatorTiles = "7xW,Hx7,7x7",
    shapes: Shapes = None,
    repeats: Repeats = 15,
    threads: Threads = 1,
    allocator: Allocator = "keep",
    output: Figures = None,
) -> None:
    """Time the operator and whole networks: ratios to a copy, to SE and to the paper's code, in one run."""
    from ..bench.operator import SHAPES
    from ..bench.timings import Wanted, time_all
    from ..documents import write_json
    from ..files import written_whole
    from ..report.timing import timing_parts

    parts = ("operator", "networks") if only is None else (only,)
    count = len(SHAPES) if shapes is None else shapes
    wanted = Wanted(parts, tuple(tiles.split(",")), count, repeats, threads, allocator)
    result.check([Output("-o", output)])
    found = time_all(wanted, progress_bar)
    if found.machine["allocator"] != allocator:
        say(
            "freed memory is not kept here, so each new map is paid for in page faults; with "
            "LD_PRELOAD=libtcmalloc_minimal.so.4 it is kept (docs/performance.md)"
        )
    if output is not None:
        with written_whole(output) as part:
            part.write_text(write_json(found.to_dict()) + "\n")
        say(f"wrote {output}")
    result.show(found.to_dict, lambda: timing_parts(found))
