"""The loop: one run from its recipe to its best weights, resumable at each epoch."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..documents import read_json, write_json
from ..errors import TiledSEError
from ..networks.saving import save
from ..plan import Plan
from .checkpoint import read_checkpoint, write_checkpoint
from .images import Epochs, mix
from .log import Log
from .normalisation import restore_statistics
from .objective import Objective
from .optimisation import count_steps, freeze, make_average, make_optimizer, make_schedule
from .recipe import Recipe
from .sections import Variant
from .variants import with_variant

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One line of a recipe's results: a variant of its network with a seed.

    Args:
        recipe: Of this network alone.
        variant: The row.
        seed: Of weights, order and variation.
        folder: Where its files go.
    """

    recipe: Recipe
    variant: Variant
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Network, variant and seed."""
        model = self.recipe.network[0].model.partition(":")[2]
        return f"{model} {self.variant.name} seed {self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with: all that changes the curve."""
        recipe = self.recipe.to_dict()
        for key in ("variant", "seeds", "about", "as_is"):
            recipe.pop(key)
        variant = {key: value for key, value in vars(self.variant).items() if value is not None}
        return {**read_json(write_json({**recipe, "variant": variant})), "seed": self.seed}


@dataclass(frozen=True)
class Trained:
    """What a run gave.

    Attributes:
        history: One dictionary an epoch: epoch, lr, train_loss, the figures of validation, seconds.
        plan: Of the network.
        model: The network with the weights of the last epoch (their moving average where there is one).
        before: The figures of validation before the first step, where the run began from weights.
    """

    history: list[dict[str, float]]
    plan: Plan
    model: nn.Module
    before: dict[str, float]


def start_network(objective: Objective, run: Run, trained: Path | None) -> tuple[nn.Module, Plan]:
    """The network of a run before its first step.

    Args:
        objective: Its task.
        run: The run.
        trained: Weights of the variant that it starts from.
    """
    torch.manual_seed(mix(run.seed))
    model = objective.build()
    start = objective.setting.start if run.variant.start == "weights" else trained
    if run.variant.start != "scratch":
        if start is None:
            raise TiledSEError(
                f"variant '{run.variant.name}' starts from given weights; give them with --weights FILE"
            )
        objective.load(model, start)
    return with_variant(model, run.variant, run.recipe.input_size)


def train(
    objective: Objective,
    run: Run,
    accelerator: Any,
    *,
    start: Path | None = None,
    restart: bool = False,
    say: Say,
) -> Trained:
    """Train one run, from its checkpoint if there is one.

    Args:
        objective: Its task.
        run: The run.
        accelerator: Hugging Face's ``Accelerator``: device, processes, precision, accumulated steps.
        start: Weights of the variant that it starts from.
        restart: Begin again though there is a checkpoint.
        say: Takes one line an epoch.

    Raises:
        TiledSEError: the loss is no number any more, the checkpoint is of another run, a file cannot be written.
    """
    recipe = run.recipe
    model, plan = start_network(objective, run, start)
    model.to(accelerator.device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    freeze(model, recipe, plan)
    average = make_average(model, recipe)
    images = objective.images(mix(run.seed, 3))
    steps, accumulated = count_steps(len(images), recipe, accelerator)
    order = Epochs(
        len(images), recipe.batch_size // (accelerator.num_processes * accumulated),
        steps * accelerator.num_processes * accumulated, mix(run.seed, 4),
    )  # fmt: skip
    loader = images.loader(order, objective.setting.workers, accelerator.device.type == "cuda")
    optimizer = make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, recipe, steps)
    network, optimizer, loader = accelerator.prepare(objective.trained(model), optimizer, loader)

    path = run.folder / "checkpoint.pt"
    history: list[dict[str, float]] = []
    begun = path.is_file() and not restart
    if recipe.restore_norm and not begun:
        _restore_norm(model, images, loader, recipe, accelerator)
        if average is not None:  # it was made of the network as it was
            average.set(model)
    before: dict[str, float] = {}
    if begun:
        state = read_checkpoint(path, run.identity)
        history, before = _restore(state, model, average, optimizer, accelerator), state["before"]
        if len(history) < recipe.epochs:
            say(f"{run.name}: going on after epoch {len(history)}")
    elif run.variant.start != "scratch":
        before = _measure(objective, model, accelerator)
        say(f"{run.name}  before training  {_figures(before)}")
    log = Log(run.folder, history, accelerator.is_main_process)
    best = _best(objective, history)
    with _interrupt_after_step() as interrupted, log:
        for epoch in range(len(history), recipe.epochs):
            began = time.monotonic()
            order.epoch = epoch
            torch.manual_seed(mix(run.seed, 5, epoch, accelerator.process_index))
            loss = _epoch(
                objective, network, model, average, optimizer, schedule, loader, images, accelerator, epoch * steps,
                run, interrupted,
            )  # fmt: skip
            measured = _measure(objective, model if average is None else average.module, accelerator)
            row = {
                "epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], "train_loss": loss, **measured,
                "seconds": round(time.monotonic() - began, 2),
            }  # fmt: skip
            history.append(row)
            better = _better(objective, measured, best)
            best = measured[objective.metric] if better else best
            if accelerator.is_main_process:
                kept = model if average is None else average.module
                if better:
                    save(kept, plan, run.folder / "best.safetensors", recipe.network[0].model)
                write_checkpoint(path, _state(run, history, before, model, average, optimizer, accelerator))
                log.add(row)
            accelerator.wait_for_everyone()
            say(_line(run, row, recipe.epochs))
            if interrupted():  # while it was measured or written
                raise KeyboardInterrupt
    accelerator.free_memory()
    return Trained(history, plan, model if average is None else average.module, before)


