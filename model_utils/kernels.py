"""Triton kernels for generation on a GPU: RMSNorm, SwiGLU, rotary positions, writes to the cache of
slots, and attention of the new tokens of each slot.

A kernel rounds where transformers' operations round, so bf16 logits stay as near to transformers'
as without these kernels. Triton compiles each kernel once and keeps it on disk."""

import torch
import triton
import triton.language as tl

BLOCK = 1024  # elements of a program of the elementwise kernels
DECODE_BLOCK = 64  # of decode_kernel: cached tokens read at once, and a program's most rows


@triton.jit
def as_stored(values, pointer):
    """Round float32 values to the dtype of a tensor, and return float32."""
    return values.to(pointer.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(x, weight, y, num_rows, eps, width: tl.constexpr, columns: tl.constexpr, rows: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)[:, None]
    column = tl.arange(0, columns)[None, :]
    place, inside = row * width + column, (row < num_rows) & (column < width)
    values = tl.load(x + place, inside, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / width + eps)
    factors = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    tl.store(y + place, factors * as_stored(values * scale[:, None], y), inside)


def rms_norm(x, weight, eps):
    """x [..., width] over its root mean square, times weight [width]."""
    x = x.contiguous()
    y, width = torch.empty_like(x), x.shape[-1]
    columns = triton.next_power_of_2(width)
    rows = max(1, 2 * BLOCK // columns)
    num_rows = x.numel() // width
    rms_norm_kernel[(triton.cdiv(num_rows, rows),)](x, weight, y, num_rows, eps, width, columns, rows)
    return y


@triton.jit(do_not_specialize=["step"])
def swiglu_kernel(gate, up, y, step, width: tl.constexpr, block: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    place, inside = token * step + column, column < width
    values = tl.load(gate + place, inside, 0.0).to(tl.float32)
    factors = tl.load(up + place, inside, 0.0).to(tl.float32)
    tl.store(y + token * width + column, as_stored(values * tl.sigmoid(values), y) * factors, inside)


def swiglu(gate, up):
    """silu(gate) * up, [tokens, width] each: the two halves of one product, or contiguous."""
    tokens, width = gate.shape
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    swiglu_kernel[(tokens, triton.cdiv(width, 2 * BLOCK))](gate, up, y, gate.stride(0), width, 2 * BLOCK)
    return y


@triton.jit
def rotate_heads(
    x, y, cache, step, cos, sin, norm, eps, heads: tl.constexpr, padded_heads: tl.constexpr, half: tl.constexpr,
    lanes: tl.constexpr,
):  # fmt: skip
    """One token: x and y point to [heads, 2 * half], cos and sin to [2 * half]. norm: the weight of
    an RMSNorm of each head before, or None. cache: where the result is stored too, with heads that
    are `step` apart, or None."""
    head, lane = tl.arange(0, padded_heads)[:, None], tl.arange(0, lanes)[None, :]
    place, inside = head * 2 * half + lane, (head < heads) & (lane < half)
    left = tl.load(x + place, inside, 0.0).to(tl.float32)
    right = tl.load(x + place + half, inside, 0.0).to(tl.float32)
    if norm is not None:
        scale = tl.rsqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / (2 * half) + eps)[:, None]
        norm_left = tl.load(norm + lane, lane < half, 0.0).to(tl.float32)
        norm_right = tl.load(norm + half + lane, lane < half, 0.0).to(tl.float32)
        left = as_stored(norm_left * as_stored(left * scale, y), y)
        right = as_stored(norm_right * as_stored(right * scale, y), y)
    cos_left = tl.load(cos + lane, lane < half, 0.0).to(tl.float32)
    sin_left = tl.load(sin + lane, lane < half, 0.0).to(tl.float32)
    cos_right = tl.load(cos + half + lane, lane < half, 0.0).to(tl.float32)
    sin_right = tl.load(sin + half + lane, lane < half, 0.0).to(tl.float32)
    new_left = as_stored(left * cos_left, y) - as_stored(right * sin_left, y)
    new_right = as_stored(right * cos_right, y) + as_stored(left * sin_right, y)
    tl.store(y + place, new_left, inside)
    tl.store(y + place + half, new_right, inside)
    if cache is not None:
        tl.store(cache + head * step + lane, new_left, inside)
        tl.store(cache + head * step + half + lane, new_right, inside)


@triton.jit
def copy_heads(
    x, cache, step, heads: tl.constexpr, padded_heads: tl.constexpr, head_dim: tl.constexpr, lanes: tl.constexpr
):
    """One token: from [heads, head_dim] to heads that are `step` apart."""
    head, lane = tl.arange(0, padded_heads)[:, None], tl.arange(0, lanes)[None, :]
    inside = (head < heads) & (lane < head_dim)
    tl.store(cache + head * step + lane, tl.load(x + head * head_dim + lane, inside), inside)


@triton.jit(do_not_specialize=["query_step", "key_step", "value_step", "length"])
def rotary_kernel(
    query, key, value, new_query, new_key, cos, sin, query_norm, key_norm, eps, query_step, key_step, value_step,
    keys, values, slots, positions, length, query_heads: tl.constexpr, key_heads: tl.constexpr,
    padded_query_heads: tl.constexpr, padded_key_heads: tl.constexpr, half: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    cos += token * 2 * half
    sin += token * 2 * half
    query += token * query_step
    key += token * key_step
    new_query += token * query_heads * 2 * half
    new_key += token * key_heads * 2 * half
    step = length * 2 * half
    if keys is not None:
        place = tl.load(slots + token) * key_heads * step + tl.load(positions + token) * 2 * half
        keys += place
        value += token * value_step
        copy_heads(value, values + place, step, key_heads, padded_key_heads, 2 * half, 2 * lanes)
    rotate_heads(query, new_query, None, 0, cos, sin, query_norm, eps, query_heads, padded_query_heads, half, lanes)
    rotate_heads(key, new_key, keys, step, cos, sin, key_norm, eps, key_heads, padded_key_heads, half, lanes)


def rotary(query, key, cos, sin, query_norm=None, key_norm=None, eps=0.0, value=None, cache=(None,) * 4):
    """transformers' apply_rotary_pos_emb, after an RMSNorm of each head if weights [head_dim] are
    given. query [tokens, heads, head_dim], key with as many or fewer heads, cos and sin [tokens,
    head_dim]. The heads of a token are together in memory; the results are contiguous.

    cache: `(keys, values, slots, positions)` of `write`, to write the new keys and `value` too."""
    (tokens, query_heads, head_dim), key_heads = query.shape, key.shape[1]
    new_query, new_key = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key))
    padded_heads = triton.next_power_of_2(query_heads), triton.next_power_of_2(key_heads)
    value_step, length = (0, 0) if value is None else (value.stride(0), cache[0].shape[2])
    # A fused multiply-add would leave out the rounding of products.
    rotary_kernel[(tokens,)](
        query, key, value, new_query, new_key, cos, sin, query_norm, key_norm, eps, query.stride(0), key.stride(0),
        value_step, *cache, length, query_heads, key_heads, *padded_heads, head_dim // 2,
        triton.next_power_of_2(head_dim // 2), enable_fp_fusion=False,
    )  # fmt: skip
    return new_query, new_key


@triton.jit(do_not_specialize=["length", "key_step", "value_step"])
def write_kernel(
    key, value, keys, values, slots, positions, length, key_step, value_step, heads: tl.constexpr,
    padded_heads: tl.constexpr, head_dim: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    token, step = tl.program_id(0).to(tl.int64), length * head_dim
    place = tl.load(slots + token) * heads * step + tl.load(positions + token) * head_dim
    copy_heads(key + token * key_step, keys + place, step, heads, padded_heads, head_dim, lanes)
    copy_heads(value + token * value_step, values + place, step, heads, padded_heads, head_dim, lanes)


def write(key, value, keys, values, slots, positions):
    """keys[slots, :, positions] = key, and the same for values. key, value: [tokens, heads,
    head_dim]; keys, values: [slots, heads, length, head_dim], contiguous; slots, positions: int64
    [tokens]."""
    if key.shape != value.shape:  # MLA caches latents: the kernel would write beyond a tensor's end
        raise ValueError(f"keys {tuple(key.shape[1:])} and values {tuple(value.shape[1:])} of a token differ")
    tokens, heads, head_dim = key.shape
    # The kernel needs the heads of a token together.
    key, value = (x if x.stride()[1:] == (head_dim, 1) else x.contiguous() for x in (key, value))
    write_kernel[(tokens,)](
        key, value, keys, values, slots, positions, keys.shape[2], key.stride(0), value.stride(0), heads,
        triton.next_power_of_2(heads), head_dim, triton.next_power_of_2(head_dim),
    )  # fmt: skip


@triton.jit(do_not_specialize=["length", "window"])
def decode_kernel(
    query, keys, values, lengths, y, length, window, scale, heads: tl.constexpr, group: tl.constexpr,
    tokens: tl.constexpr, rows: tl.constexpr, head_dim: tl.constexpr, lanes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)  # a slot and one of its key-value heads
    slot, head = pair // heads, pair % heads
    end = tl.load(lengths + slot)
    # A row is one new token and one query head.
    row, lane, column = tl.program_id(1) * rows + tl.arange(0, rows), tl.arange(0, lanes), tl.arange(0, block)
    token = tl.minimum(row // group, tokens - 1)
    row_end = (end - tokens + 1 + token)[:, None]
    start = tl.maximum(end - tokens + 1 - window, 0)
    place = (((slot * tokens + token) * heads + head) * group + row % group)[:, None] * head_dim + lane[None, :]
    inside = (row < tokens * group)[:, None] & (lane[None, :] < head_dim)
    queries = tl.load(query + place, inside, 0.0)
    keys += pair * length * head_dim
    values += pair * length * head_dim
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, lanes], tl.float32)
    for first in range(start, end, block):
        position = first + column
        stored = position < end
        key = tl.load(
            keys + position[None, :] * head_dim + lane[:, None], stored[None, :] & (lane[:, None] < head_dim), 0.0
        )
        # The first block has a key of each row: it is longer than the new tokens.
        shown = (position[None, :] < row_end) & (position[None, :] >= row_end - window)
        scores = tl.where(shown, tl.dot(queries, key) * scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shares, shrink = tl.exp(scores - higher[:, None]), tl.exp(highest - higher)
        value = tl.load(
            values + position[:, None] * head_dim + lane[None, :], stored[:, None] & (lane[None, :] < head_dim), 0.0
        )
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(value.dtype), value)
        total = total * shrink + tl.sum(shares, 1)
        highest = higher
    tl.store(y + place, mixed / total[:, None], inside)


def decode(query, keys, values, lengths, scale, window=None):
    """Causal attention of a few new tokens per slot, at most DECODE_BLOCK, in bf16 or float16.

    query: [slots, tokens, heads, head_dim]; keys, values: [slots, kv_heads, length, head_dim],
    contiguous; lengths: int32 [slots], the new tokens included. Returns [slots, tokens, heads,
    head_dim]."""
    if keys.shape != values.shape or not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the cache's keys and values have different shapes, or are not contiguous")
    slots, kv_heads, length, head_dim = keys.shape
    query = query.contiguous()
    y, tokens, group = torch.empty_like(query), query.shape[1], query.shape[2] // kv_heads
    # A matrix product of Triton has 16 rows or more.
    rows = max(16, min(DECODE_BLOCK, triton.next_power_of_2(tokens * group)))
    lanes = triton.next_power_of_2(head_dim)
    # Three blocks in flight are faster than two, if keys and values of three fit.
    memory = torch.cuda.get_device_properties(keys.device).shared_memory_per_block_optin
    stages = 3 if memory > 3.3 * 2 * DECODE_BLOCK * lanes * keys.element_size() else 2
    decode_kernel[(slots * kv_heads, triton.cdiv(tokens * group, rows))](
        query, keys, values, lengths, y, length, window or length, scale, kv_heads, group, tokens, rows, head_dim,
        lanes, DECODE_BLOCK, num_stages=stages,
    )  # fmt: skip
    return y
