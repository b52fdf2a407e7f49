"""Which blocks and stages need global context: each alone with tiles, all others with plain SE.

Source: section 4.3 and table 3 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import TiledSEError
from ..evaluate.tasks import Paired, Progress, Task, run
from ..network import first_tiled
from ..opening import open as open_network
from ..plan import Plan
from ..tile import Tile


@dataclass(frozen=True)
class Replacement:
    """Some blocks with a tile.

    Args:
        kind: ``block``, ``stage`` or ``all``.
        name: Of the block or stage; ``all``.
        tile: The tile.
        blocks: How many blocks it replaces.
        changed: How many of them have a map larger than the tile.
        divergence: Mean over the images of ``Task.divergence``: how far the outputs are from the SE network's.
        score: The metrics, in percent; none without labels.
        paired: Against plain SE; None without labels.
    """

    kind: str
    name: str
    tile: Tile
    blocks: int
    changed: int
    divergence: float
    score: dict[str, float]
    paired: Paired | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: drops in percentage points."""
        paired = self.paired
        return {
            "name": self.name,
            "tile": str(self.tile),
            "drop": None if paired is None else paired.drop,
            "drop_ci95": None if paired is None else list(paired.drop_ci95),
            "lost": None if paired is None else paired.lost,
            "gained": None if paired is None else paired.gained,
            "p_value": None if paired is None else paired.p_value,
            "divergence": self.divergence,
            "blocks": self.blocks,
            "changed": self.changed,
        }


@dataclass(frozen=True)
class Additivity:
    """Whether the drops of single blocks or stages add up to that of all together.

    Args:
        tile: The tile.
        kind: ``block`` or ``stage``.
        summed: Sum of the drops alone, in percentage points.
        together: Drop of all at once.
        excess: together - summed: above 0, replacing all costs more than the parts do.
        excess_ci95: 95 % interval of the mean over images; None for metrics that are no means over images (AP, mIoU),
            and where every single image adds up.
    """

    tile: Tile
    kind: str
    summed: float
    together: float
    excess: float
    excess_ci95: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "tile": str(self.tile),
            "kind": self.kind,
            "summed": self.summed,
            "together": self.together,
            "excess": self.excess,
            "excess_ci95": None if self.excess_ci95 is None else list(self.excess_ci95),
        }


@dataclass(frozen=True)
class Sensitivity:
    """What each replacement costs.

    Args:
        task: Name of the task.
        metric: What drops are drops of; "" without labels.
        divergence_name: What divergences are.
        n: Images.
        se: Metrics of the SE network, in percent.
        replacements: For each tile: blocks, stages, all.
        additivity: For each tile, of blocks and of stages; empty without labels.
        unshared: Blocks before which nothing could be shared (``SharedPrefix.unshared``).
    """

    task: str
    metric: str
    divergence_name: str
    n: int
    se: dict[str, float]
    replacements: tuple[Replacement, ...]
    additivity: tuple[Additivity, ...]
    unshared: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        kinds = {
            kind: [r.to_dict() for r in self.replacements if r.kind == kind]
            for kind in ("block", "stage", "all")
        }
        return {
            "task": self.task,
            "metric": self.metric,
            "divergence": self.divergence_name,
            "n": self.n,
            "se": self.se,
            "blocks": kinds["block"],
            "stages": kinds["stage"],
            "all": kinds["all"],
            "additivity": [a.to_dict() for a in self.additivity],
            "not_shared": list(self.unshared),
        }


def candidates(plan: Plan, tiles: Sequence[Tile]) -> list[tuple[str, str, Tile, Plan]]:
    """(kind, name, tile, plan) for each block, each stage of more than one block, and all, with each tile."""
    whole = plan.with_tile("HxW")
    found = []
    for tile in tiles:
        for block in plan.blocks:
            found.append(("block", block.name, tile, _only(whole, {block.name}, tile)))
        for stage, names in plan.stages.items():
            if names == (stage,):
                continue  # a network whose names tell no stages: it would be the block again
            found.append(("stage", stage, tile, _only(whole, set(names), tile)))
        found.append(("all", "all", tile, whole.with_tile(tile)))
    return found


