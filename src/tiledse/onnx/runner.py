"""Run ONNX networks in ONNX Runtime, on arrays or as a module of torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from torch import Tensor, from_numpy, nn

from ..errors import TiledSEError, first_line
from ..extras import missing
from .model import _LARGEST_MESSAGE, OnnxModel, check_memory
from .states import states_of

if TYPE_CHECKING:
    import onnxruntime


def session(model: OnnxModel, *, optimise: bool = True, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a network in ONNX Runtime, on the CPU.

    Args:
        model: The network.
        optimise: Let ONNX Runtime rewrite the graph; off for comparisons to the last digit.
        threads: Threads to use; 0 leaves it to ONNX Runtime.

    Raises:
        TiledSEError: ONNX Runtime is not installed, does not take the network, or it does not fit into memory.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise missing("running ONNX needs", "onnxruntime", error=error) from error
    options = ort.SessionOptions()
    # Nothing below the fatal: what fails is raised as well, and its log lines hold names of the file, in colour.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    size = model.weight_bytes
    check_memory(size, model.name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source: Any
            if size > _LARGEST_MESSAGE:
                source = os.path.join(folder, "model.onnx")
                ir.save(model.ir.clone(), source, external_data="model.onnx.data")
            else:
                source = model.to_proto().SerializeToString()
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except MemoryError as error:
        raise TiledSEError(f"{model.name} does not fit into memory; use a machine with more") from error
    except Exception as error:
        raise TiledSEError(f"ONNX Runtime does not take {model.name}: {first_line(error, 200)}") from error


def run(model: OnnxModel, feeds: dict[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Run a network once, without optimisation, and give the named outputs."""
    opened = session(model, optimise=False)
    return dict(zip(outputs, opened.run(list(outputs), feeds)))


class OnnxModule(nn.Module):
    """An ONNX network as a module: one tensor in, the outputs out.

    A network that is gated by the previous frame (``HxW:previous``) is given one frame of each stream at a call. Its
    states are kept here, and ``reset_frames`` begins other streams.

    Args:
        model: The network.
        threads: Threads of ONNX Runtime; 0 leaves it to it.

    Shape:
        As the network's input and outputs; one output comes alone, several as a tuple.

    Raises:
        TiledSEError: ONNX Runtime does not take the network, or the input.
    """

    pretrained_cfg: dict[str, Any]

    def __init__(self, model: OnnxModel, threads: int = 0) -> None:
        super().__init__()
        self.name = model.name
        self.session = session(model, threads=threads)
        self.states = states_of(model.ir)
        self._kept: dict[str, np.ndarray] = {}
        self._frame_shape: tuple[int, ...] = ()
        kept = {state.input for state in self.states}
        self.takes = [value for value in self.session.get_inputs() if value.name not in kept]
        self._gives = [value.name for value in self.session.get_outputs()]
        if len(self.takes) != 1:
            raise TiledSEError(
                f"{self.name} takes {len(self.takes)} inputs; to evaluate it needs one, the image"
            )
        self.dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(
            self.takes[0].type, np.float32
        )

    def takes_size(self, size: Sequence[int]) -> bool:
        """Whether the network takes images (C, H, W), sounds (C, T) or clips (C, D, H, W) of a size."""
        return all(
            not isinstance(own, int) or own == side for own, side in zip(self.takes[0].shape[1:], size)
        )

    def check_size(self, size: Sequence[int]) -> None:
        """Check that the network takes images (C, H, W), sounds (C, T) or clips (C, D, H, W) of a size.

        Raises:
            TiledSEError: the file fixes another one.
        """
        if not self.takes_size(size):
            fixed = self.takes[0].shape[1:]
            takes = "x".join("?" if not isinstance(own, int) else str(own) for own in fixed)
            what = {2: "sounds", 4: "clips"}.get(len(fixed), "images")
            raise TiledSEError(
                f"{self.name} takes {what} of {takes}, and this one is {'x'.join(map(str, size))}: as a whole it does "
                "not run in ONNX Runtime; --alone streams without comparing"
            )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the network on a batch; one image after the other where it takes one at a time."""
        if self.states:
            return self._frame(x)
        batch = self.takes[0].shape[0]
        parts = x.split(batch) if isinstance(batch, int) and batch > 0 else (x,)
        try:
            results = [
                self.session.run(None, {self.takes[0].name: p.cpu().numpy().astype(self.dtype)})
                for p in parts
            ]
        except Exception as error:
            raise TiledSEError(
                f"{self.name} fails on a batch of {tuple(x.shape)}: {first_line(error, 140)}"
            ) from error
        joined = tuple(from_numpy(np.concatenate(each)) for each in zip(*results))
        return joined[0] if len(joined) == 1 else joined

    def _frame(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One frame of each stream."""
        known = next((len(state) for state in self._kept.values()), len(x))
        if known != len(x):
            raise TiledSEError(
                f"{self.name} got a frame of {len(x)} streams after one of {known}; a stream keeps its batch; call "
                "reset_frames() where other streams begin"
            )
        if self._kept and tuple(x.shape) != self._frame_shape:
            raise TiledSEError(
                f"{self.name} got a frame of {tuple(x.shape)} after one of {self._frame_shape}; a stream keeps its "
                "size; call reset_frames() where other streams begin"
            )
        check_memory(8 * len(x) * sum(prod(s.shape) for s in self.states), f"the states of {self.name}")
        new = {s.input: np.full((len(x), *s.shape), np.nan, self.dtype) for s in self.states}
        feeds = {self.takes[0].name: x.cpu().numpy().astype(self.dtype)} | new | self._kept
        try:
            given = dict(zip(self._gives, self.session.run(self._gives, feeds)))
        except Exception as error:
            raise TiledSEError(
                f"{self.name} fails on a frame of {tuple(x.shape)}: {first_line(error, 140)}"
            ) from error
        self._kept = {state.input: given.pop(state.output) for state in self.states}
        self._frame_shape = tuple(x.shape)
        outputs = tuple(from_numpy(array) for array in given.values())
        return outputs[0] if len(outputs) == 1 else outputs

    def reset_frames(self, streams: Sequence[int] | None = None) -> None:
        """Begin other streams, of a network that is gated by the previous frame.

        Args:
            streams: Their numbers in the batch; all, and with any batch, if left out.

        Raises:
            TiledSEError: the network keeps no states, no frame has come yet, or there is no such stream.
        """
        if not self.states:
            raise TiledSEError(
                f"{self.name} keeps no state from frame to frame; convert it with HxW:previous, or leave this out"
            )
        if streams is None:
            self._kept = {}
            return
        if not self._kept:
            raise TiledSEError(
                "no frame has come yet, so there is no stream to begin again; leave streams out"
            )
        count = len(next(iter(self._kept.values())))
        for stream in streams:
            if not (isinstance(stream, int) and 0 <= stream < count):
                raise TiledSEError(f"expected numbers of streams of 0 to {count - 1}, got {stream!r}")
        self._kept = {name: array.copy() for name, array in self._kept.items()}
        for array in self._kept.values():
            array[list(streams)] = np.nan


def module(model: OnnxModel | str | Path, threads: int = 0) -> OnnxModule:
    """An ONNX network, or file, as a module of torch that ``evaluate`` takes."""
    from .model import load

    return OnnxModule(model if isinstance(model, OnnxModel) else load(model), threads)
