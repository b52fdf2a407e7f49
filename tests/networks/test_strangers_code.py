"""package.module:factory runs code: that of the module that was named, and no other."""

from __future__ import annotations

import sys

import pytest

from tiledse.errors import TiledSEError
from tiledse.evaluate.adapters import Detector, load_adapter
from tiledse.networks.loading import load


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a module into the working folder; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = {*sys.modules}

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in {*sys.modules} - before:
        del sys.modules[name]


IMPORTED = "import pathlib\npathlib.Path('imported').touch()\ndef build(): pass\n"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("Timm", "timm"), ("tim", "timm"), ("TIMM", "timm"), ("torchvison", "torchvision"), ("Zoo", "zoo")],
)
def test_a_mistyped_prefix_imports_nothing(written, tmp_path, wrong, meant, monkeypatch):
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / f"{wrong}.py").write_text(IMPORTED)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(TiledSEError, match=f"did you mean {meant}:build.* Nothing was imported"):
        load(f"{wrong}:build")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["effnet", "tims"])
def test_a_module_of_ones_own_may_have_a_name_like_a_prefix(written, name):
    written(name, "import torch\ndef build(): return torch.nn.Conv2d(3, 8, 1)\n")
    assert load(f"{name}:build").model.out_channels == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(3)", "cannot import 'odd:build': it would end the process with 3"),
        ("raise RuntimeError('no GPU')", "cannot import 'odd:build': RuntimeError: no GPU"),
        ("1 +", "cannot import 'odd:build': SyntaxError: invalid syntax"),
        ("def build(): exit(4)", r"odd:build\(\) would end the process with 4"),
        ("def build(): 1 / 0", r"odd:build\(\) failed: ZeroDivisionError"),
        ("build = 3", r"odd:build\(\) failed: TypeError: 'int' object is not callable"),
        ("raise RuntimeError('\\x1b[2J')", "RuntimeError: ␛"),
    ],
)
def test_a_factory_that_fails_or_exits_is_one_line(written, text, message):
    written("odd", text)
    with pytest.raises(TiledSEError, match=message):
        load("odd:build")
    with pytest.raises(TiledSEError):
        load_adapter("odd:build", Detector, (3, 8, 8))


@pytest.mark.parametrize("name", [".:build", "a b:build", "..odd:build", "a/b:build"])
def test_what_is_no_module_is_not_looked_for(name):
    with pytest.raises(TiledSEError, match="is no name of a module"):
        load(name)
