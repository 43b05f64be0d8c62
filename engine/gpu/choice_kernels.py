"""Triton kernels that turn logits into tokens, one program a row of logits; their caller is engine.gpu.choice.

A row is read for the likeliest token and the sum of exponentials (online, Milakov and Gimelshein 2018), and once more,
where it is sampled, for the best of `logits / temperature + noise`; `find_cuts` reads it some twenty times where others
sort it. Nothing of the vocabulary's size is written.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows_a_span"])
def choose_rows(
    logits_ptr,  # [R, V], contiguous; the banned columns are overwritten with -inf
    token_ptr,  # [R] int64
    logprob_ptr,  # [R] float32: natural log of the token's probability, before temperature and filters
    finite_ptr,  # [R] int8: the row held no NaN and no infinity, banned columns included
    params_ptr,  # [n, 6] int32, a row a span: low and high half of the seed, float32 bits of temperature (0: greedy)
    # and of the natural log of min_p (-inf: off), top_k (0: off), float32 bits of top_p (1: off)
    positions_ptr,  # [R] int64: absolute positions of the tokens to choose
    cuts_ptr,  # [R, 2] int32, of `find_cuts`; unused unless CUT
    banned_ptr,  # [NUM_BANNED] int64
    rows_a_span,  # R / n
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BANNED: tl.constexpr,
    KEY_SHIFT: tl.constexpr,  # low bits of a float32 that the logits' type leaves without meaning
    SAMPLED: tl.constexpr,  # whether any row's temperature is above 0; params, positions and cuts are unused otherwise
    CUT: tl.constexpr,
):
    """Program (row): of equal tokens the first is chosen."""
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * V
    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    broken = tl.zeros([BLOCK], tl.int32)
    for at in range(0, V, BLOCK):
        ids = at + lanes
        x = tl.load(logits + ids, mask=ids < V, other=float("-inf")).to(tl.float32)
        broken |= (((x != x) | (tl.abs(x) == float("inf"))) & (ids < V)).to(tl.int32)
        x = _without_banned(x, ids, banned_ptr, NUM_BANNED)
        higher = tl.maximum(best, x)
        reference = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(best - reference) + tl.exp(x - reference)
        best_id = tl.where(x > best, ids, best_id)
        best = higher
    highest = tl.max(best, 0)
    reference = tl.where(highest == float("-inf"), 0.0, highest)
    normaliser = reference + tl.log(tl.sum(total * tl.exp(best - reference), 0))
    token = tl.min(tl.where(best == highest, best_id, V - 1), 0)
    score = highest

    if SAMPLED:
        params = params_ptr + row // rows_a_span * 6
        temperature = tl.load(params + 2).to(tl.float32, bitcast=True)
        if temperature > 0.0:
            floor = highest / temperature + tl.load(params + 3).to(tl.float32, bitcast=True)
            first, second = _noise_keys(tl.load(params), tl.load(params + 1), tl.load(positions_ptr + row))
            best = tl.full([BLOCK], float("-inf"), tl.float32)
            for at in range(0, V, BLOCK):
                ids = at + lanes
                x = tl.load(logits + ids, mask=ids < V, other=float("-inf")).to(tl.float32)
                x = _without_banned(x, ids, banned_ptr, NUM_BANNED)
                kept = x / temperature >= floor
                if CUT:
                    key, cut_key = _key(x, KEY_SHIFT), tl.load(cuts_ptr + row * 2)
                    kept &= (key > cut_key) | ((key == cut_key) & (ids <= tl.load(cuts_ptr + row * 2 + 1)))
                noisy = tl.where(kept, x / temperature + _gumbel(ids, first, second), float("-inf"))
                best_id = tl.where(noisy > best, ids, best_id)
                best = tl.maximum(best, noisy)
            token = tl.min(tl.where(best == tl.max(best, 0), best_id, V - 1), 0)
            score = tl.load(logits + token).to(tl.float32)

    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, score - normaliser)
    tl.store(finite_ptr + row, (tl.max(broken, 0) == 0).to(tl.int8))
    tl.debug_barrier()  # a banned logit may still be wanted by another thread of this program
    for i in tl.static_range(NUM_BANNED):
        tl.store(logits + tl.load(banned_ptr + i), float("-inf"))


@triton.jit(do_not_specialize=["rows_a_span"])
def find_cuts(
    logits_ptr,  # [R, V], contiguous
    cuts_ptr,  # [R, 2] int32: kept are tokens with a key above the first, or the same one and an id up to the second
    params_ptr,  # as above
    banned_ptr,  # [NUM_BANNED] int64
    rows_a_span,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BANNED: tl.constexpr,
    KEY_SHIFT: tl.constexpr,
    ID_BITS: tl.constexpr,  # of V
):
    """Program (row): the `top_k` best tokens and, of their renormalised distribution, the smallest set of mass `top_p`.
    Equal logits are kept or dropped by token id, lower first."""
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * V
    params = params_ptr + row // rows_a_span * 6
    temperature = tl.load(params + 2).to(tl.float32, bitcast=True)
    top_k = tl.load(params + 4)
    top_p = tl.load(params + 5).to(tl.float32, bitcast=True)
    key, last_id = tl.full([], -(2**31), tl.int32), tl.full([], V, tl.int32)
    if temperature > 0.0:
        if (top_k > 0) & (top_k < V):
            key, last_id = _cut(
                logits, banned_ptr, key, last_id, top_k.to(tl.float32), 0.0, 0.0,
                V, BLOCK, NUM_BANNED, KEY_SHIFT, ID_BITS,
            )  # fmt: skip
        if top_p < 1.0:
            lanes = tl.arange(0, BLOCK)
            highest = tl.full([BLOCK], float("-inf"), tl.float32)
            for at in range(0, V, BLOCK):
                x = tl.load(logits + at + lanes, mask=at + lanes < V, other=float("-inf")).to(tl.float32)
                highest = tl.maximum(highest, _without_banned(x, at + lanes, banned_ptr, NUM_BANNED))
            best = tl.max(highest, 0)
            mass = _mass(
                logits, banned_ptr, key, last_id, key, last_id, best, 1.0 / temperature,
                V, BLOCK, NUM_BANNED, KEY_SHIFT, False,
            )  # fmt: skip
            key, last_id = _cut(
                logits, banned_ptr, key, last_id, tl.maximum(top_p * mass, 1e-30), best, 1.0 / temperature,
                V, BLOCK, NUM_BANNED, KEY_SHIFT, ID_BITS,
            )  # fmt: skip
    tl.store(cuts_ptr + row * 2, key)
    tl.store(cuts_ptr + row * 2 + 1, last_id)


@triton.jit
def _cut(
    logits, banned_ptr, kept_key, kept_id, goal, best, inverse,
    V: tl.constexpr, BLOCK: tl.constexpr, NUM_BANNED: tl.constexpr, KEY_SHIFT: tl.constexpr, ID_BITS: tl.constexpr,
):  # fmt: skip
    """The cut of what is kept so far, at which the best of it just reach `goal`: bit by bit, first the key, then, if
    some of the tokens with that key are too many, the id. See `_mass` for best and inverse."""
    one = tl.full([], 1, tl.int32)
    key = tl.full([], -(2 ** (31 - KEY_SHIFT)), tl.int32)
    for step in range(32 - KEY_SHIFT):
        trial = key + (one << (31 - KEY_SHIFT - step))
        mass = _mass(
            logits, banned_ptr, kept_key, kept_id, trial, V, best, inverse, V, BLOCK, NUM_BANNED, KEY_SHIFT, False
        )
        key = tl.where(mass >= goal, trial, key)
    above = _mass(logits, banned_ptr, kept_key, kept_id, key, -1, best, inverse, V, BLOCK, NUM_BANNED, KEY_SHIFT, False)
    ties = _mass(logits, banned_ptr, kept_key, kept_id, key, V, best, inverse, V, BLOCK, NUM_BANNED, KEY_SHIFT, True)
    last = tl.full([], V, tl.int32)
    if above + ties > goal:
        last = tl.full([], 0, tl.int32)
        for step in range(ID_BITS):
            trial = last + (one << (ID_BITS - 1 - step))
            ties = _mass(
                logits, banned_ptr, kept_key, kept_id, key, trial - 1, best, inverse,
                V, BLOCK, NUM_BANNED, KEY_SHIFT, True,
            )  # fmt: skip
            last = tl.where(above + ties < goal, trial, last)
    return key, tl.where(key == kept_key, tl.minimum(last, kept_id), last)


@triton.jit
def _mass(
    logits, banned_ptr, kept_key, kept_id, key, last_id, best, inverse,
    V: tl.constexpr, BLOCK: tl.constexpr, NUM_BANNED: tl.constexpr, KEY_SHIFT: tl.constexpr, TIES: tl.constexpr,
):  # fmt: skip
    """Sum of exp((x - best) * inverse) over the kept tokens beyond a cut; with TIES over those on the cut alone. An
    inverse temperature of 0 counts tokens."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(0, V, BLOCK):
        ids = at + lanes
        x = tl.load(logits + ids, mask=ids < V, other=float("-inf")).to(tl.float32)
        x = _without_banned(x, ids, banned_ptr, NUM_BANNED)
        own = _key(x, KEY_SHIFT)
        kept = (ids < V) & ((own > kept_key) | ((own == kept_key) & (ids <= kept_id)))
        on_cut = (own == key) & (ids <= last_id)
        within = on_cut if TIES else (own > key) | on_cut
        weight = tl.exp((x - best) * inverse) if inverse > 0.0 else tl.full([BLOCK], 1.0, tl.float32)
        total += tl.where(kept & within, weight, 0.0)
    return tl.sum(total, 0)