def _restore_norm(model: nn.Module, images: Any, loader: Any, recipe: Recipe, accelerator: Any) -> None:
    batches = itertools.islice(loader, recipe.restore_norm)
    restore_statistics(model, (images.ready(batch, accelerator.device)[0] for batch in batches))
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        # Each process saw images of its own; the first one's statistics hold for all.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.copy_(broadcast(tensor.data))


def _epoch(
    objective: Objective, network: nn.Module, model: nn.Module, average: Any, optimizer: Any, schedule: Any,
    loader: Any, images: Any, accelerator: Any, step: int, run: Run, interrupted: Callable[[], bool],
) -> float:  # fmt: skip
    """One epoch; gives the mean loss."""
    _train_mode(network, run.recipe)
    total, count = torch.zeros((), device=accelerator.device), 0
    for batch in loader:
        inputs, targets = images.ready(batch, accelerator.device)
        if run.recipe.channels_last and isinstance(inputs, Tensor):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(network):
            loss = objective.loss(network, inputs, targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                schedule(step)
                if run.recipe.optimizer.clip_norm:
                    accelerator.clip_grad_norm_(model.parameters(), run.recipe.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                step += 1
                if average is not None:
                    average.update(model, step)
        total += loss.detach()
        count += 1
        # A look at the loss stops a GPU, so it is rare; the checkpoint of the epoch before is whole whenever it comes.
        if count % 50 == 0:
            _check_finite(total, run, accelerator)
        if interrupted():
            raise KeyboardInterrupt
    _check_finite(total, run, accelerator)
    return float(accelerator.reduce(total / count, "mean"))


def _check_finite(total: Tensor, run: Run, accelerator: Any) -> None:
    # All processes stop together, or those left would wait for ever.
    if not bool(torch.isfinite(accelerator.reduce(total, "sum"))):
        kept = (run.folder / "checkpoint.pt").is_file()
        stays = f"the last whole epoch's checkpoint stays in {run.folder}; " if kept else ""
        again = ", and begin again with --restart" if kept else ""
        raise TiledSEError(
            f"{run.name}: the loss is no number any more; {stays}lower optimizer.lr, set optimizer.clip_norm or "
            f"leave --amp out{again}"
        )


def _train_mode(network: nn.Module, recipe: Recipe) -> None:
    network.train()
    if recipe.freeze_norm:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _measure(objective: Objective, model: nn.Module, accelerator: Any) -> dict[str, float]:
    if accelerator.num_processes > 1:
        from timm.utils import distribute_bn

        distribute_bn(model, accelerator.num_processes, reduce=True)
    was = model.training
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        measured = objective.measure(model)
    model.train(was)
    return measured


def _state(
    run: Run, history: list[dict[str, float]], before: dict[str, float], model: nn.Module, average: Any,
    optimizer: Any, accelerator: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "identity": run.identity,
        "history": history,
        "before": before,
        "model": model.state_dict(),
        "average": None if average is None else average.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }


def _restore(
    state: dict[str, Any], model: nn.Module, average: Any, optimizer: Any, accelerator: Any
) -> list[dict[str, float]]:
    model.load_state_dict(state["model"])
    if average is not None:
        average.module.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    return list(state["history"])


def _best(objective: Objective, history: list[dict[str, float]]) -> float:
    values = [row[objective.metric] for row in history]
    worst = -math.inf if objective.higher else math.inf
    return (max if objective.higher else min)(values, default=worst)


def _better(objective: Objective, measured: dict[str, float], best: float) -> bool:
    value = measured[objective.metric]
    return value > best if objective.higher else value < best


def _line(run: Run, row: dict[str, float], epochs: int) -> str:
    shown = {key: value for key, value in row.items() if key not in ("epoch", "lr", "seconds")}
    epoch = f"epoch {row['epoch']:.0f}/{epochs}  lr {row['lr']:.3g}"
    return f"{run.name}  {epoch}  {_figures(shown)}  {row['seconds']:.1f} s"


def _figures(row: dict[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in row.items())


@contextmanager
def _interrupt_after_step() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM are noted, and end the run after the step in which they come."""
    noted: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(kind, lambda number, frame: noted.append(number)) for kind in kinds]
    except ValueError:  # not the main thread: whoever started it has the signals
        yield lambda: False
        return
    try:
        yield lambda: bool(noted)
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
