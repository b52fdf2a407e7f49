"""A run's curve: summary.csv, and a TensorBoard log where that package is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import write_csv


class Log:
    """Writes an epoch at a time; as a context, it closes the TensorBoard log.

    Args:
        folder: Of the run.
        history: The epochs that a resumed run has already.
        writes: False in the processes that write nothing.
    """

    def __init__(self, folder: Path, history: list[dict[str, float]], writes: bool) -> None:
        self._path, self._rows, self._board = folder / "summary.csv", list(history), None
        if writes:
            if self._rows:  # a run killed after its checkpoint and before its line here
                self._write()
            self._board = _board(folder / "tensorboard", len(history))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._board is not None:
            self._board.close()

    def add(self, row: dict[str, float]) -> None:
        """One epoch: the whole file is written again, so that it is never torn.

        Raises:
            TiledSEError: it cannot be written.
        """
        self._rows.append(row)
        self._write()
        if self._board is not None:
            for key, value in row.items():
                if key != "epoch":
                    self._board.add_scalar(key, value, int(row["epoch"]))

    def _write(self) -> None:
        write_csv(self._path, self._rows, list(self._rows[-1]))


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)
