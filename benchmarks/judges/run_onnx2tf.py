"""Turn an .onnx file into an int8 .tflite file with onnx2tf. Runs in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import onnx2tf
import tensorflow as tf
from gelu import fused

import onnx

_IMAGES = 2


def main() -> None:
    """Arguments: the .onnx file, and where the .tflite file goes."""
    source, goal = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model = onnx.load(source)
        # Its shape inference trips over what other tools wrote there; and it overwrites the file that it is given.
        del model.graph.value_info[:]
        fused(model)
        onnx.save(model, "net.onnx")
        # It would fetch images for its own test from its releases.
        rng = np.random.default_rng(0)
        np.save(
            "calibration_image_sample_data_20x128x128x3_float32.npy",
            rng.random((20, 128, 128, 3), np.float32),
        )
        given = model.graph.input[0]
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
        onnx2tf.convert(
            input_onnx_file_path="net.onnx", output_folder_path="saved", non_verbose=True,
            output_signaturedefs=True,
        )  # fmt: skip
        converter = tf.lite.TFLiteConverter.from_saved_model("saved")
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        nhwc = [1, shape[2], shape[3], shape[1]]
        converter.representative_dataset = lambda: (
            [rng.standard_normal(nhwc).astype(np.float32)] for _ in range(_IMAGES)
        )
        Path("net.tflite").write_bytes(converter.convert())
        shutil.copy("net.tflite", goal)
    print(json.dumps({"bytes": goal.stat().st_size}))


if __name__ == "__main__":
    main()
