"""Which input of a network takes the image, and of which size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TiledSEError
from .graph import Graph, Shape
from .model import TfliteModel
from .trying import tried


@dataclass(frozen=True)
class Image:
    """The input that takes images.

    Attributes:
        tensor: Its number.
        shape: Its shape for one batch of the file's own, channels last; fewer axes where it is no picture.
        size: (C, H, W); (1, H, W) and (1, 1, W) for inputs of 3 and 2 axes.
        free: Whether the file leaves the batch open.
    """

    tensor: int
    shape: Shape
    size: tuple[int, int, int]
    free: bool


def sized(model: TfliteModel, input_size: Sequence[int] | None) -> tuple[TfliteModel, Image]:
    """A network with the shapes of all its tensors, and its image.

    Args:
        model: The network.
        input_size: (C, H, W); needed where the file leaves height or width open.

    Raises:
        TiledSEError: no input, or several, could take the image; another size; or LiteRT does not run the network,
            where its shapes are not all in the file.
    """
    graph = Graph(model)
    tensor = _image(graph)
    shape, size = _size(graph, tensor, input_size)
    stored = graph.tensors[tensor].shapeSignature
    free = stored is not None and len(stored) > 0 and int(stored[0]) < 0
    open_sides = shape != graph.shape(tensor)
    unknown = open_sides or any(-1 in graph.shape(i) for i in range(len(graph.tensors)))
    if unknown and model.shapes is None:
        model = tried(model, {tensor: shape} if open_sides else {})
    return model, Image(tensor, shape, size, free)


def _image(graph: Graph) -> int:
    wanted = graph.model.image
    shown = ", ".join(f"'{graph.name(i)}' {_sides(graph.shape(i))}" for i in graph.inputs) or "none"
    if wanted is not None:
        found = [i for i in graph.inputs if graph.name(i) == wanted]
        if not found:
            raise TiledSEError(f"{graph.model.name} has no input '{wanted}'; its inputs are: {shown}")
        return found[0]
    found = [i for i in graph.inputs if len(graph.shape(i)) == 4]
    if not found and len(graph.inputs) == 1 and len(graph.shape(graph.inputs[0])) in (2, 3):
        return graph.inputs[0]
    if len(found) != 1:
        raise TiledSEError(
            f"{graph.model.name}: expected one input of 4 axes, the image; its inputs are: {shown}; say which with "
            "--image NAME"
        )
    return found[0]


def _size(graph: Graph, tensor: int, input_size: Sequence[int] | None) -> tuple[Shape, tuple[int, int, int]]:
    own = graph.shape(tensor)
    axes = {4: (3, 1, 2), 3: (None, 1, 2), 2: (None, None, 1)}[len(own)]
    given = (None, None, None) if input_size is None else tuple(input_size)
    if len(given) != 3:
        raise TiledSEError(f"expected an input size of 3 numbers, channels, rows and columns, got {given}")
    sides, shape = [], list(own)
    for axis, wanted in zip(axes, given):
        fixed = 1 if axis is None else own[axis]
        if fixed < 0 and wanted is None:
            raise TiledSEError(
                f"{graph.model.name} leaves the size of its input open ({_sides(own)}); give it with --input CxHxW"
            )
        if fixed >= 0 and wanted is not None and wanted != fixed:
            here = "x".join(str(1 if a is None else own[a]) for a in axes).replace("-1", "any")
            raise TiledSEError(
                f"{graph.model.name} takes images of {here} (channels, rows, columns), but got "
                f"{'x'.join(map(str, given))}"
            )
        side = fixed if fixed >= 0 else wanted
        assert side is not None
        if axis is not None:
            shape[axis] = side
        sides.append(side)
    return tuple(shape), (sides[0], sides[1], sides[2])


def _sides(shape: Shape) -> str:
    return "x".join("?" if d < 0 else str(d) for d in shape) or "a number"
