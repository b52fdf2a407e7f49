"""Accuracy of two classifiers side by side, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import ImageSet
from ..networks.modes import evaluating
from .classification import Classification, Guess
from .evaluation import Evaluation, ImageResult
from .tasks import Progress, Results, run

Runner = Callable[[Tensor], Tensor]


def evaluate_pair(
    se: Runner,
    tse: Runner,
    data: ImageSet,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy of two classifiers over the same batches, in one pass.

    Under torchrun (``processes.joined_processes``) each process takes every n-th batch, or every n-th shard,
    and all get the whole result. The batches are those of one process, and so are the numbers.

    Args:
        se: The network with plain SE: (N, C, H, W) on ``device`` to logits (N, classes). A module runs in
            eval mode and is left in the mode that it had.
        tse: The network with tiles, likewise (``convert_shared`` makes it without a copy of the weights).
        data: The images, from ``open_images``.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go; the networks are there already.
        amp: Autocast to this dtype, such as torch.bfloat16; None leaves the networks' own.
        progress: Called with (images done, images in all or None) of this process after each batch.

    Raises:
        TiledSEError: an image cannot be read, a label is outside the network's classes, logits are not
            finite, or there is no image.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from tiledse.data.opening import open_images
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in "black", "white":
        ...     Image.new("RGB", (8, 8), name).save(folder / f"{name}.png")
        >>> _ = (folder / "labels.csv").write_text("file,label\\nblack.png,0\\nwhite.png,1\\n")
        >>> grey = lambda image: torch.full((3, 8, 8), image.getpixel((0, 0))[0] / 255)
        >>> data = open_images(folder, grey)
        >>> bright = lambda x: torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)
        >>> evaluate_pair(bright, lambda x: -bright(x), data).to_dict()["paired"]
        {'agree': 0, 'lost': 2, 'gained': 0, 'p_value': 0.5}
    """

    def both(inputs: Tensor) -> Iterator[Any]:
        yield se(inputs)
        yield tse(inputs)

    with ExitStack() as stack:
        for network in (se, tse):
            if isinstance(network, nn.Module):
                stack.enter_context(evaluating(network))
        results = run(
            Classification(data), both, ["SE", "TSE"], batch_size=batch_size, workers=workers, device=device,
            amp=amp, progress=progress,
        )  # fmt: skip
    return evaluation_of(results)


def evaluation_of(results: Results[Guess]) -> Evaluation:
    """The evaluation that one pass of a classifier, with SE and with tiles, comes to."""
    se, tse = results.networks
    return Evaluation(
        tuple(
            ImageResult(name, a.label, a.first, b.first, a.among5, b.among5)
            for name, a, b in zip(results.names, se, tse, strict=True)
        )
    )
