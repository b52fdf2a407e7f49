"""A further kind of network, in one room: the weights of one small network in a file that ends in .toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load

from tests.choose.networks import SIZE, small
from tiledse.network import Given
from tiledse.networks.network import TorchNetwork


class ToyNetwork(TorchNetwork):
    kind: ClassVar[str] = "toy"
    file_ending: ClassVar[str] = ".toy"
    exports: ClassVar[bool] = False

    def module(self, purpose: str) -> Any:
        raise AssertionError("no verb of these tests needs PyTorch's module")


def open_named(name: str, given: Given) -> ToyNetwork:
    model = small()
    model.load_state_dict(load(Path(name).read_bytes()))
    return ToyNetwork(model, given.input_size or SIZE, name=Path(name).name)


def open_object(source: object, given: Given) -> None:
    return None
