"""Plan: the SE blocks of a network and one tile for each; what every verb takes and gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .correction import Correction
from .documents import read_json, read_safetensors_metadata, write_json
from .errors import TiledSEError, first_line
from .files import near_files, written_whole
from .notation import shape
from .numerals import quoted, text_of, whole
from .se_block import NearMiss, SEBlock, Totals, no_block
from .tile import Tile

__all__ = ["FORMAT", "METADATA_KEY", "NearMiss", "Plan", "SEBlock", "Totals"]

FORMAT = "tiledse.plan/1"
METADATA_KEY = "tiledse.plan"


@dataclass(frozen=True)
class Plan:
    """The SE blocks of a network in the order in which an image meets them, and a tile for each.

    A plan is a value: methods give new ones. Two plans are equal when blocks, tiles and input size are.

    Args:
        blocks: The blocks.
        tiles: One tile for each block.
        input_size: (C, H, W) of the image that the map sizes belong to; (C, T) of sound, (C, D, H, W) of volumes and
            video.
        near_misses: Places that are no SE block, with reasons; not compared.
        network: Totals of the network; not compared. None where nobody counted.
        corrections: From ``calibrate``: one for each block, or None for a block that has none. Left out, no block
            has one.

    Raises:
        TiledSEError: the tiles are not as many as the blocks, a tile has other axes than its block's map, or a
            correction does not go with its tile.

    Example:
        >>> block = SEBlock("se", 64, 16, 56, 56, "timm.SEModule")
        >>> plan = Plan((block,), (Tile.parse("HxW"),), (3, 224, 224))
        >>> [str(tile) for tile in plan.with_tile("7xW").tiles]
        ['7xW']
    """

    blocks: tuple[SEBlock, ...]
    tiles: tuple[Tile, ...]
    input_size: tuple[int, ...]
    near_misses: tuple[NearMiss, ...] = field(default=(), compare=False)
    network: Totals | None = field(default=None, compare=False)
    corrections: tuple[Correction | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.tiles):
            raise TiledSEError(
                f"a plan needs one tile a block: got {len(self.blocks)} blocks and {len(self.tiles)} tiles"
            )
        fitting = tuple(block.tile(tile) for block, tile in zip(self.blocks, self.tiles, strict=True))
        object.__setattr__(self, "tiles", fitting)
        if all(c is None for c in self.corrections):
            object.__setattr__(self, "corrections", (None,) * len(self.blocks))
        if len(self.corrections) != len(self.blocks):
            raise TiledSEError(
                f"a calibrated plan needs one correction a block: got {len(self.blocks)} blocks and "
                f"{len(self.corrections)} corrections"
            )
        checked = tuple(
            None if correction is None else _of_tile(block, tile, correction)
            for block, tile, correction in zip(self.blocks, self.tiles, self.corrections, strict=True)
        )
        object.__setattr__(self, "corrections", checked)

    def __iter__(self) -> Iterator[tuple[SEBlock, Tile]]:
        return iter(zip(self.blocks, self.tiles, strict=True))

    def __len__(self) -> int:
        return len(self.blocks)

    def __str__(self) -> str:
        kinds = ", ".join(dict.fromkeys(str(tile) for tile in self.tiles)) or "none"
        size = "x".join(map(str, self.input_size))
        return f"{len(self)} SE blocks at input {size}, tiles: {kinds}"

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the image, for what takes images only.

        Raises:
            TiledSEError: the network takes something else.
        """
        if len(self.input_size) != 3:
            raise TiledSEError(
                f"this takes images (C, H, W), but the network's input is {'x'.join(map(str, self.input_size))}, "
                f"{shape(len(self.input_size) - 1)}; docs/time.md says what there is for sound, video and volumes"
            )
        channels, height, width = self.input_size
        return channels, height, width

    @property
    def calibrated(self) -> bool:
        """Whether a block has a correction."""
        return any(c is not None for c in self.corrections)

    @property
    def uncalibrated(self) -> Plan:
        """The same tiles without corrections."""
        return replace(self, corrections=())

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Names of the blocks by stage, for ``with_tile(tile, f"{stage}[./]*")``.

        A stage is the part of a block's name up to its first number at the end of a part: ``s3`` of ``s3.b2.se``,
        ``blocks.4`` of ``blocks.4.1.se``, ``/blocks/blocks.4`` of ``/blocks/blocks.4/blocks.4.1/se/ReduceMean``.
        """
        stages: dict[str, list[str]] = {}
        for block in self.blocks:
            match = re.match(r".*?\d+(?=[./]|$)", block.name)
            stages.setdefault(match.group() if match else block.name, []).append(block.name)
        return {stage: tuple(names) for stage, names in stages.items()}

    def with_tile(self, tile: str | Tile, blocks: str = "*") -> Plan:
        """The same plan with ``tile`` for every block whose name matches the glob ``blocks``.

        Corrections are dropped: those of later blocks were fitted on what the earlier tiles give.

        Raises:
            TiledSEError: no tile, or no block matches (the error lists names that are there).
        """
        tile = Tile.parse(tile)
        self.check_blocks()
        chosen = [fnmatchcase(block.name, blocks) for block in self.blocks]
        if not any(chosen):
            names = ", ".join(block.name for block in self.blocks[:4]) or "none"
            more = ", ..." if len(self) > 4 else ""
            raise TiledSEError(f"no block matches '{blocks}'; the {len(self)} blocks are: {names}{more}")
        tiles = tuple(tile if c else t for c, t in zip(chosen, self.tiles, strict=True))
        return replace(self, tiles=tiles, corrections=())

    def first(self, count: int, tile: str | Tile) -> Plan:
        """The same plan with ``tile`` for the first ``count`` blocks; the others stay.

        Raises:
            TiledSEError: there are fewer blocks than that.
        """
        if not 1 <= count <= len(self):
            raise TiledSEError(f"first {count}: expected 1 to {len(self)}, the number of SE blocks")
        tile = Tile.parse(tile)
        return replace(self, tiles=(tile,) * count + self.tiles[count:], corrections=())

    @staticmethod
    def check(plan: object) -> None:
        """Check that a plan is one.

        Raises:
            TiledSEError: it is something else.
        """
        if not isinstance(plan, Plan):
            raise TiledSEError(
                f"expected a plan, got {type(plan).__name__} {plan!r:.60}; "
                "find(model, input_size).with_tile('7xW') makes one"
            )

    def check_blocks(self) -> None:
        """Check that there is something to tile.

        Raises:
            TiledSEError: the network has no SE block.
        """
        if not len(self):
            raise TiledSEError(no_block(self.near_misses))

    @property
    def previous(self) -> bool:
        """Whether a block is gated by the previous frame, so that the network runs on the frames of a stream."""
        return any(tile.previous for tile in self.tiles)

    def check_single_images(self, why: str) -> None:
        """Check that no block is gated by the previous frame.

        Args:
            why: Why that cannot be, and what to do.

        Raises:
            TiledSEError: one is.
        """
        for block, tile in self:
            if tile.previous:
                raise TiledSEError(f"block '{block.name}' has {tile}, a state from frame to frame; {why}")

    def check_network(self, found: Plan) -> None:
        """Check that this plan was made for the network in which ``found`` was found, at its input size.

        Raises:
            TiledSEError: it was made for another network or another input size; says where they differ.
        """
        remedy = "make the plan again for this network with `tiledse plan` or ts.find"
        ours, theirs = [b.name for b in self.blocks], [b.name for b in found.blocks]
        if ours != theirs:
            missing = next((name for name in ours if name not in theirs), None)
            extra = next((name for name in theirs if name not in ours), None)
            which = (
                f"it names '{missing}', which is no SE block here"
                if missing is not None
                else f"it lacks '{extra}'"
                if extra is not None
                else "its blocks come in another order"
            )
            raise TiledSEError(
                f"the plan was made for another network: {which} (plan {len(ours)} blocks, network "
                f"{len(theirs)}); {remedy}"
            )
        if self.input_size != found.input_size:
            a, b = ("x".join(map(str, size)) for size in (self.input_size, found.input_size))
            raise TiledSEError(f"the plan was made for input {a}, but the input is {b}; {remedy}")
        for mine, other in zip(self.blocks, found.blocks, strict=True):
            if mine != other:
                a, b = (f"{'x'.join(map(str, (x.channels, *x.sides)))}, {x.dialect}" for x in (mine, other))
                raise TiledSEError(
                    f"the plan was made for another network: block '{mine.name}' is {a} in the plan and {b} "
                    f"in the network; {remedy}"
                )

    def check_weights(self, weights: str) -> None:
        """Check that the corrections were fitted on a network with these weights (their ``fingerprint``).

        Raises:
            TiledSEError: they belong to other weights.
        """
        for block, correction in zip(self.blocks, self.corrections, strict=True):
            if correction is not None and correction.weights != weights:
                raise TiledSEError(
                    f"the plan's calibration belongs to other weights (block '{block.name}': fitted on "
                    f"{correction.weights or 'unknown'}, the network has {weights}); run `tiledse calibrate` again "
                    "for this network"
                )

    def with_weights(self, weights: str) -> Plan:
        """The same plan with corrections that belong to these weights: the same network in another form."""
        new = tuple(None if c is None else replace(c, weights=weights) for c in self.corrections)
        return replace(self, corrections=new)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types, with ``format``."""
        return {
            "format": FORMAT,
            "input_size": list(self.input_size),
            "blocks": [
                {
                    "name": block.name,
                    "channels": block.channels,
                    "reduced": block.reduced,
                    "height": block.height,
                    "width": block.width,
                    "dialect": block.dialect,
                    "excite_macs": block.excite_macs,
                    **({} if block.calls == 1 else {"calls": block.calls}),
                    **({} if block.axes == 2 else {"sides": list(block.sides)}),
                    "tile": str(tile),
                    **({} if correction is None else {"correction": correction.to_dict()}),
                }
                for (block, tile), correction in zip(self, self.corrections, strict=True)
            ],
            "near_misses": [miss.to_dict() for miss in self.near_misses],
            "network": None
            if self.network is None
            else {
                "params": self.network.params,
                "macs": self.network.macs,
                "uncounted": list(self.network.uncounted),
            },
        }

    @classmethod
    def from_dict(cls, data: Any, source: str = "plan") -> Plan:
        """Read what ``to_dict`` gave; ``source`` names it in errors.

        Raises:
            TiledSEError: another format, a missing key, a value of the wrong type.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            got = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise TiledSEError(f"{source}: expected a plan of format '{FORMAT}', got {quoted(got)}")
        try:
            blocks, tiles, corrections = [], [], []
            for entry in data["blocks"]:
                reduced = entry["reduced"]
                blocks.append(
                    SEBlock(
                        text_of(entry["name"], "name"),
                        _size(entry["channels"], "channels"),
                        None if reduced is None else _size(reduced, "reduced"),
                        _size(entry["height"], "height"),
                        _size(entry["width"], "width"),
                        text_of(entry["dialect"], "dialect"),
                        whole(entry.get("excite_macs", -1), "excite_macs", -1),
                        whole(entry.get("calls", 1), "calls", 1),
                        tuple(_size(side, "sides") for side in entry.get("sides", ())),
                    )
                )
                tiles.append(Tile.parse(entry["tile"]))
                stored = entry.get("correction")
                corrections.append(None if stored is None else Correction.from_dict(stored))
            input_size = tuple(_size(side, "input_size") for side in data["input_size"])
            if not 2 <= len(input_size) <= 4:
                raise ValueError(f"expected input_size of 2 to 4 numbers, got {len(input_size)}")
            misses = tuple(
                NearMiss(text_of(m["name"], "name"), text_of(m["reason"], "reason"), bool(m.get("gates")))
                for m in data.get("near_misses", ())
            )
            totals = data.get("network")
            network = None if totals is None else _network(totals)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else first_line(error)
            raise TiledSEError(
                f"{source}: not a whole plan: {what}; write it again with `tiledse plan`"
            ) from error
        return cls(tuple(blocks), tuple(tiles), input_size, misses, network, tuple(corrections))

    def dumps(self) -> str:
        """The plan as JSON text."""
        return write_json(self.to_dict(), indent=1)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            TiledSEError: the file cannot be written.
        """
        with written_whole(path) as part:
            part.write_text(self.dumps() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from JSON, or from the metadata of a safetensors file that ``convert`` wrote.

        Raises:
            TiledSEError: the file is missing, is no plan, or was cut off.
        """
        path = Path(path)
        try:
            text = _safetensors_plan(path) if path.suffix == ".safetensors" else path.read_text("utf-8")
            data = read_json(text)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            hint = (
                near_files(path) or "; `tiledse plan MODEL --tile 7xW -o plan.json` writes one"
                if missing
                else ""
            )
            raise TiledSEError(f"cannot read plan {path}: {error.strerror or error}{hint}") from error
        except ValueError as error:
            raise TiledSEError(
                f"{path} is no plan: {first_line(error)}; write it again with `tiledse plan`"
            ) from error
        return cls.from_dict(data, str(path))


def _of_tile(block: SEBlock, tile: Tile, correction: Correction) -> Correction:
    """A correction that says its tile, checked to be made for this block and tile."""
    expected = (block.channels, tile.tiles(block.height, block.width), block.height)
    got = (correction.channels, correction.strips, correction.height)
    # Files that do not state the tile are older than look-ahead and windows.
    older = correction.tile is None and tile.ahead == 0 and tile.above is None
    fits = tile.strips and expected == got and (correction.running is not None) == tile.slides
    if not fits or not (older or correction.tile == tile):
        stated = "" if correction.tile is None else f" ({correction.tile})"
        raise TiledSEError(
            f"block '{block.name}': its correction was fitted for another tile than {tile}{stated}, or for another map "
            f"(channels, strips, rows: expected {expected}, got {got}); calibrate the plan again"
        )
    return replace(correction, tile=tile) if older else correction


def _size(value: Any, what: str) -> int:
    return whole(value, what, 1, 2**31 - 1)


def _network(totals: Any) -> Totals:
    uncounted = totals.get("uncounted", [])
    if not isinstance(uncounted, list):
        raise ValueError(f"expected uncounted to be a list, got {quoted(uncounted)}")
    names = tuple(text_of(name, "uncounted") for name in uncounted)
    return Totals(whole(totals["params"], "params", 0), whole(totals["macs"], "macs", 0), names)


def _safetensors_plan(path: Path) -> str:
    plan = read_safetensors_metadata(path).get(METADATA_KEY)
    if plan is None:
        raise ValueError("these weights carry no plan")
    return plan
