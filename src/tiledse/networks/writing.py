"""Write a converted network of PyTorch, and say what its verification gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TiledSEError
from ..network import Form, Written
from ..plan import Plan
from .saving import save

if TYPE_CHECKING:
    from .network import TorchNetwork


@dataclass(frozen=True)
class TorchWritten(Written):
    """See Written.

    Args:
        difference: With one tile a map, the largest difference of the outputs from those of the network as it was.
        largest: The largest of these outputs.
    """

    difference: float | None
    largest: float | None

    def to_dict(self) -> dict[str, Any]:
        """See Written."""
        return {
            **super().to_dict(),
            "max_abs_diff_identity": self.difference,
            "verify_s": self.seconds,
            "output": str(self.path),
        }

    def lines(self) -> list[str]:
        """See Written."""
        return [*super().lines(), self._verified()]

    def _verified(self) -> str:
        if self.seconds is None:
            return "not verified (--no-verify)"
        if self.difference is None or self.largest is None:
            return f"verified in {self.seconds:.2f} s"
        what = "on each tile alone, in training too"
        if self.plan.previous:
            what = "on maps of the means that its gates see, over four frames of two streams"
        return (
            f"verified in {self.seconds:.2f} s: each block is the SE block {what}; with "
            f"one tile a map the network differs by at most {self.difference:.1e} (outputs up to {self.largest:.1e})"
        )


def write(network: TorchNetwork, plan: Plan, path: Path, form: Form) -> TorchWritten:
    """Write the state dict of a converted network as safetensors, with the plan in its header.

    Raises:
        TiledSEError: the file exists and the form does not say ``force``; see also ``convert`` and ``saving.save``.
    """
    form.check_ending(path)
    if path.exists() and not form.force:
        raise TiledSEError(f"{path} exists; give another name, or --force to replace it")
    made = network.converted(plan, form.verify)
    save(made.model, made.plan, path, network.name)
    return TorchWritten(made.plan, made.refused, made.seconds, path, made.difference, made.largest)
