"""Triton kernels of the whole operator: the map is read once, gated and written, in one launch.

A program holds some channels of one tile in registers. What it adds to the hidden layer, R numbers, goes to memory;
when all programs of the tile have added theirs, each sums them, computes the gates of its own channels, and
writes. The backward kernel is the mirror: it reads the gradient and the map once, exchanges what its channels give to the
hidden layer's gradient, and writes the map's gradient.

    PHASE 0: one launch. The programs of a tile wait for each other, so all of them must run at once: GPUs start
             programs in order, and a tile has fewer programs than the GPU has multiprocessors.
    PHASE 1, 2: two launches, the first up to the exchange, the second from there on. The map is read twice.

With one program a tile nothing is exchanged. Numbers between the map and the gates are float32 for every map.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _act(a, ACT: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton compiles it
    if ACT == "relu":
        h = tl.where(a <= 0, 0.0, a)  # a NaN stays one
    elif ACT == "silu":
        h = a / (1 + tl.exp(-a))
    else:
        h = a * _clamped(a)
    return h


@triton.jit
def _act_slope(a, ACT: tl.constexpr):  # type: ignore[no-untyped-def]
    if ACT == "relu":
        slope = tl.where(a <= 0, 0.0, 1.0)
    elif ACT == "silu":
        s = 1 / (1 + tl.exp(-a))
        slope = s * (1 + a * (1 - s))
    else:
        slope = tl.where(a <= -3, 0.0, tl.where(a >= 3, 1.0, a / 3 + 0.5))
    return slope


@triton.jit
def _clamped(a):  # type: ignore[no-untyped-def]
    return tl.where(a <= -3, 0.0, tl.where(a >= 3, 1.0, a / 6 + 0.5))


@triton.jit
def _gate(a, GATE: tl.constexpr):  # type: ignore[no-untyped-def]
    if GATE == "sigmoid":
        g = 1 / (1 + tl.exp(-a))
    else:
        g = _clamped(a)
    return g


@triton.jit
def _gate_slope(g, GATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """From the gate itself."""
    if GATE == "sigmoid":
        slope = g * (1 - g)
    else:
        slope = tl.where((g > 0) & (g < 1), 1.0 / 6, 0.0)
    return slope


@triton.jit
def _place(  # type: ignore[no-untyped-def]
    t, c, C: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
    SC: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Image, offsets in it (channels x pixels), which of them are inside, and the elements of the tile."""
    ROWS: tl.constexpr = (HEIGHT + TALL - 1) // TALL
    COLS: tl.constexpr = (WIDTH + WIDE - 1) // WIDE
    n = t // (ROWS * COLS)
    row = (t // COLS) % ROWS
    col = t % COLS
    p = tl.arange(0, BLOCK_P)
    high = TALL
    if HEIGHT % TALL != 0:
        high = tl.minimum(TALL, HEIGHT - row * TALL)
    if WIDE == WIDTH and SH == WIDTH * SW:
        # Strips lie in one piece: no division, and loads as wide as the strip's length allows.
        wide = WIDTH
        at = row * (TALL * SH) + p * SW
        within = p < high * WIDTH
    else:
        wide = WIDE
        if WIDTH % WIDE != 0:
            wide = tl.minimum(WIDE, WIDTH - col * WIDE)
        at = row * (TALL * SH) + col * (WIDE * SW) + (p // WIDE) * SH + (p % WIDE) * SW
        within = (p // WIDE < high) & (p % WIDE < wide)
    offsets = c[:, None] * SC + at[None, :]
    inside = (c < C)[:, None] & within[None, :]
    return n.to(tl.int64), offsets, inside, high * wide


@triton.jit
def _give(  # type: ignore[no-untyped-def]
    values, c, weight, partial, slot, C: tl.constexpr, R: tl.constexpr, WR: tl.constexpr, WC: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write what these channels add to the hidden layer: weight (R x C, strides WR and WC) times values."""
    for r0 in range(0, R, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        w = tl.load(
            weight + r[:, None] * WR + c[None, :] * WC, mask=(r < R)[:, None] & (c < C)[None, :], other=0.0
        )
        tl.store(partial + slot * R + r, tl.sum(w.to(tl.float32) * values[None, :], 1), mask=r < R)


@triton.jit
def _taken(  # type: ignore[no-untyped-def]
    partial, t, r, R: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr
):
    """The sum of what the G programs of tile t gave, for some of the hidden layer."""
    k = tl.arange(0, BLOCK_G)
    given = tl.load(
        partial + (t * G + k)[:, None] * R + r[None, :],
        mask=(k < G)[:, None] & (r < R)[None, :], other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    return tl.sum(given, 0)


@triton.jit
def _wait(ready, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """Say that this program has given, and wait until all G have."""
    tl.debug_barrier()
    tl.atomic_add(ready, 1, sem="release")
    while tl.atomic_add(ready, 0, sem="acquire") < G:
        pass
    tl.debug_barrier()


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, out, w1, b1, w2, b2, partial, ready, descriptors, hidden, gates, sn,
    C: tl.constexpr, R: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr,
    WIDE: tl.constexpr, SC: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, ACT: tl.constexpr,
    GATE: tl.constexpr, SAVE: tl.constexpr, PHASE: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """out = x * gate. SAVE keeps descriptors, the hidden layer before its activation, and gates: (tiles, C or R)."""
    t, g = tl.program_id(0) // G, tl.program_id(0) % G
    c = g * BLOCK_C + tl.arange(0, BLOCK_C)
    n, offsets, inside, count = _place(t, c, C, HEIGHT, WIDTH, TALL, WIDE, SC, SH, SW, BLOCK_P)
    value = tl.load(x + n * sn + offsets, mask=inside, other=0.0)
    if PHASE != 2:
        z = tl.sum(value.to(tl.float32), 1) / count
        if SAVE:
            tl.store(descriptors + t * C + c, z, mask=c < C)
        _give(z, c, w1, partial, t * G + g, C, R, C, 1, BLOCK_R)
        if PHASE == 0:
            if G > 1:
                _wait(ready + t, G)
            else:
                tl.debug_barrier()
    if PHASE != 1:
        a2 = tl.load(b2 + c, mask=c < C, other=0.0).to(tl.float32)
        for r0 in range(0, R, BLOCK_R):
            r = r0 + tl.arange(0, BLOCK_R)
            a1 = _taken(partial, t, r, R, G, BLOCK_G, BLOCK_R)
            a1 += tl.load(b1 + r, mask=r < R, other=0.0).to(tl.float32)
            if SAVE:
                tl.store(hidden + t * R + r, a1, mask=(r < R) & (g == 0))
            w = tl.load(
                w2 + c[:, None] * R + r[None, :], mask=(c < C)[:, None] & (r < R)[None, :], other=0.0
            )
            a2 += tl.sum(w.to(tl.float32) * _act(a1, ACT)[None, :], 1)
        gate = _gate(a2, GATE)
        if SAVE:
            tl.store(gates + t * C + c, gate, mask=c < C)
        scaled = value.to(tl.float32) * gate[:, None]
        tl.store(out + n * sn + offsets, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    x, grad, out, w1, w2, partial, ready, hidden, gates, grad_a1, grad_a2, sn,
    C: tl.constexpr, R: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr,
    WIDE: tl.constexpr, SC: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, ACT: tl.constexpr,
    GATE: tl.constexpr, PHASE: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """out = the gradient of x; grad_a1 and grad_a2 those of both layers' sums, (tiles, R or C)."""
    t, g = tl.program_id(0) // G, tl.program_id(0) % G
    c = g * BLOCK_C + tl.arange(0, BLOCK_C)
    n, offsets, inside, count = _place(t, c, C, HEIGHT, WIDTH, TALL, WIDE, SC, SH, SW, BLOCK_P)
    upstream = tl.load(grad + n * sn + offsets, mask=inside, other=0.0)
    gate = tl.load(gates + t * C + c, mask=c < C, other=0.0)
    if PHASE != 2:
        value = tl.load(x + n * sn + offsets, mask=inside, other=0.0)
        grad_gate = tl.sum(upstream.to(tl.float32) * value.to(tl.float32), 1)
        given = grad_gate * _gate_slope(gate, GATE)
        tl.store(grad_a2 + t * C + c, given, mask=c < C)
        _give(given, c, w2, partial, t * G + g, C, R, 1, R, BLOCK_R)
        if PHASE == 0:
            if G > 1:
                _wait(ready + t, G)
            else:
                tl.debug_barrier()
    if PHASE != 1:
        share = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for r0 in range(0, R, BLOCK_R):
            r = r0 + tl.arange(0, BLOCK_R)
            a1 = tl.load(hidden + t * R + r, mask=r < R, other=0.0)
            to_a1 = _taken(partial, t, r, R, G, BLOCK_G, BLOCK_R) * _act_slope(a1, ACT)
            tl.store(grad_a1 + t * R + r, to_a1, mask=(r < R) & (g == 0))
            w = tl.load(
                w1 + r[:, None] * C + c[None, :], mask=(r < R)[:, None] & (c < C)[None, :], other=0.0
            )
            share += tl.sum(w.to(tl.float32) * to_a1[:, None], 0)
        share = share / count
        spread = upstream.to(tl.float32) * gate[:, None] + share[:, None]
        tl.store(out + n * sn + offsets, spread.to(out.dtype.element_ty), mask=inside)
