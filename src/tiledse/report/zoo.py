"""The zoo as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..networks.zoo import Entry
from .training import METRICS


def zoo_table(listed: Sequence[Entry]) -> tuple[Table, str]:
    """A row a network, and the footer."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "network", "tile", "input"):
        table.add_column(column)
    for column in ("accuracy", "n", "parameters", "bytes"):
        table.add_column(column, justify="right")
    table.add_column("trained on")
    for entry in listed:
        table.add_row(
            entry.name, entry.model, entry.tile, entry.input,
            f"{METRICS.get(entry.metric, entry.metric).removesuffix(' %')} {entry.accuracy:.2f} %", f"{entry.n:,}",
            f"{entry.params:,}", f"{entry.path.stat().st_size:,}" if entry.path.is_file() else "missing", entry.data,
        )  # fmt: skip
    footer = (
        "accuracy: of the weights as they are in the package, on the n validation images that the best epoch was "
        "chosen by; bytes: of the file, float16\n"
        "`tiledse zoo NAME` says more; `zoo:NAME` is a MODEL for the other verbs"
    )
    return table, footer


def entry_lines(entry: Entry) -> list[str]:
    """All that is known of one network."""
    recipe = f"{entry.recipe}{f', scale {entry.scale}' if entry.scale else ''}"
    return [
        f"zoo:{entry.name}: {entry.model} with {entry.classes} classes, tile {entry.tile}, input {entry.input}, "
        f"{entry.params:,} parameters",
        f"trained on {entry.data}; recipe {recipe}, {entry.epochs} epochs, seed {entry.seed}",
        *([f"changed in the recipe: {'; '.join(entry.changed)}"] if entry.changed else []),
        f"on {entry.n:,} validation images: "
        + ", ".join(f"{key} {value:.4g}" for key, value in entry.figures.items()),
        f"licence: {entry.licence}",
        f"SHA-256 {entry.sha256}",
    ]
