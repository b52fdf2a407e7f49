"""Pages that are made of the code: a page a verb from its help, and the Python reference from the public names."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import typer

import tiledse
from tiledse.cli.app import app
from tiledse.cli.verbs import PANELS, VERBS

# Files outside docs/ that are pages too; and the pages that the site makes itself.
PAGES = {"architecture.md": "ARCHITECTURE.md", "changes.md": "CHANGELOG.md"}
MADE = ("api.md", "verbs.md", *PAGES)

_KINDS = {
    "Verbs": ("find", "cost", "convert", "verify", "open", "write", "report"),
    "Measuring": ("evaluate", "correlate", "sensitivity", "sweep", "open_images"),
    "Choosing": ("calibrate", "search", "advise"),
    "Streaming": ("stream", "simulate", "Stream", "Simulation", "Hardware"),
    "The operator": ("tiled_squeeze_excite", "TiledSqueezeExcite"),
}


@lru_cache(maxsize=1)
def _commands() -> Any:
    return typer.main.get_command(app)


def help_of(verb: str) -> str:
    """What ``tiledse VERB --help`` prints, 100 columns wide."""
    command = _commands().get_command(None, verb)
    context = command.make_context(
        verb, [], resilient_parsing=True, max_content_width=100, terminal_width=100
    )
    context.info_name = f"tiledse {verb}"
    text: str = command.get_help(context)
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


def verbs() -> dict[str, str]:
    """The page of each verb."""
    return {
        verb: f"# tiledse {verb}\n\n{summary}\n\n```text\n{help_of(verb)}\n```\n\n"
        f"`--json` prints one object; [its keys](../json.md#{verb}). [All verbs](../verbs.md)\n"
        for verb, (_, summary) in VERBS.items()
    }


def overview() -> str:
    """The page of all verbs, in the groups of the command line."""
    lines = ["# Verbs", "", "Each is a command (`tiledse VERB ...`); most are a function of Python too.", ""]
    for panel, found in PANELS.items():
        lines += [f"## {panel}", "", "| verb | |", "|---|---|"]
        lines += [f"| [`{verb}`](verbs/{verb}.md) | {summary} |" for verb, (_, summary) in found.items()]
        lines.append("")
    return "\n".join(lines)


def home(name: str) -> str:
    """Where a public name is defined, as the reference names it."""
    value = getattr(tiledse, name)
    return f"{value.__module__}.{value.__qualname__}"


def api() -> str:
    """The Python reference: every public name, the verbs before the values."""
    placed = {name for names in _KINDS.values() for name in names}
    kinds = {**_KINDS, "Values": tuple(name for name in tiledse.__all__ if name not in placed)}
    lines = [
        "# Python reference",
        "",
        "All of it is `import tiledse as ts`; [what is public](public.md).",
        "",
    ]
    for kind, names in kinds.items():
        lines += [f"## {kind}", ""]
        for name in names:
            lines += [f"::: {home(name)}", ""]
    return "\n".join(lines)