def _only(plan: Plan, names: set[str], tile: Tile) -> Plan:
    return Plan(
        plan.blocks,
        tuple(tile if block.name in names else old for block, old in plan),
        plan.input_size,
        plan.near_misses,
        plan.network,
    )


def sensitivity(
    model: Any,
    task: Task[Any],
    tiles: Sequence[Tile],
    *,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Sensitivity:
    """Replace each block alone, each stage alone, and all, and measure what that costs.

    The network up to the first replaced block runs once an image, for all of them; a replacement whose tile covers its
    maps is the SE network and does not run at all.

    Args:
        model: The network, or what ``tiledse.open`` takes.
        task: The images and what is measured on them; ``Comparison`` where there are no labels.
        tiles: The tiles.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go.
        progress: Called with (images done, images in all or None) of this process.

    Raises:
        TiledSEError: no block, no tile, or see ``tasks.run``.
    """
    network = open_network(model)
    network.plan.check_blocks()
    if not tiles:
        raise TiledSEError("give at least one tile, such as 7xW")
    wanted = candidates(network.se, list(dict.fromkeys(tiles)))
    # A stage of one block is that block: each plan runs once.
    plans = list(dict.fromkeys(plan for _, _, _, plan in wanted))
    branches = network.branches(plans)
    names = {plan: f"{name} at {tile}" for _, name, tile, plan in reversed(wanted)}
    results = run(
        task,
        branches,
        ["SE", *(names[plan] for plan in plans)],
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    at = {plan: number for number, plan in enumerate(plans)}
    labelled = bool(task.metric)
    se = results.networks[0]
    base = task.score(se)
    known: dict[Plan, tuple[dict[str, float], Paired | None]] = {}
    replacements = []
    for kind, name, tile, plan in wanted:
        own = results.networks[at[plan] + 1]
        if plan not in known:
            known[plan] = (task.score(own), task.compare(se, own) if labelled else None)
        touched = [(b, t) for b, t in plan if t == tile and not t.whole]
        changed = sum(t.size(b.height, b.width) != (b.height, b.width) for b, t in touched)
        far = float(np.mean(results.divergence[at[plan]])) if first_tiled(plan) is not None else 0.0
        replacements.append(Replacement(kind, name, tile, len(touched), changed, far, *known[plan]))
    additivity = _additivity(task, wanted, replacements, results.networks, at) if labelled else ()
    return Sensitivity(
        task.name,
        task.metric,
        task.divergence_name,
        len(results.names),
        base,
        tuple(replacements),
        additivity,
        branches.unshared,
    )


def _additivity(
    task: Task[Any],
    wanted: Sequence[tuple[str, str, Tile, Plan]],
    replacements: Sequence[Replacement],
    networks: Sequence[Sequence[Any]],
    at: dict[Plan, int],
) -> tuple[Additivity, ...]:
    found = []
    for tile in dict.fromkeys(tile for _, _, tile, _ in wanted):
        for kind in ("block", "stage"):
            alone = [i for i, w in enumerate(wanted) if w[0] == kind and w[2] == tile]
            if not alone:
                continue
            whole = next(i for i, w in enumerate(wanted) if w[0] == "all" and w[2] == tile)
            summed = sum(_drop(replacements[i]) for i in alone)
            together = _drop(replacements[whole])
            shares = [
                task.shares(networks[0]),
                *(task.shares(networks[at[wanted[i][3]] + 1]) for i in [whole, *alone]),
            ]
            interval = None
            if shares[0] is not None and len(shares[0]) > 1:
                # The metric is a mean over images, so the excess is one too: its interval is that of a mean.
                drops = [shares[0] - share for share in shares[1:]]
                excess = drops[0] - np.sum(drops[1:], axis=0)
                half = 1.96 * excess.std(ddof=1) / np.sqrt(len(excess))
                # Where every image adds up by itself, nothing is known of images that would not.
                interval = (float(excess.mean() - half), float(excess.mean() + half)) if half > 0 else None
            found.append(Additivity(tile, kind, summed, together, together - summed, interval))
    return tuple(found)


def _drop(replacement: Replacement) -> float:
    assert replacement.paired is not None
    return replacement.paired.drop
