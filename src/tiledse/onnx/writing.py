"""Write a converted ONNX network, or the export of one of PyTorch, and say what its verification gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..files import written_whole
from ..network import Form, Network, Written
from ..plan import Plan
from ..targets import load as load_target
from .comparing import relative
from .converter import Converted, convert_verified
from .export import export_se, transfer
from .finder import Finding, fingerprint, locate
from .fit import Fit
from .hailo import alls
from .model import OnnxModel, save
from .proof import Proof
from .runner import module
from .verification import operators


@dataclass(frozen=True)
class OnnxWritten(Written):
    """See Written.

    Args:
        proof: What verifying gave; None where nothing was tried.
        against_source: Of an export: the largest difference of the whole converted network from PyTorch's, relative
            to the largest number.
        alls: Where the line for a Hailo model script went.
        before: Operators of the network as it was.
        after: Operators of what was written.
        opsets: Of both.
        fit: What the target takes of it; None where none was asked for.
    """

    proof: Proof | None
    against_source: float | None
    alls: Path | None
    before: dict[str, int]
    after: dict[str, int]
    opsets: tuple[int, int]
    fit: Fit | None = None

    def to_dict(self) -> dict[str, Any]:
        """See Written."""
        proof = self.proof
        return {
            **super().to_dict(),
            "max_abs_diff_identity": None if proof is None else proof.difference,
            "max_rel_diff_identity": None if proof is None else proof.relative,
            "max_rel_diff_blocks": None if proof is None else proof.worst_block,
            "max_rel_diff_torch": self.against_source,
            "verified_at": [] if proof is None else [list(size) for size in proof.sizes],
            "verify_s": self.seconds,
            "tiles": {b.name: str(t) for b, t in self.plan},
            "operators": {"before": self.before, "after": self.after},
            "output": str(self.path),
            "alls": None if self.alls is None else str(self.alls),
            "target": None if self.fit is None else self.fit.to_dict(),
        }

    def lines(self) -> list[str]:
        """See Written."""
        old, new = self.opsets
        upgraded = (
            [] if old == new else [f"the file had opset {old}; onnx's version converter brought it to {new}"]
        )
        if new < old:
            upgraded = [f"the file had opset {old}; for the target it is written in {new}"]
        fit = [] if self.fit is None else self.fit.lines()
        return [
            *super().lines(),
            *upgraded,
            *self._verified(),
            *fit,
            "operators  before  after",
            *_operator_lines(self.before, self.after),
        ]

    def _verified(self) -> list[str]:
        """What verifying gave, and how long it took."""
        if self.proof is None:
            return [
                "not verified (--no-verify)" if self.seconds is None else "verified: no block has changed"
            ]
        sizes = " and ".join("x".join(map(str, size)) for size in self.proof.sizes)
        what = "each frame of a stream" if self.plan.previous else "each tile alone"
        lines = [
            f"verified in {self.seconds:.1f} s in ONNX Runtime, on random images of {sizes};",
            "each figure is a largest difference relative to the largest number:",
            f"  each block, to itself as it was on {what}: {self.proof.worst_block:.1e}",
            f"  with one tile over each map, to the network as it was: {self.proof.relative:.1e}",
        ]
        if self.against_source is not None:
            lines.append(f"  tiled, the whole network, to PyTorch: {self.against_source:.1e}")
        return lines


def write(source: OnnxModel, plan: Plan, path: Path, form: Form, found: Finding | None = None) -> OnnxWritten:
    """Write a converted ONNX network.

    Raises:
        TiledSEError: see ``convert`` and ``save``.
    """
    return _saved(source, _made(source, plan, form, found), path, form, None)


def write_exported(network: Network, plan: Plan, path: Path, form: Form) -> OnnxWritten:
    """Export a network of PyTorch, give it the tiles of a plan there, and write it.

    Raises:
        TiledSEError: torch cannot export it, or see ``convert`` and ``save``.
    """
    source = export_se(network.module("the export"), plan)
    found = locate(source, plan.input_size)
    chosen = transfer(plan, found.plan)
    if plan.calibrated:
        plan.check_weights(network.weights)
        chosen = chosen.with_weights(fingerprint(found, source))
    made = _made(source, chosen, form, found)
    return _saved(source, made, path, form, _against(network, made) if form.verify else None)


def _made(source: OnnxModel, plan: Plan, form: Form, found: Finding | None) -> Converted:
    return convert_verified(
        source, plan, divisor_tiles=form.divisor_tiles, batch=form.batch, ir_version=form.ir_version,
        verify=form.verify, found=found, target=None if form.target is None else load_target(form.target),
    )  # fmt: skip


def _saved(
    source: OnnxModel, made: Converted, path: Path, form: Form, against_source: float | None
) -> OnnxWritten:
    line = None if form.alls is None else alls(made.plan)
    save(made.model, path, force=form.force)
    if form.alls is not None and line is not None:
        with written_whole(form.alls) as part:
            part.write_text(line + "\n", encoding="utf-8")
    return OnnxWritten(
        made.plan, made.refused, made.seconds, path, made.proof, against_source, form.alls, operators(source),
        operators(made.model), (source.opset, made.model.opset), made.fit,
    )  # fmt: skip


def _operator_lines(before: dict[str, int], after: dict[str, int]) -> list[str]:
    names = sorted({*before, *after}, key=lambda op: (-after.get(op, 0), op))
    width = max([9, *map(len, names)])
    return [f"{op:{width}}  {before.get(op, 0):6}  {after.get(op, 0):5}" for op in names]


def _against(network: Network, made: Converted) -> float:
    """The converted network where it comes from and in ONNX Runtime, on random images."""
    tiles, corrections = made.plan.tiles, made.plan.with_weights(network.weights).corrections
    form = replace(network.plan, tiles=tiles, corrections=corrections)
    first = made.model.ir.graph.inputs[0].shape
    batch = first[0] if first is not None and isinstance(first[0], int) else 2
    x = torch.randn(batch, *made.plan.input_size, generator=torch.Generator().manual_seed(0))
    ours, theirs = network.tiled(form), module(made.model)
    apart = []
    for frame in (x, x.flip(2)) if made.plan.previous else (x,):  # the second frame has one before it
        with torch.no_grad():
            pairs = zip(_flat(ours(frame)), _flat(theirs(frame)), strict=True)
        apart += [relative(a.numpy(), b.numpy()) for a, b in pairs]
    return max(apart)


def _flat(output: Any) -> list[Any]:
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in _flat(item)] if isinstance(output, (list, tuple)) else [output]
