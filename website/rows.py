"""The picture of the first page: rows of one map in SE and in TSE, as the simulator runs them.

``python -m website.rows`` writes docs/rows.svg; tests/test_website.py holds the file to what the simulator says.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import nn

import tiledse as ts
from tiledse.stream.hardware import Hardware
from tiledse.stream.simulator import Simulation

ROWS, TILE = 14, "7xW"
PICTURE = Path(__file__).parents[1] / "docs" / "rows.svg"
# Share of the film that a row takes to move on, and in which it stands still at the end.
STEP, REST = 1.2, 12.0


class Block(nn.Module):
    """A convolution, squeeze-and-excite, and the layer that waits for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(8, 8, 3, padding=1)
        self.se = timm.layers.SEModule(8)
        self.behind = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 8, H, W) to the same."""
        return self.behind(self.se(self.before(x)))


def simulated() -> dict[str, Simulation]:
    """The block in a pipeline, with SE and with a tile; a gate is quick, all else takes 100 cycles a row."""
    model = Block().eval()
    plan = ts.find(model, (8, ROWS, ROWS))
    hardware = Hardware(image_cycles_per_row=100, cycles_per_row={"*": 100, "se": 30})
    return {
        "SE": ts.simulate(model, plan, hardware=hardware),
        TILE: ts.simulate(model, plan.with_tile(TILE), hardware=hardware),
    }


def row_times(run: Simulation) -> list[tuple[int, int]]:
    """For each row of the map: the cycle at which it is made, and that at which it has its gate."""
    made = run.pipeline.gate_stages["se"]
    gate = next(i for i, stage in enumerate(run.stages) if stage.kind == "gate")
    return list(zip(run.done[made].tolist(), run.done[gate].tolist(), strict=True))


def drawn() -> str:
    """The picture, as SVG that moves by CSS alone; where motion is not wanted it shows its middle."""
    runs = simulated()
    end = max(run.cycles for run in runs.values())
    panels = []
    for name, run in runs.items():
        times = row_times(run)
        held = [
            (100 * cycle / end, sum(made <= cycle < gated for made, gated in times))
            for cycle in sorted({0, end, *(time for pair in times for time in pair)})
        ]
        scale = (100 - REST) / 100
        panels.append(
            {
                "name": name,
                "rows": [
                    (round(scale * 100 * made / end, 2), round(scale * 100 * gated / end, 2))
                    for made, gated in times
                ],
                "held": [(round(scale * at, 2), rows) for at, rows in held],
                "most": max(rows for _, rows in held),
                "last": round(100 * run.cycles / end),
            }
        )
    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
    )
    return made.get_template("rows.svg.j2").render(panels=panels, count=ROWS, step=STEP, rest=REST) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
