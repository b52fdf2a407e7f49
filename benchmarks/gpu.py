"""The operator on one GPU: are its kernels right, and how long do they take beside a copy, SE and the paper's code?

    python benchmarks/gpu.py --out DIR --limit SECONDS [--parts check,stress,memory,compare,compile] [--processes 12]

Runs by itself inside the time limit and writes what it has as it goes: ``gpu.json`` and ``gpu.txt``.

A timing is that of a CUDA graph of as many calls as it takes to touch three times the L2 cache (each on maps of its
own, no output used twice), so that no map is in the cache and no launch waits for Python; ``eager`` is the same calls
without the graph, so Python and the launches count. All cases take turns; ratios to the copy are taken within a turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tiledse as ts
from tiledse.bench.operator import LAYOUTS, SHAPES, PaperBlock, Shape
from tiledse.op import by_triton, choosing, formula
from tiledse.op.excitation import two_layers
from tiledse.op.formula import mean

DEVICE = "cuda"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# ||ours - float64|| / ||float64||: what the type's own rounding of map and weights leaves.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
MAPS = tuple(dict.fromkeys((s.network, s.channels, s.reduced, s.height, s.width) for s in SHAPES))


class Clock:
    """The time that is left."""

    def __init__(self, limit: float) -> None:
        self.end = time.monotonic() + limit

    def left(self) -> float:
        return self.end - time.monotonic()


class With(nn.Module):
    """A module that runs with some of the kernels (ts.kernels)."""

    def __init__(self, module: nn.Module, value: str) -> None:
        super().__init__()
        self.module, self.value = module, value

    def forward(self, x: Tensor) -> Tensor:
        with ts.kernels(self.value):
            return self.module(x)


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30))


# --- check -------------------------------------------------------------------------------------------------


CHECKED = [
    (tile, size, channels, reduced, layout, dtype)
    for dtype in DTYPES
    for layout in LAYOUTS
    for tile in ("HxW", "7xW", "Hx7", "7x7", "3xW", "7xW:running", "7xW:upper", "7xW:middle")
    for size, channels, reduced in (((28, 28), 72, 12), ((25, 19), 40, 12), ((14, 64), 200, 150))
]


def check(clock: Clock, report: Report, processes: int) -> None:
    """Forward and backward against the formula in float64, for tiles, layouts, types and ragged maps."""
    runs = [(list(range(i, len(CHECKED), processes)), clock.left() - 5) for i in range(processes)]
    if processes == 1:
        found = [_check(*runs[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            found = pool.starmap(_check, runs)
    done = sum(number for number, _, _ in found)
    failures = [failure for _, _, failures in found for failure in failures]
    worst = {name: max(w.get(name, 0.0) for _, w, _ in found) for name in found[0][1]}
    report.add("check", {"cases": done, "of": len(CHECKED), "worst": worst, "failures": failures})
    report.say(f"check: {done} of {len(CHECKED)} cases, {len(failures)} failures")
    for failure in failures[:20]:
        report.say(f"  FAILED {failure}")
    report.say("  worst errors: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


def _check(numbers: list[int], limit: float) -> tuple[int, dict[str, float], list]:
    clock, done = Clock(limit), 0
    worst: dict[str, float] = {}
    failures: list = []
    for number in numbers:
        if clock.left() < 0:
            break
        tile, size, channels, reduced, layout, dtype = CHECKED[number]
        torch.manual_seed(number)
        act, gate = (nn.ReLU, nn.SiLU, nn.Hardswish)[number % 3], (nn.Sigmoid, nn.Hardsigmoid)[number % 2]
        block = ts.TiledSqueezeExcite(channels, reduced, tile, act=act, gate=gate)
        block = block.to(DEVICE).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
        x = torch.randn(3, channels, *size, device=DEVICE).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
        found = gradients(With(block, "triton"), block, x)
        plain = gradients(With(block, "torch"), block, x)
        exact_block = ts.TiledSqueezeExcite(channels, reduced, tile, act=act, gate=gate).to(DEVICE).double()
        exact_block.load_state_dict(block.state_dict())
        exact = gradients(Formula(exact_block), exact_block, x.double())
        with torch.no_grad(), ts.kernels("triton"):
            inplace = x.clone(memory_format=torch.preserve_format)
            ts.tiled_squeeze_excite(inplace, block.excite, tile, inplace=True)
        errors = {n: error(found[n], exact[n]) for n in exact}
        errors["inplace"] = error(inplace, exact["y"])
        for name, value in errors.items():
            allowed = TOLERANCES[dtype] * (1 if name in ("y", "inplace", "x") else 4)
            allowed = max(allowed, 2 * error(plain[name], exact[name]) if name in plain else 0)
            worst[f"{dtype} {name}"] = max(worst.get(f"{dtype} {name}", 0.0), value)
            if not value <= allowed:
                failures.append([tile, list(size), layout, dtype, name, value, allowed])
        if found["x"].stride() != x.stride() or found["y"].stride() != x.stride():
            failures.append([tile, list(size), layout, dtype, "strides", 0, 0])
        done += 1
    return done, worst, failures


class Formula(nn.Module):
    """The paper's formula with the layers of a block."""

    def __init__(self, block: ts.TiledSqueezeExcite) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return formula.scale(x, self.block.excite(formula.squeeze(x, self.block.tile, mean)), self.block.tile)


