"""A stream whose steps run in ONNX Runtime or OpenVINO: ``Stream``, from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from ...errors import TiledSEError
from ...plan import Plan
from ..flow import Held, count_held
from ..heights import sized_plan
from .exporting import middle_of, write_step
from .making import Made, make_step
from .proof import check_files
from .run import Rows, StepRun
from .runner import open_session


class StepStream:
    """As ``Stream``, in float32 and by steps of fixed shapes.

    Made by ``stream(..., backend=...)``. States go with ``StepRunner`` and its files, not with ``Stream``.

    Attributes:
        graph: The row graph.
        plan: The plan, with the sizes that the maps have at this image size.
        height: Rows of an image; None where it shows when the image ends.
        rows: Rows of a step.
    """

    def __init__(self, made: Made, run: StepRun, plan: Plan, height: int | None) -> None:
        self.graph, self.plan, self.height, self.rows = made.graph, plan, height, made.header.rows
        self._run = run

    @property
    def seen(self) -> int:
        """Rows of the image that have come."""
        return self._run.seen

    @property
    def peak_live_bytes(self) -> int:
        """Bytes of the state that a step hands to the next."""
        return self._run.state_bytes

    @property
    def whole(self) -> dict[str, int]:
        """None: what is not local in rows cannot run in steps."""
        return {}

    def held(self, height: int | None = None) -> list[Held]:
        """What each layer holds where rows come one by one, counted by streaming without computing.

        Args:
            height: Rows of an image, for a stream that is not told them; left out, those of the plan.
        """
        return count_held(self.graph, height if self.height is None else None)

    def push(self, rows: Tensor, start: int | None = None) -> Any:
        """See ``Stream.push``."""
        return self._nested(self._run.push(rows, start))

    def finish(self) -> Any:
        """See ``Stream.finish``."""
        return self._nested(self._run.finish())

    def save(self, path: str | Path) -> None:
        """See ``StepRunner.save``."""
        self._run.save(path)

    def load(self, path: str | Path) -> None:
        """See ``StepRunner.load``."""
        self._run.load(path)

    def run(self, chunks: Iterable[Tensor]) -> Iterator[Any]:
        """See ``Stream.run``."""
        for out in self._run.run(chunks):
            yield self._nested(out)

    def __call__(self, image: Tensor, chunk: int | None = None) -> Any:
        """See ``Stream.__call__``."""
        chunks = [image] if chunk is None else image.split(chunk, 2)
        gathered: list[list[Tensor]] = [[] for _ in self.graph.outputs]
        for out in self._run.run(chunks):
            for whole, part in zip(gathered, out.values(), strict=True):
                if part is not None:
                    whole.append(torch.from_numpy(part))
        dims = [head.row_dim or 0 for head in self._run.header.heads]
        return tree_unflatten([torch.cat(w, d) for w, d in zip(gathered, dims)], self.graph.spec)

    def _nested(self, out: Rows) -> Any:
        leaves = [None if part is None else torch.from_numpy(part) for part in out.values()]
        return tree_unflatten(leaves, self.graph.spec)


def stream_in_steps(
    model: nn.Module,
    plan: Plan,
    backend: str,
    *,
    height: int | None,
    width: int,
    batch: int,
    rows: int,
    threads: int,
) -> StepStream:
    """Make a stream of steps; the files of the steps are gone once they are loaded.

    Args:
        model: The network.
        plan: The tiles.
        backend: ``onnxruntime`` or ``openvino``.
        height: Rows of the images; None for any.
        width: Columns.
        batch: Images at once.
        rows: The fewest rows of a step; it has the next multiple of what strides and tiles ask for.
        threads: Threads of the runtime; 0 leaves it to it.

    Raises:
        TiledSEError: see ``export_step``.
    """
    least = make_step(model, plan, height=height, width=width, batch=batch)
    unit = least.header.unit
    count = -(-rows // unit) * unit
    made = least if count == unit else make_step(
        model, plan, rows=count, height=height, width=width, batch=batch
    )  # fmt: skip
    if made.graph.dtype != torch.float32:
        raise TiledSEError(
            f"a step runs in float32, the network has {made.graph.dtype}; leave the backend out"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder, "step.onnx")
        files = {"step": path, "middle": middle_of(path)}
        write_step(made, files)
        check_files(made, files)
        run = StepRun(open_session(path, made.header, backend, threads), made.header, height)
    return StepStream(made, run, sized_plan(plan, made.graph), height)
