"""Prove a step before it is handed out: against the whole image, and its file against the step in torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ...errors import TiledSEError
from ...networks.converter import convert_shared
from ...plan import Plan
from .header import Header
from .making import Made
from .run import StepRun
from .sessions import OnnxSession, Session, TorchSession

# Of float32 on random numbers; a row in a wrong place is off by a tenth or more.
_LARGEST = 1e-3
# Some networks amplify the last digit of random numbers beyond that: then so many times what it moves them.
_LAST_DIGIT, _TIMES = 2.0**-22, 20
# The whole image of a proof is no larger, so that it fits into memory anywhere.
_MOST_PIXELS = 1 << 21


def check_against_whole(model: Any, plan: Plan, made: Made) -> float | None:
    """Stream a random image in torch and compare with the converted network on the whole of it.

    Args:
        model: A module of PyTorch, or an open ONNX network.
        plan: The tiles.
        made: The step.

    Returns:
        The largest difference, relative to the largest number of its output; None where the image that the step takes
        is too large for that.

    Raises:
        TiledSEError: they are not the same.
    """
    header = made.header
    with torch.no_grad():
        tiled = convert_shared(model, plan) if isinstance(model, nn.Module) else model.tiled(plan)
    height = header.height or _some_height(header)
    takes = getattr(tiled, "takes_size", None)  # a file may be of one size; then the step is tried at that
    if takes is not None and not takes((header.channels, height, *header.row_shape)):
        height = plan.input_size[1]
    if height * header.width * header.images > _MOST_PIXELS:
        return None
    generator = torch.Generator().manual_seed(0)
    shape = header.images, header.channels, height, *header.row_shape
    image = torch.randn(shape, generator=generator)
    image = image.to(made.graph.dtype)
    with torch.no_grad():
        expected = tree_flatten(tiled(image))[0]
    run = StepRun(TorchSession(made.step, made.middle), header, height, image.numpy().dtype)
    got = run(image.numpy())
    worst = max(_difference(a, b.numpy()) for a, b in zip(got.values(), expected, strict=True))
    if not worst < _LARGEST:
        with torch.no_grad():
            moved = tree_flatten(tiled(image * (1 + _LAST_DIGIT)))[0]
        limit = _TIMES * max(_difference(a.numpy(), b.numpy()) for a, b in zip(moved, expected, strict=True))
    else:
        limit = _LARGEST
    if not worst < limit:
        raise TiledSEError(
            f"the step differs from the whole image by {worst:.1e} of the largest output at {height} rows; this is an "
            "error of tiledse: please report the network"
        )
    return worst


def _some_height(header: Header) -> int:
    """A height that no step divides, with as many rows as there are before the first output."""
    height = max(header.least, header.rows + header.rows // 2 + 1)
    return -(-height // header.multiple) * header.multiple


def check_files(made: Made, files: Mapping[str, Path]) -> float:
    """Run a step of random numbers from each file, and compare with the step in torch.

    ONNX Runtime's sigmoid is right to 2e-7, not to so much of its result: of a detector that finds nothing in random
    numbers, whose largest output is 1e-6, that is a tenth and more. Where a file differs, a copy of it with sigmoids
    from exponentials must not, and the file itself by no more of 1, the largest that a sigmoid gives.

    Returns:
        The largest difference, relative to the largest number of its tensor; of the copy, where that was needed.

    Raises:
        TiledSEError: they are not the same, or ONNX Runtime does not take a file.
    """
    header = made.header
    generator = np.random.default_rng(0)
    image = generator.standard_normal(header.window_shape, dtype=np.float32)
    arrays = [generator.random(state.shape, dtype=np.float32) for state in header.states]
    torch_session = TorchSession(made.step, made.middle)
    threads = torch.get_num_threads()
    onnx_session: Session = OnnxSession(files, header, threads)
    exact: Session | None = None
    far = header.middle_from + header.rows
    height = header.height or far + 2 * header.rows
    far += header.begin
    cases = [(header.begin, height, False), (far, far + header.rows // 2 + 1, False)]
    cases += [(far, height, True)] if "middle" in files else []
    worst, sure = 0.0, True
    for first, height, middle in cases:
        one, other = (
            _flat(session, image, first, height, arrays, middle) for session in (torch_session, onnx_session)
        )
        now = max(_difference(a, b) for a, b in zip(other, one, strict=True))
        if not now < _LARGEST:
            moved = _flat(torch_session, image * np.float32(1 + _LAST_DIGIT), first, height, arrays, middle)
            limit = max(_LARGEST, _TIMES * max(_difference(a, b) for a, b in zip(moved, one, strict=True)))
            if not now < limit and max(_difference(a, b, 1.0) for a, b in zip(other, one)) < _LARGEST:
                exact = exact or _with_exact_sigmoids(files, header, threads)
                other = _flat(exact, image, first, height, arrays, middle)
                now = max(_difference(a, b) for a, b in zip(other, one, strict=True))
            sure &= now < limit
        worst = max(worst, now)
    if not sure:
        raise TiledSEError(
            f"the file differs from the step in torch by {worst:.1e} of the largest number; nothing was written"
        )
    return worst


def _with_exact_sigmoids(files: Mapping[str, Path], header: Header, threads: int) -> Session:
    """The files with 1 / (1 + exp(-x)) in place of each sigmoid: right to some last digits of the result."""
    import onnx
    from onnx import helper, numpy_helper

    with TemporaryDirectory() as folder:
        copies = {what: Path(folder, path.name) for what, path in files.items()}
        for what, path in files.items():
            proto = onnx.load(str(path))
            graph, one = proto.graph, "1 of a sigmoid"
            nodes = list(graph.node)
            del graph.node[:]
            for node in nodes:
                if node.op_type != "Sigmoid":
                    graph.node.append(node)
                    continue
                steps = [f"{node.output[0]} by exponentials {number}" for number in range(3)]
                graph.node.append(helper.make_node("Neg", node.input, steps[:1]))
                graph.node.append(helper.make_node("Exp", steps[:1], steps[1:2]))
                graph.node.append(helper.make_node("Add", [steps[1], one], steps[2:]))
                graph.node.append(helper.make_node("Reciprocal", steps[2:], node.output))
            graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), one))
            copies[what].write_bytes(proto.SerializeToString())
        return OnnxSession(copies, header, threads)


def _flat(
    session: Session, image: np.ndarray, first: int, height: int, arrays: list[np.ndarray], middle: bool
) -> list[np.ndarray]:
    outputs, table, state = session.run(image, first, height, session.state(arrays), middle)
    return [*outputs, table, *session.arrays(state)]


def _difference(a: np.ndarray, b: np.ndarray, least: float = 1e-30) -> float:
    """Relative to the largest number of b, or to ``least`` where that is smaller."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0) / max(float(np.abs(b).max(initial=0)), least))
