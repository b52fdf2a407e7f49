"""A network of the zoo, built and given its weights, once its file is what the index says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from ...errors import TiledSEError
from ...plan import Plan
from ...tile import Tile
from ..building import build_classifier, with_excitation, without_attention
from ..converter import convert
from ..detector import build_detector
from ..finder import find
from ..modes import in_eval
from ..segmenter import build_segmenter
from ..weights import load_weights
from .catalogue import Entry, find_entry


def open_network(name: str, folder: Path | None = None) -> tuple[nn.Module, Plan, Entry]:
    """A trained network, its plan, and what is known of it.

    Args:
        name: Of the zoo.
        folder: Where the zoo is; the package's own by default.

    Returns:
        The network in eval mode, in float32; the plan with its tiles; its entry.

    Raises:
        TiledSEError: no such network, or its file is missing or not the one that was added.
    """
    entry = find_entry(name, folder)
    check_file(entry)
    model, plan = build(entry)
    load_weights(model, entry.path)
    return in_eval(model), plan, entry


def check_file(entry: Entry) -> None:
    """Check that the weights are those that were added.

    Raises:
        TiledSEError: the file is missing or another.
    """
    try:
        found = hashlib.sha256(entry.path.read_bytes()).hexdigest()
    except OSError as error:
        raise TiledSEError(
            f"zoo:{entry.name}: cannot read {entry.path}: {error.strerror}; install tiledse again"
        ) from error
    if found != entry.sha256:
        raise TiledSEError(
            f"zoo:{entry.name}: {entry.path} is damaged or another file: its SHA-256 is {found[:12]}..., the index "
            f"says {entry.sha256[:12]}...; install tiledse again"
        )


def build(entry: Entry) -> tuple[nn.Module, Plan]:
    """The network of an entry with random weights, its tiles in place, and its plan."""
    size = entry.input_size
    if entry.task == "detect":
        model = build_detector(entry.model, entry.classes, size)
    elif entry.task == "segment":
        model = build_segmenter(entry.model, entry.classes, size, entry.stride or 16)
    else:
        model = build_classifier(entry.model, entry.classes, size)
    if entry.tile == "none":
        model = without_attention(model, find(model, size))
        return model, find(model, size)
    if entry.kernel is not None or entry.ratio is not None:
        model = with_excitation(model, Tile.parse(entry.tile), size, entry.kernel or (1, 1), entry.ratio)
        return model, find(model, size)
    plan = Plan.load(entry.path)
    found = find(model, size)
    plan.check_network(found)
    return convert(model, plan), plan
