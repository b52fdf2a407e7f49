"""An SE block that a larger forward has written inline, as a module of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import TiledSEError
from .dialects import Dialect
from .inline_steps import Steps

DIALECT = "inline"


@dataclass(frozen=True)
class ByMode:
    """Steps of a forward, which may have others in training mode.

    Args:
        evaluating: The steps in eval mode.
        training: The steps in training mode; None where they could not be traced.
        why: The reason for that.
    """

    evaluating: Steps
    training: Steps | None
    why: str = ""

    def of(self, training: bool) -> Steps:
        """The steps of one mode.

        Raises:
            TiledSEError: those of training mode could not be traced.
        """
        if not training:
            return self.evaluating
        if self.training is None:
            raise TiledSEError(
                f"this SE block is written inline in a forward that cannot be rewritten in training mode: {self.why}; "
                "call eval() on the network, or train it before it is converted"
            )
        return self.training


@dataclass(frozen=True)
class InlineDialect(Dialect):
    """A block that is written inline.

    Args:
        body: The steps from the map to the product.
        opened: Layers of the larger module, by name, whose own forward holds a part of the block.
    """

    body: ByMode | None = None
    opened: tuple[str, ...] = ()


class InlineSE(nn.Module):
    """The squeeze, excitation and product that a larger forward has inline.

    It has no layers, parameters or buffers of its own: they stay where the larger module has them, so the
    state_dict of the network has the same names as before.

    Shape:
        As the map of the larger forward.
    """

    def __init__(self, host: nn.Module, dialect: InlineDialect) -> None:
        super().__init__()
        self._tiledse_host = (host,)  # in a tuple, or it would be registered as a child
        self._tiledse_dialect = dialect
        self.training = host.training

    @property
    def dialect(self) -> InlineDialect:
        """How its excitation is called."""
        return self._tiledse_dialect

    def forward(self, x: Tensor) -> Tensor:
        """The steps that the larger forward has."""
        assert self.dialect.body is not None
        return self.dialect.body.of(self.training)(holder(self), x)


def holder(block: nn.Module) -> nn.Module:
    """The module that holds the layers of a block: the block, or the larger module that it is written in."""
    held: tuple[nn.Module, ...] = vars(block).get("_tiledse_host", (block,))
    return held[0]
