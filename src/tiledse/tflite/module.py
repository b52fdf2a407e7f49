"""A TensorFlow Lite network as a module of torch: images in, real numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TiledSEError
from .graph import Graph
from .image import Image
from .model import TfliteModel
from .running import Runner, feeds_of


class TfliteModule(nn.Module):
    """A TensorFlow Lite network as a module: one batch in, its outputs out.

    Images are quantised on the way in and outputs made real on the way out, by the scales of the file. LiteRT runs one
    batch of the file's own after the other.

    Args:
        model: The network.
        image: Its image.
        threads: Threads of LiteRT; 0 leaves them to it.
        exact: See ``Runner``.

    Shape:
        Images (N, C, H, W), of inputs of 3 axes (N, 1, H, W), of 2 (N, 1, 1, W). Outputs of 4 axes come with their
        channels second; one output comes alone, several as a tuple.

    Raises:
        TiledSEError: LiteRT does not take the network, or the batch.
    """

    def __init__(self, model: TfliteModel, image: Image, threads: int, exact: bool) -> None:
        super().__init__()
        self.model, self.image, self.graph = model, image, Graph(model)
        self.runner = Runner(model, threads, exact=exact, sizes=sizes_of(self.graph, image))
        self.rest = feeds_of(model, image.tensor)

    def forward(self, x: Tensor) -> Any:
        """Run the network on a batch."""
        found = self.run(x)
        results = tuple(
            to_torch(self.graph, tensor, array)
            for tensor, array in zip(self.graph.outputs, found, strict=True)
        )
        return results[0] if len(results) == 1 else results

    def run(self, x: Tensor) -> list[np.ndarray]:
        """What the network gives on a batch, as the file has it."""
        size = tuple(x.shape[1:])
        if x.ndim != 4 or size != self.image.size:
            raise TiledSEError(
                f"{self.model.name} takes images of {'x'.join(map(str, self.image.size))}, got {tuple(x.shape)}"
            )
        parts = [
            self.runner({**self.rest, self.image.tensor: part}) for part in to_file(self.graph, self.image, x)
        ]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]


def sizes_of(graph: Graph, image: Image) -> dict[int, tuple[int, ...]]:
    """The shape of the image's input, where the file has another."""
    stored = graph.tensors[image.tensor].shape
    own = () if stored is None else tuple(map(int, stored))
    return {} if own == image.shape else {image.tensor: image.shape}


def to_file(graph: Graph, image: Image, x: Tensor) -> list[np.ndarray]:
    """Images (N, C, H, W) as batches of the file's own: channels last, quantised as it has them."""
    array = x.detach().cpu().numpy()
    batch = image.shape[0]
    if len(array) % batch:
        raise TiledSEError(
            f"{graph.model.name} takes batches of {batch}, got {len(array)} images; give a multiple of {batch}"
        )
    array = array.transpose(0, 2, 3, 1).reshape(-1, *image.shape[1:])
    quantised, dtype = graph.quantised(image.tensor), graph.dtype(image.tensor)
    if quantised is not None:
        array = quantised.whole(array, dtype)
    elif dtype.kind in "iu":
        raise TiledSEError(
            f"{graph.model.name} takes images of type {graph.type(image.tensor)} that have no scale; quantise it again"
        )
    return [np.ascontiguousarray(part, dtype) for part in np.split(array, len(array) // batch)]


def to_torch(graph: Graph, tensor: int, array: np.ndarray) -> Tensor:
    """What a file gives, as real numbers with the channels second."""
    quantised = graph.quantised(tensor)
    if quantised is not None and array.dtype.kind in "iu":
        array = quantised.real(array)
    found = torch.from_numpy(np.ascontiguousarray(array))
    return found.permute(0, 3, 1, 2) if found.ndim == 4 else found


def maps_of(
    model: TfliteModel, image: Image, tensors: Sequence[int], threads: int, exact: bool
) -> tuple[Graph, Runner]:
    """A network that stops at some tensors, and gives those."""
    from .cutting import cut, needed

    inputs = needed(model, tensors)
    part = cut(model, inputs, list(dict.fromkeys(tensors)))
    return Graph(model), Runner(part, threads, exact=exact)