def stress(clock: Clock, report: Report) -> None:
    """Many launches, from two streams at once and from a graph, must give the same bits."""
    wrong = launches = 0
    for m in (MAPS[0], MAPS[3], MAPS[7]):
        shape = Shape(m[0], 16, *m[1:])
        (x,), (up,) = maps(shape, "NCHW", "float32", 1), maps(shape, "channels_last", "float32", 1)
        module = modules_of(shape, "NCHW", "float32")["fused"]
        with torch.no_grad():
            first = [module(x), module(up)]
            streams = [torch.cuda.Stream() for _ in range(2)]
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                from_graph = module(x)
            for _ in range(40):
                found = []
                for stream, given in zip(streams, (x, up)):
                    with torch.cuda.stream(stream):
                        found.append(module(given))
                graph.replay()
                torch.cuda.synchronize()
                wrong += sum(not torch.equal(a, b) for a, b in zip((*found, from_graph), (*first, first[0])))
                launches += 3
    report.add("stress", {"launches": launches, "different": wrong})
    report.say(f"stress: {launches} launches, {wrong} with other bits")


def gradients(function: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    block.zero_grad()
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(7)
    y = function(leaf)
    y.backward(torch.randn(y.shape, device=y.device, dtype=torch.float32).to(y.dtype).contiguous(
        memory_format=torch.channels_last if not y.is_contiguous() else torch.contiguous_format))  # fmt: skip
    assert leaf.grad is not None
    given = {"y": y.detach(), "x": leaf.grad}
    return given | {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}


# --- timing ------------------------------------------------------------------------------------------------


def sets_of(map_bytes: int) -> int:
    """Calls in a graph: maps read and written come to three times the L2 cache, as far as memory allows."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(40, -(-3 * cache // (2 * map_bytes))))


def timed(
    cases: dict[str, Callable[[int], Any]], sets: int, repeats: int, clock: Clock, eager: bool
) -> dict[str, dict[str, Any]]:
    """Microseconds a call, by name: graph replays in turns; ratios to ``copy`` within a turn."""
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    keep = []
    failed: dict[str, str] = {}
    for name, case in cases.items():
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    case(0)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                keep.append([case(k) for k in range(sets)])
            graphs[name] = graph
        except Exception as fault:  # an out-of-memory or a case that cannot be captured must not end the run
            failed[name] = f"{type(fault).__name__}: {str(fault)[:120]}"
            torch.cuda.synchronize()
    turns: dict[str, list[float]] = {name: [] for name in graphs}
    waits: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(repeats + 1):
        for name, graph in graphs.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            if turn:
                turns[name].append(start.elapsed_time(stop) * 1e3 / sets)
            if eager and turn and turn <= 3:
                torch.cuda.synchronize()
                began = time.perf_counter()
                for k in range(sets):
                    cases[name](k)
                torch.cuda.synchronize()
                waits[name].append((time.perf_counter() - began) * 1e6 / sets)
        if clock.left() < 2:
            break
    out: dict[str, dict[str, Any]] = {name: {"failed": why} for name, why in failed.items()}
    for name, times in turns.items():
        ratios = [a / b for a, b in zip(times, turns["copy"])]
        out[name] = {"us": _three(times), "to_copy": _three(ratios)}
        if waits[name]:
            out[name]["eager_us"] = _three(waits[name])
    del keep, graphs
    return out


def _three(values: list[float]) -> list[float]:
    """Median, and the middle half."""
    if len(values) < 2:
        return [round(v, 3) for v in values]
    low, median, high = statistics.quantiles(values, n=4)
    return [round(v, 3) for v in (median, low, high)]


def maps(shape: Shape, layout: str, dtype: str, sets: int) -> list[Tensor]:
    torch.manual_seed(0)
    size = (shape.batch, shape.channels, shape.height, shape.width)
    like = torch.empty(size, device=DEVICE, dtype=DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
    return [torch.randn_like(like) for _ in range(sets)]


def modules_of(shape: Shape, layout: str, dtype: str, tile: str = "7xW") -> dict[str, nn.Module]:
    from timm.layers import SEModule

    block = ts.TiledSqueezeExcite(shape.channels, shape.reduced, tile)
    made: dict[str, nn.Module] = {
        "SE (timm)": SEModule(shape.channels, rd_channels=shape.reduced),
        "paper": PaperBlock(
            shape.channels, shape.reduced, ts.Tile.parse(tile).size(shape.height, shape.width)
        ),
        "plain": With(block, "torch"),
        "fused": With(block, "triton"),
    }
    return {n: m.to(DEVICE).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout]) for n, m in made.items()}


def forward_cases(
    shape: Shape, layout: str, dtype: str, extra: dict[str, Callable] | None = None
) -> tuple[dict[str, Callable[[int], Any]], int]:
    sets = sets_of(shape.map_bytes * DTYPES[dtype].itemsize // 4)
    xs = maps(shape, layout, dtype, sets)
    made: dict[str, Callable] = {**modules_of(shape, layout, dtype), **(extra or {})}

    def run(module: Callable, k: int) -> Tensor:
        with torch.no_grad():
            return module(xs[k])

    cases: dict[str, Callable[[int], Any]] = {"copy": lambda k: torch.empty_like(xs[k]).copy_(xs[k])}
    return cases | {name: lambda k, m=module: run(m, k) for name, module in made.items()}, sets


def training_cases(
    shape: Shape, layout: str, dtype: str, extra: dict[str, Callable] | None = None
) -> tuple[dict[str, Callable[[int], Any]], int]:
    sets = max(2, sets_of(shape.map_bytes * DTYPES[dtype].itemsize // 4) // 2)
    xs = [x.requires_grad_() for x in maps(shape, layout, dtype, sets)]
    ups = [torch.randn_like(x) for x in xs]
    made: dict[str, Callable] = {**modules_of(shape, layout, dtype), **(extra or {})}

    def step(module: Any, k: int) -> Any:
        y = module(xs[k])
        return y, torch.autograd.grad(y, [xs[k], *module.parameters()], ups[k])

    cases: dict[str, Callable[[int], Any]] = {"copy": lambda k: torch.empty_like(xs[k]).copy_(xs[k].detach())}
    return cases | {name: lambda k, m=module: step(m, k) for name, module in made.items()}, sets


def compare(clock: Clock, report: Report, repeats: int) -> None:
    """Every map, batch, type and layout, the most wanted first."""
    work = [
        (dtype, layout, batch, training, m)
        for dtype, training, batches in (
            ("float32", False, (32, 128)), ("float16", False, (32, 128)), ("float32", True, (32, 128)),
            ("float32", False, (1, 8)), ("float16", True, (32, 128)), ("float32", True, (1, 8)),
        )
        for batch in batches
        for layout in LAYOUTS
        for m in MAPS
    ]  # fmt: skip
    for dtype, layout, batch, training, (network, channels, reduced, height, width) in work:
        shape = Shape(network, batch, channels, reduced, height, width)
        size = shape.map_bytes * DTYPES[dtype].itemsize // 4
        if size > 3_000_000_000:
            continue
        if clock.left() < 6:
            report.say("compare: stopped by the time limit")
            return
        compare_one(shape, layout, dtype, training, clock, report, repeats)


def compare_one(
    shape: Shape, layout: str, dtype: str, training: bool, clock: Clock, report: Report, repeats: int,
    extra: dict[str, Callable] | None = None, part: str = "compare",
) -> None:  # fmt: skip
    cases, sets = (training_cases if training else forward_cases)(shape, layout, dtype, extra)
    result = timed(cases, sets, repeats, clock, eager=True)
    del cases
    free()
    report.add(part, {
        "network": shape.network, "shape": [shape.batch, shape.channels, shape.height, shape.width],
        "reduced": shape.reduced, "layout": layout, "dtype": dtype, "training": training, "calls": sets,
        "cases": result,
    })  # fmt: skip
    report.line(shape, layout, dtype, training, result)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


# --- compile -----------------------------------------------------------------------------------------------


COMPILED = [(MAPS[0], 128, "NCHW", False), (MAPS[0], 128, "NCHW", True), (MAPS[0], 128, "channels_last", False),
            (MAPS[2], 128, "NCHW", False)]  # fmt: skip


def compiled_modules(shape: Shape, layout: str) -> dict[str, nn.Module]:
    """torch.compile of all, ours as the formula and by name."""
    torch._dynamo.reset()
    made = {}
    for name, module in modules_of(shape, layout, "float32").items():
        inner = module.module if isinstance(module, With) else module
        outer = torch.compile(inner, fullgraph=True)
        made[f"compile {name}"] = With(outer, module.value) if isinstance(module, With) else outer
    # One block serves both of ours, and a compiled function is kept by its code: compile a second one.
    other = (
        ts.TiledSqueezeExcite(shape.channels, shape.reduced, "7xW")
        .to(DEVICE)
        .to(memory_format=LAYOUTS[layout])
    )
    made["compile fused"] = With(torch.compile(other, fullgraph=True), "triton")
    return made


def compiled(clock: Clock, report: Report, repeats: int) -> None:
    """torch.compile of SE, of the paper's code and of ours, for a few maps."""
    for m, batch, layout, training in COMPILED:
        if clock.left() < 12:
            report.say("compile: stopped by the time limit")
            return
        shape = Shape(m[0], batch, *m[1:])
        extra = compiled_modules(shape, layout)
        compare_one(shape, layout, "float32", training, clock, report, repeats, extra, "compile")


# --- memory ------------------------------------------------------------------------------------------------


def memory(clock: Clock, report: Report) -> None:
    """The peak of a training step above map, upstream gradient and weights, in maps."""
    for layout in LAYOUTS:
        shape = Shape(*MAPS[0][:1], 64, *MAPS[0][1:])
        (x,), (up,) = maps(shape, layout, "float32", 1), maps(shape, layout, "float32", 1)
        x.requires_grad_()
        peaks = {}
        for name, module in modules_of(shape, layout, "float32").items():
            for _ in range(2):
                x.grad = None
                module.zero_grad()
                free()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                module(x).backward(up)
            peaks[name] = round((torch.cuda.max_memory_allocated() - before) / x.nbytes, 3)
        x.grad = None
        report.add("memory", {"shape": str(shape), "layout": layout, "peak_maps": peaks})
        report.say(f"memory of a training step in maps, {shape} {layout}: {peaks}")


# --- tuning ------------------------------------------------------------------------------------------------


# Channels, pixels and warps of a program, by map and layout.
def cuts_of(m: tuple, layout: str) -> list[tuple[int, int, int]]:
    _, channels, reduced, height, width = m
    tile = min(7, height) * width
    padded = 1 << (tile - 1).bit_length()
    found = []
    sizes = ((4096, 4), (8192, 4), (8192, 8), (16384, 8), (16384, 16))
    if reduced > 32:  # as many threads as hold the weights
        sizes = ((2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16), (16384, 8), (16384, 16))
    for elements, warps in sizes:
        for pixels in (padded, padded // 4):
            wide = elements // pixels
            programs = -(-channels // max(1, wide)) * -(-tile // pixels)
            if (
                1 <= wide < 2 * channels
                and programs <= 132
                and (layout == "NCHW" or wide >= 8)
                and pixels >= 32
            ):
                found.append((wide, pixels, warps))
    return found


def tuning_jobs() -> list[tuple]:
    return [
        (m, layout, dtype, backward, cut)
        for backward in (False, True)
        for layout, dtype in (
            ("NCHW", "float32"),
            ("channels_last", "float32"),
            ("NCHW", "float16"),
            ("channels_last", "float16"),
        )
        for m in (MAPS[3], MAPS[2], MAPS[7], MAPS[1], MAPS[0], MAPS[6])
        for cut in cuts_of(m, layout)
    ]


def tune_call(
    job: tuple, batch: int, sets: int, launches: int = 1
) -> tuple[list[Callable[[int], Any]], by_triton.Cut]:
    (network, channels, reduced, height, width), layout, dtype, backward, wanted = job
    shape = Shape(network, batch, channels, reduced, height, width)
    xs = maps(shape, layout, dtype, sets)
    tile = ts.Tile.parse("7xW")
    block = ts.TiledSqueezeExcite(channels, reduced, tile).to(DEVICE).to(DTYPES[dtype])
    block.requires_grad_(False)
    layers = two_layers(block.excite)
    weights = layers.weights
    geometry = by_triton.prepare(choosing.call_of(xs[0], layers.w1, tile, layers.act, layers.gate))
    cut = by_triton.cut(geometry, *wanted)
    copy = lambda k: torch.empty_like(xs[k]).copy_(xs[k])  # noqa: E731
    if not backward:
        with torch.no_grad(), ts.kernels("torch"):
            expected = block(xs[0]).double()
        wrong = error(
            by_triton.forward(
                xs[0], weights, geometry, False, torch.full_like(xs[0], torch.nan), launches, cut
            )[0],
            expected,
        )
        if not wrong < 2 * TOLERANCES[dtype]:
            raise AssertionError(f"wrong by {wrong}")
        return [
            lambda k: by_triton.forward(xs[k], weights, geometry, False, None, launches, cut),
            copy,
        ], cut
    tiles = batch * geometry.tiles
    hidden = torch.randn(tiles, reduced, device=DEVICE)
    gates = torch.rand(tiles, channels, device=DEVICE)
    grads = [torch.randn_like(x) for x in xs]
    w1, _, w2, _ = weights
    return [lambda k: by_triton.backward(xs[k], grads[k], w1, w2, hidden, gates, geometry, launches, cut),
            copy], cut  # fmt: skip


def tune(clock: Clock, report: Report, batch: int) -> None:
    best: dict[tuple, list] = {}
    for job in tuning_jobs():
        if clock.left() < 4:
            report.say("tune: stopped by the time limit")
            break
        (_, channels, reduced, height, width), layout, dtype, backward, wanted = job
        size = batch * channels * height * width * DTYPES[dtype].itemsize
        sets = max(2, sets_of(size) // (2 if backward else 1))
        for launches in (1,):
            try:
                (call, copy), cut = tune_call(job, batch, sets, launches)
                if cut.programs > 132:
                    continue
                result = timed({"copy": copy, "call": call}, sets, 7, clock, eager=False)
            except Exception as fault:
                result = {"call": {"failed": str(fault)[:100]}}
            row = result["call"].get("to_copy", [99.0])[0]
            report.add("tune", {"map": [channels, reduced, height, width], "batch": batch, "layout": layout,
                "dtype": dtype, "backward": backward, "cut": wanted, "launches": launches, "programs": cut.programs,
                **result["call"], "copy_us": result.get("copy", {}).get("us")})  # fmt: skip
            key = (channels, height, layout, dtype, backward)
            best.setdefault(key, []).append((row, wanted))
            del call, copy
        free()
    for key, rows in best.items():
        told = ", ".join(f"{'x'.join(map(str, cut))} {r:.2f}" for r, cut in rows)
        report.say(f"tune b{batch} {key}: {told}")


# --- compiling kernels beforehand ---------------------------------------------------------------------------


def _precompile(jobs: list[tuple[str, tuple]]) -> None:
    for kind, job in jobs:
        try:
            if kind == "tune":
                (call, _), cut = tune_call(job, 1, 1)
                if cut.programs <= 132:
                    call(0)
            elif kind == "compile":
                m, batch, layout, training, name = job
                shape = Shape(m[0], batch, *m[1:])
                (x,) = maps(shape, layout, "float32", 1)
                module = compiled_modules(shape, layout)[name]
                if training:
                    module(x.requires_grad_()).sum().backward()
                else:
                    with torch.no_grad():
                        module(x)
            else:
                m, layout, dtype = job
                shape = Shape(m[0], 1, *m[1:])
                (x,) = maps(shape, layout, dtype, 1)
                module = modules_of(shape, layout, dtype)["fused"]
                with torch.no_grad():
                    module(x)
                module(x.requires_grad_()).sum().backward()
        except Exception as fault:
            print("precompile:", kind, job, str(fault)[:300], flush=True)


def precompile(parts: list[str], processes: int) -> None:
    """Fill Triton's cache with many processes: a kernel takes a second or more to compile."""
    jobs: list[tuple[str, tuple]] = []
    if "tune" in parts:
        jobs += [("tune", job) for job in tuning_jobs()]
    if "compare" in parts:
        jobs += [
            ("fused", (m, layout, dtype))
            for dtype in ("float32", "float16")
            for layout in LAYOUTS
            for m in MAPS
        ]
    if "compile" in parts:
        names = ("compile SE (timm)", "compile paper", "compile plain", "compile fused")
        jobs += [("compile", (*job, name)) for job in COMPILED for name in names]
    if not jobs or processes < 2:
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_precompile, args=(jobs[i::processes],)) for i in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


# --- report ------------------------------------------------------------------------------------------------


class Report:
    """Results, on disk after each of them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.data: dict[str, Any] = {"format": "tiledse.gpu/1"}
        self.text: list[str] = []
        self.written = 0.0

    def add(self, part: str, value: dict[str, Any]) -> None:
        self.data.setdefault(part, []).append(value)
        if time.monotonic() - self.written > 3:
            self.write()

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.text.append(line)

    def line(self, shape: Shape, layout: str, dtype: str, training: bool, result: dict[str, Any]) -> None:
        copy = result["copy"]["us"][0] if "us" in result["copy"] else float("nan")
        eager = result["copy"].get("eager_us", [0.0])[0]
        told = [
            f"{name} {r['to_copy'][0]:.2f} ({r['eager_us'][0]:.0f})" if "to_copy" in r else f"{name} failed"
            for name, r in result.items()
            if name != "copy"
        ]
        what = "train" if training else "infer"
        self.say(f"{shape} {layout} {dtype} {what}: copy {copy:.1f} us ({eager:.0f}): " + ", ".join(told))

    def write(self) -> None:
        self.written = time.monotonic()
        (self.out / "gpu.json").write_text(json.dumps(self.data) + "\n")
        (self.out / "gpu.txt").write_text("\n".join(self.text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    parser.add_argument("--parts", default="check,stress,memory,compare,compile")
    parser.add_argument("--processes", type=int, default=1, help="that compile kernels beforehand")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64, help="of --parts tune")
    args = parser.parse_args()
    clock, parts, report = Clock(args.limit), args.parts.split(","), Report(args.out)
    properties = torch.cuda.get_device_properties(0)
    import triton

    report.data["device"] = {
        "name": properties.name, "memory": properties.total_memory, "multiprocessors": properties.multi_processor_count,
        "l2": properties.L2_cache_size, "torch": torch.__version__, "triton": triton.__version__,
    }  # fmt: skip
    report.say(f"{report.data['device']}")
    precompile(parts, args.processes)
    report.say(f"kernels compiled, {clock.left():.0f} s left")
    for part in parts:
        try:
            if part == "check":
                check(clock, report, args.processes)
            elif part == "stress":
                stress(clock, report)
            elif part == "compare":
                compare(clock, report, args.repeats)
            elif part == "compile":
                compiled(clock, report, args.repeats)
            elif part == "memory":
                memory(clock, report)
            elif part == "tune":
                tune(clock, report, args.batch)
        except Exception as fault:
            import traceback

            report.say(f"{part} ended: {type(fault).__name__}: {str(fault)[:500]}")
            report.say(traceback.format_exc()[-1500:])
        report.say(f"{part} done, {clock.left():.0f} s left")
        report.write()


if __name__ == "__main__":
    main()
