"""The line of a Hailo model script that asks Hailo's compiler for tiled squeeze-and-excite.

It is known in one form only, from hailo_model_zoo's ``cas_vit_{s,m,t}.alls``: the first ``count`` blocks in order, all
with strips of ``tile_height`` rows, the blocks after them left global.
"""

from __future__ import annotations

from ..errors import TiledSEError
from ..plan import Plan
from .finder import effect


def alls(plan: Plan) -> str:
    """The model-script line of a plan.

    Raises:
        TiledSEError: the plan has not the shape that the line can say; why.

    Example:
        >>> from tiledse.plan import Plan, SEBlock
        >>> from tiledse.tile import Tile
        >>> blocks = tuple(SEBlock(f"b{i}", 64, 16, 56 // i, 56 // i, "onnx.SE") for i in (1, 2, 8))
        >>> plan = Plan(blocks, (Tile.parse("HxW"),) * 3, (3, 224, 224))
        >>> print(alls(plan.first(2, "7xW")))
        pre_quantization_optimization(se_optimization, method=tse, mode=sequential, count=2, tile_height=7)
    """
    form = "Hailo's one documented form tiles the first blocks, in order, with strips of one height"
    rows: list[int | None] = []
    for block, tile in plan:
        if effect(tile, block.height, block.width) == ("whole",):
            rows.append(tile.height if tile.squeeze == "tiles" and tile.width is None else None)
            continue
        if tile.squeeze != "tiles" or tile.width is not None or tile.height is None:
            raise TiledSEError(
                f"no Hailo line for this plan: block '{block.name}' has tile {tile}, and {form} (kxW)"
            )
        if block.height % tile.height:
            raise TiledSEError(
                f"no Hailo line for this plan: block '{block.name}' has {block.height} rows, which strips of "
                f"{tile.height} do not fill evenly, and what Hailo does with a shorter last strip is not documented; "
                "take --divisor-tiles or another tile"
            )
        rows.append(tile.height)
    tiled = [i for i, (b, t) in enumerate(plan) if effect(t, b.height, b.width) != ("whole",)]
    if not tiled:
        raise TiledSEError("no Hailo line for this plan: it tiles no block; give it a tile such as 7xW")
    heights = {rows[i] for i in tiled}
    if len(heights) > 1:
        text = ", ".join(str(h) for h in sorted(h for h in heights if h is not None))
        raise TiledSEError(f"no Hailo line for this plan: its strips have {text} rows, and {form}")
    (height,) = heights
    # Blocks that one strip covers whole may count as tiled or not: it is the same.
    count = tiled[-1] + 1
    for i, (block, _) in enumerate(list(plan)[:count]):
        if i not in tiled and (height is None or block.height > height):
            raise TiledSEError(
                f"no Hailo line for this plan: block '{block.name}' is left whole before others that are tiled, "
                f"and {form}"
            )
    while count < len(plan) and rows[count] == height:
        count += 1
    options = f"method=tse, mode=sequential, count={count}, tile_height={height}"
    return f"pre_quantization_optimization(se_optimization, {options})"
