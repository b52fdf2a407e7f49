"""Whole networks with SE and with tiles: time, and the share of it that is spent in the blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import find
from ..networks.converter import convert_shared
from .interleave import Timing, interleave
from .operator import LAYOUTS, rounded


@dataclass(frozen=True)
class NetworkComparison:
    """One network in one layout.

    Attributes:
        network: Its name in timm.
        shape: N, C, H, W of the image.
        layout: ``NCHW`` or ``channels_last``.
        tile: The tile of all blocks.
        timings: ``se`` and ``tse``.
        share: Of the time, spent in the blocks: ``se`` and ``tse``. Time as in ``Timing.ratio``: the calling thread's,
            or the clock's where several threads run.
    """

    network: str
    shape: tuple[int, int, int, int]
    layout: str
    tile: str
    timings: dict[str, Timing]
    share: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        se, tse = self.timings["se"], self.timings["tse"]
        return {
            "network": self.network,
            "shape": list(self.shape),
            "layout": self.layout,
            "tile": self.tile,
            "tse_to_se": {
                "cpu": rounded(tse.ratio(se, wall=False)),
                "wall": rounded(tse.ratio(se, wall=True)),
            },
            "se_s": round(sorted(se.cpu_s)[len(se.cpu_s) // 2], 4),
            "share_in_blocks": {name: round(value, 3) for name, value in self.share.items()},
        }


# Those that the targets name, with the tiles.
NETWORKS = tuple(
    (name, shape, tile)
    for name, shape in (
        ("regnety_008", (8, 3, 224, 224)),
        ("mobilenetv3_large_100", (1, 3, 1024, 2048)),
        ("efficientnet_b0", (1, 3, 224, 224)),
        ("efficientnet_b0", (8, 3, 224, 224)),
    )
    for tile in ("7xW", "1xW:running+6")
)


def compare_network(
    name: str, shape: tuple[int, int, int, int], layout: str, tile: str = "7xW", repeats: int = 7
) -> NetworkComparison:
    """Time a network of timm with SE and with tiles, taking turns; random weights."""
    import timm

    torch.manual_seed(0)
    se = timm.create_model(name).eval().to(memory_format=LAYOUTS[layout])
    plan = find(se, shape[1:]).with_tile(tile)
    tse = convert_shared(se, plan)
    x = torch.randn(shape).to(memory_format=LAYOUTS[layout])
    names = [block.name for block in plan.blocks]
    with torch.no_grad():
        timings = interleave({"se": lambda: se(x), "tse": lambda: tse(x)}, repeats)
        share = {"se": _share(se, names, x), "tse": _share(tse, names, x)}
    return NetworkComparison(name, shape, layout, tile, timings, share)


def _share(model: nn.Module, names: list[str], x: Tensor, repeats: int = 3) -> float:
    """The median share of the time that the named modules take."""
    # What other threads compute for a block is nowhere in the calling thread's time.
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    spent: list[float] = []
    started: list[float] = []
    handles = []
    for name in names:
        block = model.get_submodule(name)
        handles.append(block.register_forward_pre_hook(lambda *_: started.append(now())))
        handles.append(block.register_forward_hook(lambda *_: spent.append(now() - started.pop())))
    shares = []
    try:
        for _ in range(repeats):
            spent.clear()
            start = now()
            model(x)
            shares.append(sum(spent) / (now() - start))
    finally:
        for handle in handles:
            handle.remove()
    return sorted(shares)[repeats // 2]
