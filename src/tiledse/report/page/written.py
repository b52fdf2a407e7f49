"""Each candidate in the form that a target takes: the operators of every block, and what is left to the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import TiledSEError
from ...network import Form, Network
from ...targets import Target, load
from ...writing import write
from .contents import Candidate


def written_for(network: Network, shown: Sequence[Candidate], target: str | Target) -> dict[str, Any]:
    """Write each candidate for a target, tried as ``convert`` tries it, and say what came of each block.

    Args:
        network: The network.
        shown: The candidates.
        target: The target, its name or its file.

    Returns:
        ``name``, ``about``, and for each candidate either ``reason`` (why it cannot be written) or its blocks, in the
        order of the network, and ``fallbacks``: operators that the target does not take, with reasons.

    Raises:
        TiledSEError: there is no such target.
    """
    taken = target if isinstance(target, Target) else load(target)
    return {
        "name": taken.name,
        "about": taken.about,
        "candidates": [{"name": one.name, **_written(network, one, taken)} for one in shown],
    }


def _written(network: Network, one: Candidate, target: Target) -> dict[str, Any]:
    none = [None] * len(one.plan)
    with TemporaryDirectory() as folder:
        try:
            made: Any = write(network, one.plan, Path(folder, "net.onnx"), Form(target=target))
        except TiledSEError as error:
            return {"reason": str(error).replace(folder, "..."), "blocks": none, "fallbacks": []}
    # Blocks have other names in an exported file; they come in the same order.
    of_block = {form.name: form for form in made.fit.blocks}
    blocks = [
        None if form is None else {"operators": _counted(form.operators), "windows": _windows(form.windows)}
        for form in (of_block.get(block.name) for block in made.plan.blocks)
    ]
    fallbacks = Counter((f.operator, f.reason) for f in made.fit.fallbacks)
    return {
        "reason": None,
        "blocks": blocks if len(blocks) == len(one.plan) else none,
        "fallbacks": [{"operator": op, "reason": why, "count": n} for (op, why), n in fallbacks.items()],
    }


def _counted(operators: Sequence[str]) -> str:
    """Operators as a text.

    Example:
        >>> _counted(["AveragePool", "Resize", "AveragePool"])
        '2 AveragePool, Resize'
    """
    return ", ".join(f"{n} {op}" if n > 1 else op for op, n in Counter(operators).items())


def _windows(windows: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{rows}x{columns}" for rows, columns in dict.fromkeys(windows))
