"""The verb zoo: networks that were trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TiledSEError
from .groups import verb
from .outputs import Output
from .results import Files

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="One network; all are listed by default.")]
WeightsOutput = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="FILE", help="Write it as safetensors, in float32."),
]


@verb("zoo")
def zoo(result: Files, name: Name = None, out: WeightsOutput = None) -> None:
    """List the networks that were trained here, or tell of one and write its weights.

    zoo:NAME is a MODEL for the other verbs: tiledse cost zoo:NAME --tile 7xW
    """
    from ..networks.saving import save
    from ..networks.zoo import entries, find_entry, open_network
    from ..report.zoo import entry_lines, zoo_table

    if name is None:
        if out is not None:
            raise TiledSEError("-o writes one network: give its name; `tiledse zoo` lists them")
        listed = entries()
        result.show(lambda: {"networks": [entry.to_dict() for entry in listed]}, lambda: zoo_table(listed))
        return
    entry = find_entry(name)
    if out is not None:
        result.check([Output("-o", out, (".safetensors",))], [entry.path])
        model, plan, _ = open_network(name)
        save(model, plan, out, f"zoo:{name}")
    result.show(
        lambda: {**entry.to_dict(), "output": None if out is None else str(out)},
        lambda: [*entry_lines(entry), *([] if out is None else [f"written to {out}"])],
    )
