"""Target: what a compiler or runtime takes of an SE block, as one small frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ..errors import TiledSEError
from ..numerals import quoted, text_of, whole
from .measured import Measured

Sides = Literal["both", "rows", "columns"]
Mean = Literal["AveragePool", "ReduceMean"]
Spread = Literal["Resize", "ConvTranspose", "Concat", "slices"]
Weighted = Literal["MatMul", "Conv", "AveragePool", "DepthwiseConv"]

_COUNTS = ("window", "factor", "window_product", "stride", "strip", "axes", "opset", "ir_version", "batch")


@dataclass(frozen=True)
class Target:
    """What a compiler or runtime takes of an SE block; ``convert`` writes that form and checks the result against it.

    Args:
        name: What ``--target`` calls it.
        about: Which tool this was taken from, in one line.
        window: Largest side of a pooling window; None: any. A longer side is averaged in factors.
        factor: Side of a pooling window that runs best: a longer side is averaged in factors up to this, where it has
            such, and ConvTranspose repeats no further; None: ``window``.
        window_product: Largest number of elements in a pooling window; None: any.
        stride: Largest stride of a pool; None: any.
        sides: What is averaged first: both sides by one window, rows or columns.
        mean: What averages a side as a whole.
        two_step: Whether exact SE (``HxW``) takes its mean in two steps. Where a global pool is beyond ``window``
            or ``window_product`` it does so anyway, unless ``whole`` says that it need not.
        whole: Whether a global pool is taken of any map, whatever ``window`` and ``window_product`` say of others.
        strip: Rows of the strips that the first of the two steps averages, where no window asks for fewer.
        spread: How gates come to the rows of their strips, the best way first: ``Resize``, ``ConvTranspose``,
            ``Concat`` of one-row gates, or ``slices`` of the map that meet their gate one by one. One gate a row is
            always broadcast.
        resize: Factors that Resize takes, and products of them; None: any.
        weighted: What takes weighted means over rows (sliding tiles, a shorter last strip), the best first:
            ``MatMul``, ``Conv`` (1x1, rows as channels), ``AveragePool`` with stride 1 (windows only),
            ``DepthwiseConv`` (its kernel as long as what a gate sees; sliding tiles only).
        axes: Most axes of a tensor; None: any.
        static: Whether height and width are to be fixed.
        batch: The batch that is to be fixed; None: any.
        opset: Newest ONNX opset; None: any.
        ir_version: Newest version of the ONNX file format; None: any.
        heights: Rows of a strip that it runs best; empty: any.
        streams: Whether it runs row by row, so that gates hold rows of their maps: what ``tiledse cost`` counts.
        rejects: Operators that it leaves to the CPU or does not take, each with the reason.
        measured: What its own tools said of networks in this form, and of SE.

    Raises:
        TiledSEError: a number below 1, or a word that is none of those above.

    Example:
        >>> Target("npu", window=8, spread=("slices",), static=True).window
        8
        >>> Target("npu", spread=("Tile",), static=True)
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: target npu: expected spread of Resize, ConvTranspose, Concat, slices, got 'Tile'
    """

    name: str
    about: str = ""
    window: int | None = None
    factor: int | None = None
    window_product: int | None = None
    stride: int | None = None
    sides: Sides = "both"
    mean: Mean = "ReduceMean"
    two_step: bool = False
    whole: bool = False
    strip: int = 8
    spread: tuple[Spread, ...] = ("Resize",)
    resize: tuple[int, ...] | None = None
    weighted: tuple[Weighted, ...] = ("MatMul",)
    axes: int | None = None
    static: bool = False
    batch: int | None = None
    opset: int | None = None
    ir_version: int | None = None
    heights: tuple[int, ...] = ()
    streams: bool = False
    rejects: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[Measured, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        try:
            text_of(self.name, "name")
            for name in _COUNTS:
                number = getattr(self, name)
                if number is not None:
                    whole(number, name)
            for name in ("resize", "heights"):
                for number in getattr(self, name) or ():
                    whole(number, name, 2 if name == "resize" else 1)
        except ValueError as error:
            raise TiledSEError(f"target {self.name}: {error}") from None
        for name, words in {"sides": Sides, "mean": Mean, "spread": Spread, "weighted": Weighted}.items():
            given = getattr(self, name)
            for word in (given,) if isinstance(given, str) else given:
                if word not in get_args(words):
                    raise TiledSEError(
                        f"target {self.name}: expected {name} of {', '.join(get_args(words))}, got {quoted(word)}"
                    )
        if not self.spread or not self.weighted:
            raise TiledSEError(f"target {self.name}: spread and weighted need at least one way each")
        for name in ("window", "factor"):
            if getattr(self, name) == 1:
                raise TiledSEError(f"target {self.name}: a {name} of 1 averages nothing; expected 2 or more")
        if not self.plain and not self.static:
            raise TiledSEError(
                f"target {self.name}: its forms are written for one size; say static = true, or leave out what "
                "differs from the form for ONNX Runtime"
            )

    @property
    def plain(self) -> bool:
        """Whether it takes the form that is written without a target."""
        own = Target.__dataclass_fields__
        form = (
            "window",
            "factor",
            "window_product",
            "stride",
            "sides",
            "mean",
            "two_step",
            "spread",
            "resize",
            "weighted",
        )
        return all(getattr(self, name) == own[name].default for name in form)

    @classmethod
    def from_dict(cls, content: Any, name: str) -> Target:
        """From TOML types; ``name`` where the document says none.

        Raises:
            TiledSEError: an unknown key, or a value of another kind.
        """
        known = [f.name for f in fields(cls)]
        if not isinstance(content, Mapping):
            raise TiledSEError(f"target {name}: expected a table with keys of {', '.join(known)}")
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise TiledSEError(f"target {name}: unknown key '{unknown[0]}'; the keys are {', '.join(known)}")
        given = dict(content)
        try:
            for key in ("spread", "weighted", "resize", "heights"):
                if key in given:
                    if not isinstance(given[key], list):
                        raise ValueError(f"expected {key} to be a list, got {quoted(given[key])}")
                    given[key] = tuple(given[key])
            for key in ("static", "two_step", "whole", "streams"):
                if not isinstance(given.get(key, False), bool):
                    raise ValueError(f"expected {key} to be true or false, got {quoted(given[key])}")
            for key in ("name", "about", "sides", "mean"):
                if key in given:
                    text_of(given[key], key)
            rejects = given.get("rejects", {})
            if not isinstance(rejects, Mapping):
                raise ValueError(f"expected rejects to be a table of operators, got {quoted(rejects)}")
            given["rejects"] = {text_of(k, "rejects"): text_of(v, f"rejects.{k}") for k, v in rejects.items()}
            if not isinstance(given.get("measured", []), list):
                raise ValueError(f"expected measured to be a list of tables, got {quoted(given['measured'])}")
            given["measured"] = tuple(Measured.from_dict(each) for each in given.get("measured", []))
        except ValueError as error:
            raise TiledSEError(f"target {name}: {error}") from None
        return cls(**{"name": name, **given})
