"""Check that what a network gives are logits of the classes that labels are among."""

from __future__ import annotations

from torch import Tensor

from ..data.images import Batch
from ..errors import TiledSEError


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
