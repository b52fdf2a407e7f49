"""Figures 2, 4, 5b and table 3 of the paper, in colours, marks and hatches: they print in black and white, too."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..context.agreement import BlockCorrelation, Correlation
from ..context.sensitivity import Replacement, Sensitivity
from ..errors import TiledSEError
from ..tile import Tile
from .figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, as_drawn, figure

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 0.9,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "image.cmap": "Greys",
}
_SHARES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_KINDS = {
    "rows, kxW": ("o", "-", BLUE),
    "columns, Hxk": ("^", "--", VERMILLION),
    "patches, kxk": ("s", ":", GREEN),
    "running rows": ("D", "-.", PURPLE),
    "sliding rows": ("v", "-", ORANGE),
    "windows of rows": ("x", ":", SKY),
}


def draw_correlation(found: Correlation, path: str | Path, title: str) -> None:
    """Figure 4: global against tile, descriptors and gates, for a shallow and a deep block; the centre half dark.

    The shallow block is the first whose gates vary. The deep one is the last that has at least two tiles smaller than
    its map, or as many as any block has. At most five tiles are drawn.

    Raises:
        TiledSEError: another ending than .png, .pdf or .svg, or the file cannot be written.
    """
    entries: dict[str, list[BlockCorrelation]] = {}
    for entry in found.blocks:
        entries.setdefault(entry.block.name, []).append(entry)
    varied = [n for n, es in entries.items() if np.isfinite(es[0].excite.all)] or list(entries)

    def open_tiles(name: str) -> int:
        return sum(len(e.centre) > 1 for e in entries[name])

    most = max(map(open_tiles, varied))
    deep = [name for name in varied if open_tiles(name) >= min(most, 2)][-1]
    names = list(dict.fromkeys([varied[0], deep]))
    columns = min(5, max(len(entries[name]) for name in names))
    with figure(path, 1.5 * columns + 0.6, 1.55 * 2 * len(names) + 0.5, _STYLE) as made:
        axes = made.subplots(2 * len(names), columns, squeeze=False)
        for at, name in enumerate(names):
            for column in range(columns):
                for row, what in enumerate(("squeeze", "excite")):
                    axis = axes[2 * at + row, column]
                    if column >= len(entries[name]):
                        axis.set_axis_off()
                        continue
                    _scatter(axis, entries[name][column], row, what)
                    if column == 0:
                        axis.set_ylabel(f"{as_drawn(name)}\n{what}: tile", fontsize=8)
        made.suptitle(
            f"{as_drawn(title)}, {found.n} images; x: whole map; dark: centre half of the tiles", fontsize=8
        )


def _scatter(axis: Any, entry: BlockCorrelation, row: int, what: str) -> None:
    agreement = entry.squeeze if what == "squeeze" else entry.excite
    x, y, centre = entry.pairs[:, 2 * row], entry.pairs[:, 2 * row + 1], entry.pairs[:, 4] > 0
    if len(x):
        low, high = np.percentile(np.concatenate([x, y]), [0.5, 99.5])
        high = high if high > low else low + 1
        axis.plot([low, high], [low, high], color="0.6", lw=0.6, zorder=0)
        axis.plot(x[~centre], y[~centre], ".", ms=1.6, color="0.65", mew=0, rasterized=True)
        axis.plot(x[centre], y[centre], ".", ms=1.6, color=BLUE, mew=0, rasterized=True)
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
    r = "-" if np.isnan(agreement.all) else f"{agreement.all:.2f}"
    middle = "-" if np.isnan(agreement.centre) else f"{agreement.centre:.2f}"
    axis.set_title(f"{entry.tile}: r {r}, centre {middle}", fontsize=7.5)
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=4)


def draw_sensitivity(found: Sensitivity, path: str | Path, title: str) -> None:
    """Table 3 as a figure: the drop of each block and stage alone with its interval, and the divergence.

    Raises:
        TiledSEError: another ending than .png, .pdf or .svg, or the file cannot be written.
    """
    tiles = list(dict.fromkeys(r.tile for r in found.replacements))
    labels = list(dict.fromkeys((r.kind, r.name) for r in found.replacements))
    panels = 2 if found.metric else 1
    high = max(2.0, 0.16 * len(labels) * len(tiles) + 0.12 * len(labels) + 0.9)
    with figure(path, 3.6 * panels + 0.8, high, _STYLE) as made:
        axes = list(made.subplots(1, panels, sharey=True, squeeze=False)[0])
        place = {label: number for number, label in enumerate(labels)}
        step = 0.8 / len(tiles)
        for number, tile in enumerate(tiles):
            own = [r for r in found.replacements if r.tile == tile]
            y = np.array([place[r.kind, r.name] + (number - (len(tiles) - 1) / 2) * step for r in own])
            fill = {
                "height": 0.85 * step,
                "color": [SKY, ORANGE, GREEN, BLUE][number % 4],
                "edgecolor": "black",
            }
            fill |= {"linewidth": 0.5, "hatch": ["", "////", "", "...."][number % 4], "label": str(tile)}
            axes[-1].barh(y, [max(r.divergence, 1e-12) for r in own], **fill)
            if found.metric:
                _drops(axes[0], y, own, fill)
        if found.metric:
            axes[0].axvline(0, color="black", lw=0.6)
            axes[0].set_xlabel(f"drop of {as_drawn(found.metric)}, percentage points, 95 % interval")
        far = [r.divergence for r in found.replacements if r.divergence > 0]
        axes[-1].set_xscale("log")
        axes[-1].xaxis.set_minor_formatter("")
        if far:
            axes[-1].set_xlim(max(min(far) / 10, max(far) * 1e-6), max(far) * 2)
        axes[-1].set_xlabel("divergence: " + textwrap.fill(as_drawn(found.divergence_name), 48))
        axes[0].set_yticks(
            range(len(labels)), ["stage " * (k == "stage") + as_drawn(n) for k, n in labels], fontsize=7.5
        )
        axes[0].set_ylim(len(labels) - 0.5, -0.5)
        for kind in ("stage", "all"):
            first = next((place[label] for label in labels if label[0] == kind), None)
            for axis in axes if first else ():
                axis.axhline(first - 0.5, color="0.6", lw=0.5)  # type: ignore[operator]
        axes[0].legend(fontsize=8, loc="best")
        made.suptitle(f"{as_drawn(title)}, {found.n} images", fontsize=8)


def _drops(axis: Any, y: np.ndarray, own: Sequence[Replacement], fill: dict[str, Any]) -> None:
    paired = [r.paired for r in own]
    drops = np.array([0.0 if p is None else p.drop for p in paired])
    # A bootstrap interval need not hold the drop itself; the line is drawn from end to end.
    ends = [(0.0, 0.0) if p is None else p.drop_ci95 for p in paired]
    axis.barh(y, drops, **fill)
    axis.hlines(y, [low for low, _ in ends], [high for _, high in ends], color="black", lw=0.8)


def _kind(tile: Tile) -> tuple[str, int] | None:
    """Which line of figure 5 a tile is on, and its k; of sliding strips the rows that they hold."""
    if tile.slides:
        rows = (tile.height or 0) + tile.ahead
        if tile.above is not None:
            return "windows of rows", rows
        return ("sliding rows" if tile.ahead else "running rows"), rows
    if tile.squeeze != "tiles" or tile.whole:
        return None
    if tile.width is None:
        return "rows, kxW", tile.height or 0
    if tile.height is None:
        return "columns, Hxk", tile.width
    return ("patches, kxk", tile.height) if tile.height == tile.width else None


def draw_sweep(rows: Sequence[dict[str, str]], path: str | Path) -> None:
    """Figure 5b (accuracy against k, weights as they are) and figure 2 (accuracy against buffer), for each network.

    Raises:
        TiledSEError: no row, another ending than .png, .pdf or .svg, or the file cannot be written.
    """
    if not rows:
        raise TiledSEError("there is no result to draw")
    models = list(dict.fromkeys((row["model"], row["data"], row["metric"]) for row in rows))
    with figure(path, 7.0, 2.7 * len(models) + 0.2, _STYLE) as made:
        axes = made.subplots(len(models), 2, squeeze=False)
        for (by_k, by_buffer), (model, data, metric) in zip(axes, models):
            own = [row for row in rows if (row["model"], row["data"], row["metric"]) == (model, data, metric)]
            se = float(own[0]["se"])
            for axis in (by_k, by_buffer):
                axis.axhline(se, color="0.5", lw=0.8, dashes=(6, 2))
                axis.set_ylabel(f"{as_drawn(metric)}, %")
            by_k.annotate(
                "SE", (0.01, se), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=8
            )
            for kind, (mark, line, colour) in _KINDS.items():
                points = sorted(
                    (k[1], row) for row in own if (k := _kind(Tile.parse(row["tile"]))) and k[0] == kind
                )
                if not points:
                    continue
                tse = np.array([float(row["tse"]) for _, row in points])
                # The interval is that of the difference to SE on the same images.
                low = np.array([se - float(row["drop_high"]) for _, row in points])
                high = np.array([se - float(row["drop_low"]) for _, row in points])
                style = {
                    "marker": mark,
                    "ls": line,
                    "color": colour,
                    "mfc": "white" if mark in "^Dv" else colour,
                }
                at = np.array([number for number, _ in points], float)
                by_k.vlines(at, low, high, color=colour, lw=0.5)
                by_k.plot(at, tse, label=kind, **style)
                share = np.array([int(row["buffer"]) / int(row["se_buffer"]) for _, row in points])
                by_buffer.plot(100 * share, tse, **style)
            by_k.set_xlabel("k; of sliding rows and windows: rows held")
            by_k.set_xticks(sorted({k[1] for row in own if (k := _kind(Tile.parse(row["tile"])))}))
            by_k.set_title(
                f"{as_drawn(model)}, {own[0]['n']} images, weights as they are", fontsize=8.5, loc="left"
            )
            by_buffer.set_xscale("log")
            by_buffer.set_xticks(_SHARES, [f"{share:g}" for share in _SHARES])
            by_buffer.minorticks_off()
            shares = [100 * int(row["buffer"]) / int(row["se_buffer"]) for row in own]
            by_buffer.set_xlim(min(shares) / 1.3, 130)
            by_buffer.set_xlabel("buffer, % of SE's (tile order)")
            by_k.legend(fontsize=8, loc="lower right")
