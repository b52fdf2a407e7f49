"""Evaluate plans on images: how far each is from plain SE, and what it loses where there are labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

import numpy as np
from torch import Tensor

from ..correction import Correction
from ..data.images import Batch, ChosenImages, FirstImages, ImageSet, ListedImages
from ..errors import TiledSEError
from ..evaluate.tasks import Progress, Task, run
from ..network import Network
from ..numerals import real, whole
from ..plan import Plan
from .cache import Digest, Evaluations
from .calibration import PRIOR, calibrate
from .divergence import Apart

# Plans that are run on a batch before the next one is read.
_GROUP = 16


@dataclass(frozen=True)
class Evaluated:
    """What was measured of a plan.

    Args:
        divergence: From plain SE, mean over the images.
        n: Images.
        score: The metrics in percent; None where they were not asked for, or there are no labels.
        drop: Of the task's metric against plain SE, in percentage points; likewise.
        drop_ci95: Its 95 % interval, images paired.
    """

    divergence: float
    n: int
    score: dict[str, float] | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None


class Evaluator:
    """Measures plans of one network on one set of images, and keeps what it measured.

    Args:
        network: The network.
        task: The images, and what is measured on them.
        evaluations: Where results are kept.
        few: Images for ``divergences``, drawn with a fixed seed (the first ones, of shards); None for all.
        batch_size: Images in a batch.
    """

    def __init__(
        self,
        network: Network,
        task: Task[Any],
        evaluations: Evaluations,
        *,
        few: int | None = None,
        batch_size: int = 16,
        workers: int = 0,
    ) -> None:
        self.network, self.task, self.evaluations = network, task, evaluations
        self.few, self.batch_size, self.workers = few, batch_size, workers
        self._digests: dict[bool, str] = {}

    def divergences(self, plans: Sequence[Plan], progress: Progress | None = None) -> list[float]:
        """Mean divergence of each plan on the few images."""
        return [e.divergence for e in self._evaluate(plans, True, False, progress)]

    def evaluate(self, plans: Sequence[Plan], progress: Progress | None = None) -> list[Evaluated]:
        """Divergence, score and drop of each plan on all images."""
        return self._evaluate(plans, False, bool(self.task.metric), progress)

    def inputs(self) -> Iterator[Tensor]:
        """All images, in batches, without their labels."""
        for batch in self._batches(False):
            yield batch.inputs

    def calibrated(self, plan: Plan, prior: float = PRIOR) -> Plan:
        """The plan with corrections fitted on all images; they are kept as evaluations are."""
        key = self.evaluations.key(self.network, plan, f"calibration {prior}", self._digest(False))
        try:
            stored = (self.evaluations.read(key) or {})["corrections"]
            corrections = tuple(None if c is None else Correction.from_dict(c) for c in stored)
            return replace(plan, corrections=corrections)
        except (KeyError, TypeError, ValueError, AttributeError, TiledSEError):  # not kept, or cut off
            found = calibrate(self.network, plan, self.inputs, prior=prior)
        numbers = [None if c is None else c.to_dict() for c in found.corrections]
        self.evaluations.write(key, {"corrections": numbers})
        return found

    def _evaluate(
        self, plans: Sequence[Plan], few: bool, scored: bool, progress: Progress | None
    ) -> list[Evaluated]:
        keys = [self._key(plan, few, scored) for plan in plans]
        known = {key: _evaluated(self.evaluations.read(key), scored) for key in keys}
        missing = [at for at, key in enumerate(keys) if known[key] is None]
        missing = list({keys[at]: at for at in missing}.values())
        for start in range(0, len(missing), _GROUP):
            if progress is not None:
                progress(len(plans) - len(missing) + start, len(plans))
            group = missing[start : start + _GROUP]
            for at, data in zip(group, self._measure([plans[i] for i in group], few, scored), strict=True):
                self.evaluations.write(keys[at], data)
                known[keys[at]] = _evaluated(data, scored)
        return [one for one in (known[key] for key in keys) if one is not None]

    def _measure(self, plans: Sequence[Plan], few: bool, scored: bool) -> list[dict[str, Any]]:
        task = Apart(self.task, self._images(few), scored)
        pass_over = run(
            task, self.network.branches(plans), ["SE", *["TSE"] * len(plans)], batch_size=self.batch_size,
            workers=self.workers, device=self.network.device,
        )  # fmt: skip
        found: list[dict[str, Any]] = []
        se = pass_over.networks[0]
        for tse, far in zip(pass_over.networks[1:], pass_over.divergence, strict=True):
            entry: dict[str, Any] = {"divergence": float(np.mean(far)), "n": len(far)}
            if scored:
                paired = task.compare(se, tse)
                entry |= {
                    "score": {k: v if isfinite(v) else None for k, v in task.score(tse).items()},
                    "drop": paired.drop,
                    "drop_ci95": list(paired.drop_ci95),
                }
            found.append(entry)
        return found

    def _images(self, few: bool) -> ImageSet:
        images = self.task.images
        if not few or self.few is None:
            return images
        if isinstance(images, ListedImages):
            drawn = np.random.default_rng(0).permutation(len(images.files))[: self.few]
            return ChosenImages(images, drawn.tolist())
        return FirstImages(images, self.few)

    def _batches(self, few: bool) -> Iterator[Batch]:
        return self._images(few).batches(self.batch_size, self.workers)

    def _key(self, plan: Plan, few: bool, scored: bool) -> str:
        measure = f"{self.task.name} {'scored' if scored else 'divergence'}"
        return self.evaluations.key(self.network, plan, measure, self._digest(few))

    def _digest(self, few: bool) -> str:
        """A hash of the images and of what is known of them."""
        if few not in self._digests:
            digest = Digest()
            for batch in self._batches(few):
                size = tuple(batch.inputs.shape[1:])
                if size != self.network.se.input_size:
                    got, expected = ("x".join(map(str, s)) for s in (size, self.network.se.input_size))
                    raise TiledSEError(f"the images are {got}, but the plan's input is {expected}")
                digest.add([batch.inputs, batch.labels, list(batch.names)])
                if self.task.metric:
                    digest.add(self.task.targets(batch))
            truth = getattr(getattr(self.task.images, "truth", None), "dataset", None)
            digest.add(repr(truth))
            self._digests[few] = digest.text()
        return self._digests[few]


def _evaluated(data: dict[str, Any] | None, scored: bool) -> Evaluated | None:
    """What was kept; None where nothing was, or it is damaged: then it is measured again."""
    if data is None:
        return None
    try:
        far, n = real(data["divergence"], "divergence"), whole(data["n"], "n")
        if not scored:
            return Evaluated(far, n)
        score = {str(k): nan if v is None else real(v, str(k)) for k, v in data["score"].items()}
        low, high = (real(bound, "drop_ci95") for bound in data["drop_ci95"])
        return Evaluated(far, n, score, real(data["drop"], "drop"), (low, high))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
