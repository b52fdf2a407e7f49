"""Calibrate: bring what a strip knows closer to the mean of the whole map, from unlabelled images, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from ..correction import Correction
from ..errors import TiledSEError
from ..network import Network
from ..opening import open as open_network
from ..plan import Plan, SEBlock
from ..tile import Tile

if TYPE_CHECKING:
    from ..evaluate.tasks import Progress

Batches = Callable[[], Iterator[Tensor]]

# Two slopes a channel and strip are fitted; with fewer images than this their noise is larger than what they mend.
FEWEST_IMAGES = 32
# Weight of the identity, in images (docs/calibration.md, "How strong a ridge").
PRIOR = 300.0


class Fit(NamedTuple):
    """A linear map for each channel and strip: own * x + running * y + offset; each (C, strips)."""

    own: np.ndarray
    running: np.ndarray
    offset: np.ndarray


def calibrate(
    model: Any,
    plan: Plan,
    images: Batches,
    *,
    prior: float = PRIOR,
    progress: Progress | None = None,
) -> Plan:
    """Fit a correction for every block whose row strips are smaller than its map.

    Block after block: its strips are seen in the network in which the earlier blocks have their tiles and corrections
    already; what is fitted is the mean of the whole of the very map that was cut into strips.

    Args:
        model: The network, or what ``tiledse.open`` takes.
        plan: The tiles, strips of rows or ``HxW``. With ``kxW`` a strip knows its own mean; with ``kxW:running``,
            ``1xW:running+6`` and windows that of the rows that wait for its gate, and that of all rows seen.
        images: Gives the images anew at each call, in batches (N, C, H, W); no labels. They are read once a block.
        prior: Ridge towards changing nothing: how many images that belief is worth.
        progress: Called with (blocks done, blocks in all).

    Returns:
        The plan with corrections.

    Raises:
        TiledSEError: a tile that is no strip of rows, fewer than 32 images, images of another size, or nothing to
            calibrate.

    Example:
        >>> import timm, torch, tiledse as ts
        >>> model = timm.create_model("regnety_002").eval()
        >>> plan = ts.find(model, (3, 64, 64)).with_tile("2xW:running", "s1.*")
        >>> images = torch.randn(32, 3, 64, 64)
        >>> calibrated = ts.calibrate(model, plan, lambda: iter(images.split(8)))
        >>> calibrated.corrections[0].numbers  # 24 channels, 8 strips, 3 numbers each
        576
        >>> tse = ts.convert(model, calibrated)
    """
    plan.check_single_images(
        "a calibration is fitted on single images; calibrate a plan with tiles of one map"
    )
    network = open_network(model, plan.input_size)
    blocks = calibrated_blocks(network, plan)
    corrections: list[Correction | None] = [None] * len(plan)
    for done, block in enumerate(blocks):
        if progress is not None:
            progress(done, len(blocks))
        so_far = replace(plan, corrections=tuple(corrections))
        rows = _rows(network, so_far, block, images)
        corrections[block] = _correction(network, rows, plan.tiles[block], prior)
    if progress is not None:
        progress(len(blocks), len(blocks))
    return replace(plan, corrections=tuple(corrections))


def calibrate_alone(
    network: Network, options: Sequence[Sequence[Tile]], images: Batches, *, prior: float = PRIOR
) -> list[list[Correction | None]]:
    """Corrections of each block with each of some tiles while all other blocks keep plain SE; one pass over the images.

    Args:
        network: From ``tiledse.open``.
        options: For each block, its tiles.
        images: See ``calibrate``.
        prior: See ``calibrate``.

    Returns:
        For each block and tile a correction; None for ``HxW``, and for blocks that cannot be corrected.
    """
    plan = network.se
    look = network.rows(plan, range(len(plan)))
    parts = [look(_of_size(batch, plan)) for batch in images()]
    found: list[list[Correction | None]] = []
    for number, (block, own_options) in enumerate(zip(plan.blocks, options, strict=True)):
        rows = np.concatenate([part[number] for part in parts])
        _check_rows(rows, block)
        fits: list[Correction | None] = []
        for tile in own_options:
            small = tile.tiles(block.height, block.width) > 1 and network.refuses(number) is None
            fits.append(_correction(network, rows, tile, prior) if small else None)
        found.append(fits)
    return found


def calibrated_blocks(network: Network, plan: Plan) -> list[int]:
    """Numbers of the blocks that ``calibrate`` corrects.

    Raises:
        TiledSEError: a tile cannot be calibrated, or nothing is left to correct.
    """
    blocks = []
    for number, (block, tile) in enumerate(plan):
        if tile.tiles(block.height, block.width) == 1 and not tile.single:
            continue
        if not tile.strips:
            raise TiledSEError(
                f"block '{block.name}' has the tile {tile}: calibration goes with strips of rows, kxW, kxW:running or "
                "1xW:running+6; give the block such a tile, or HxW to leave it alone"
            )
        reason = network.refuses(number)
        if reason is not None:
            raise TiledSEError(f"block '{block.name}' cannot be calibrated: {reason}; give it the tile HxW")
        blocks.append(number)
    if not blocks:
        raise TiledSEError("nothing to calibrate: no tile of the plan is smaller than its map")
    return blocks


def strip_means(rows: np.ndarray, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """What strips know, from means of rows: the means of their own rows and later ones, and of all rows seen.

    Args:
        rows: (N, C, H).
        tile: Strips of rows.

    Returns:
        Two arrays (N, C, strips), float64: over ``Tile.own_bounds`` and ``Tile.bounds``.

    Example:
        >>> own, seen = strip_means(np.array([[[1.0, 3.0, 5.0]]]), Tile.parse("2xW:running"))
        >>> own.tolist(), seen.tolist()
        ([[[2.0, 5.0]]], [[[2.0, 3.0]]])
    """
    wide, height = rows.astype(np.float64), rows.shape[2]
    return wide @ tile.own_weights(height).T, wide @ tile.weights(height).T


def fit_means(own: np.ndarray, running: np.ndarray | None, target: np.ndarray, prior: float) -> Fit:
    """Least squares for each channel and strip, with a ridge towards changing nothing.

    Minimises the squared error over the images, plus a penalty that weighs as much as ``prior`` images. The penalty is
    the distance of the slopes from those that change nothing: (1, 0) without running means, (0, 1) with them. Each is
    in units of its input's variance.

    Args:
        own: Means of strips, (N, C, strips).
        running: Running means, likewise; None to fit on own means alone.
        target: Means of maps, (N, C).
        prior: In images; above 0.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(500, 1, 1))
        >>> fit = fit_means(x, None, 0.5 * x[:, :, 0] + 3, prior=1e-6)
        >>> round(float(fit.own[0, 0]), 3), round(float(fit.offset[0, 0]), 3)
        (0.5, 3.0)
    """
    ridge = prior / len(target)
    middle = target.mean(0)[:, None]
    y = (target - target.mean(0))[:, :, None]
    mean_own = own.mean(0)
    x = own - mean_own
    # A channel that is the same in all images has no variance: the tiny term leaves it as it is.
    tiny = 1e-12
    if running is None:
        variance = (x * x).mean(0)
        slope = ((x * y).mean(0) + ridge * variance + tiny) / (variance * (1 + ridge) + tiny)
        return Fit(slope, np.zeros_like(slope), middle - slope * mean_own)
    mean_running = running.mean(0)
    z = running - mean_running
    xx, zz, xz = (x * x).mean(0), (z * z).mean(0), (x * z).mean(0)
    xy, zy = (x * y).mean(0), (z * y).mean(0) + ridge * zz + tiny
    xx, zz = xx * (1 + ridge) + tiny, zz * (1 + ridge) + tiny
    determinant = xx * zz - xz * xz
    a, b = (xy * zz - zy * xz) / determinant, (zy * xx - xy * xz) / determinant
    return Fit(a, b, middle - a * mean_own - b * mean_running)


def _correction(network: Network, rows: np.ndarray, tile: Tile, prior: float) -> Correction:
    """The correction of one block from the row means of its maps."""
    own, seen = strip_means(rows, tile)
    known = seen if tile.slides else None
    fit = fit_means(own, known, rows.mean(2, dtype=np.float64), prior)
    return Correction(
        fit.own, None if known is None else fit.running, fit.offset, rows.shape[2], network.weights, tile
    )


def _rows(network: Network, plan: Plan, block: int, images: Batches) -> np.ndarray:
    """Row means of one block's maps over all images, (N * calls, C, H)."""
    look = network.rows(plan, [block])
    parts = [part for batch in images() for part in look(_of_size(batch, plan))]
    if not parts:
        _check_count(0)
    rows = np.concatenate(parts)
    _check_rows(rows, plan.blocks[block])
    return rows


def _of_size(batch: Tensor, plan: Plan) -> Tensor:
    if tuple(batch.shape[1:]) != plan.input_size:
        got, expected = ("x".join(map(str, size)) for size in (batch.shape[1:], plan.input_size))
        raise TiledSEError(
            f"the images are {got}, but the plan was made for {expected}; strips have their places, so calibrate "
            "with images of the size that the network will be given"
        )
    return batch


def _check_rows(rows: np.ndarray, block: SEBlock) -> None:
    _check_count(len(rows) // block.calls)
    finite = np.isfinite(rows).all((1, 2))
    if not finite.all():
        raise TiledSEError(
            f"the map of block '{block.name}' is not finite on {int((~finite).sum())} of {len(rows)} images; check the "
            "network's weights and the images"
        )


def _check_count(count: int) -> None:
    if count < FEWEST_IMAGES:
        raise TiledSEError(
            f"{count} images are too few to calibrate: expected at least {FEWEST_IMAGES}, better a few hundred"
        )
