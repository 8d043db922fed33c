"""A Triton kernel for the backward pass of fused_lora.py, on GPUs.

The gradient dy of a projection's output has two thin products: with B, for the gradient of the
low-rank activations, and with these activations, for the gradient of B. Both wait for memory. The
kernel reads dy once for both. It sums in float32, always in the same order."""

import torch
import triton
import triton.language as tl

COLUMNS = 64  # of dy, in a step of a program
PROGRAMS = 132  # as many as an H100 or H200 runs at once: fewer sums remain
SHARED_MEMORY = 180 * 1024  # bytes, of a program


@triton.jit(do_not_specialize=["tokens", "blocks"])
def gradients_kernel(
    dy, low, b, dlow, db, tokens, low_row, blocks,
    outs: tl.constexpr, rank: tl.constexpr, lanes: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Program (i, j) reads `rows` rows of dy in `blocks` blocks of columns. It writes its rows'
    part of dlow by these columns, and its columns' part of db by these rows."""
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)[:, None]
    lane = tl.arange(0, lanes)[None, :]
    kept = (row < tokens) & (lane < rank)
    activations = tl.load(low + row * low_row + lane, kept, 0.0)
    row_sum = tl.zeros([rows, lanes], tl.float32)
    for block in range(blocks):
        column = (tl.program_id(1) * blocks + block) * columns + tl.arange(0, columns)
        tile = tl.load(dy + row * outs + column[None, :], (row < tokens) & (column[None, :] < outs), 0.0)
        inside = (column[:, None] < outs) & (lane < rank)
        factor = tl.load(b + column[:, None] * rank + lane, inside, 0.0)
        row_sum = tl.dot(tile, factor, row_sum)
        column_sum = tl.dot(tl.trans(tile), activations)
        tl.store(db + (tl.program_id(0) * outs + column[:, None]) * rank + lane, column_sum, inside)
    tl.store(dlow + (tl.program_id(1) * tokens + row) * rank + lane, row_sum, kept)


@torch.compiler.assume_constant_result  # compiled layers call it
def runs_on(device, dtype, rank):
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or rank > 128:
        return False
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= SHARED_MEMORY


def tiling(tokens, outs, rank):
    """`(rows of a program, programs by rows, programs by columns)`."""
    rows = min(512, 16384 // triton.next_power_of_2(rank))
    chunks = (tokens + rows - 1) // rows
    return rows, chunks, torch.sym_min((outs + COLUMNS - 1) // COLUMNS, torch.sym_max(1, PROGRAMS // chunks))


@torch.library.custom_op("tool_calls::partial_gradients", mutates_args=())
def partial_gradients(dy: torch.Tensor, low: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts of dy @ b, [parts, tokens, rank], and of dy.t() @ low, [parts, out, rank], float32; the
    caller sums them over the first dimension. dy: [tokens, out]; low: [tokens, rank]; b: [out,
    rank], contiguous."""
    tokens, (outs, rank) = dy.shape[0], b.shape
    rows, chunks, parts = tiling(tokens, outs, rank)
    dy, (dlow, db) = dy.contiguous(), empty_parts(dy, low, b)
    blocks = triton.cdiv(triton.cdiv(outs, COLUMNS), parts)
    lanes = max(16, triton.next_power_of_2(rank))
    gradients_kernel[(chunks, parts)](
        dy, low, b, dlow, db, tokens, low.stride(0), blocks, outs, rank, lanes, rows, COLUMNS, num_warps=8, num_stages=2
    )
    return dlow, db


@partial_gradients.register_fake
def empty_parts(dy, low, b):
    tokens, (outs, rank) = dy.shape[0], b.shape
    _, chunks, parts = tiling(tokens, outs, rank)
    options = {"dtype": torch.float32, "device": dy.device}
    return torch.empty(parts, tokens, rank, **options), torch.empty(chunks, outs, rank, **options)
