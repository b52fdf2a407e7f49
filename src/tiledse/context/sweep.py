"""Sweep: many tiles on many networks, one result a row, continued where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..cost import cost
from ..errors import TiledSEError
from ..evaluate.processes import part
from ..evaluate.tasks import Progress, Task, run
from ..network import Network, check_images, first_tiled
from ..tile import Tile
from .sweep_file import SweepFile


@dataclass(frozen=True)
class Entry:
    """A network of a sweep, and the set that it is measured on.

    Args:
        labels: What the CSV says of it: model, weights, task, data, preprocess, input.
        open: Opens network and task; called only where a result is missing.
    """

    labels: dict[str, str]
    open: Callable[[], tuple[Network, Task[Any]]]


def sweep(
    entries: Sequence[Entry],
    tiles: Sequence[Tile],
    file: SweepFile,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[str], Progress] | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure every network with every tile that the file does not have yet.

    The SE network runs once a network; each tile is a pass of its own, and its row is written when the pass ends, so
    that what was measured is never lost. Under torchrun all processes measure and the first one writes.

    Args:
        entries: The networks.
        tiles: The tiles, one for all blocks of a network.
        file: Where results are and go.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go.
        progress: Makes the progress of a pass from its title.

    Yields:
        Each new row.

    Raises:
        TiledSEError: see ``tasks.run``; rows written before stay.
    """
    if not tiles:
        raise TiledSEError("give at least one tile, such as 7xW")
    for entry in entries:
        missing = [tile for tile in dict.fromkeys(tiles) if not file.has({**entry.labels, "tile": tile})]
        if not missing:
            continue
        network, task = entry.open()
        network.plan.check_blocks()

        def measure(form: Any, who: str, task: Task[Any] = task) -> Sequence[Any]:
            def alone(inputs: torch.Tensor) -> Iterator[Any]:
                yield form(inputs)

            told = None if progress is None else progress(who)
            return run(
                task, alone, [who], batch_size=batch_size, workers=workers, device=device, progress=told
            ).networks[0]

        se = measure(network.tiled(network.se), "SE")
        base = task.score(se)
        for tile in missing:
            plan = network.se.with_tile(tile)
            check_images([plan])
            tse = se if first_tiled(plan) is None else measure(network.tiled(plan), str(tile))
            paired, counted = task.compare(se, tse), cost(plan)
            row = {
                **entry.labels,
                "tile": str(tile),
                "n": len(se),
                "metric": task.metric,
                "se": round(base[task.metric], 4),
                "tse": round(task.score(tse)[task.metric], 4),
                "drop": round(paired.drop, 4),
                "drop_low": round(paired.drop_ci95[0], 4),
                "drop_high": round(paired.drop_ci95[1], 4),
                "agree": paired.agree,
                "lost": paired.lost,
                "gained": paired.gained,
                "p_value": f"{paired.p_value:.3g}",
                "se_buffer": counted.se.buffer,
                "buffer": counted.tse.buffer,
                "buffer_row_order": counted.tse.buffer_row_order,
            }
            if part()[0] == 0:
                file.add(row)
            else:
                file.rows.append({key: str(value) for key, value in row.items()})
            yield row
