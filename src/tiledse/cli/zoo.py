"""The verb zoo: networks that were trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import TiledSEError
from . import options
from .app import app, print_json, print_text
from .outputs import Output, check_outputs


@app.command("zoo")
def zoo(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[NAME]", help="One network; all are listed by default."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--out", metavar="FILE", help="Write it as safetensors, in float32."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
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
        if json:
            print_json({"networks": [entry.to_dict() for entry in listed]})
        else:
            print_text(*zoo_table(listed))
        return
    entry = find_entry(name)
    if out is not None:
        check_outputs(force, [Output("-o", out, (".safetensors",))], [entry.path])
        model, plan, _ = open_network(name)
        save(model, plan, out, f"zoo:{name}")
    if json:
        print_json({**entry.to_dict(), "output": None if out is None else str(out)})
    else:
        print_text(*entry_lines(entry), *([f"written to {out}"] if out is not None else []))
