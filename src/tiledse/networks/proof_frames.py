"""Prove a block that is gated by the previous frame: two streams, several frames, one of them begun again."""

from __future__ import annotations

import torch
from torch import Tensor

from .block import Way
from .block_trial import BlockTrial, Unproven, said
from .frames import reset_frames
from .proof_evaluation import cut
from .tilewise import Part, by_tiles, by_two_elements, some


def prove_frames(trial: BlockTrial, way: Way) -> None:
    """Check frames one after the other against the block as it was, called on maps that have the means wanted.

    Args:
        trial: The block, with a tile that has ``previous``.
        way: How it is to be converted.

    Raises:
        Unproven: a frame gives something else.
    """
    one = trial.map(2, *cut(trial.tile, trial.size))
    two = 0.6 * one.flip(2) + 0.3 * one.flip(0)
    frames = (one, two, one.flip(3) - 0.5 * two, two)
    with torch.no_grad():
        try:
            trial.call(trial.old(), one.clone())
        except Exception:  # a block that takes maps of its own size only: whatever its layers raise
            trial.filled = True
            grown = trial.map(2, *trial.size[1:])
            frames = (grown, 0.6 * grown.flip(2), grown.flip(3), 0.6 * grown.flip(0))
        wanted = _expected(trial, frames)
        block = trial.new(trial.tile, way)
        for number, (x, expected) in enumerate(zip(frames, wanted)):
            if number == 3:
                reset_frames(block, [0])
            given = x.clone()
            with said(f"with {trial.tile} it fails on a stream"):
                got = trial.call(block, given)
            what = f"with {trial.tile} frame {number + 1} of a stream is not gated as its own forward would gate it"
            trial.compare(got, expected, what)
            if not torch.equal(given, got if way.inplace else x):
                raise Unproven(f"with {trial.tile} it treats the map that it is given in another way")


def _expected(trial: BlockTrial, frames: tuple[Tensor, ...]) -> list[list[tuple[Part, Tensor]]]:
    """What some parts of each frame become, by the block as it was."""
    found = []
    for number, x in enumerate(frames):
        first = by_tiles(lambda part: trial.call(trial.old(), part), x, trial.tile.first, filled=trial.filled)
        later = _later(trial, x, frames[number - 1]) if number else first
        if number == 3:  # the first stream begins again
            later = _mixed(first, later, x.shape[2])
        found.append(later)
    return found


def _mixed(
    first: list[tuple[Part, Tensor]], later: list[tuple[Part, Tensor]], height: int
) -> list[tuple[Part, Tensor]]:
    """Rows that both know: the first stream's from the one, the other's from the other."""
    rows = {}
    for part, y in later:
        for row in range(part.top, part.bottom):
            rows[row] = y[:, :, row - part.top : row - part.top + 1]
    found = []
    for part, y in first:
        known = [row for row in range(part.top, part.bottom) if row in rows]
        for row in known:
            both = torch.stack([y[0, :, row - part.top : row - part.top + 1], rows[row][1]])
            found.append((Part(row, row + 1, part.left, part.right), both))
    return found


def _later(trial: BlockTrial, x: Tensor, before: Tensor) -> list[tuple[Part, Tensor]]:
    """What some strips of a frame become after another one: rows are added up one by one."""
    tile, (height, width) = trial.tile, x.shape[2:]
    tall = tile.height or height
    found = []
    for strip in some(-(-height // tall)):
        top, bottom = strip * tall, min((strip + 1) * tall, height)
        seen = 0 if tile.height is None else min(top + tall + tile.ahead, height)
        mean = torch.zeros_like(x[:, :, 0, 0])
        for row in range(height):
            mean = mean + (x if row < seen else before)[:, :, row].mean(2) / height
        alike = _map_of(mean, x)
        after = trial.call(trial.old(), alike.clone())
        part = Part(top, bottom, 0, width)
        found.append((part, by_two_elements(part.of(x), alike, after)))
    return found


def _map_of(mean: Tensor, like: Tensor) -> Tensor:
    """A map of the shape of another whose means are these: pairs of numbers at equal distances from them."""
    count = like.shape[2] * like.shape[3]
    steps = torch.ones(count, dtype=like.dtype, device=like.device)
    steps[1::2] = -1
    if count % 2:
        steps[-1] = 0
    return (mean[:, :, None] + steps * like.std((2, 3), correction=0)[:, :, None]).unflatten(
        2, like.shape[2:]
    )
