"""Accuracy of SE and TSE side by side, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..data.images import Batch, ImageSet
from ..errors import TiledSEError
from ..networks.modes import evaluating
from .evaluation import Evaluation, ImageResult
from .processes import gather, part, together
from .tasks import Progress

Runner = Callable[[Tensor], Tensor]


def evaluate(
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
        >>> evaluate(bright, lambda x: -bright(x), data).to_dict()["paired"]
        {'agree': 0, 'lost': 2, 'gained': 0, 'p_value': 0.5}
    """
    device = torch.device(device)

    def judge_part() -> list[tuple[tuple[int, int], ImageResult]]:
        found: list[tuple[tuple[int, int], ImageResult]] = []
        total = data.count(max(batch_size, 1), part())
        for batch, first, second in run_pair(
            se, tse, data, batch_size=batch_size, workers=workers, device=device, amp=amp
        ):
            found += _judge(batch, first, second, data.classes)
            if progress is not None:
                progress(len(found), total)
        return found

    results = sorted(result for found in gather(together(judge_part)) for result in found)
    if not results:
        raise TiledSEError("no image to evaluate: the set is empty")
    return Evaluation(tuple(result for _, result in results))


def run_pair(
    se: Runner,
    tse: Runner,
    data: ImageSet,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Run both networks over this process's part of the images; what they give is not looked at.

    Yields:
        (batch, what ``se`` gave, what ``tse`` gave).
    """
    pinned = device.type == "cuda"
    with ExitStack() as stack:
        for network in (se, tse):
            if isinstance(network, nn.Module):
                stack.enter_context(evaluating(network))
        for batch in data.batches(batch_size, workers, part(), pin_memory=pinned):
            inputs = batch.inputs.to(device, non_blocking=pinned)
            try:
                with torch.inference_mode(), torch.autocast(device.type, amp, enabled=amp is not None):
                    first, second = se(inputs), tse(inputs)
            except torch.OutOfMemoryError as error:
                raise TiledSEError(
                    f"{device} has not enough memory for batches of {batch_size} images; take a smaller batch size"
                ) from error
            yield batch, first, second


def _judge(
    batch: Batch, se: Tensor, tse: Tensor, classes: int | None
) -> list[tuple[tuple[int, int], ImageResult]]:
    """The results of one batch, with their places in the set."""
    for who, logits in (("SE", se), ("TSE", tse)):
        check_logits(batch, logits, who, classes)
    width = se.shape[1]
    if tse.shape[1] != width:
        raise TiledSEError(
            f"SE gives {width} classes and TSE {tse.shape[1]}; expected two forms of one network"
        )
    columns = []
    for logits in (se, tse):
        # One sort decides both, so that ties cannot put a label first and yet not among five.
        ranked = logits.topk(min(5, width), dim=1).indices.cpu()
        columns += [ranked[:, 0].tolist(), (ranked == batch.labels[:, None]).any(1).tolist()]
    rows = zip(batch.places.tolist(), batch.names, batch.labels.tolist(), *columns, strict=True)
    return [
        ((place[0], place[1]), ImageResult(name, label, first, second, first5, second5))
        for place, name, label, first, first5, second, second5 in rows
    ]


def check_logits(batch: Batch, logits: object, who: str, classes: int | None) -> None:
    """Check that a network gives logits of classes that the labels are among.

    Args:
        batch: The images and labels.
        logits: What the network gives.
        who: What messages call it.
        classes: How many classes the labels were numbered from; None where that is not known.

    Raises:
        TiledSEError: no logits, not finite (the image is named), or labels outside their classes.
    """
    count = len(batch.names)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != count:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TiledSEError(
            f"the {who} network is no classifier: expected logits of shape ({count}, classes), got {got}"
        )
    bad = ~(logits < float("inf")).all(1)  # not a number, or overflowed
    if bad.any():
        name = batch.names[int(bad.int().argmax())]
        raise TiledSEError(
            f"image {name}: the {who} network's logits are not finite; check its weights, or evaluate in float32"
        )
    width = logits.shape[1]
    if classes is not None and classes != width:
        raise TiledSEError(
            f"labels that do not match: the set has {classes} class folders, the network {width} classes; "
            "give --class-map with the name of a folder a line, in the order of the network's classes"
        )
    high = batch.labels >= width
    if high.any():
        at = int(high.int().argmax())
        raise TiledSEError(
            f"labels that do not match: image {batch.names[at]} has label {int(batch.labels[at])}, but the "
            f"network has {width} classes (0 to {width - 1})"
        )
