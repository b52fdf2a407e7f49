"""State dicts that no network can have: refused by name, before anything is measured."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tiledse.errors import TiledSEError
from tiledse.networks.weights import load_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_one_number_that_is_not_finite(tmp_path, number, suffix):
    state = network().state_dict()
    state["0.weight"][1, 2] = number
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(TiledSEError, match=r"'0\.weight' holds numbers that are not finite"):
        load_weights(network(), path)


def test_statistics_that_are_no_numbers(tmp_path):
    state = network().state_dict()
    state["1.running_var"][0] = math.nan
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(TiledSEError, match=r"'1\.running_var' holds numbers that are not finite"):
        load_weights(network(), tmp_path / "w.pt")


def test_a_mask_may_be_infinite(tmp_path):
    model = network()
    model.register_buffer("mask", torch.full((2, 2), -math.inf))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert model.mask.isinf().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {"0.weight": s["0.weight"].to_sparse()},
            "which are never loaded, or sparse ones|is sparse, quantised or",
        ),
        (
            lambda s: {"0.weight": s["0.weight"].to("meta")},
            "'0.weight' is sparse, quantised or without numbers",
        ),
        (lambda s: {"0.weight": s["0.weight"].to(torch.complex64)}, "'0.weight' holds complex numbers"),
        (lambda s: {0: torch.ones(1)}, "holds no state dict"),
        (lambda s: {"0.weight": [1.0]}, "holds no state dict"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, change, message):
    state = dict(network().state_dict())
    torch.save(state | change(state), tmp_path / "w.pt")
    with pytest.raises(TiledSEError, match=message):
        load_weights(network(), tmp_path / "w.pt")


def test_half_precision_is_read(tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(network(), tmp_path / "w.pt")
