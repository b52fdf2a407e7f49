"""The verbs that take a network of any kind: one that is open, or whatever ``tiledse.open`` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cost import Cost
from .cost import cost as cost_of
from .network import Network, Verdict
from .opening import open as open_network
from .plan import Plan
from .tile import Tile

if TYPE_CHECKING:
    from .choose.search import Found
    from .data.images import ImageSet
    from .evaluate.tasks import Task


def find(model: Any, input_size: Sequence[int] | None = None, *, example_inputs: Any = None) -> Plan:
    """Find the SE blocks of a network.

    Args:
        model: The network; it is left as it was.
        input_size: (C, H, W) of an image. Left out, it is the network's own.
        example_inputs: For a module that takes more or other than one image: a tensor, a tuple of arguments, or a
            dict of keyword arguments. Only their shapes count.

    Returns:
        A plan in which each block has the tile that it has now: ``HxW`` for plain SE. Its ``near_misses`` name what
        pools a whole map and is no SE block, its ``network`` holds parameters and MACs.

    Raises:
        TiledSEError: no input size is known, the network refuses the input, or it is of a kind that cannot be read.

    Example:
        >>> import timm
        >>> plan = find(timm.create_model("regnety_002"), (3, 224, 224))
        >>> len(plan), plan.blocks[0].name, plan.blocks[0].height
        (13, 's1.b1.se', 56)
        >>> [miss.name for miss in plan.near_misses]
        ['head.global_pool']
        >>> len(find("timm:lcnet_050"))
        2
    """
    return open_network(model, input_size, example_inputs=example_inputs).plan


def cost(model: Any, plan: Plan | None = None) -> Cost:
    """Count parameters, MACs and gate buffers, with SE and with tiles.

    Args:
        model: A plan, which holds all that is counted; or a network, with its plan beside it.
        plan: The tiles; left out, those that the network has.

    Raises:
        TiledSEError: the plan is none of this network, or see ``tiledse.cost.cost``.

    Example:
        >>> plan = find("timm:regnety_008").with_tile("7xW")
        >>> cost(plan).tse.buffer
        426496
    """
    if isinstance(model, Plan):
        return cost_of(model)
    network = open_network(model, None if plan is None or isinstance(model, Network) else plan.input_size)
    if plan is None:
        return cost_of(network.plan)
    plan.check_network(network.plan)
    return cost_of(plan)


def convert(model: Any, plan: Plan, *, verify: bool = True, example_inputs: Any = None) -> Any:
    """Give a network the tiles of a plan; ``HxW`` gives plain SE back.

    What was made is tried before it is handed out, on random numbers: each block against the block as it was on each
    tile alone, and the network with one tile over each map against the network as it was. A block that fails stays as
    it was.

    Args:
        model: The network, SE or converted before; it is left as it was.
        plan: From ``find`` on this network, with the tiles wanted.
        verify: Whether to try what was made; `docs/convert.md` has what that costs.
        example_inputs: Those that ``find`` was given.

    Returns:
        A network of the kind that was given: a module for a module, an ``OnnxModel`` for one, a ``Network`` for a
        network or a name. Its weights have the same names and values; ``find`` on it gives ``plan``, but for blocks
        that were refused.

    Raises:
        TiledSEError: the plan was made for another network or input size, or has no block; its corrections were fitted
            on other weights; the network cannot be copied; or every block was refused.

    Warns:
        TiledSEWarning: a block was refused; with the reason.

    Example:
        >>> import timm
        >>> model = timm.create_model("regnety_002").eval()
        >>> tse = convert(model, find(model, (3, 64, 64)).with_tile("7xW", "s1.*"))
        >>> str(tse.s1.b1.se.tile), tse.state_dict().keys() == model.state_dict().keys()
        ('7xW', True)
    """
    Plan.check(plan)
    named = isinstance(model, (str, Path, Network))
    size = None if isinstance(model, Network) else plan.input_size
    made = open_network(model, size, example_inputs=example_inputs).convert(plan, verify=verify)
    return made if named else made.given


def verify(model: Any, plan: Plan) -> Verdict:
    """Try what ``convert`` would make, and give the figures.

    Args:
        model: The network.
        plan: The tiles wanted.

    Raises:
        TiledSEError: see ``convert``.

    Example:
        >>> import timm
        >>> model = timm.create_model("regnety_002").eval()
        >>> verdict = verify(model, find(model, (3, 64, 64)).with_tile("3xW"))
        >>> verdict.refused, verdict.difference < 1e-5
        ((), True)
    """
    size = None if isinstance(model, Network) else plan.input_size
    return open_network(model, size).verify(plan)


def search(
    model: Any,
    images: ImageSet | Task[Any],
    *,
    input_size: Sequence[int] | None = None,
    max_buffer: int | None = None,
    max_drop: float | None = None,
    tiles: Sequence[Tile | str] | None = None,
    uniform: Sequence[Tile | str] = ("7xW", "1xW:running+6"),
    calibrate_on: ImageSet | Task[Any] | None = None,
    pipeline: bool = False,
    few: int = 128,
    batch_size: int = 16,
    cache: str | Path | None = None,
    titled: Callable[[str], Any] | None = None,
) -> Found:
    """Choose a tile for each block under a budget: of buffer, or of accuracy.

    Args:
        model: The network.
        images: Images of a classifier (``tiledse.open_images``), or the task: what is measured on what. Labels are
            needed for ``max_drop`` only.
        input_size: (C, H, W), where the network is not open and does not say it.
        max_buffer: Elements that may be held in all.
        max_drop: Percentage points that may be lost on the images.
        tiles: What a block may be given besides ``HxW``: strips of rows.
        uniform: Tiles that are measured for all blocks at once, to compare with.
        calibrate_on: Other images, to calibrate the measured plans on.
        pipeline: Count all FIFOs of a row pipeline at their smallest, in place of the gates alone.
        few: Images on which each block is measured alone.
        batch_size: Images in a batch.
        cache: Where evaluations are kept, so that a search goes on.
        titled: Makes the progress of a step from its title.

    Raises:
        TiledSEError: see ``choose.search.search``.
    """
    from .choose.budget import GATES, Order
    from .choose.cache import Evaluations, default_folder
    from .choose.evaluation import Evaluator
    from .choose.search import search as choose
    from .evaluate.classification import Classification
    from .evaluate.tasks import Task

    def evaluator(data: ImageSet | Task[Any], few: int | None) -> Evaluator:
        task = data if isinstance(data, Task) else Classification(data)
        return Evaluator(network, task, kept, few=few, batch_size=batch_size)

    network = open_network(model, input_size)
    network.plan.check_blocks()
    kept = Evaluations(Path(cache) if cache is not None else default_folder())
    order = GATES
    if pipeline:
        from .stream.minimum import PipelineBuffer

        order = Order("pipeline", PipelineBuffer(network, network.se))
    return choose(
        evaluator(images, few), max_buffer=max_buffer, max_drop=max_drop,
        tiles=None if tiles is None else _tiles(tiles), uniform=_tiles(uniform),
        fitted_on=None if calibrate_on is None else evaluator(calibrate_on, None), order=order, titled=titled,
    )  # fmt: skip


def _tiles(given: Sequence[Tile | str]) -> list[Tile]:
    return [tile if isinstance(tile, Tile) else Tile.parse(tile) for tile in given]
