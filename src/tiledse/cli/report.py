"""The verb that shows what all others found: report."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TiledSEError
from .app import say
from .data import OptionalData
from .groups import verb
from .model import ModelWithImage
from .outputs import Output
from .results import Files

if TYPE_CHECKING:
    from ..plan import Plan

Plans = Annotated[
    list[Path] | None,
    typer.Option("--plan", metavar="FILE", help="A plan to put beside SE and 7xW; may be given again."),
]
Search = Annotated[
    Path | None,
    typer.Option(
        "--search", metavar="FILE.json", help="What `tiledse search --json` printed, for its front."
    ),
]
ReportTarget = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="NAME", help="Show each block's operators in the form that a compiler takes."
    ),
]
PageOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="report.html", help="Where the page goes.")
]


@verb("report")
def report(
    model: ModelWithImage,
    images: OptionalData,
    result: Files,
    output: PageOutput,
    plan: Plans = None,
    search: Search = None,
    target: ReportTarget = None,
) -> None:
    """Show what tiles do to a network on one page: a file that opens from disk, prints, and loads nothing."""
    from ..report.page import report as make
    from ..targets import load as load_target
    from .arguments import tell_random
    from .progress import progress_bar

    begun = time.perf_counter()
    read = [*model.files, *(plan or ()), search, *images.files]
    result.check([Output("-o", output, (".html", ".htm"))], read)
    plans = _plans(plan or ())
    if target is not None:
        load_target(target)
    found = None if search is None else _search(search)
    measures = images.check()
    network = model.open()
    task = None
    if measures:
        task = images.source().open(network, labels=False, name=model.model, tell=say)
    page = make(
        network, plans, task, search=found, target=target, output=output, command=_typed(),
        batch_size=images.batch_size, titled=progress_bar,
    )  # fmt: skip
    tell_random(network.random)
    size = len(page.html.encode())
    result.show(
        lambda: {"output": str(output), **page.to_dict()},
        lambda: [
            f"{output}: {size / 1e6:.2f} MB, made in {time.perf_counter() - begun:.0f} s; open it in a browser"
        ],
    )


def _plans(files: Any) -> dict[str, Plan]:
    from ..plan import Plan

    plans: dict[str, Plan] = {}
    for file in files:
        if file.stem in plans:
            raise TiledSEError(f"two plans are called '{file.stem}'; give their files names of their own")
        plans[file.stem] = Plan.load(file)
    return plans


def _search(file: Path) -> Any:
    from ..documents import read_json
    from ..errors import first_line
    from ..report.page import search_record

    try:
        return search_record(read_json(file.read_bytes()))
    except OSError as error:
        raise TiledSEError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise TiledSEError(
            f"{file} is not what `tiledse search --json` prints: {first_line(error)}"
        ) from error


def _typed() -> str:
    """The command as it was typed, with files by their names: a page is sent on, and folders are nobody's business."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return f"tiledse {shlex.join(words)}"
