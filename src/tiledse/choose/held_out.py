"""Calibrate on some images, and check on others that the network has come closer to plain SE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import ChosenImages, ListedImages
from ..errors import TiledSEError
from ..evaluate.tasks import run
from ..plan import Plan
from .calibration import PRIOR, calibrate
from .divergence import Apart

if TYPE_CHECKING:
    from ..evaluate.tasks import Progress, Task
    from ..network import Network

# Images, unless another number is given: what a few hundred teach, more do not add to (docs/calibration.md).
MOST_IMAGES = 500


@dataclass(frozen=True)
class HeldOut:
    """A calibrated plan, and how far its network is from plain SE on images that it was not fitted on.

    Args:
        plan: The plan with corrections.
        fitted_on: Images that it was fitted on.
        n: Images that were held out.
        before: Divergence from plain SE without corrections, mean over the images that were held out.
        after: With corrections.
    """

    plan: Plan
    fitted_on: int
    n: int
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether calibration brings the network closer to plain SE."""
        return not self.after >= self.before

    @property
    def calibrated(self) -> int:
        """Blocks with a correction."""
        return sum(correction is not None for correction in self.plan.corrections)

    @property
    def numbers(self) -> int:
        """Numbers in all corrections."""
        return sum(0 if correction is None else correction.numbers for correction in self.plan.corrections)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of ``calibrate``."""
        return {
            "calibrated": self.calibrated,
            "total": len(self.plan),
            "numbers": self.numbers,
            "fitted_on": self.fitted_on,
            "held_out": {"n": self.n, "divergence_before": self.before, "divergence_after": self.after},
        }


def calibrate_held_out(
    network: Network,
    plan: Plan,
    task: Task[Any],
    *,
    images: int = MOST_IMAGES,
    prior: float = PRIOR,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> HeldOut:
    """Calibrate a plan on four fifths of some images, and measure on the last fifth what that gives.

    Args:
        network: The network.
        plan: Its tiles; corrections that it has already are left out.
        task: Its images, single ones, and what a divergence is for its outputs; labels are not looked at.
        images: At most so many are drawn, with a fixed seed.
        prior: See ``calibrate``.
        batch_size: Images in a batch.
        progress: Called with (blocks done, blocks in all).

    Raises:
        TiledSEError: the images are in shards; also see ``calibrate``.
    """
    source = task.images
    if not isinstance(source, ListedImages):
        raise TiledSEError("calibration takes single images, not shards: unpack them into a folder")
    plan = plan.uncalibrated
    fitted, held = _split(len(source.files), images)

    def batches(which: list[int]) -> Iterator[Tensor]:
        for start in range(0, len(which), batch_size):
            yield torch.stack([source.sample(i).input for i in which[start : start + batch_size]])

    calibrated = calibrate(network, plan, lambda: batches(fitted), prior=prior, progress=progress)
    checked = Apart(task, ChosenImages(source, held))
    branches = network.branches([plan, calibrated])
    results = run(
        checked, branches, ["SE", "TSE", "calibrated"], batch_size=batch_size, device=network.device
    )
    was, now = (float(np.mean(far)) for far in results.divergence)
    return HeldOut(calibrated, len(fitted), len(held), was, now)


def _split(count: int, limit: int) -> tuple[list[int], list[int]]:
    """Numbers of images to fit on and, a fifth, to check with; drawn with a fixed seed."""
    drawn = np.random.default_rng(0).permutation(count)[:limit].tolist()
    held = max(1, len(drawn) // 5)
    return drawn[held:], drawn[:held]
