"""Distillation without labels: the SE network teaches the network with tiles, on any images.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; here teacher and student are one network
with the same weights at the start, and only the tiles stand between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import TiledSEError
from ..evaluate.processes import gather, part
from ..networks.building import build_classifier
from ..networks.modes import in_eval
from .classification import Stock, own_preprocessing
from .images import TrainingImages, mix
from .objective import Objective, Setting
from .recipe import Recipe
from .sources import Part, Several, Source, open_source

# One image in this many is held out of training, to see how near the student is; at most so many.
_HELD_SHARE, _MOST_HELD = 16, 1024


class Distillation(Objective):
    """Images without labels, in any number of folders; one in sixteen is held out.

    The teacher is the SE network with the weights given, in evaluation mode; it sees the same crops as the student.
    """

    metric: ClassVar[str] = "divergence"
    higher: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        if setting.start is None:
            raise TiledSEError(
                "distillation needs the trained SE network; give its weights with --weights FILE"
            )
        source: Source = Several([open_source(path, labelled=False) for path in setting.data])
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(mix(0, 6))).tolist()
        order = order[: max(2, round(recipe.subset * len(order)))]
        held = min(_MOST_HELD, max(1, len(order) // _HELD_SHARE))
        self._held, self._source = Part(source, order[:held]), Part(source, order[held:])
        self._prepare = own_preprocessing(recipe)
        self._teacher = self.build()
        self.load(self._teacher, setting.start)
        self._teacher.to(setting.device)
        in_eval(self._teacher).requires_grad_(False)
        if recipe.channels_last:
            self._teacher.to(memory_format=torch.channels_last)
        self._stock = Stock(self._source, recipe, self._prepare, setting.device)
        self._kept_held: list[Tensor] = []

    def build(self) -> nn.Module:
        """See Objective."""
        return build_classifier(self.model, self.recipe.classes, self.recipe.input_size)

    def images(self, seed: int) -> TrainingImages:
        """See Objective."""
        return self._stock.images(seed)

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """The divergence of the student's outputs from the teacher's; see ``divergence``."""
        with torch.no_grad():
            taught = self._teacher(inputs)
        return divergence(taught, model(inputs), self.recipe.loss.temperature)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """On the images held out: divergence (as the loss), and agree: percent with the same first class."""
        number, processes = part()
        far = same = 0.0
        seen = 0
        for inputs in self._held_batches(number, processes):
            taught, learnt = self._teacher(inputs), model(inputs)
            far += float(divergence(taught, learnt)) * len(inputs)
            if isinstance(taught, Tensor) and taught.ndim == 2:
                same += float((taught.argmax(1) == learnt.argmax(1)).sum())
            seen += len(inputs)
        sums = [sum(column) for column in zip(*gather((far, same, seen)))]
        return {"divergence": sums[0] / sums[2], "agree": 100 * sums[1] / sums[2]}

    def _held_batches(self, number: int, processes: int) -> Iterator[Tensor]:
        """Inputs of this process's part of the images held out; read once where images are kept."""
        if self._kept_held:
            yield from self._kept_held
            return
        size = self.setting.evaluation_batch
        indices = range(number, len(self._held), processes)
        for start in range(0, len(indices), size):
            inputs = torch.stack([self._prepare(self._held.read(i)) for i in indices[start : start + size]])
            inputs = inputs.to(self.setting.device)
            if self.recipe.cache:
                self._kept_held.append(inputs)
            yield inputs


def divergence(teacher: Any, student: Any, temperature: float = 1.0) -> Tensor:
    """How far a student's outputs are from its teacher's: a number, 0 for the same outputs.

    Of logits (N, classes), the Kullback-Leibler divergence of the softmax at a temperature, times its square, in nats.
    Of anything else, the squared error of each output relative to the teacher's mean square, averaged.

    Example:
        >>> float(divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 3.0]])))
        0.0
    """
    if isinstance(teacher, Tensor) and teacher.ndim == 2:
        p, q = (F.log_softmax(logits.float() / temperature, 1) for logits in (teacher, student))
        return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2
    pairs = zip(tree_leaves(teacher), tree_leaves(student), strict=True)
    errors = [
        F.mse_loss(b.float(), a.float()) / a.float().square().mean().clamp_min(1e-12)
        for a, b in pairs
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    return torch.stack(errors).mean()
