"""What a block's own forward does beside its arithmetic: what it reads and keeps of itself, its hooks, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .block import Way
from .block_trial import BlockTrial, Unproven, said, seeded
from .makes import has_hooks
from .watching import Seen, plain_value, watch


def unread(trial: BlockTrial, way: Way, x: Tensor) -> tuple[tuple[str, str, Any], ...]:
    """What the block's own forward reads of itself at each call, and the tiled one does not.

    Raises:
        Unproven: its own forward does more than to read: it keeps something, switches autocast, has a hook inside.
    """
    if trial.layers is not trial.plain:
        return ()  # written inline: steps of a forward, which is traced again where it reads something else
    x = trial.map(2, *trial.size[1:]) if trial.filled else x[:, :, :6, :3]
    found: dict[tuple[str, str], Any] = {}
    for training in (False, True):
        before = _seen(trial, trial.old(training), x)
        after = _seen(trial, trial.new(trial.tile, way, training), x)
        for path, name in sorted(before.kept - after.kept):
            raise Unproven(f"its forward keeps '{_dotted(path, name)}' on itself; with tiles it would not")
        for path in sorted(before.called - after.called):
            if has_hooks(trial.plain.get_submodule(path)):
                raise Unproven(f"'{path}' in it has a hook, and would not be called with tiles")
        if False in before.autocast and False not in after.autocast:
            raise Unproven("its forward switches autocast off; with tiles it would not")
        for path, name in before.read - after.read:
            part = trial.plain.get_submodule(path)
            plain, value = plain_value(part, name)
            if plain and not type(part).__module__.startswith("torch.nn."):
                found[path, name] = value
    return tuple((path, name, found[path, name]) for path, name in sorted(found))


def _seen(trial: BlockTrial, block: nn.Module, x: Tensor) -> Seen:
    """What a call of a block shows, under autocast where the device has it."""
    device = x.device.type
    switch = torch.autocast(device, torch.bfloat16, enabled=torch.amp.is_autocast_available(device))
    try:
        with torch.no_grad(), seeded(), switch, watch(block) as seen:
            trial.call(block, x.clone())
    except Exception:  # layers that autocast does not know; those raise in what follows
        with torch.no_grad(), seeded(), said("it cannot be watched"), watch(block) as seen:
            trial.call(block, x.clone())
        seen.autocast.clear()
    return seen


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
