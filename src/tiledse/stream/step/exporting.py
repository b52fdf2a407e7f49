"""Write a step as ONNX: the graph from torch's exporter, with batch normalisations folded into convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import torch

from ...errors import TiledSEError, first_line
from ...files import written_whole
from ...onnx.export import quiet
from ...plan import Plan
from ..building import source_of
from .header import KEY, Header
from .making import Made, make_step
from .module import Step
from .proof import check_against_whole, check_files

OPSET = 18


@dataclass(frozen=True)
class Exported:
    """A step that was written.

    Args:
        header: What the file says of itself.
        files: The step, and under ``middle`` that without edges.
        max_rel_error: Largest difference of the step from the whole image, relative to the largest output; None where
            an image that it takes is too large to be run whole.
        max_rel_error_file: Largest difference of the files from the step in torch.
    """

    header: Header
    files: Mapping[str, Path]
    max_rel_error: float | None
    max_rel_error_file: float


def export_step(
    model: Any,
    plan: Plan,
    path: str | Path,
    *,
    rows: int | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    middle: bool = True,
    force: bool = False,
) -> Exported:
    """Write one step of a network as an ONNX file: R rows of an image and a state in, rows and the next state out.

    The file runs wherever ONNX does, without tiledse; ``StepRunner`` runs it in Python. Its inputs are ``image``
    (N, C, window, W), of sound (N, C, window), with zeros for rows outside of the image; ``first`` (the number of the
    first of these rows) and ``height`` (rows of the image, or 2**24 while that is not known), each of shape (1,) and
    int64; and ``state.NAME``. Its outputs are those of the network, ``rows`` (for each of them the first row that is
    one, the row after the last, and how many come later), and ``next.NAME``. Shapes, start values and meanings are in
    the metadata under ``tiledse.step``.

    Beside it lies ``NAME.middle.onnx``: the same without the tests for rows outside of the image, for steps that have
    none. It is faster, and may be left out.

    Args:
        model: The network, as ``stream`` takes it.
        plan: From ``find`` on it, with the tiles wanted.
        path: The file, which ends in ``.onnx``.
        rows: Rows in a step, a multiple of what strides and tiles ask for; the fewest if left out.
        height: Rows of each image; None for any. Networks that pad by the height need it.
        width: Columns of the images; the plan's if left out.
        batch: Images at once.
        middle: Whether to write the second file.
        force: Replace files that are there.

    Returns:
        What the file says of itself, and what trying it gave: it is compared with the whole image, and the file with
        the step in torch, before it is written.

    Raises:
        TiledSEError: a layer that is not local in rows (with what it would hold), a height that must be known, rows
            that are no multiple, a file that is there, or torch cannot export the step.

    Example:
        >>> import tempfile, timm, tiledse as ts
        >>> model = timm.create_model("lcnet_050").eval()
        >>> plan = ts.find(model, (3, 64, 64)).with_tile("1xW:running")
        >>> path = Path(tempfile.mkdtemp()) / "step.onnx"
        >>> made = ts.export_step(model, plan, path, middle=False)
        >>> made.header.rows, made.max_rel_error < 1e-5
        (32, True)
        >>> runner = ts.StepRunner(path)
        >>> [part is None for part in runner.push(torch.zeros(1, 3, 40, 64)).values()]
        [True]
        >>> runner.finish()["output"].shape
        (1, 1000)
    """
    path = Path(path)
    files = {"step": path, **({"middle": middle_of(path)} if middle else {})}
    if path.suffix.lower() != ".onnx":
        raise TiledSEError(f"a step is written as ONNX; give a name that ends in .onnx, got {path}")
    for file in files.values():
        if file.exists() and not force:
            raise TiledSEError(f"{file} exists; give another name, or --force to replace it")
    source = source_of(model, plan.input_size)
    made = make_step(source, plan, rows=rows, height=height, width=width, batch=batch)
    whole = check_against_whole(source, plan, made)
    with TemporaryDirectory() as folder:
        written = {what: Path(folder, file.name) for what, file in files.items()}
        write_step(made, written)
        against = check_files(made, written)
        for what, file in files.items():
            with written_whole(file) as part:
                part.write_bytes(written[what].read_bytes())
    return Exported(made.header, files, whole, against)


def middle_of(path: Path) -> Path:
    """Where the step without edges lies."""
    return path.with_name(f"{path.stem}.middle{path.suffix}")


def write_step(made: Made, files: dict[str, Path]) -> None:
    """Write a step that was made, and under ``middle`` that without edges."""
    for what, path in files.items():
        message = ir.to_proto(_graph(made.step if what == "step" else made.middle, made.header))
        data = message.SerializeToString()
        with written_whole(path) as part:
            part.write_bytes(data)


def _graph(step: Step, header: Header) -> ir.Model:
    if step.graph.dtype != torch.float32:
        raise TiledSEError(
            f"a step is written in float32, the network has {step.graph.dtype}; convert it first"
        )
    image = torch.zeros(header.window_shape)
    names = [state.name for state in header.states]
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                step, (image, torch.tensor([header.begin]), torch.tensor([header.rows]), *step.start()), dynamo=True,
                opset_version=OPSET, input_names=["image", "first", "height", *(f"state.{n}" for n in names)],
                output_names=[*(h.name for h in header.heads), "rows", *(f"next.{n}" for n in names)],
                optimize=False, verbose=False,
            )  # fmt: skip
            assert program is not None
            graph = _tidy(program.model)
    except Exception as error:
        raise TiledSEError(
            f"torch.onnx.export fails on a step of this network: {first_line(error, 140)}"
        ) from error
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.metadata_props[KEY] = header.to_json()
    graph.producer_name = "tiledse"
    return graph


def _tidy(graph: ir.Model) -> ir.Model:
    """Compute what is constant, and fold batch normalisations into what is before them."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules.common import (
        fuse_batchnorm_into_conv_rule,
        fuse_batchnorm_into_conv_transpose_rule,
        fuse_batchnorm_into_gemm_rule,
    )

    common.InlinePass()(graph)
    fold_constants(graph, onnx_shape_inference=False, output_size_limit=1 << 20)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ):
        step(graph)
    rules = (
        fuse_batchnorm_into_conv_rule,
        fuse_batchnorm_into_conv_transpose_rule,
        fuse_batchnorm_into_gemm_rule,
    )
    RewriteRuleSet(list(rules)).apply_to_model(graph)
    for last in (
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        last(graph)
    return graph
