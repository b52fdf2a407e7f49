"""What the tests share: where the real networks and images are, and one thread for torch."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TILEDSE_SHARED", ROOT.parent / "shared"))

# A machine that is busy is no wrong result.
hypothesis.settings.register_profile("tiledse", deadline=None)
hypothesis.settings.load_profile("tiledse")

# A shell that puts the tests into the background lets them ignore Ctrl-C, and what they start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two test processes share two cores (pytest-xdist); more threads would only wait for each other.
torch.set_num_threads(1)

with warnings.catch_warnings():
    # timm's own deprecations, raised while it is imported.
    warnings.simplefilter("ignore")
    import timm


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real networks and images; tests that need it skip where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"no real networks and images here (looked in {SHARED}); set TILEDSE_SHARED")
    return SHARED


@pytest.fixture
def mobilenet(shared: Path) -> torch.nn.Module:
    """The real MobileNetV3-Small, in eval mode."""
    from safetensors.torch import load_file

    model = timm.create_model("tf_mobilenetv3_small_100")
    model.load_state_dict(load_file(shared / "models" / "tf_mobilenetv3_small_100.safetensors"))
    return model.eval()
