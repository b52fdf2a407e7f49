"""Triton kernels of the whole operator: the map is read once, gated and written, in one launch.

A program holds some channels and pixels of one tile in registers. What they add to the hidden layer, R numbers, goes to
memory; when all G programs of the tile have given theirs, each sums them, computes the gates of its own channels, and
writes. The backward kernel is the mirror: it reads the gradient and the map once, exchanges what its part gives to the
hidden layer's gradient, and writes the map's gradient. Sums are taken in one order, so results repeat to the bit.

    PHASE 0: one launch. The programs of a tile wait for each other, so all of them must run at once: GPUs start
             programs in order, and a tile has few enough of them (fused.py).
    PHASE 1, 2: two launches, the first up to the exchange, the second from there on. The map is read twice.

With one program a tile nothing is exchanged. Where many programs give many numbers (ONCE), the last to come sums them
for all. Weights are asked for before they are needed (WHOLE: all R rows of them at once), or else the wait for them
adds to the wait for the map. Numbers between the map and the gates are float32 for every map.
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
    t, c, part, C: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
    SC: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Image, offsets in it (channels x pixels), which of them are inside, and the elements of the tile."""
    ROWS: tl.constexpr = (HEIGHT + TALL - 1) // TALL
    COLS: tl.constexpr = (WIDTH + WIDE - 1) // WIDE
    n = t // (ROWS * COLS)
    row = (t // COLS) % ROWS
    col = t % COLS
    p = part * BLOCK_P + tl.arange(0, BLOCK_P)
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
def _weight(  # type: ignore[no-untyped-def]
    weight, r, c, R: tl.constexpr, C: tl.constexpr, WR: tl.constexpr, WC: tl.constexpr
):
    """Rows r and columns c of a weight, R x C with strides WR and WC."""
    inside = (r < R)[:, None] & (c < C)[None, :]
    return tl.load(weight + r[:, None] * WR + c[None, :] * WC, mask=inside, other=0.0)


@triton.jit
def _taken(  # type: ignore[no-untyped-def]
    partial, t, r, R: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr
):
    """The sum of what the G programs of tile t gave, for some of the hidden layer."""
    k = tl.arange(0, BLOCK_G)
    inside = (k < G)[:, None] & (r < R)[None, :]
    given = tl.load(
        partial + (t * G + k)[:, None] * R + r[None, :], mask=inside, other=0.0, cache_modifier=".cg"
    )
    return tl.sum(given, 0)


@triton.jit
def _wait(  # type: ignore[no-untyped-def]
    partial, sums, ready, t, q, R: tl.constexpr, G: tl.constexpr, ONCE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Say that this program has given, and wait until all G have; with ONCE, until the last has summed as well.

    A launch adds 256 to the counter of each tile, the first program what the others leave. So every launch finds a
    multiple of 256 and waits for the next, and nobody has to set counters back.
    """
    tl.debug_barrier()
    mine = 1
    if q == 0:
        mine = 257 - G - ONCE
    before = tl.atomic_add(ready + t, mine, sem="acq_rel")
    end = before - (before & 255) + 256
    if ONCE:
        if before + mine == end - 1:
            tl.debug_barrier()
            for r0 in range(0, R, BLOCK_R):
                r = r0 + tl.arange(0, BLOCK_R)
                tl.store(sums + t * R + r, _taken(partial, t, r, R, G, BLOCK_G), mask=r < R)
            tl.debug_barrier()
            tl.atomic_add(ready + t, 1, sem="release")
    # The difference, because a counter overflows after 16 million launches.
    while tl.atomic_add(ready + t, 0, sem="acquire") - end < 0:
        pass
    tl.debug_barrier()


@triton.jit
def _summed(  # type: ignore[no-untyped-def]
    partial, sums, t, r, R: tl.constexpr, G: tl.constexpr, ONCE: tl.constexpr, BLOCK_G: tl.constexpr
):
    """What all programs of the tile gave together, for some of the hidden layer."""
    if ONCE:
        total = tl.load(sums + t * R + r, mask=r < R, other=0.0, cache_modifier=".cg")
    else:
        total = _taken(partial, t, r, R, G, BLOCK_G)
    return total


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, out, w1, b1, w2, b2, partial, sums, ready, descriptors, hidden, gates, sn,
    C: tl.constexpr, R: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr,
    WIDE: tl.constexpr, SC: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, ACT: tl.constexpr,
    GATE: tl.constexpr, SAVE: tl.constexpr, PHASE: tl.constexpr, ACROSS: tl.constexpr, PARTS: tl.constexpr,
    ONCE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """out = x * gate. A tile is cut into ACROSS runs of channels and PARTS runs of pixels.

    SAVE keeps descriptors (tiles, PARTS, C), to be summed over the parts, the hidden layer before its activation and
    the gates (tiles, R or C).
    """
    G: tl.constexpr = ACROSS * PARTS
    WHOLE: tl.constexpr = BLOCK_R >= R
    t, q = tl.program_id(0) // G, tl.program_id(0) % G
    c = (q % ACROSS) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    n, offsets, inside, count = _place(t, c, q // ACROSS, C, HEIGHT, WIDTH, TALL, WIDE, SC, SH, SW, BLOCK_P)
    if WHOLE and PHASE != 2:
        down = _weight(w1, r, c, R, C, C, 1)
    value = tl.load(x + n * sn + offsets, mask=inside, other=0.0)
    if WHOLE and PHASE != 1:
        up = _weight(w2, c, r, C, R, R, 1)
    if PHASE != 2:
        z = tl.sum(value.to(tl.float32), 1) / count
        if SAVE:
            tl.store(descriptors + (t * PARTS + q // ACROSS) * C + c, z, mask=c < C)
        if WHOLE:
            given = tl.sum(down.to(tl.float32) * z[None, :], 1)
            if G > 1 or PHASE == 1:
                tl.store(partial + (t * G + q) * R + r, given, mask=r < R)
        else:
            for r0 in range(0, R, BLOCK_R):
                w = _weight(w1, r0 + r, c, R, C, C, 1)
                given = tl.sum(w.to(tl.float32) * z[None, :], 1)
                tl.store(partial + (t * G + q) * R + r0 + r, given, mask=r0 + r < R)
        if PHASE == 0 and (G > 1 or not WHOLE):
            _wait(partial, sums, ready, t, q, R, G, ONCE, BLOCK_R, BLOCK_G)
    if PHASE != 1:
        a2 = tl.load(b2 + c, mask=c < C, other=0.0).to(tl.float32)
        if WHOLE:
            if G > 1 or PHASE == 2:
                given = _summed(partial, sums, t, r, R, G, ONCE, BLOCK_G)
            a1 = given + tl.load(b1 + r, mask=r < R, other=0.0).to(tl.float32)
            if SAVE:
                tl.store(hidden + t * R + r, a1, mask=(r < R) & (q == 0))
            a2 += tl.sum(up.to(tl.float32) * _act(a1, ACT)[None, :], 1)
        else:
            for r0 in range(0, R, BLOCK_R):
                a1 = _summed(partial, sums, t, r0 + r, R, G, ONCE, BLOCK_G)
                a1 += tl.load(b1 + r0 + r, mask=r0 + r < R, other=0.0).to(tl.float32)
                if SAVE:
                    tl.store(hidden + t * R + r0 + r, a1, mask=(r0 + r < R) & (q == 0))
                w = _weight(w2, c, r0 + r, C, R, R, 1)
                a2 += tl.sum(w.to(tl.float32) * _act(a1, ACT)[None, :], 1)
        gate = _gate(a2, GATE)
        if SAVE:
            tl.store(gates + t * C + c, gate, mask=(c < C) & (q < ACROSS))
        scaled = value.to(tl.float32) * gate[:, None]
        tl.store(out + n * sn + offsets, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    x, grad, out, w1, w2, partial, sums, ready, hidden, gates, grad_a1, grad_a2, sn,
    C: tl.constexpr, R: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr,
    WIDE: tl.constexpr, SC: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, ACT: tl.constexpr,
    GATE: tl.constexpr, PHASE: tl.constexpr, ACROSS: tl.constexpr, PARTS: tl.constexpr, ONCE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """out = the gradient of x; grad_a1 (tiles, R) and grad_a2 (tiles, PARTS, C) those of both layers' sums."""
    G: tl.constexpr = ACROSS * PARTS
    WHOLE: tl.constexpr = BLOCK_R >= R
    t, q = tl.program_id(0) // G, tl.program_id(0) % G
    c = (q % ACROSS) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    n, offsets, inside, count = _place(t, c, q // ACROSS, C, HEIGHT, WIDTH, TALL, WIDE, SC, SH, SW, BLOCK_P)
    if WHOLE and PHASE != 2:
        up = _weight(w2, r, c, R, C, 1, R)
    upstream = tl.load(grad + n * sn + offsets, mask=inside, other=0.0)
    gate = tl.load(gates + t * C + c, mask=c < C, other=0.0)
    if PHASE != 2:
        value = tl.load(x + n * sn + offsets, mask=inside, other=0.0)
        if WHOLE and PHASE != 1:
            down = _weight(w1, c, r, C, R, 1, C)
        grad_gate = tl.sum(upstream.to(tl.float32) * value.to(tl.float32), 1)
        to_a2 = grad_gate * _gate_slope(gate, GATE)
        tl.store(grad_a2 + (t * PARTS + q // ACROSS) * C + c, to_a2, mask=c < C)
        if WHOLE:
            given = tl.sum(up.to(tl.float32) * to_a2[None, :], 1)
            if G > 1 or PHASE == 1:
                tl.store(partial + (t * G + q) * R + r, given, mask=r < R)
        else:
            for r0 in range(0, R, BLOCK_R):
                w = _weight(w2, r0 + r, c, R, C, 1, R)
                given = tl.sum(w.to(tl.float32) * to_a2[None, :], 1)
                tl.store(partial + (t * G + q) * R + r0 + r, given, mask=r0 + r < R)
        if PHASE == 0 and (G > 1 or not WHOLE):
            _wait(partial, sums, ready, t, q, R, G, ONCE, BLOCK_R, BLOCK_G)
    elif WHOLE:
        down = _weight(w1, c, r, C, R, 1, C)
    if PHASE != 1:
        share = tl.zeros((BLOCK_C,), dtype=tl.float32)
        if WHOLE:
            if G > 1 or PHASE == 2:
                given = _summed(partial, sums, t, r, R, G, ONCE, BLOCK_G)
            to_a1 = given * _act_slope(tl.load(hidden + t * R + r, mask=r < R, other=0.0), ACT)
            tl.store(grad_a1 + t * R + r, to_a1, mask=(r < R) & (q == 0))
            share += tl.sum(down.to(tl.float32) * to_a1[None, :], 1)
        else:
            for r0 in range(0, R, BLOCK_R):
                slope = _act_slope(tl.load(hidden + t * R + r0 + r, mask=r0 + r < R, other=0.0), ACT)
                to_a1 = _summed(partial, sums, t, r0 + r, R, G, ONCE, BLOCK_G) * slope
                tl.store(grad_a1 + t * R + r0 + r, to_a1, mask=(r0 + r < R) & (q == 0))
                w = _weight(w1, c, r0 + r, C, R, 1, C)
                share += tl.sum(w.to(tl.float32) * to_a1[None, :], 1)
        share = share / count
        spread = upstream.to(tl.float32) * gate[:, None] + share[:, None]
        tl.store(out + n * sn + offsets, spread.to(out.dtype.element_ty), mask=inside)
