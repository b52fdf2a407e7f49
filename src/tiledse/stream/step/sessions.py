"""Where steps run: torch, ONNX Runtime, OpenVINO. Each takes rows and a state, and gives outputs and the next state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import TiledSEError, first_line
from ...extras import missing
from .header import Header

BACKENDS = ("onnxruntime", "openvino")


class Session(ABC):
    """Runs one step at a time. A state is whatever the runtime keeps arrays in."""

    @abstractmethod
    def run(
        self, image: np.ndarray, first: int, height: int, state: Any, middle: bool
    ) -> tuple[list[np.ndarray], np.ndarray, Any]:
        """Outputs, the table of their rows, and the next state; the state that was given is left as it is.

        Args:
            image: (N, C, window, W).
            first: The number of the first row.
            height: Rows of the image, or ``UNKNOWN``.
            state: From ``state`` or ``run``.
            middle: Whether all rows of all layers lie within their maps.
        """

    @abstractmethod
    def state(self, arrays: Sequence[np.ndarray]) -> Any:
        """A state from arrays."""

    @abstractmethod
    def arrays(self, state: Any) -> list[np.ndarray]:
        """A state as arrays."""


def start_arrays(header: Header, dtype: np.dtype[Any]) -> list[np.ndarray]:
    """The state before the first row of an image."""
    return [np.full(state.shape, state.start, dtype) for state in header.states]


class TorchSession(Session):
    """The step as it was made, in torch: in float64, too.

    Args:
        step: With edges.
        middle: Without.
    """

    def __init__(self, step: Any, middle: Any) -> None:
        self.step, self.middle, self.heads = step, middle, len(step.graph.outputs)

    def run(
        self, image: np.ndarray, first: int, height: int, state: Any, middle: bool
    ) -> tuple[list[np.ndarray], np.ndarray, Any]:
        """See Session."""
        import torch

        step = self.middle if middle else self.step
        with torch.no_grad():
            # A copy: rows of the image may be part of the state, and whoever pushed them may write there again.
            given = step(torch.tensor(image), torch.tensor([first]), torch.tensor([height]), *state)
        outputs = [tensor.numpy() for tensor in given[: self.heads]]
        return outputs, given[self.heads].numpy(), list(given[self.heads + 1 :])

    def state(self, arrays: Sequence[np.ndarray]) -> Any:
        """See Session."""
        import torch

        return [torch.from_numpy(array) for array in arrays]

    def arrays(self, state: Any) -> list[np.ndarray]:
        """See Session."""
        return [tensor.numpy() for tensor in state]


@cache
def _one_arena(ort: Any) -> bool:
    """Let the steps with and without edges take memory from one place, and no more than they ask for.

    An arena of ONNX Runtime doubles whenever it is full, and each session has its own: 231 MB in place of 180, of
    MobileNetV3-L by 256 rows of 1,024 columns.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    as_requested = ort.OrtArenaCfg(
        {
            "max_mem": 0,
            "arena_extend_strategy": 1,
            "initial_chunk_size_bytes": -1,
            "max_dead_bytes_per_chunk": -1,
        }
    )
    try:
        ort.create_and_register_allocator(info, as_requested)
    except Exception:  # one is there already, of somebody else in this process
        return False
    return True


class OnnxSession(Session):
    """ONNX Runtime on the CPU. The state stays in its own memory between steps.

    Args:
        files: The step, and under ``middle`` that without edges, where there is one.
        header: Of the step.
        threads: Threads to use; 0 leaves it to ONNX Runtime.

    Raises:
        TiledSEError: ONNX Runtime is not installed, or does not take a file.
    """

    def __init__(self, files: Mapping[str, Path], header: Header, threads: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing("running ONNX needs", "onnxruntime", error=error) from error
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if _one_arena(ort):
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        self.make, self.sessions = ort.OrtValue.ortvalue_from_numpy, {}
        for name, path in files.items():
            try:
                self.sessions[name] = ort.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # its errors are no class of Python's
                raise TiledSEError(f"ONNX Runtime does not take {path}: {first_line(error, 200)}") from error
        self.heads = len(header.heads)
        self.inputs = [f"state.{state.name}" for state in header.states]
        self.outputs = [out.name for out in self.sessions["step"].get_outputs()]

    def run(
        self, image: np.ndarray, first: int, height: int, state: Any, middle: bool
    ) -> tuple[list[np.ndarray], np.ndarray, Any]:
        """See Session."""
        session = self.sessions.get("middle") if middle else None
        feeds = {
            "image": self.make(image),
            "first": self.make(np.array([first])),
            "height": self.make(np.array([height])),
            **dict(zip(self.inputs, state, strict=True)),
        }
        given = (session or self.sessions["step"]).run_with_ort_values(self.outputs, feeds)
        shown = [value.numpy() for value in given[: self.heads + 1]]
        return shown[:-1], shown[-1], list(given[self.heads + 1 :])

    def state(self, arrays: Sequence[np.ndarray]) -> Any:
        """See Session."""
        return [self.make(array) for array in arrays]

    def arrays(self, state: Any) -> list[np.ndarray]:
        """See Session."""
        return [value.numpy() for value in state]


class OpenVinoSession(Session):
    """OpenVINO on the CPU.

    Args:
        files: The step, and under ``middle`` that without edges, where there is one.
        header: Of the step.
        threads: Threads to use; 0 leaves it to OpenVINO.

    Raises:
        TiledSEError: OpenVINO is not installed, or does not take a file.
    """

    def __init__(self, files: Mapping[str, Path], header: Header, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing("steps in OpenVINO need", "openvino", error=error) from error
        core = openvino.Core()
        # As exact as the others: by default it computes in bfloat16 where the processor has it.
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self.models = {}
        for name, path in files.items():
            try:
                self.models[name] = core.compile_model(str(path), "CPU", options)
            except Exception as error:
                raise TiledSEError(f"OpenVINO does not take {path}: {first_line(error, 200)}") from error
        self.heads = len(header.heads)

    def run(
        self, image: np.ndarray, first: int, height: int, state: Any, middle: bool
    ) -> tuple[list[np.ndarray], np.ndarray, Any]:
        """See Session."""
        model = self.models["middle"] if middle and "middle" in self.models else self.models["step"]
        given = model([image, np.array([first]), np.array([height]), *state], share_inputs=True)
        arrays = [given[index] for index in range(len(model.outputs))]
        return arrays[: self.heads], arrays[self.heads], arrays[self.heads + 1 :]

    def state(self, arrays: Sequence[np.ndarray]) -> Any:
        """See Session."""
        return list(arrays)

    def arrays(self, state: Any) -> list[np.ndarray]:
        """See Session."""
        return list(state)
