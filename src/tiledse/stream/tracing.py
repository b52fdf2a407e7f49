"""Trace a network, with the tiles of a plan, into a graph of operators at one image size."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..errors import TiledSEError, first_line
from ..networks.block import Conversion, TiledBlock, tile_block, untile
from ..networks.converter import correctable, fingerprint, way_of
from ..networks.duplicating import duplicate
from ..networks.finder import find_dialects
from ..networks.inline import outline_again
from ..networks.verification import Candidate
from ..op.formula import mean
from ..op.module import TiledSqueezeExcite
from ..plan import Plan
from .marks import REDUCES, Block, mark_block


def mark(model: nn.Module, plan: Plan, known: bool = True) -> tuple[nn.Module, dict[str, Block]]:
    """A copy of the network that shares its weights, in eval mode, with the plan's tiles and marked blocks.

    Args:
        model: The network.
        plan: From ``find`` on it.
        known: Whether the height of the images is known: a tile that sees the whole of a map is then one gate.

    Returns:
        The copy, and its blocks by name.

    Raises:
        TiledSEError: the plan was made for another network, or a block's squeeze is none that can be streamed.
    """
    given = model
    model = duplicate(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    model.eval()  # a stranger's may give back nothing
    found, dialects = find_dialects(model, plan.input_size)
    plan.check_network(found)
    outline_again(model, [block.name for block in found.blocks], dialects)
    if plan.calibrated:
        plan.check_weights(fingerprint(model))
    marked: dict[str, Block] = {}
    for (block, tile), correction, dialect in zip(plan, plan.corrections, dialects, strict=True):
        module = model.get_submodule(block.name)
        if correction is not None and not correctable(module, dialect):
            raise TiledSEError(
                f"block '{block.name}' cannot be corrected; calibrate the plan again for this network"
            )
        if isinstance(module, TiledSqueezeExcite):
            module.tile = tile
        else:
            if isinstance(module, TiledBlock):
                dialect = module.tiledse.dialect
                untile(module)
            reduce = dialect.squeeze(module)
            if reduce not in REDUCES.values() or (tile.slides and reduce is not mean):
                raise TiledSEError(
                    f"block '{block.name}' squeezes something else than a mean, which {tile} cannot stream; "
                    "give it another tile"
                )
            way = way_of(given, model, Candidate(block, tile, dialect))
            module = tile_block(module, Conversion(tile, dialect, type(module), correction, way))
        mark_block(module, block.name, known)
        marked[block.name] = module
    return model, marked


def trace(marked: nn.Module, shape: tuple[int, int, int, int]) -> ExportedProgram:
    """Export a marked network at one shape (N, C, H, W). The image costs no memory.

    Raises:
        TiledSEError: the network cannot be traced: it branches on values, or refuses the size.
    """
    parameter = next(marked.parameters(), torch.zeros(()))
    x = torch.zeros((1, 1, 1, 1), dtype=parameter.dtype, device=parameter.device).expand(shape)
    # Of a size that the network does not take the tracer writes a log as well; the error says it.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(marked, (x,), strict=False)
            return program.run_decompositions({}) if _mutates_views(program) else program
    except Exception as error:  # the tracer and a stranger's forward may raise anything
        size = "x".join(map(str, shape[1:]))
        raise TiledSEError(
            f"the network cannot be traced at input {size} ({type(error).__name__}: {first_line(error, 160)}); "
            "streaming needs a forward without branches on values, and a size that the network takes"
        ) from error
    finally:
        log.setLevel(level)


_VIEWS = (
    "view",
    "reshape",
    "slice",
    "select",
    "split",
    "chunk",
    "unbind",
    "narrow",
    "permute",
    "transpose",
    "expand",
)


def in_place(node: torch.fx.Node) -> bool:
    """Whether a node writes into its first operand."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.arguments:
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _mutates_views(program: ExportedProgram) -> bool:
    """Whether something is written through a view: then only torch's own functionalisation is right."""

    def view(node: Any) -> bool:
        if not isinstance(node, torch.fx.Node) or node.op != "call_function":
            return False
        name = str(node.target).removeprefix("aten.")
        return "getitem" in name or name.startswith(_VIEWS)

    return any(
        view(node.args[0]) or any(view(user) for user in node.args[0].users)
        for node in program.graph.nodes
        if in_place(node)
    )