@triton.jit
def _key(x, KEY_SHIFT: tl.constexpr):
    """int32 in the order of the floats; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> KEY_SHIFT


@triton.jit
def _without_banned(x, ids, banned_ptr, NUM_BANNED: tl.constexpr):
    for i in tl.static_range(NUM_BANNED):
        x = tl.where(ids == tl.load(banned_ptr + i), float("-inf"), x)
    return x


@triton.jit
def _mix(x):
    """See engine.sampling.noise; uint32."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def _noise_keys(low, high, place):
    """Two words for every (seed, position); see engine.sampling.noise."""
    low, high, place = low.to(tl.uint32, bitcast=True), high.to(tl.uint32, bitcast=True), place.to(tl.uint32)
    first = _mix(_mix(_mix(low + 0x3C6EF372) ^ high) ^ _mix(place + 0x1BD11BDA))
    second = _mix(_mix(_mix(high + 0x2545F491) + low) ^ (place * 0x9E3779B9 + 0x5BF03635))
    return first, second


@triton.jit
def _gumbel(ids, first, second):
    """engine.sampling.noise.gumbel_noise of a row whose keys are given: the same integers, floats within 4 ulp of
    max(|noise|, 1) where the logarithm is right to 1 ulp."""
    x = _mix(ids.to(tl.uint32) * 0x9E3779B9 + 1) ^ first
    x = (x ^ (x >> 16)) * 0x21F0AAAD ^ second
    x = (x ^ (x >> 15)) * 0xD35A2D97
    bits = x ^ (x >> 15)
    uniform = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10
    uniform = tl.minimum(uniform, 0.9999999403953552)
    # -log1p(-uniform) without a library: the rounding of 1 - uniform is divided out again (Kahan).
    rest = 1.0 - uniform
    gone = tl.where(rest == 1.0, 1.0, 1.0 - rest)
    exponential = tl.where(rest == 1.0, uniform, -tl.log(rest) * uniform / gone)
    return -tl.log(exponential)
