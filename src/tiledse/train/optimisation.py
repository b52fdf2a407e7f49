"""What moves the weights: optimizer, schedule and moving average, made by timm from a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..errors import TiledSEError
from ..plan import Plan
from .recipe import Recipe


def count_steps(images: int, recipe: Recipe, accelerator: Any) -> tuple[int, int]:
    """Optimizer steps of an epoch, and micro-batches of a step in each process."""
    accumulated = accelerator.gradient_accumulation_steps
    shares = accelerator.num_processes * accumulated
    if recipe.batch_size % shares:
        raise TiledSEError(
            f"a batch of {recipe.batch_size} does not split into {accelerator.num_processes} processes times "
            f"{accumulated} accumulated steps; change batch_size or --accumulate"
        )
    steps = recipe.steps_per_epoch or images // recipe.batch_size
    if not steps:
        raise TiledSEError(
            f"{images} training images are fewer than one batch of {recipe.batch_size}; lower batch_size or set "
            "steps_per_epoch"
        )
    return steps, accumulated


def freeze(model: nn.Module, recipe: Recipe, plan: Plan) -> None:
    """Let only the parameters that the recipe names be trained; ``attention`` names those of the plan's blocks.

    Raises:
        TiledSEError: it names none.
    """
    attention = [f"{block.name}.*" for block in plan.blocks]
    globs = [one for glob in recipe.trainable for one in (attention if glob == "attention" else [glob])]
    chosen = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, glob) for glob in globs))
        chosen += parameter.requires_grad
    if not chosen:
        first = next(iter(model.state_dict()))
        raise TiledSEError(
            f"recipe: trainable = {list(recipe.trainable)} matches no parameter; they have names such as '{first}'"
        )


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer; biases and normalisation decay where the recipe says so.

    Raises:
        TiledSEError: timm has none of that name.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    chosen = recipe.optimizer
    # timm's "sgd" is Nesterov's, its "momentum" is not.
    name = "momentum" if chosen.name == "sgd" and not chosen.nesterov else chosen.name
    if name not in (known := list_optimizers()):
        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"timm has {', '.join(known)}"
        raise TiledSEError(f"recipe: no optimizer '{name}'; {hint}")
    return create_optimizer_v2(
        model, name, lr=chosen.lr, weight_decay=chosen.weight_decay, momentum=chosen.momentum,
        filter_bias_and_bn=not chosen.decay_all,
    )  # fmt: skip


def make_schedule(optimizer: Any, recipe: Recipe, steps: int) -> Callable[[int], None]:
    """Sets the rate of a step; a function of the step alone, so that resuming needs no state."""
    from timm.scheduler import CosineLRScheduler, PolyLRScheduler

    plan, total = recipe.schedule, recipe.epochs * steps
    if plan.name == "constant":
        return lambda step: None
    kind = {"cosine": CosineLRScheduler, "poly": PolyLRScheduler}[plan.name]
    extra = {"power": plan.power} if plan.name == "poly" else {}
    lr = recipe.optimizer.lr
    scheduler = kind(
        optimizer, t_initial=total, lr_min=lr * plan.min_factor, warmup_t=round(plan.warmup_epochs * steps),
        warmup_lr_init=lr * plan.warmup_factor, t_in_epochs=False, **extra,
    )  # fmt: skip
    return scheduler.step_update


def make_average(model: nn.Module, recipe: Recipe) -> Any:
    """The moving average of the weights, None where the recipe has none."""
    if not recipe.ema:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=recipe.ema)
