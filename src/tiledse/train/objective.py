"""Objective: what a task trains on, what it minimises, and what it is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .images import TrainingImages
from .recipe import Recipe
from .variants import load_fitting


@dataclass(frozen=True)
class Setting:
    """Where a run gets its data, and on what it runs.

    Args:
        data: The folders of images; one, but for distillation.
        device: Where the network is.
        workers: Processes that read images.
        evaluation_batch: Images in a batch of validation.
        start: Weights to start from, where a variant asks for them or MODEL is fine-tuned.
    """

    data: tuple[Path, ...]
    device: torch.device
    workers: int = 0
    evaluation_batch: int = 64
    start: Path | None = None


class Objective(ABC):
    """A task, for one network of a recipe.

    Args:
        recipe: Of this network alone (``Recipe.for_network``).
        setting: Data and device.

    Attributes:
        metric: The figure of ``measure`` that says which weights are best.
        higher: Whether more of it is better.
    """

    metric: ClassVar[str]
    higher: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        self.recipe, self.setting = recipe, setting
        self.model = recipe.network[0].model

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with plain SE and random weights."""

    @abstractmethod
    def images(self, seed: int) -> TrainingImages:
        """The training images, varied by this seed."""

    @abstractmethod
    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """What is minimised, for one batch: a number."""

    @abstractmethod
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Figures on the validation images; every process has its part and all get everything."""

    def trained(self, model: nn.Module) -> nn.Module:
        """The module that is trained; the network itself, unless the task puts something around it."""
        return model

    def load(self, model: nn.Module, path: Path) -> None:
        """Give the SE network the weights that training starts from.

        Raises:
            TiledSEError: they do not fit.
        """
        load_fitting(model, path)
