"""What a conversion gave: the object of --json, and lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..networks.converter import Converted
from ..plan import NearMiss, Plan

if TYPE_CHECKING:
    from ..onnx import Converted as OnnxConverted
    from ..onnx import OnnxModel


def conversion_record(made: Converted, plan: Plan, output: Path) -> dict[str, Any]:
    """A PyTorch network that was converted, as JSON types.

    Args:
        made: What was made.
        plan: What was asked for.
        output: Where it was written.
    """
    return {
        **_blocks(made.plan, made.refused),
        "near_misses": plan.to_dict()["near_misses"],
        "max_abs_diff_identity": made.difference,
        "verify_s": made.seconds,
        "output": str(output),
    }


def conversion_lines(made: Converted, output: Path) -> list[str]:
    """A PyTorch network that was converted: what has tiles, and what verifying gave."""
    return [*_block_lines(made.plan, made.refused, output), _verified_line(made)]


def onnx_record(
    source: OnnxModel, made: OnnxConverted, difference: float | None, output: Path, alls: Path | None
) -> dict[str, Any]:
    """An ONNX network that was converted, as JSON types.

    Args:
        source: The network before.
        made: What was made.
        difference: From PyTorch, where it was exported from there.
        output: Where it was written.
        alls: Where the line for a Hailo model script was written.
    """
    from ..onnx import operators

    proof = made.proof
    return {
        **_blocks(made.plan, made.refused),
        "near_misses": made.plan.to_dict()["near_misses"],
        "max_abs_diff_identity": None if proof is None else proof.difference,
        "max_rel_diff_identity": None if proof is None else proof.relative,
        "max_rel_diff_blocks": None if proof is None else proof.worst_block,
        "max_rel_diff_torch": difference,
        "verified_at": [] if proof is None else [list(size) for size in proof.sizes],
        "verify_s": made.seconds,
        "tiles": {b.name: str(t) for b, t in made.plan},
        "operators": {"before": operators(source), "after": operators(made.model)},
        "output": str(output),
        "alls": None if alls is None else str(alls),
    }


def onnx_lines(source: OnnxModel, made: OnnxConverted, difference: float | None, output: Path) -> list[str]:
    """An ONNX network that was converted: what has tiles, what verifying gave, and operators before and after."""
    from ..onnx import operators

    old, new = source.opset, made.model.opset
    return [
        *_block_lines(made.plan, made.refused, output),
        *([] if old == new else [f"the file had opset {old}; onnx's version converter brought it to {new}"]),
        *_onnx_verified_lines(made, difference),
        "operators  before  after",
        *_operator_lines(operators(source), operators(made.model)),
    ]


def _blocks(plan: Plan, refused: tuple[NearMiss, ...]) -> dict[str, Any]:
    return {
        "converted": sum(not tile.whole for tile in plan.tiles),
        "total": len(plan),
        "refused": [{"name": miss.name, "reason": miss.reason} for miss in refused],
    }


def _block_lines(plan: Plan, refused: tuple[NearMiss, ...], output: Path) -> list[str]:
    converted = sum(not tile.whole for tile in plan.tiles)
    return [
        f"{converted} of {len(plan)} SE blocks have tiles now: {output}",
        *(f"block '{miss.name}' was left as it was: {miss.reason}" for miss in refused),
    ]


def _verified_line(made: Converted) -> str:
    if made.seconds is None:
        return "not verified (--no-verify)"
    if made.difference is None or made.largest is None:
        return f"verified in {made.seconds:.2f} s"
    return (
        f"verified in {made.seconds:.2f} s: each block is the SE block on each tile alone, in training too; with one "
        f"tile a map the network differs by at most {made.difference:.1e} (outputs up to {made.largest:.1e})"
    )


def _onnx_verified_lines(made: OnnxConverted, difference: float | None) -> list[str]:
    if made.proof is None:
        return ["not verified (--no-verify)" if made.seconds is None else "verified: no block has changed"]
    sizes = " and ".join("x".join(map(str, size)) for size in made.proof.sizes)
    lines = [
        f"verified in {made.seconds:.1f} s in ONNX Runtime, on random images of {sizes};",
        "each figure is a largest difference relative to the largest number:",
        f"  each block, to itself as it was on each tile alone: {made.proof.worst_block:.1e}",
        f"  with one tile over each map, to the network as it was: {made.proof.relative:.1e}",
    ]
    if difference is not None:
        lines.append(f"  tiled, the whole network, to PyTorch: {difference:.1e}")
    return lines


def _operator_lines(before: dict[str, int], after: dict[str, int]) -> list[str]:
    names = sorted({*before, *after}, key=lambda op: (-after.get(op, 0), op))
    width = max([9, *map(len, names)])
    return [f"{op:{width}}  {before.get(op, 0):6}  {after.get(op, 0):5}" for op in names]
