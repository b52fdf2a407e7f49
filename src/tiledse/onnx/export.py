"""Export a PyTorch network with tiles: its SE network goes out, and gets its tiles as any other file does."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace

import onnx_ir as ir
import torch
from torch import nn

import onnx

from .. import networks
from ..errors import TiledSEError, first_line
from ..networks.modes import in_eval
from ..plan import Plan
from .converter import convert
from .finder import find
from .model import OnnxModel, from_proto
from .nodes import only_user


def export(model: nn.Module, plan: Plan, *, opset: int = 18, divisor_tiles: bool = False) -> OnnxModel:
    """Export a PyTorch network and give it the tiles of a plan.

    What is exported is the network with plain SE, at the input size of the plan with a free batch. The tiles are then
    put into the ONNX graph by the rewriter that files from elsewhere go through, so both ways give the same graph.

    Args:
        model: The network, SE or converted before; it is left as it was.
        plan: From ``tiledse.find`` on it, with the tiles wanted.
        opset: ONNX opset, 18 or newer.
        divisor_tiles: As in ``convert``.

    Returns:
        The ONNX network. Its blocks have names of their own, in the order of the plan.

    Raises:
        TiledSEError: torch cannot export the network, or its blocks are not those of the plan.
    """
    exported = export_se(model, plan, opset)
    found = find(exported, plan.input_size)
    return convert(exported, transfer(plan, found), divisor_tiles=divisor_tiles)


def export_se(model: nn.Module, plan: Plan, opset: int = 18) -> OnnxModel:
    """``torch.onnx.export`` of a network with plain SE, for a free batch.

    Raises:
        TiledSEError: torch cannot export it.
    """
    model = in_eval(networks.convert(model, plan.with_tile("HxW")))
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    # A batch of two: one would be taken for a constant.
    x = torch.zeros(
        2, *plan.input_size, dtype=torch.float32 if parameter is None else parameter.dtype, device=device
    )
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model, (x,), dynamo=True, opset_version=opset, input_names=["input"], optimize=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False,
            )  # fmt: skip
            assert program is not None
            _tidy(program.model)
            proto = program.model_proto
    except Exception as error:
        raise TiledSEError(
            f"torch.onnx.export fails on this network: {first_line(error, 140)}; "
            "export it yourself and give the .onnx file"
        ) from error
    _forget_stacks(proto)
    return from_proto(proto)


def transfer(plan: Plan, found: Plan) -> Plan:
    """The tiles of a plan for the blocks of an exported network, which come in the same order.

    Raises:
        TiledSEError: they are other blocks.
    """
    ours = [(b.channels, b.reduced, b.height, b.width) for b in plan.blocks]
    theirs = [(b.channels, b.reduced, b.height, b.width) for b in found.blocks]
    if ours != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        name = plan.blocks[at].name if at < len(ours) else "none"
        why = next((f"; '{m.name}': {m.reason}" for m in found.near_misses), "")
        raise TiledSEError(
            f"the exported network has other SE blocks than the plan: {len(theirs)} and {len(ours)}, the first "
            f"difference at '{name}'{why}; convert the .onnx file itself"
        )
    return replace(found, tiles=plan.tiles, corrections=plan.corrections)


def _tidy(graph: ir.Model) -> None:
    """Compute what is constant, and drop the zeros that are added before a batch normalisation.

    In place of the exporter's own optimisation, which folds batch normalisations into convolutions and drops biases
    that happen to be zero: with this one ``cost`` of the file is ``cost`` of the network, and runtimes fold on loading.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    fold_constants(graph, onnx_shape_inference=True, output_size_limit=1 << 20)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ):
        step(graph)
    for node in graph.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        user = only_user(node.outputs[0])
        if bias is None or bias.const_value is None or user is None or user.op_type != "BatchNormalization":
            continue
        if not bias.const_value.numpy().any():
            node.resize_inputs(2)
    for last in (common.RemoveUnusedNodesPass(), common.CommonSubexpressionEliminationPass()):
        last(graph)


def _forget_stacks(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes about the Python code: paths of this machine."""
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's progress and the warnings about its own insides."""
    names = (
        "torch.onnx",
        "torch.export",
        "onnxscript",
        "onnx_ir",
        "torch.onnx._internal.exporter._registration",
    )
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
