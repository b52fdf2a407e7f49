"""A PyTorch network as an ONNX file: its plan for the exported network, and how far their outputs are apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import networks
from ..networks.converter import convert_shared, fingerprint
from ..plan import Plan
from .comparing import relative
from .converter import Converted
from .export import export_se, transfer
from .finder import find, weights_of
from .model import OnnxModel
from .runner import module


def export_planned(model: nn.Module, plan: Plan) -> tuple[OnnxModel, Plan]:
    """Export a network with plain SE, and name the blocks of its plan as the file does.

    Args:
        model: The network.
        plan: From ``tiledse.find`` on it; corrections must have been fitted on its weights.

    Returns:
        The exported network, and the plan for it.

    Raises:
        TiledSEError: torch cannot export it, its blocks are not those of the plan, or the corrections were fitted on
            other weights.
    """
    exported = export_se(model, plan)
    chosen = transfer(plan, find(exported, plan.input_size))
    if plan.calibrated:
        plan.check_weights(fingerprint(model))
        chosen = chosen.with_weights(weights_of(exported, plan.input_size))
    return exported, chosen


def difference_to_torch(model: nn.Module, made: Converted) -> float:
    """How far the converted file is from the same conversion in PyTorch, on random images.

    Args:
        model: The network that was exported.
        made: What became of it.

    Returns:
        The largest difference, relative to the largest number.
    """
    plan = made.plan
    own = networks.find(model, plan.input_size)
    given = plan.with_weights(fingerprint(model)).corrections
    network = convert_shared(model, replace(own, tiles=plan.tiles, corrections=given))
    first = made.model.ir.graph.inputs[0].shape
    batch = first[0] if first is not None and isinstance(first[0], int) else 2
    x = torch.randn(batch, *plan.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = network(x), module(made.model)(x)
    pairs = zip(_flat(expected), _flat(got), strict=True)
    return max(relative(a.numpy(), b.numpy()) for a, b in pairs)


def _flat(output: Any) -> list[Any]:
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in _flat(item)] if isinstance(output, (list, tuple)) else [output]
