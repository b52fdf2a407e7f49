"""Recognise an SE block by what it computes, whatever it is called and however it is spelled.

A dialect that is registered for its class comes first, then the block's own forward on descriptors (own_forward.py).
Neither is believed: what counts is that it gives the numbers of the block, on each of several tiles (trial.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import nn

from .dialects import Dialect, class_name, known_dialect
from .flow import MEANS
from .own_forward import OwnForward
from .reasons import NoBlock
from .trial import excitation, verify

DIALECT = "traced"


class Recognised(NamedTuple):
    """An SE block.

    Attributes:
        dialect: How its excitation is called.
        reduced: Width between its layers; None for one layer.
        macs: Multiply-adds of its excitation for one descriptor.
    """

    dialect: Dialect
    reduced: int | None
    macs: int


def recognise(block: nn.Module, shape: tuple[int, ...], kinds: frozenset[str] = frozenset()) -> Recognised:
    """Read a module as an SE block.

    Args:
        block: The module; it is not run, copies of it are.
        shape: Of the map that it was called on, 3 to 5 axes.
        kinds: The operators that it pools that map with, as ``Pool.kinds``, where they are known.

    Raises:
        NoBlock: it is none, with the reason.
    """
    if "forward" in vars(block):
        raise NoBlock(
            "its forward was set on the object itself (as accelerate's hooks do), where a converted block would not "
            "call it; take it off before, and set it again after"
        )
    known = known_dialect(block)
    if known is not None:
        try:
            axes = len(shape) - 2
            return _read(block, known if axes == known.axes else replace(known, axes=axes), shape)
        except NoBlock:  # its layers were changed, or are hooked: see what it does now
            pass
    other, axes = kinds - MEANS, len(shape) - 2
    miss: NoBlock | None = None
    for nhwc in (False, True):
        try:
            own = OwnForward(nhwc, axes)
            found = _read(block, Dialect(DIALECT, class_name(type(block)), own, nhwc=nhwc, axes=axes), shape)
        except NoBlock as error:
            miss = miss or error
            continue
        if not found.macs:
            raise NoBlock("no dense layer (Linear or convolution) lies between the mean and the gate")
        return found
    assert miss is not None
    if other:
        raise NoBlock(
            f"its squeeze takes {_spoken(other)}, not only a mean; register a dialect that says so"
        ) from miss
    raise miss


def _read(block: nn.Module, dialect: Dialect, shape: tuple[int, ...]) -> Recognised:
    reduced, macs = excitation(block, dialect, dialect.channels_first(shape)[0])
    verify(block, dialect, shape)
    return Recognised(dialect, reduced, macs)


def _spoken(kinds: frozenset[str]) -> str:
    """Operators in words."""
    words = {
        "max": "a maximum",
        "norm": "a norm",
        "std": "a deviation",
        "var": "a variance",
        "min": "a minimum",
    }
    return " and ".join(
        sorted(
            f"{next((word for part, word in words.items() if part in kind), 'another sum')} ({kind})"
            for kind in kinds
        )
    )
