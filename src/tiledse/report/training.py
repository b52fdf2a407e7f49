"""The results of training runs as a table: a row a variant, means and spreads over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

METRICS = {"top1": "top-1 %", "mIoU": "mIoU %", "AP": "AP %", "agree": "agrees %"}


def results_table(results: Sequence[dict[str, Any]]) -> tuple[Table, str]:
    """Runs side by side.

    Args:
        results: As ``train.runs.run_all`` gives them.

    Returns:
        The table, and its footer.
    """
    metric = next((name for name in METRICS if name in results[0]), "val_loss")
    table = Table(box=None, pad_edge=False)
    for column in ("network", "variant", "tile"):
        table.add_column(column)
    for column in ("seeds", METRICS.get(metric, metric), "spread", "parameters", "buffer"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["network"], row["variant"], row["tile"]), []).append(row)
        for tile in row.get("as_is", {}):
            groups.setdefault((row["network"], f"{row['variant']}, as is", tile), []).append(
                {**row, **row["as_is"][tile], "buffer": None}
            )
    for (network, variant, tile), rows in groups.items():
        values = np.array([row[metric] for row in rows], float)
        spread = f"{values.std(ddof=1):.2f}" if len(values) > 1 else ""
        buffer = rows[0]["buffer"]
        table.add_row(
            network, variant, tile, str(len(rows)), f"{values.mean():.2f}", spread, f"{rows[0]['params']:,}",
            "" if buffer is None else f"{buffer:,}",
        )  # fmt: skip
    last = results[0]
    footer = (
        f"after the last of {last['epochs']} epochs, no choice by validation; spread: standard deviation over seeds; "
        "buffer: elements held by the gates; as is: tiles on the trained SE weights, no training"
    )
    if last.get("changed"):
        footer += f"\nnot the recipe's own size: {'; '.join(last['changed'])}"
    return table, footer
