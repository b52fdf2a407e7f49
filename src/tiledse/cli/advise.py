"""The verb that advises: advise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TiledSEError
from .app import say
from .data import OptionalData
from .groups import verb
from .model import ModelWithImage
from .outputs import Output
from .results import Files

Target = Annotated[
    str, typer.Option("--target", metavar="NAME", help="A target, as for convert, or a file NAME.toml.")
]
LookedAt = Annotated[
    str | None, typer.Option("--tile", metavar="T", help="The tile to look at; else the target's own height.")
]
Slide = Annotated[str, typer.Option("--slide", metavar="T", help="The sliding tile to look at.")]
MaxDrop = Annotated[
    float, typer.Option("--max-drop", metavar="D", help="Percentage points that tiles may cost on --data.")
]
Plan = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="plan.json", help="Where the plan to take goes.")
]


@verb("advise")
def advise(
    model: ModelWithImage,
    data: OptionalData,
    result: Files,
    target: Target,
    tile: LookedAt = None,
    slide: Slide = "1xW:running+6",
    max_drop: MaxDrop = 0.5,
    output: Plan = None,
) -> None:
    """Say what a target gains from two-step SE, tiles and sliding tiles, and which plan to take."""
    from ..choose.advising import advise as advise_on
    from ..report.advice import advice_lines
    from ..targets import load
    from .arguments import tell_random

    result.check([Output("-o", output, (".json",))], [*model.files, *data.files])
    measures = data.check()
    chosen = load(target)
    if not max_drop >= 0:
        raise TiledSEError(f"expected --max-drop of 0 or more, got {max_drop}")
    network = model.open(runs=measures)
    images = data.source().open(network, labels=True, name=model.model, tell=say) if measures else None
    advice = advise_on(
        network, chosen, tile=tile, slide=slide, images=images, max_drop=max_drop, batch_size=data.batch_size
    )
    tell_random(network.random and images is not None)
    if output is not None:
        advice.plan.save(output)
        say(f"wrote {output}")
    result.show(advice.to_dict, lambda: advice_lines(advice, model.name))
