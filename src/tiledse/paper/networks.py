"""The networks of the paper as they are defined, on shapes alone (the meta device holds no weights)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..cost import Cost, cost
from ..networks import find
from ..networks.inputs import inputs_for
from ..networks.loading import load
from ..networks.modes import in_eval
from ..networks.observation import observe
from ..op.module import TiledSqueezeExcite
from ..plan import Plan, SEBlock
from ..tile import Tile
from .lraspp import segmentation_network
from .printed import Method

_REGNETS = {
    "RegNetY-200MF": "regnety_002",
    "RegNetY-400MF": "regnety_004",
    "RegNetY-600MF": "regnety_006",
    "RegNetY-800MF": "regnety_008",
    "RegNetY-1.6GF": "regnety_016",
    "RegNetY-3.2GF": "regnety_032",
}
_WHOLE = Tile.parse("HxW")
CITYSCAPES = (3, 1024, 2048)


class Networks:
    """Builds and counts each network once.

    Example:
        >>> Networks().cost("RegNetY-800MF", Method.parse("TSE_7xW")).tse.buffer
        426496
    """

    def __init__(self) -> None:
        self._plans: dict[tuple[str, Method], Plan] = {}
        self._entering: dict[str, list[tuple[SEBlock, int, int]]] = {}

    def cost(self, model: str, method: Method) -> Cost:
        """What the network of a row costs, as it is defined."""
        return cost(self.plan(model, method))

    def plan(self, model: str, method: Method) -> Plan:
        """The network of a row: its blocks, tiles and totals."""
        if method.tile is None or method.kernel is not None:
            return self._kept(model, method)
        return self._kept(model, Method(_WHOLE)).with_tile(method.tile)

    def _kept(self, model: str, method: Method) -> Plan:
        key = (model, method)
        if key not in self._plans:
            with _shapes_only():
                network = _network(model, method)
            if method.kernel is not None:
                # The SE network of this R says how wide each excitation is.
                self._put_tiles(network, self._kept(model, Method(_WHOLE, ratio=method.ratio)), method)
            self._plans[key] = find(network, image_size(model))
        return self._plans[key]

    @staticmethod
    def _put_tiles(network: nn.Module, se: Plan, method: Method) -> None:
        """Blocks with the row's tile and kernel in place of the SE blocks, on the meta device too."""
        assert method.tile is not None
        assert method.kernel is not None
        for block in se.blocks:
            assert block.reduced is not None
            parent, _, name = block.name.rpartition(".")
            with _shapes_only():
                tiled = TiledSqueezeExcite(
                    block.channels, block.reduced, method.tile, kernel_size=method.kernel
                )
            setattr(network.get_submodule(parent), name, tiled)

    def entering(self, model: str) -> list[tuple[SEBlock, int, int]]:
        """The blocks of MobileNetV3 without dilation, and the map (H, W) that enters the bottleneck of each.

        Output stride 32, as in classification, on an image of Cityscapes.
        """
        if model not in self._entering:
            with _shapes_only():
                network = _features(model, 32)
            calls = observe(in_eval(network), inputs_for(network, CITYSCAPES)).calls
            entering = []
            for block in find(network, CITYSCAPES).blocks:
                height, width = calls[block.name.rpartition(".")[0]][0].shape[2:]
                entering.append((block, height, width))
            self._entering[model] = entering
        return self._entering[model]

    def resolution(self, model: str) -> int:
        """Side of the square image that the network is defined for."""
        return image_size(model)[1]


def image_size(model: str) -> tuple[int, int, int]:
    """(C, H, W) that a network of the paper is defined for.

    For EfficientNet it is that of the first release, which timm keeps with the ``tf_`` networks; its own
    networks of these names take other images.

    Example:
        >>> image_size("EfficientNet-B2")
        (3, 260, 260)
    """
    import timm

    if model.startswith("MobileNetV3"):
        return CITYSCAPES
    if model.startswith("EfficientDet"):
        from effdet.config import get_efficientdet_config

        return (3, *get_efficientdet_config(_effdet(model)).image_size)
    name = _REGNETS.get(model) or f"tf_efficientnet_{model[-2:].lower()}"
    channels, height, width = timm.get_pretrained_cfg(name).input_size
    return channels, height, width


def _network(model: str, method: Method) -> nn.Module:
    """The SE network of a row, with the row's R, or the network without SE."""
    import timm

    if model in _REGNETS:
        if method.tile is None:
            return timm.create_model(_REGNETS[model], se_ratio=0)
        # timm's se_ratio is 1 / R, relative to the width of the block's input.
        ratio = {} if method.ratio is None else {"se_ratio": 1 / method.ratio}
        return timm.create_model(_REGNETS[model], **ratio)
    # The other families are asked for as they are: with SE, and R = 4 relative to the block's input.
    assert method.tile is not None
    assert method.ratio in (None, 4), (model, method)
    if model.startswith("EfficientNet"):
        return load(f"timm:efficientnet_{model[-2:].lower()}", runs=False).model
    if model.startswith("EfficientDet"):
        return load(f"effdet:{_effdet(model)}", runs=False).model
    return segmentation_network(_features(model, 8))


def _features(model: str, output_stride: int) -> nn.Module:
    import timm

    name = {"L": "mobilenetv3_large_100", "S": "mobilenetv3_small_100"}[model[-1]]
    return timm.create_model(name, features_only=True, out_indices=(0, 1, 4), output_stride=output_stride)


def _effdet(model: str) -> str:
    return f"efficientdet_{model[-2:].lower()}"


@contextmanager
def _shapes_only() -> Iterator[None]:
    with warnings.catch_warnings(), torch.device("meta"):
        # timm initialises weights, which warns on tensors without data.
        warnings.simplefilter("ignore")
        yield
