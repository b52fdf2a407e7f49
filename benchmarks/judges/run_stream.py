"""Schedule an .onnx file with Stream; print what it says as JSON. Runs in the judge's own environment."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from stream.api import SolveOptions, evaluate_mapping

import onnx
import stream
from onnx import shape_inference

_SECONDS = 120


def main() -> None:
    """Arguments: the file, and one of Stream's own examples of hardware, such as ``tpu_like_quad_core``."""
    path, hardware = sys.argv[1:3]
    file = Path(stream.__file__).parent / "inputs" / "examples" / "hardware" / f"{hardware}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "net.onnx"
        onnx.save(shape_inference.infer_shapes(onnx.load(path)), own)
        options = SolveOptions(time_limit_s=_SECONDS, artifacts=False)
        found = evaluate_mapping(str(file), str(own), folder, options=options)
    print(json.dumps({"cycles": round(found.cycles), "groups": len(found.group_cycles)}))


if __name__ == "__main__":
    main()
