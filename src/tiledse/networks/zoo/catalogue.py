"""The list of the zoo: what each network is, how it was trained, and how well it does."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...documents import read_json, write_json
from ...errors import TiledSEError, first_line
from ...files import written_whole
from ...numerals import quoted, real, text_of, whole

FORMAT = "tiledse.zoo/1"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One network.

    Args:
        name: Of the network, as in ``zoo:NAME``.
        task: ``classify``, ``segment`` or ``detect``.
        model: MODEL that it is built from.
        classes: Of its head.
        input: ``CxHxW``.
        tile: Its tile; ``HxW`` is SE, ``none`` no attention. The plan with each block's tile is in the file.
        recipe: The recipe that trained it.
        scale: The recipe's scale; "" for the recipe as it stands.
        changed: What was changed in the recipe, in words.
        data: What it was trained on.
        metric: What ``accuracy`` is: top1, mIoU, AP.
        accuracy: In percent, of the weights as they are in the file.
        n: Images that the accuracy was measured on.
        figures: All that was measured.
        epochs: That it was trained.
        seed: Of its run.
        licence: Of the weights, and what is known of the data's.
        params: Parameters.
        file: The weights: safetensors, float16 but for biases, normalisation and corrections.
        sha256: Of the file.
        stride: segment: output stride of the backbone.
        kernel: (along, across) of its excitation's convolutions, where it is not the network's own.
        ratio: The paper's R, likewise.
    """

    name: str
    task: str
    model: str
    classes: int
    input: str
    tile: str
    recipe: str
    scale: str
    changed: tuple[str, ...]
    data: str
    metric: str
    accuracy: float
    n: int
    figures: dict[str, float]
    epochs: int
    seed: int
    licence: str
    params: int
    file: str
    sha256: str
    stride: int | None = None
    kernel: tuple[int, int] | None = None
    ratio: float | None = None
    folder: Path = field(default=FOLDER, compare=False)

    @property
    def path(self) -> Path:
        """Where the weights are."""
        return self.folder / self.file

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = map(int, self.input.split("x"))
        return channels, height, width

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without what is not set."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k != "folder"}
        return read_json(write_json(values))


def entries(folder: Path | None = None) -> list[Entry]:
    """All networks of the zoo, in the order in which they were added.

    Args:
        folder: Where index.json and the weights are; the package's own by default.

    Raises:
        TiledSEError: the index is missing or damaged.

    Example:
        >>> all(entry.n > 0 for entry in entries())
        True
    """
    folder = FOLDER if folder is None else folder
    path = folder / "index.json"
    try:
        data = read_json(path.read_text("utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("networks"), list):
            raise ValueError(f"expected a table with networks, got {quoted(data)}")
        if data["format"] != FORMAT:
            raise TiledSEError(
                f"{path} has the format {quoted(data['format'])}; expected {FORMAT}, install tiledse again"
            )
        return [_entry(values, folder) for values in data["networks"]]
    except OSError as error:
        raise TiledSEError(
            f"the zoo has no index: {error.strerror}: {path}; install tiledse again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TiledSEError(
            f"the zoo's index {path} is damaged: {first_line(error)}; install tiledse again"
        ) from error


def find_entry(name: str, folder: Path | None = None) -> Entry:
    """One network by its name.

    Raises:
        TiledSEError: there is none; says which are near.
    """
    known = {entry.name: entry for entry in entries(folder)}
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known) or 'none yet'}"
        raise TiledSEError(f"the zoo has no network '{name}'; {hint}")
    return known[name]


def write_index(listed: list[Entry], folder: Path) -> None:
    """Write index.json, whole."""
    data = {"format": FORMAT, "networks": [entry.to_dict() for entry in listed]}
    with written_whole(folder / "index.json") as part:
        part.write_text(write_json(data, indent=1) + "\n", "utf-8")


def _entry(values: Any, folder: Path) -> Entry:
    if not isinstance(values, dict):
        raise ValueError(f"expected the table of a network, got {quoted(values)}")
    checked = {key: _CHECKS[key](value, key) for key, value in values.items() if key in _CHECKS}
    return Entry(**{**values, **checked}, folder=folder)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected {what} to be a list, got {quoted(value)}")
    return tuple(text_of(entry, what) for entry in value)


def _figures(value: Any, what: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError(f"expected {what} to be a table, got {quoted(value)}")
    return {key: real(number, key) for key, number in value.items()}


def _kernel(value: Any, what: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"expected {what} to be two numbers, got {quoted(value)}")
    return whole(value[0], what), whole(value[1], what)


def _size_text(value: Any, what: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8}x[1-9]\d{0,8}", text_of(value, what)):
        raise ValueError(f"expected {what} to be CxHxW, got {quoted(value)}")
    return value


def _file_name(value: Any, what: str) -> str:
    """The weights lie beside the index: a path would lead elsewhere."""
    if text_of(value, what) in ("", ".", "..") or Path(value).name != value or len(value) > 200:
        raise ValueError(f"expected {what} to be a file's name, got {quoted(value)}")
    return value


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(
        ("name", "task", "model", "tile", "recipe", "scale", "data", "metric", "licence", "sha256"), text_of
    ),
    **dict.fromkeys(("classes", "n", "epochs", "params", "stride"), whole),
    "input": _size_text,
    "file": _file_name,
    "changed": _texts,
    "figures": _figures,
    "kernel": _kernel,
    "accuracy": real,
    "ratio": real,
    "seed": lambda value, what: whole(value, what, 0),
}
