"""Find the SE blocks of a network, and say of every near miss why it is none.

The network runs once on a fake image (shapes only: no memory and no arithmetic of the image's size). Whatever pools a
whole map in that run is an SE block or a near miss; nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..correction import Correction
from ..errors import TiledSEError, first_line
from ..op.module import TiledSqueezeExcite
from ..op.sliding import product_macs
from ..plan import NearMiss, Network, Plan, SEBlock
from ..tile import Tile
from .block import TiledBlock
from .counting import MacCounter
from .dialects import Dialect, Layers, class_name, known_dialect
from .forward import NOT_MULTIPLIED
from .inline import outline
from .inline_block import InlineSE, holder
from .inline_trace import Call
from .modes import evaluating
from .structure import recognise

_WHOLE = Tile.parse("HxW")
_BUILT = Dialect("tiledse", class_name(TiledSqueezeExcite), Layers(("fc1", "act", "fc2", "gate")))


def find(model: nn.Module, input_size: Sequence[int] | None = None) -> Plan:
    """Find the SE blocks of a network.

    Args:
        model: The network; it is left as it was.
        input_size: (C, H, W) of an image. Left out, it is the one that timm gave the network.

    Returns:
        A plan in which each block has the tile that it has now: ``HxW`` for plain SE. Its ``near_misses`` name
        what pools a whole map and is no SE block, its ``network`` holds parameters and MACs.

    Raises:
        TiledSEError: no input size is known, or the network refuses it.

    Example:
        >>> import timm
        >>> plan = find(timm.create_model("regnety_002"), (3, 224, 224))
        >>> len(plan), plan.blocks[0].name, plan.blocks[0].height
        (13, 's1.b1.se', 56)
        >>> [miss.name for miss in plan.near_misses]
        ['head.global_pool']
    """
    plan, _ = find_dialects(model, input_size)
    return plan


def find_dialects(
    model: nn.Module, input_size: Sequence[int] | None = None
) -> tuple[Plan, tuple[Dialect, ...]]:
    """``find``, with the dialect of each block beside it."""
    size = _input_size(model, input_size)
    run = observe(model, size)
    plan, dialects, missed = _read(model, size, run)
    if missed:
        made = outline(model, missed, run.calls)
        if made.model is not None:
            plan, dialects, _ = _read(made.model, size, observe(made.model, size))
        plan = replace(plan, near_misses=tuple(made.told(miss) for miss in plan.near_misses))
    return plan, dialects


def _read(
    model: nn.Module, size: tuple[int, int, int], run: Observation
) -> tuple[Plan, tuple[Dialect, ...], list[str]]:
    """The plan of a network, its dialects, and the modules in which maps are pooled and which are no SE blocks."""
    modules = dict(model.named_modules())
    missed: list[str] = []
    found: dict[str, _Found] = {}
    misses: dict[str, str] = {}
    with evaluating(model):
        for name, module in modules.items():
            dialect = _dialect(module)
            if dialect is not None:
                _note(name, _block(name, module, dialect, run), found, misses)
        known = [*found, *misses]
        for pool in dict.fromkeys(run.pools):
            if not any(_inside(pool, name) for name in known):
                name, result = _around(pool, modules, run)
                _note(name, result, found, misses)
                if isinstance(result, str):
                    missed.append(pool)
    order = {name: i for i, name in enumerate(run.shapes)}
    blocks, tiles, dialects, corrections = [], [], [], []
    for name in sorted(found, key=order.__getitem__):
        blocks.append(found[name].block)
        tiles.append(found[name].tile)
        dialects.append(found[name].dialect)
        corrections.append(found[name].correction)
    near = tuple(NearMiss(name, reason) for name, reason in misses.items() if name not in found)
    # What the tiles that it has add to the run: gates, and products that are means of rows, for pooling counts nothing.
    now = sum(
        (tile.tiles(b.height, b.width) - 1) * b.excite_macs
        + (1 if correction is None else 2) * b.channels * product_macs(tile, b.height)
        for b, tile, correction in zip(blocks, tiles, corrections, strict=True)
    )
    params = sum(p.numel() for p in model.parameters())
    network = Network(params, run.macs - now, run.uncounted)
    plan = Plan(tuple(blocks), tuple(tiles), size, near, network, _fitting(blocks, corrections))
    return plan, tuple(dialects), missed


def _fitting(
    blocks: Sequence[SEBlock], corrections: Sequence[Correction | None]
) -> tuple[Correction | None, ...]:
    """The corrections of blocks.

    Raises:
        TiledSEError: the input size is not the one that they were fitted for.
    """
    for block, correction in zip(blocks, corrections, strict=True):
        if correction is not None and correction.height != block.height:
            raise TiledSEError(
                f"block '{block.name}' is calibrated for maps of {correction.height} rows, but has {block.height} at "
                "this input size; give the size that it was calibrated with"
            )
    return tuple(corrections)


@dataclass
class Observation:
    """What one run on a fake image showed.

    Attributes:
        shapes: By module name, the shapes of the first input of each call, in the order of the first calls.
        calls: By module name, the arguments of each call, without values.
        pools: Names of the modules in whose forward a whole map is pooled, in order; "" is the network itself.
        macs: Multiply-adds of the run.
        uncounted: Operators that the count does not cover.
    """

    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    macs: int = 0
    uncounted: tuple[str, ...] = ()


def observe(model: nn.Module, size: tuple[int, int, int]) -> Observation:
    """Run the network on one fake image of this size and note what is called and what is pooled.

    Raises:
        TiledSEError: the network refuses the input.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
        UnsupportedOperatorException,
    )

    needs_values = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
    try:
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                return _observe(model, size)
        except needs_values:
            # A forward that looks at values cannot run on shapes alone: run it on one real image.
            return _observe(model, size)
    except TiledSEError:
        raise
    except Exception as error:
        text = "x".join(map(str, size))
        raise TiledSEError(
            f"the network fails on an input of {text}: {first_line(error)}; give the CxHxW that it takes"
        ) from error


