"""Evaluations on disk, by content: what was measured once is not measured again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..documents import read_json, write_json
from ..errors import TiledSEError
from ..files import written_whole
from ..network import Network
from ..plan import Plan

FORMAT = "tiledse.evaluation/1"


def default_folder() -> Path:
    """Where evaluations are kept: ``tiledse/evaluations`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tiledse" / "evaluations"


class Digest:
    """A hash of images as a network gets them, and of what is known of them.

    Example:
        >>> import torch
        >>> a, b = Digest(), Digest()
        >>> a.add(torch.zeros(2)); b.add(torch.ones(2))
        >>> a.text() == b.text()
        False
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, value: Any) -> None:
        """Take in tensors, arrays, numbers and texts, in any nesting."""
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                leaf = leaf.detach().cpu().numpy()
            if isinstance(leaf, np.ndarray):
                self._hash.update(f"{leaf.dtype} {leaf.shape}".encode())
                self._hash.update(np.ascontiguousarray(leaf).tobytes())
            else:
                self._hash.update(repr(leaf).encode())

    def text(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()


class Evaluations:
    """A folder with one small JSON file for each evaluation.

    Args:
        folder: The folder; it is made if need be.

    Raises:
        TiledSEError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TiledSEError(
                f"cannot make the folder {folder} for evaluations: {error.strerror}"
            ) from error

    def key(self, network: Network, plan: Plan, measure: str, images: str) -> str:
        """The name of an evaluation: of weights, tiles, corrections, images, and what is measured."""
        given = {
            "format": FORMAT,
            "weights": network.weights,
            "input_size": plan.input_size,
            "blocks": [block.name for block in plan.blocks],
            "tiles": [_effect(str(t), t.size(b.height, b.width) == (b.height, b.width)) for b, t in plan],
            "corrections": [None if c is None else c.to_dict() for c in plan.corrections],
            "measure": measure,
            "images": images,
        }
        return hashlib.sha256(write_json(given, sort_keys=True).encode()).hexdigest()

    def read(self, key: str) -> dict[str, Any] | None:
        """What was kept under a name; None where nothing was, or the file is none of ours."""
        try:
            data = read_json((self.folder / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) and data.get("format") == FORMAT else None

    def write(self, key: str, data: dict[str, Any]) -> None:
        """Keep an evaluation.

        Raises:
            TiledSEError: it cannot be written.
        """
        with written_whole(self.folder / f"{key}.json") as part:
            part.write_text(write_json({"format": FORMAT, **data}), encoding="utf-8")


def _effect(tile: str, whole: bool) -> str:
    return "HxW" if whole else tile
