"""How the command line ends."""

from __future__ import annotations

import pytest

from tiledse.cli import main
from tiledse.cli.model import Model


def test_ctrl_c_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "open", pressed)
    assert main(["find", "timm:regnety_002"]) == 130
    assert capsys.readouterr().err.strip() == "tiledse: interrupted"
