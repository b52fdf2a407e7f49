"""What the verbs do with FILE.onnx, as the network or as the output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TiledSEError
from ..files import written_whole
from ..networks import find as find_blocks
from ..networks.converter import fingerprint
from ..networks.loading import Loaded
from ..plan import Plan
from .app import print_json, print_text, say
from .arguments import choose_plan, load_model, load_planned, parse_size, tell_random
from .outputs import Output, check_outputs

if TYPE_CHECKING:
    from ..onnx import OnnxModel, Verification


def is_onnx(name: str | Path) -> bool:
    """Whether a MODEL, or an output, is an ONNX file."""
    return str(name).lower().endswith(".onnx")


def shown_name(model: str) -> str:
    """MODEL as it is printed: an ONNX file without its folder."""
    return Path(model).name if is_onnx(model) else model


def open_onnx(model: str, weights: Path | None, pretrained: bool) -> OnnxModel:
    """Read FILE.onnx.

    Raises:
        TiledSEError: the package onnx is not installed, --weights or --pretrained was given, or see ``onnx.load``.
    """
    if weights is not None or pretrained:
        raise TiledSEError(f"{model} holds its weights; leave --weights and --pretrained out")
    try:
        from ..onnx import load
    except ImportError as error:
        raise TiledSEError(
            f"{model} needs the package {error.name}; install it with: pip install 'tiledse[onnx]'"
        ) from error
    return load(model)


def find_any(model: str, size: str | None, weights: Path | None, pretrained: bool) -> tuple[str, Plan]:
    """The name and the SE blocks of MODEL, PyTorch or ONNX."""
    if is_onnx(model):
        opened = open_onnx(model, weights, pretrained)
        from ..onnx import find

        return model, find(opened, parse_size(size))
    loaded = load_model(model, size, weights, pretrained)
    return loaded.name, find_blocks(loaded.model, loaded.input_size)


def convert_to_onnx(
    model: str, output: Path, tile: str | None, plan: Path | None, size: str | None, weights: Path | None,
    pretrained: bool, divisor_tiles: bool, alls: Path | None, force: bool, json: bool,
) -> None:  # fmt: skip
    """``convert`` for an output that is an ONNX file."""
    from .. import onnx as room

    if is_onnx(model):
        source, loaded = open_onnx(model, weights, pretrained), None
        # What lies beside the file is read too, and what is written may have a file beside it.
        data = Output("-o", output.with_name(f"{output.name}.data"))
        check_outputs(True, [Output("-o", output), Output("--alls", alls), data], source.data_files)
        chosen = choose_plan(room.find(source, parse_size(size)), tile, plan)
    else:
        loaded, ours = load_planned(model, size, weights, pretrained, tile, plan)
        say("exporting ...")
        source = room.export_se(loaded.model, ours)
        chosen = room.transfer(ours, room.find(source, ours.input_size))
        if ours.calibrated:
            ours.check_weights(fingerprint(loaded.model))
            chosen = chosen.with_weights(room.weights_of(source, ours.input_size))
    result = room.convert(source, chosen, divisor_tiles=divisor_tiles)
    given = room.divisor_plan(chosen) if divisor_tiles else chosen
    line = None if alls is None else room.alls(given)
    report = room.verify(source, result, given)
    torch_difference = None if loaded is None else _against_torch(loaded, given, result)
    room.save(result, output, force=force)
    if alls is not None and line is not None:
        with written_whole(alls) as part:
            part.write_text(line + "\n", encoding="utf-8")
    tell_random(loaded is not None and loaded.random)
    converted = sum(not t.whole for t in given.tiles)
    if json:
        print_json(_record(given, report, torch_difference, output, alls))
        return
    lines = [
        f"{converted} of {len(given)} SE blocks have tiles now: {output}",
        "each figure is a largest difference relative to the largest number, in ONNX Runtime:",
        f"  with HxW tiles again, to the input network: {report.identity:.1e}",
        f"  tiled, block by block, to the PyTorch reference: {report.worst_block:.1e}",
    ]
    if torch_difference is not None:
        lines.append(f"  tiled, the whole network, to PyTorch: {torch_difference:.1e}")
    lines += ["operators  before  after", *_operator_lines(report)]
    print_text("\n".join(lines))
    if alls is not None:
        say(f"wrote {alls}")


def _record(
    plan: Plan, report: Verification, torch_difference: float | None, output: Path, alls: Path | None
) -> dict[str, Any]:
    return {
        "converted": sum(not t.whole for t in plan.tiles),
        "total": len(plan),
        "near_misses": plan.to_dict()["near_misses"],
        "max_abs_diff_identity": report.identity_abs,
        "max_rel_diff_identity": report.identity,
        "max_rel_diff_blocks": report.worst_block,
        "max_rel_diff_torch": torch_difference,
        "tiles": {b.name: str(t) for b, t in plan},
        "operators": {"before": report.before, "after": report.after},
        "output": str(output),
        "alls": None if alls is None else str(alls),
    }


def _operator_lines(report: Verification) -> list[str]:
    names = sorted({*report.before, *report.after}, key=lambda op: (-report.after.get(op, 0), op))
    width = max([9, *map(len, names)])
    return [f"{op:{width}}  {report.before.get(op, 0):6}  {report.after.get(op, 0):5}" for op in names]


def _against_torch(loaded: Loaded, plan: Plan, result: OnnxModel) -> float:
    """The converted network in PyTorch and in ONNX Runtime, on two random images."""
    import torch

    from .. import onnx as room
    from ..networks.converter import convert_shared

    own = find_blocks(loaded.model, loaded.input_size)
    given = plan.with_weights(fingerprint(loaded.model)).corrections
    network = convert_shared(loaded.model, replace(own, tiles=plan.tiles, corrections=given))
    x = torch.randn(2, *plan.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = network(x), room.module(result)(x)
    pairs = zip(_flat(expected), _flat(got), strict=True)
    return max(room.relative(a.numpy(), b.numpy()) for a, b in pairs)


def _flat(output: Any) -> list[Any]:
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in _flat(item)] if isinstance(output, (list, tuple)) else [output]