def _observe(model: nn.Module, size: tuple[int, int, int]) -> Observation:
    run = Observation()
    stack: list[str] = []
    handles = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stack.append(name)
            if any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
                return  # a forward with inline SE is traced, not run
            first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            run.shapes.setdefault(name, []).append(() if first is None else tuple(first.shape))
            run.calls.setdefault(name, []).append(Call(args, kwargs).abstract())

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    parameter = next(model.parameters(), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    device = "cpu" if parameter is None else parameter.device
    counter = MacCounter()
    try:
        with evaluating(model), torch.no_grad(), counter, _Pools(run.pools, stack):
            model(torch.zeros(1, *size, dtype=dtype, device=device))
    finally:
        for handle in handles:
            handle.remove()
    run.macs, run.uncounted = counter.macs, counter.uncounted
    return run


class _Pools(TorchDispatchMode):
    """Notes in which module a whole map is pooled."""

    def __init__(self, pools: list[str], stack: list[str]) -> None:
        super().__init__()
        self.pools, self.stack = pools, stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.stack and _pools_map(func, args, result):
            self.pools.append(self.stack[-1])
        return result


def _pools_map(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    aten = torch.ops.aten
    x = args[0] if args else None
    if not isinstance(x, Tensor):
        return False
    if func in (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.linalg_vector_norm.default):
        which = (
            args[2] if func is aten.linalg_vector_norm.default and len(args) > 2 else args[1:2] and args[1]
        )
        if not isinstance(which, (list, tuple)):
            return False
        dims = {d % x.dim() for d in (which or range(x.dim()))}
        if x.dim() == 4:
            # Over both axes of the map, or over the second of them after the first.
            return dims in ({2, 3}, {1, 2}) or (len(dims) == 1 and tuple(result.shape[2:]) == (1, 1))
        return func is aten.mean.dim and x.dim() == 3 and dims == {2}
    if func in (aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default):
        return x.dim() == 4 and tuple(result.shape[2:]) == (1, 1)
    return False


class _Found(NamedTuple):
    block: SEBlock
    tile: Tile
    dialect: Dialect
    correction: Correction | None = None


def _note(name: str, result: _Found | str, found: dict[str, _Found], misses: dict[str, str]) -> None:
    if isinstance(result, str):
        misses.setdefault(name, result)
    else:
        found[name] = result


def _dialect(module: nn.Module) -> Dialect | None:
    """The dialect of a block of ours or of a registered class."""
    if isinstance(module, TiledBlock):
        return module.tiledse.dialect
    if isinstance(module, InlineSE):
        return module.dialect
    return _BUILT if isinstance(module, TiledSqueezeExcite) else known_dialect(module)


def _around(pool: str, modules: dict[str, nn.Module], run: Observation) -> tuple[str, _Found | str]:
    """Read what holds a pool as an SE block: the module that pools, or one of the two around it.

    A pool may be a layer of its block, or of a Sequential in it. The reason for a miss is that of the module that
    multiplies, where there is one, else of the innermost.
    """
    miss: tuple[str, str] | None = None
    name = pool
    for _ in range(3):
        shapes = run.shapes.get(name, [()])
        if name and next(modules[name].children(), None) is not None and len(shapes[0]) == 4:
            result = recognise(modules[name], shapes[0])
            if isinstance(result, Dialect):
                return name, _block(name, modules[name], result, run)
            if miss is None or result.inline:
                miss = name, result.reason
            if result.reason != NOT_MULTIPLIED:
                break
        name = name.rpartition(".")[0]
    return miss or (pool or "(the network)", NOT_MULTIPLIED)


def _block(name: str, module: nn.Module, dialect: Dialect, run: Observation) -> _Found | str:
    """A module of a known dialect as a block with its tile, or the reason why it is none."""
    shapes = run.shapes.get(name, [])
    if not shapes:
        return "it is an SE block, but forward never calls it"
    shape = shapes[0]
    if len(shape) != 4:
        return f"its input has {len(shape)} axes, not the 4 of a map"
    if len(set(shapes)) > 1:
        return f"it is called {len(shapes)} times, on maps of different sizes"
    tile = _WHOLE
    correction = None
    if isinstance(module, TiledBlock):
        tile, correction = module.tiledse.tile, module.tiledse.correction
    elif isinstance(module, TiledSqueezeExcite):
        tile = module.tile
    channels, height, width = (shape[3], *shape[1:3]) if dialect.nhwc else shape[1:]
    try:
        reduced, macs = _excitation(module, dialect, channels)
    except Exception as error:
        return f"the excitation of dialect '{dialect.name}' fails on it: {first_line(error, 80)}"
    found = SEBlock(name, channels, reduced, height, width, dialect.name, macs)
    return _Found(found, tile, dialect, correction)


def _excitation(block: nn.Module, dialect: Dialect, channels: int) -> tuple[int | None, int]:
    """Reduced width (None for one layer) and MACs of the excitation for one descriptor, from running it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    widths: list[int] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        widths.append(module.weight.shape[0])  # type: ignore[arg-type, index]

    dense = [m for m in holder(block).modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [m.register_forward_hook(note) for m in dense]
    parameter = next(holder(block).parameters(), None)
    counter = MacCounter()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
            z = torch.zeros(1, channels, 1, 1)
            if parameter is not None:
                z = z.to(device=parameter.device, dtype=parameter.dtype)
            gates = dialect.excite(block, z)
    finally:
        for handle in handles:
            handle.remove()
    if tuple(gates.shape) != (1, channels, 1, 1):
        raise ValueError(f"gates of shape {tuple(gates.shape)} for {channels} channels")
    return (widths[0] if len(widths) > 1 else None), counter.macs


def _inside(name: str, block: str) -> bool:
    """Whether a module is another one, or lies in it."""
    return name == block or block == "" or name.startswith(block + ".")


def _input_size(model: nn.Module, size: Sequence[int] | None) -> tuple[int, int, int]:
    if size is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        size = config.get("input_size")
        if size is None:
            raise TiledSEError("the network does not say which input it takes; give input_size as (C, H, W)")
    if len(size) != 3 or any(not isinstance(side, int) or side < 1 for side in size):
        raise TiledSEError(f"expected an input size of (C, H, W), such as (3, 224, 224), got {tuple(size)}")
    return int(size[0]), int(size[1]), int(size[2])
