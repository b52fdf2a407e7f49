"""Run TensorFlow Lite networks in LiteRT, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import TiledSEError, first_line
from .graph import Shape
from .model import TfliteModel
from .trying import reason, tried


class Runner:
    """A network that is open in LiteRT.

    Args:
        model: The network; one that nobody has run yet is tried in another process first.
        threads: Threads to use; 0 leaves them to LiteRT.
        exact: Without XNNPACK where that goes, by the kernels that give the same numbers everywhere.
        sizes: Shapes of inputs, by tensor, where they are not those of the file.

    Raises:
        TiledSEError: LiteRT does not take the network.
    """

    def __init__(
        self,
        model: TfliteModel,
        threads: int = 1,
        *,
        exact: bool = False,
        sizes: dict[int, Shape] | None = None,
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        sizes = sizes or {}
        if not model.tried:
            model = tried(model, sizes)
        self.name = model.name
        kernels = [OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES]
        error: Exception | None = None
        # XNNPACK refuses some networks that the plain kernels take, and has operators that these have not.
        for resolver in kernels[::-1] if exact else kernels:
            try:
                self.interpreter = Interpreter(
                    model_content=model.data,
                    num_threads=threads or -1,
                    experimental_op_resolver_type=resolver,
                )
                for tensor, shape in sizes.items():
                    self.interpreter.resize_tensor_input(tensor, shape)
                self.interpreter.allocate_tensors()
                self.given = [d["index"] for d in self.interpreter.get_input_details()]
                self.results = [d["index"] for d in self.interpreter.get_output_details()]
                self.exact = resolver is not OpResolverType.AUTO
                return
            except (RuntimeError, ValueError) as failed:
                error = error or failed
        assert error is not None
        raise TiledSEError(f"LiteRT does not take {self.name}: {reason(error)}") from error

    def __call__(self, feeds: dict[int, np.ndarray]) -> list[np.ndarray]:
        """Run it: inputs by tensor to its outputs, in their order.

        Raises:
            TiledSEError: LiteRT fails on them.
        """
        try:
            for tensor, array in feeds.items():
                self.interpreter.set_tensor(tensor, np.ascontiguousarray(array))
            self.interpreter.invoke()
            return [self.interpreter.get_tensor(tensor) for tensor in self.results]
        except (RuntimeError, ValueError) as error:
            raise TiledSEError(f"LiteRT fails on {self.name}: {first_line(error, 160)}") from error


def feeds_of(model: TfliteModel, image: int, x: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Inputs of a network: an image where one is given; for others numbers about 1, or zeros."""
    from .graph import Graph

    graph = Graph(model)
    random, feeds = np.random.default_rng(0), {} if x is None else {image: x}
    for tensor in graph.inputs:
        if tensor != image:
            shape, dtype = graph.shape(tensor), graph.dtype(tensor)
            other: Any = random.uniform(0.5, 1.5, shape) if dtype.kind == "f" else np.zeros(shape)
            feeds[tensor] = other.astype(dtype)
    return feeds
