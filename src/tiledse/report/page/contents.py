"""What the page shows of each plan: what every block holds, and who works when in a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...cost import Cost
from ...cost import cost as cost_of
from ...errors import TiledSEError
from ...network import Network
from ...plan import Plan, SEBlock
from ...stream.building import build_graph
from ...stream.hardware import Hardware
from ...stream.simulator import Simulation, simulate_graph
from ...tile import Tile
from .rows import leaving, outline

SE = "SE"
# What stands beside SE where nobody chose: the paper's tile, and the one that loses nothing that 1,300 images can show.
USUAL = "7xW"
SLIDING = "1xW:running+6"


@dataclass(frozen=True)
class Candidate:
    """A plan that the page puts beside the others.

    Args:
        name: What the page calls it.
        plan: Its tiles; those of plain SE for the first candidate of a page.
    """

    name: str
    plan: Plan

    @property
    def cost(self) -> Cost:
        """What it costs, in closed form."""
        return cost_of(self.plan)


def candidates(network: Network, plans: Plan | Mapping[str, Plan] | Sequence[Plan] | None) -> list[Candidate]:
    """SE, strips of seven rows, and the plans that were given; a sliding tile where none was.

    A network that has tiles already is shown with them, before the others.

    Raises:
        TiledSEError: a plan is none of this network, or two have one name.
    """
    found = network.plan
    found.check_blocks()
    shown = [Candidate(SE, network.se)]
    for plan in (found, *_named(plans).values()):
        Plan.check(plan)
        plan.check_single_images(
            "a report is about single images; give it a plan with tiles of one map, such as 7xW"
        )
    if any(not tile.whole for tile in found.tiles):
        shown.append(Candidate("as it is", found))
    given = _named(plans)
    for name, plan in given.items():
        Plan.check(plan)
        plan.check_network(found)
        if name in (SE, USUAL, "as it is"):
            raise TiledSEError(f"a plan may not be called '{name}' in a report; give its file another name")
    usual = network.se.with_tile(USUAL)
    if usual not in given.values() and usual != found:
        shown.append(Candidate(USUAL, usual))
    if not given and len(shown) == 2:
        shown.append(Candidate(SLIDING, network.se.with_tile(SLIDING)))
    return shown + [Candidate(name, plan) for name, plan in given.items()]


def _named(plans: Plan | Mapping[str, Plan] | Sequence[Plan] | None) -> dict[str, Plan]:
    if plans is None:
        return {}
    if isinstance(plans, Plan):
        return {"the plan": plans}
    if isinstance(plans, Mapping):
        return dict(plans)
    return {f"plan {number}": plan for number, plan in enumerate(plans, 1)}


def block_records(shown: Sequence[Candidate]) -> list[dict[str, Any]]:
    """For each block, its map and what each candidate makes of it; counts are raw, of one image."""
    costs = [candidate.cost for candidate in shown]
    records = []
    for number, block in enumerate(shown[0].plan.blocks):
        tiles = [candidate.plan.tiles[number] for candidate in shown]
        records.append(
            {
                "name": block.name,
                "channels": block.channels,
                "reduced": block.reduced,
                "height": block.height,
                "width": block.width,
                "dialect": block.dialect,
                "calls": block.calls,
                "candidates": [
                    _block(block, tile, cost.blocks[number]) for tile, cost in zip(tiles, costs, strict=True)
                ],
            }
        )
    return records


def _block(block: SEBlock, tile: Tile, cost: Any) -> dict[str, Any]:
    leaves = leaving(tile, block.height, block.width)
    return {
        "tile": str(tile),
        "tiles": cost.tiles,
        "rows": tile.held(block.height),
        "buffer": cost.buffer,
        "buffer_row_order": cost.buffer_row_order,
        "running_sums": cost.running_sums,
        "macs": cost.macs,
        "outline": outline(leaves),
    }


def totals(shown: Sequence[Candidate]) -> list[dict[str, Any]]:
    """For each candidate, the whole network: parameters, multiply-adds and what the gates hold."""
    records = []
    for candidate in shown:
        cost = candidate.cost
        records.append(
            {
                "name": candidate.name,
                "tiles": list(dict.fromkeys(map(str, candidate.plan.tiles))),
                "calibrated": candidate.plan.calibrated,
                "params": cost.tse.params,
                "macs": cost.tse.macs,
                "buffer": cost.tse.buffer,
                "buffer_row_order": cost.tse.buffer_row_order,
                "running_sums": cost.tse.running_sums,
                "se_buffer": cost.se.buffer,
            }
        )
    return records


def simulated(network: Network, shown: Sequence[Candidate]) -> tuple[list[Simulation], str | None]:
    """Each candidate in a pipeline of default hardware; or none, and the reason why."""
    try:
        size = shown[0].plan.image_size[1:]
        graphs = [build_graph(network, candidate.plan, 1, size) for candidate in shown]
        return [simulate_graph(graph, Hardware()) for graph in graphs], None
    except TiledSEError as error:
        return [], str(error)
