"""Everything that must hold for an SE network, checked on one network; `make coverage` does it for all of timm's."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

import tiledse as ts
from tests.reference import by_crops
from tiledse.networks.converter import convert_shared
from tiledse.networks.verification import tensors

# What SE classes are called in timm and torchvision: a list of its own, so that it can judge the finder's.
SE_NAMES = {
    "SEModule",
    "SqueezeExcite",
    "EffectiveSEModule",
    "SqueezeExciteCl",
    "EseModule",
    "SqueezeExcitation",
}


@dataclass
class Checked:
    """What was measured on one network."""

    name: str
    size: tuple[int, int, int]
    blocks: int
    dialects: tuple[str, ...]
    near_misses: int
    identity: float  # largest difference with one tile a map, relative to the largest output
    tiles: (
        float  # largest difference of a block with 7xW from its crops, relative to the block's largest output
    )


def build(name: str) -> nn.Module:
    """A timm network with random weights in which no branch is switched off."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # What ends a residual branch starts at zero, and would hide all that the branch computes.
            if not parameter.any() and not key.endswith("bias"):
                if parameter.dim() < 2:
                    parameter.fill_(0.5)
                else:
                    parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """A small image that the network takes."""
    config = model.pretrained_cfg
    own = tuple(config["input_size"])
    if config.get("fixed_input_size") or max(own) < 128:
        return own
    try:
        ts.find(model, (own[0], 128, 128))
    except ts.TiledSEError:
        return own  # built for windows that do not fit
    return own[0], 128, 128


def check_network(name: str, model: nn.Module, size: tuple[int, int, int]) -> Checked:
    """Check find and convert on a network; raises AssertionError where something does not hold."""
    plan = ts.find(model, size)
    called = calls(model, size)
    expected = {
        key for key, module in model.named_modules() if type(module).__name__ in SE_NAMES and key in called
    }
    assert {block.name for block in plan.blocks} == expected, f"{name}: found other blocks than the classes"
    assert all(tile.whole for tile in plan.tiles)
    assert all(miss.reason for miss in plan.near_misses)

    strips = plan.with_tile("7xW")
    tse = convert_shared(model, strips)
    assert ts.find(tse, size) == strips, f"{name}: a converted network is not found again as what it is"
    back = convert_shared(tse, plan)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert list(tse.state_dict()) == list(model.state_dict())
    tse.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(tse.state_dict(), strict=True)

    worst = max(
        (tile_difference(block, model, tse, called[block.name]) for block in plan.blocks), default=0.0
    )
    if worst >= 2e-6:
        # Random deep networks grow large values, and their gates magnify float32's rounding: float64 decides.
        exact = [tile_difference(block, model, tse, called[block.name].double()) for block in plan.blocks]
        assert max(exact) < 1e-10, f"{name}: 7xW differs from the block on each tile by {max(exact):.1e}"

    torch.manual_seed(1)
    x = torch.randn(1, *size)
    with torch.no_grad():
        before, after = model(x), back(x)
    assert torch.equal(before, after), f"{name}: HxW does not give the SE network back to the last bit"
    identity = identity_difference(model, plan, x)
    if identity > 1e-6:
        # The kernels add in another order than SE, and some of these random networks magnify the last digit: 1e-15 of
        # the image moves efficientnetv2_m by 1e-5, in float64. PyTorch's own way adds as SE does.
        with ts.kernels("torch"):
            plain = identity_difference(model, plan, x)
        assert plain <= 1e-6, f"{name}: one tile a map differs from SE by {plain:.1e}"
    dialects = tuple(dict.fromkeys(block.dialect for block in plan.blocks))
    return Checked(name, size, len(plan), dialects, len(plan.near_misses), identity, worst)


def identity_difference(model: nn.Module, plan: ts.Plan, x: torch.Tensor) -> float:
    """Largest difference of the outputs with one tile a map from those with SE, relative to the largest output."""
    with torch.no_grad():
        before = tensors(model(x))
        after = tensors(convert_shared(model, plan.with_tile("100000x100000"))(x))
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    return difference / max(float(a.abs().max()) for a in before)


def tile_difference(block: ts.SEBlock, model: nn.Module, tse: nn.Module, x: torch.Tensor) -> float:
    """Largest difference of a tiled block from the original called on each tile alone, in the type of x."""
    assert x.isfinite().all(), f"{block.name} gets values that are not finite"
    original = copy.deepcopy(model.get_submodule(block.name)).to(x.dtype)
    tiled = copy.deepcopy(tse.get_submodule(block.name)).to(x.dtype)
    with torch.no_grad():
        reference = by_crops(original, x, "7xW", nhwc=block.dialect == "timm.SqueezeExciteCl")
        largest = float(reference.abs().max())
        assert largest > 0, f"{block.name} gives zeros: nothing would be checked"
        return float((tiled(x.clone()) - reference).abs().max()) / largest


def calls(model: nn.Module, size: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """The inputs of all modules named as SE classes, from one random image."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, key=key: seen.__setitem__(key, args[0].clone()))
        for key, module in model.named_modules()
        if type(module).__name__ in SE_NAMES
    ]
    torch.manual_seed(0)
    with torch.no_grad():
        model(torch.randn(1, *size))
    for handle in handles:
        handle.remove()
    return seen
