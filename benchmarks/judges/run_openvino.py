"""Run an .onnx file in OpenVINO beside its SE network; print JSON. Runs in the judge's own environment."""

from __future__ import annotations

import sys

import openvino as ov
from timing import Run, judged

_ONE = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


def load(path: str) -> Run:
    """The network, compiled for the CPU."""
    network = ov.Core().compile_model(path, "CPU", _ONE)
    return lambda x: network(x)[0]


if __name__ == "__main__":
    judged(load, *sys.argv[1:3])
