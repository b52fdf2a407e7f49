"""What must hold for one network of another library: what has SE is found, and what is converted is right."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tiledse as ts
from tests.reference import by_crops
from tests.third_party.networks import Network, live
from tests.third_party.products import Product, products
from tiledse.networks.converter import convert_shared
from tiledse.networks.finder import find_dialects

# Relative to the largest number, in float64 through a deep network.
TOLERANCE = 1e-8
ONE_TILE = ts.Tile(10**9, 10**9)


@dataclass
class Checked:
    """What came of one network.

    Attributes:
        expected: SE products counted while it ran.
        found: Blocks that the plan has.
        refused: Products that are no block, near which `find` names a near miss; ``reasons`` says why.
        silent: Products that are no block, and of which nothing is said.
        wrong: Blocks, or the network itself, whose numbers are not those of the definition; ``faults`` says which.
        worst: The largest difference that was seen, relative to the largest number.
    """

    expected: int
    found: int
    refused: int = 0
    silent: int = 0
    wrong: int = 0
    worst: float = 0.0
    reasons: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_network(network: Network) -> Checked:
    """Count, find, convert and compare."""
    model = network.build()
    size = network.size or (3, *tuple(getattr(model, "in_size", (224, 224))))
    model = live(model, size)
    torch.manual_seed(1)
    image = torch.randn(1, *size, dtype=torch.float64)
    seen = [p for p in products(model, image) if p.call == 0]
    plan, dialects = find_dialects(model, size)
    result = _compare(seen, plan)
    blocks = [block for block in plan.blocks if min(block.height, block.width) > 1]
    if blocks:
        _numbers(model, plan, dialects, seen, image, result)
    return result


def _compare(seen: list[Product], plan: ts.Plan) -> Checked:
    expected: dict[str, int] = {}
    for product in seen:
        expected[product.owner] = expected.get(product.owner, 0) + 1
    found: dict[str, int] = {}
    more = 0
    for block in plan.blocks:
        if min(block.height, block.width) == 1:
            continue
        owner = block.name if block.name in expected else block.name.rpartition(".")[0]
        if owner in expected:
            found[owner] = found.get(owner, 0) + 1
        else:
            more += 1  # what `find` calls SE and the count does not
    result = Checked(len(seen), sum(found.values()) + more)
    if more:
        result.faults.append(f"{more} blocks that are no SE by the count")
        result.wrong += more
    for owner, count in expected.items():
        left = count - found.get(owner, 0)
        if left <= 0:
            continue
        near = [m for m in plan.near_misses if _related("" if m.name == "(the network)" else m.name, owner)]
        if near:
            result.refused += left
            result.reasons += [m.reason for m in near[:1]]
        else:
            result.silent += left
            result.reasons.append(f"silent: {owner}")
    return result


def _related(a: str, b: str) -> bool:
    return a == b or b.startswith(f"{a}.") or (a.startswith(f"{b}.") and b != "")


def _numbers(
    model: nn.Module,
    plan: ts.Plan,
    dialects: tuple[ts.Dialect, ...],
    seen: list[Product],
    image: Tensor,
    result: Checked,
) -> None:
    one = convert_shared(model, plan.with_tile(ONE_TILE), (plan, dialects))
    with torch.no_grad():
        _judge("one tile a map", _outputs(model(image)), _outputs(one(image)), result)
    tiles = plan
    for block in plan.blocks:
        tall = max(1, math.ceil(block.height / 3)) if block.height > 1 else 1
        tiles = replace(
            tiles,
            tiles=tuple(ts.Tile(tall, None) if b is block else t for b, t in zip(plan.blocks, tiles.tiles)),
        )
    tse = ts.convert(model, tiles)
    if ts.find(tse, plan.input_size) != tiles:
        result.wrong += 1
        result.faults.append("a converted network is not found again as what it is")
    if list(tse.state_dict()) != list(model.state_dict()):
        result.wrong += 1
        result.faults.append("other names in the state_dict")
    maps = _inputs(model, [b.name for b in plan.blocks if not _inline(model, b.name)], image)
    left = list(seen)
    for block, tile in tiles:
        if min(block.height, block.width) == 1:
            continue
        tiled = tse.get_submodule(block.name)
        with torch.no_grad():
            if _inline(model, block.name):
                owner = block.name.rpartition(".")[0]
                mine = next(
                    p
                    for p in left
                    if p.owner == owner and p.x.shape[1:] == (block.channels, block.height, block.width)
                )
                left.remove(mine)
                x = mine.x
                expected = torch.cat([mine.replay(part) for part in x.split(tile.height, 2)], 2)
            else:
                x, old = maps[block.name], model.get_submodule(block.name)
                nhwc = x.shape[1] != block.channels
                expected = by_crops(old, x, str(tile), nhwc=nhwc)
            _judge(block.name, [expected], [tiled(x.clone())], result)


def _judge(name: str, before: list[Tensor], after: list[Tensor], result: Checked) -> None:
    """Note a difference."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.numel() and a.is_floating_point():
            difference = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
            worst = max(worst, difference if difference == difference else math.inf)
    result.worst = max(result.worst, worst)
    if worst > TOLERANCE:
        result.wrong += 1
        result.faults.append(f"{name} is off by {worst:.1e}")


def _inline(model: nn.Module, name: str) -> bool:
    return name not in dict(model.named_modules())


def _inputs(model: nn.Module, names: list[str], image: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def hook(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str = name
        ) -> None:
            seen.setdefault(name, next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)).clone())

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return seen


def _outputs(output: object) -> list[Tensor]:
    values = tree_leaves(output if not hasattr(output, "to_tuple") else output.to_tuple())
    return [t for t in values if isinstance(t, Tensor)]
