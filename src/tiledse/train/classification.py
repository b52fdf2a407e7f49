"""Classification: cross-entropy, top-1 and top-5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.preprocessing import Preprocessing
from ..errors import TiledSEError
from ..evaluate.classification import ranked
from ..evaluate.processes import gather, part
from ..networks.building import build_classifier
from .images import KeptImages, Pictures, TrainingImages, keep, mix
from .objective import Objective, Setting
from .recipe import Recipe
from .sources import Part, Source, open_source, split_path


class Classification(Objective):
    """Labelled images of the folders ``train`` and ``val``, or shards of these names."""

    metric: ClassVar[str] = "top1"

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        data = setting.data[0]
        source, self._held = open_source(split_path(data, "train")), open_source(split_path(data, "val"))
        for name, found in (("train", source), ("val", self._held)):
            _check_labels(found, recipe.classes, name)
        self._prepare = own_preprocessing(recipe)
        self._stock = Stock(subset(source, recipe.subset), recipe, self._prepare, setting.device)
        self._kept_held: tuple[Tensor, Tensor] | None = None

    def build(self) -> nn.Module:
        """See Objective."""
        return build_classifier(self.model, self.recipe.classes, self.recipe.input_size)

    def images(self, seed: int) -> TrainingImages:
        """See Objective."""
        return self._stock.images(seed)

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """Cross-entropy."""
        logits = model(inputs)
        if logits.ndim != 2 or logits.shape[1] != self.recipe.classes:
            raise TiledSEError(
                f"{self.model} gives outputs of shape {tuple(logits.shape)}; expected (N, {self.recipe.classes}), "
                "the recipe's classes"
            )
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.loss.smoothing)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """top1 and top5 in percent, val_loss."""
        right = right5 = seen = 0
        loss = 0.0
        for inputs, labels in self._batches():
            logits = model(inputs).float()
            first, among = ranked(logits, labels)
            right += int((first == labels.cpu()).sum())
            right5 += int(among.sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            seen += len(labels)
        sums = [sum(column) for column in zip(*gather((right, right5, loss, seen)))]
        return {
            "top1": 100 * sums[0] / sums[3],
            "top5": 100 * sums[1] / sums[3],
            "val_loss": sums[2] / sums[3],
        }

    def _batches(self) -> Any:
        """(inputs, labels) of this process's part of the validation images."""
        number, processes = part()
        device, size = self.setting.device, self.setting.evaluation_batch
        if not self.recipe.cache:
            held = Part(self._held, range(number, len(self._held), processes))
            dataset = _Held(held, self._prepare)
            loader = torch.utils.data.DataLoader(dataset, size, num_workers=self.setting.workers)
            for inputs, labels in loader:
                yield inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            return
        if self._kept_held is None:
            # Kept at the size of the input: validation does not crop.
            self._kept_held = keep(self._held, self.recipe.input_size[1], device)
        pixels, labels = (tensor[number::processes] for tensor in self._kept_held)
        mean, std = (
            255 * torch.tensor(numbers, device=device)[:, None, None]
            for numbers in (self._prepare.mean, self._prepare.std)
        )
        for start in range(0, len(labels), size):
            yield (pixels[start : start + size].float() - mean) / std, labels[start : start + size]


class _Held(torch.utils.data.Dataset[Any]):
    def __init__(self, source: Source, prepare: Preprocessing) -> None:
        self._source, self._prepare = source, prepare

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._prepare(self._source.read(index)), self._source.labels[index]


class Stock:
    """The training images of a classifier, for any seed: read each time, or decoded once and kept.

    Args:
        source: The images.
        recipe: Says how they vary and whether they are kept.
        prepare: The network's normalisation.
        device: Where they are kept.
    """

    def __init__(self, source: Source, recipe: Recipe, prepare: Preprocessing, device: torch.device) -> None:
        self._source, self._recipe, self._prepare, self._device = source, recipe, prepare, device
        self._kept: tuple[Tensor, Tensor] | None = None

    def images(self, seed: int) -> TrainingImages:
        """See Objective."""
        size, augment = self._recipe.input_size[1:], self._recipe.augment
        mean, std = self._prepare.mean, self._prepare.std
        if not self._recipe.cache:
            return Pictures(self._source, size, augment, mean, std, seed)
        if self._kept is None:
            self._kept = keep(self._source, self._recipe.cache, self._device)
        return KeptImages(*self._kept, size, augment, mean, std, seed)


def own_preprocessing(recipe: Recipe) -> Preprocessing:
    """The network's own normalisation and interpolation, where timm knows it; kept images are not cropped."""
    import timm

    source, _, name = recipe.network[0].model.partition(":")
    known = source == "timm" and timm.is_model(name)
    config = timm.get_pretrained_cfg(name).to_dict() if known else {}
    crop = {"crop_pct": 1.0} if recipe.cache else {}
    return Preprocessing.of(nn.Identity(), config={**config, **crop, "input_size": recipe.input_size})


def subset(source: Source, share: float) -> Source:
    """A share of the images, the same in each class, drawn once and for all runs alike."""
    if share == 1:
        return source
    generator = torch.Generator().manual_seed(mix(0, 2))
    chosen: list[int] = []
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
        by_label.setdefault(label, []).append(index)
    for indices in by_label.values():
        order = torch.randperm(len(indices), generator=generator).tolist()
        chosen += [indices[place] for place in order[: max(1, round(share * len(indices)))]]
    return Part(source, sorted(chosen))


def _check_labels(source: Source, classes: int, part: str) -> None:
    """Check that labels and head go together.

    Raises:
        TiledSEError: they do not.
    """
    if source.classes is not None and source.classes != classes:
        raise TiledSEError(
            f"the data has {source.classes} class folders in its part '{part}', and the recipe {classes} classes; set "
            f"classes = {source.classes} in the recipe, or give the recipe's data"
        )
    if max(source.labels) >= classes:
        raise TiledSEError(
            f"the part '{part}' has the label {max(source.labels)}, and the recipe's {classes} classes are 0 to "
            f"{classes - 1}; set classes = {max(source.labels) + 1} in the recipe, or give the recipe's data"
        )
