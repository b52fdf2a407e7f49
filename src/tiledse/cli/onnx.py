"""What the verbs do with FILE.onnx, as the network or as the output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from ..onnx import Converted, OnnxModel


def is_onnx(name: str | Path) -> bool:
    """Whether a MODEL, or an output, is an ONNX file."""
    return str(name).lower().endswith(".onnx")


def shown_name(model: str) -> str:
    """MODEL as it is printed: an ONNX file without its folder."""
    return Path(model).name if is_onnx(model) else model


def open_onnx(model: str, weights: Path | None, pretrained: bool, image: str | None = None) -> OnnxModel:
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
    return load(model, image)


def find_any(
    model: str, size: str | None, weights: Path | None, pretrained: bool, image: str | None = None
) -> tuple[str, Plan]:
    """The name and the SE blocks of MODEL, PyTorch or ONNX."""
    if is_onnx(model):
        opened = open_onnx(model, weights, pretrained, image)
        from ..onnx import find

        return model, find(opened, parse_size(size))
    if image is not None:
        raise TiledSEError(f"--image goes with FILE.onnx, got {model}; leave it out")
    loaded = load_model(model, size, weights, pretrained, runs=False)
    return loaded.name, find_blocks(loaded.model, loaded.input_size)


class OnnxForm(NamedTuple):
    """How an ONNX file is to be written.

    Args:
        divisor_tiles: Tiles that divide their maps, at a fixed size.
        batch: A fixed batch, at a fixed size; None leaves it as it is.
        ir_version: Of the file format; None leaves it as it is.
        alls: Where the line for a Hailo model script goes.
        verify: Whether to try what was made.
        image: Which input takes the image, where FILE.onnx has several.
    """

    divisor_tiles: bool = False
    batch: int | None = None
    ir_version: int | None = None
    alls: Path | None = None
    verify: bool = True
    image: str | None = None


def convert_to_onnx(
    model: str, output: Path, tile: str | None, plan: Path | None, size: str | None, weights: Path | None,
    pretrained: bool, form: OnnxForm, force: bool, json: bool,
) -> None:  # fmt: skip
    """``convert`` for an output that is an ONNX file."""
    from .. import onnx as room

    if is_onnx(model):
        source, loaded = open_onnx(model, weights, pretrained, form.image), None
        # What lies beside the file is read too, and what is written may have a file beside it.
        data = Output("-o", output.with_name(f"{output.name}.data"))
        check_outputs(True, [Output("-o", output), Output("--alls", form.alls), data], source.data_files)
        chosen = choose_plan(room.find(source, parse_size(size)), tile, plan)
    else:
        loaded, ours = load_planned(model, size, weights, pretrained, tile, plan)
        say("exporting ...")
        source = room.export_se(loaded.model, ours)
        chosen = room.transfer(ours, room.find(source, ours.input_size))
        if ours.calibrated:
            ours.check_weights(fingerprint(loaded.model))
            chosen = chosen.with_weights(room.weights_of(source, ours.input_size))
    made = room.convert_verified(
        source, chosen, divisor_tiles=form.divisor_tiles, batch=form.batch, ir_version=form.ir_version,
        verify=form.verify,
    )  # fmt: skip
    line = None if form.alls is None else room.alls(made.plan)
    difference = None if loaded is None or not form.verify else _against_torch(loaded, made)
    room.save(made.model, output, force=force)
    if form.alls is not None and line is not None:
        with written_whole(form.alls) as part:
            part.write_text(line + "\n", encoding="utf-8")
    tell_random(loaded is not None and loaded.random)
    before, after = room.operators(source), room.operators(made.model)
    if json:
        print_json(_record(made, difference, output, form.alls, before, after))
        return
    converted = sum(not t.whole for t in made.plan.tiles)
    lines = [
        f"{converted} of {len(made.plan)} SE blocks have tiles now: {output}",
        *(f"block '{miss.name}' was left as it was: {miss.reason}" for miss in made.refused),
        *_upgrade_line(source, made),
        *_verified_lines(made, difference),
        "operators  before  after",
        *_operator_lines(before, after),
    ]
    print_text("\n".join(lines))
    if form.alls is not None:
        say(f"wrote {form.alls}")


def _upgrade_line(source: OnnxModel, made: Converted) -> list[str]:
    old, new = source.opset, made.model.opset
    return [] if old == new else [f"the file had opset {old}; onnx's version converter brought it to {new}"]


def _verified_lines(made: Converted, difference: float | None) -> list[str]:
    """What verifying gave, and how long it took."""
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


def _record(
    made: Converted, difference: float | None, output: Path, alls: Path | None, before: dict[str, int],
    after: dict[str, int],
) -> dict[str, Any]:  # fmt: skip
    proof = made.proof
    return {
        "converted": sum(not t.whole for t in made.plan.tiles),
        "total": len(made.plan),
        "refused": [{"name": miss.name, "reason": miss.reason} for miss in made.refused],
        "near_misses": made.plan.to_dict()["near_misses"],
        "max_abs_diff_identity": None if proof is None else proof.difference,
        "max_rel_diff_identity": None if proof is None else proof.relative,
        "max_rel_diff_blocks": None if proof is None else proof.worst_block,
        "max_rel_diff_torch": difference,
        "verified_at": [] if proof is None else [list(size) for size in proof.sizes],
        "verify_s": made.seconds,
        "tiles": {b.name: str(t) for b, t in made.plan},
        "operators": {"before": before, "after": after},
        "output": str(output),
        "alls": None if alls is None else str(alls),
    }


def _operator_lines(before: dict[str, int], after: dict[str, int]) -> list[str]:
    names = sorted({*before, *after}, key=lambda op: (-after.get(op, 0), op))
    width = max([9, *map(len, names)])
    return [f"{op:{width}}  {before.get(op, 0):6}  {after.get(op, 0):5}" for op in names]


def _against_torch(loaded: Loaded, made: Converted) -> float:
    """The converted network in PyTorch and in ONNX Runtime, on random images."""
    import torch

    from .. import onnx as room
    from ..networks.converter import convert_shared

    own = find_blocks(loaded.model, loaded.input_size)
    plan = made.plan
    given = plan.with_weights(fingerprint(loaded.model)).corrections
    network = convert_shared(loaded.model, replace(own, tiles=plan.tiles, corrections=given))
    first = made.model.ir.graph.inputs[0].shape
    batch = first[0] if first is not None and isinstance(first[0], int) else 2
    x = torch.randn(batch, *plan.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = network(x), room.module(made.model)(x)
    pairs = zip(_flat(expected), _flat(got), strict=True)
    return max(room.relative(a.numpy(), b.numpy()) for a, b in pairs)


def _flat(output: Any) -> list[Any]:
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in _flat(item)] if isinstance(output, (list, tuple)) else [output]
