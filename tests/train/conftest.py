from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.sets import RECIPE, class_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """24 images of 3 classes to train on, 12 to judge by."""
    return class_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """accelerate keeps device and precision of a process; a test begins without."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
