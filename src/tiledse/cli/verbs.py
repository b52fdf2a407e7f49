"""The verbs and the module of each: loaded when its verb is asked for, since most load torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..signals import quitting

# By part of the help and verb: the module whose function it is, and the first line of that function's docstring.
PANELS = {
    "Look": {
        "find": ("networks", "List the SE blocks of a network, and why each near miss is none."),
        "cost": ("networks", "Count parameters, MACs and gate buffers of a network, with SE and with tiles."),
        "report": (
            "report",
            "Show what tiles do to a network on one page: a file that opens from disk, prints, and loads nothing.",
        ),
        "demo": (
            "demo",
            "Convert the text detector of the package rapidocr, and read drawn pages before and after.",
        ),
        "paper": (
            "paper",
            "Put the paper's tables beside the networks as they are defined: equal, or why not.",
        ),
    },
    "Convert": {
        "plan": ("networks", "Choose a tile for each block and write the plan."),
        "convert": ("networks", "Write the network with tiles in place of its global pools, and verify it."),
    },
    "Measure": {
        "eval": (
            "evaluate",
            "Measure the accuracy of SE and TSE on the same images, and what the difference is worth.",
        ),
        "correlate": (
            "context",
            "Correlate the descriptors and gates of tiles with those of the whole map, block by block (figure 4).",
        ),
        "sensitivity": (
            "context",
            "Give tiles to each block alone, to each stage alone and to all, and measure what each costs (table 3).",
        ),
        "sweep": (
            "context",
            "Measure many tiles on many networks: figures 2 and 5b, table 2's weights as they are.",
        ),
        "bench": (
            "bench",
            "Time the operator and whole networks: ratios to a copy, to SE and to the paper's code, in one run.",
        ),
    },
    "Choose": {
        "calibrate": (
            "choose",
            "Bring strips closer to the whole map's mean, from unlabelled images; a fifth of them checks the result.",
        ),
        "advise": (
            "advise",
            "Say what a target gains from two-step SE, tiles and sliding tiles, and which plan to take.",
        ),
        "search": ("choose", "Choose a tile for each block under a budget: of buffer, or of accuracy."),
    },
    "Stream": {
        "stream": (
            "stream",
            "Run the network row by row, compare with the whole image, and count what each layer holds.",
        ),
        "simulate": (
            "stream",
            "Run the rows through a simulated pipeline: cycles, stalls and buffers, with SE and with tiles.",
        ),
    },
    "Train": {
        "train": (
            "train",
            "Train what a recipe says: networks, variants and seeds, each in its folder; resumes what was begun.",
        ),
        "finetune": (
            "train",
            "Give a trained SE network tiles, and train it on: with labels, or taught by the SE network without any.",
        ),
        "zoo": ("zoo", "List the networks that were trained here, or tell of one and write its weights."),
    },
}
VERBS = {verb: about for panel in PANELS.values() for verb, about in panel.items()}

# The verbs whose modules were loaded; ``groups.verb`` adds them.
LOADED = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


class Verbs(TyperGroup):
    """The group of all verbs, which loads the module of the one that is asked for."""

    # While names are completed, no verb is loaded: its name and its line in the table are enough.
    _completing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb; None where there is none of that name."""
        if cmd_name not in VERBS:
            return None
        if self._completing:
            return TyperCommand(cmd_name, help=VERBS[cmd_name][1])
        if cmd_name not in self.commands:
            with quitting():
                import_module(f".{VERBS[cmd_name][0]}", __package__)
            self.commands = typer.main.get_group(LOADED).commands
        return self.commands[cmd_name]

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The verbs and options that begin as what was typed."""
        self._completing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._completing = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the first argument names; one with a typing error is refused with what it may have been."""
        if args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(args[0], VERBS)
            ctx.fail(
                f"No such command '{args[0]}'." + (f" Did you mean {' or '.join(near)}?" if near else "")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs in a line each, in their groups."""
        for panel, verbs in PANELS.items():
            rows: Sequence[tuple[str, str]] = [(verb, summary) for verb, (_, summary) in verbs.items()]
            with formatter.section(panel):
                formatter.write_dl(rows)
