"""The networks that are judged, by name; or any MODEL with its size."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import tiledse as ts
from tiledse.errors import TiledSEError
from tiledse.extras import missing
from tiledse.networks.loading import load

from .environments import FOLDER, ROOT


class Known(NamedTuple):
    """A network of the list.

    Attributes:
        model: MODEL; None for the text detector that rapidocr ships.
        size: (C, H, W).
        weights: A file in ../shared/models, where it is there; else the weights are random. None of a layer's are all
            zero: rknn-toolkit2 takes what they multiply out of the network.
    """

    model: str | None
    size: tuple[int, int, int]
    weights: str | None = None


_SMALL = ("timm:tf_mobilenetv3_small_100", "tf_mobilenetv3_small_100.safetensors")
NETWORKS = {
    **{f"mobilenetv3-small-{n}": Known(_SMALL[0], (3, n, n), _SMALL[1]) for n in (224, 256, 448, 512)},
    **{f"mobilenetv3-large-{n}": Known("timm:mobilenetv3_large_100", (3, n, n)) for n in (224, 448)},
    "mobilenetv3-large-512x1024": Known("timm:mobilenetv3_large_100", (3, 512, 1024)),
    **{f"efficientnet-b0-{n}": Known("timm:efficientnet_b0", (3, n, n)) for n in (224, 448, 512)},
    "efficientnet-b0-512x1024": Known("timm:efficientnet_b0", (3, 512, 1024)),
    **{f"regnety-800mf-{n}": Known("timm:regnety_008", (3, n, n)) for n in (224, 448)},
    "se-resnet-like-56": Known("benchmarks.judges.sern:network", (3, 56, 56)),
    "depthwise-se-448": Known("benchmarks.judges.depthwise:network", (3, 448, 448)),
    "ppocr-detector-640": Known(None, (3, 640, 640)),
}


def opened(given: str, size: tuple[int, int, int] | None, weights: str | None) -> tuple[str, ts.Network]:
    """A network and the name of its rows.

    A network of the list, and any that is no file, is written as an .onnx file with its size fixed once, which is what
    is then opened: all forms come from one export.

    Raises:
        TiledSEError: see ``tiledse.open``; or an option that the list decides.
    """
    known = NETWORKS.get(given)
    if known is None:
        return _named(given), ts.open(given, size, weights=weights)
    if size is not None or weights is not None:
        raise TiledSEError(f"{given} has its size and weights; leave --input and --weights out")
    path = FOLDER / "networks" / f"{given}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        network = _source(known)
        ts.write(network, network.se, path, ts.Form(batch=1, verify=False))
    return given.rpartition("-")[0], ts.open(str(path))


def _source(known: Known) -> ts.Network:
    if known.model is None:
        try:
            import rapidocr
        except ImportError as error:
            raise missing("the text detector comes", "rapidocr", error=error) from error
        (model, *_) = sorted(Path(rapidocr.__file__).parent.glob("models/*det*.onnx"))
        return ts.open(str(model), known.size)
    file = ROOT.parent / "shared" / "models" / (known.weights or "")
    if known.weights and file.exists():
        return ts.open(known.model, known.size, weights=str(file))
    return ts.open(filled(load(known.model, input_size=known.size).model), known.size)


def filled(model: nn.Module) -> nn.Module:
    """A network whose batch norms that began as zero scale by one: timm's RegNets end each residual branch so."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
                module.weight.fill_(1.0)
    return model


def _named(given: str) -> str:
    return Path(given).name if given.endswith((".onnx", ".tflite")) else given
