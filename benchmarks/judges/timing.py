"""Numbers beside ONNX Runtime's, and time beside SE's; imported by the scripts of runtimes in their environments."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

_ROUNDS, _SECONDS = 30, 20.0
Run = Callable[[np.ndarray], np.ndarray]


def judged(load: Callable[[str], Run], path: str, plain: str) -> None:
    """Load a file and the file of SE, run both in turns, print what was found as JSON.

    Args:
        load: Gives a function from the image to the first output.
        path: The file.
        plain: The file of SE as it is.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    x = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
    expected = np.asarray(session.run(None, {given.name: x})[0])
    runs = [load(file) for file in (path, plain)]
    got = np.asarray(runs[0](x)).reshape(expected.shape)
    runs[1](x)
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + _SECONDS
    while len(times[0]) < 3 or (len(times[0]) < _ROUNDS and time.perf_counter() < end):
        for run, taken in zip(runs, times):  # in turns, so that both meet the same neighbours on the machine
            start = time.perf_counter()
            run(x)
            taken.append(time.perf_counter() - start)
    tiled, se = (float(np.min(taken)) for taken in times)
    print(
        json.dumps(
            {
                "max_rel_error": float(f"{np.abs(got - expected).max() / np.abs(expected).max():.2g}"),
                "seconds": round(tiled, 6),
                "of_se": round(tiled / se, 3),
            }
        )
    )
