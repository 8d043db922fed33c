"""PEFT's LoRA layers with a third of the kernels in forward and backward: the same sums.

PEFT computes `W x + scaling * B A dropout(x)` in nine operations or more, casts x to float32, and
keeps a dropped-out copy of x for the backward pass. Here W x is added in place to the adapter's
output, and only the dropout mask is kept. Compiled code only keeps the mask's random numbers."""

import functools

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch.autograd.function import once_differentiable

from model_utils.fp8 import fp8_product


def fuse_lora(model):
    """Give the plain LoRA layers of a PEFT model the fused forward. Weights and names stay PEFT's.

    Plain is W x + scaling * B A dropout(x). Other layers keep PEFT's forward: variants such as
    DoRA, layers with a bias on B, and layers on int8 weights, which have no dense form."""
    eligible = {lora.Linear, getattr(lora, "Linear4bit", None)}
    for module in model.modules():
        if (
            type(module) in eligible
            and isinstance(module.base_layer, torch.nn.Linear)  # GPT-2's Conv1D is transposed
            and not module.lora_variant
            and all(b.bias is None for b in module.lora_B.values())
        ):
            module.__class__ = fused_class(type(module))
    return model


@functools.cache
def fused_class(peft_class):
    return type(f"Fused{peft_class.__name__}", (FusedForward, peft_class), {})


class FusedForward:
    def forward(self, x):
        if self.disable_adapters or self.merged:
            return super().forward(x)
        (adapter,) = self.active_adapters
        # Identity has no p.
        dropout = getattr(self.lora_dropout[adapter], "p", 0.0) if self.training else 0.0
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        y = LoraProjection.apply(x.flatten(0, -2), a, b, self.base_layer, self.scaling[adapter], dropout)
        return y.view(*x.shape[:-1], -1)


class LoraProjection(torch.autograd.Function):
    """x: [tokens, in]; a: [r, in] and b: [out, r], float32 or x's dtype; base: a frozen Linear.
    Returns [tokens, out]."""

    @staticmethod
    def forward(ctx, x, a, b, base, scaling, dropout):
        x = x.to(dtype_of(base))
        dropped, mask, noise = x, None, None
        if dropout and torch.compiler.is_compiling():
            noise = draw_noise(x.shape, x.device)
            # Not x * mask as in backward: the compiler would find it in both, and keep it for each
            # projection instead of x.
            dropped = (x.float() * (hashed_mask(noise, x.shape, dropout) / (1 - dropout))).to(x.dtype)
        elif dropout:
            dropped, mask = torch.native_dropout(x, dropout, True)
        low = dropped @ a.t().to(x.dtype)
        y = frozen_product(x, base, low, (b * scaling).to(x.dtype))
        ctx.save_for_backward(x, mask, noise, low, a, b)
        ctx.base, ctx.scaling, ctx.dropout = base, scaling, dropout
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, mask, noise, low, a, b = ctx.saved_tensors
        if noise is not None:
            mask = hashed_mask(noise, x.shape, ctx.dropout)
        keep = 1 - ctx.dropout
        dlow = dy @ (b * ctx.scaling).to(x.dtype)
        db = (dy.t() @ low).to(b.dtype) * ctx.scaling
        da = (dlow.t() @ (x if mask is None else x * mask)).to(a.dtype) / keep
        dx = None
        if ctx.needs_input_grad[0]:
            a = (a / keep).to(x.dtype)
            if mask is None:
                dx = frozen_input_gradient(dy, ctx.base, dlow, a)
            else:
                dx = frozen_input_gradient(dy, ctx.base).addcmul_(dlow @ a, mask)
        return dx, da, db, None, None, None


def frozen_product(x, base, low, b):
    """x Wᵀ + bias + low bᵀ."""
    if in_fp8(base):
        return fp8_product(x, base.fp8.rows, base.bias, low, b.t())
    y = F.linear(low, b, base.bias)
    add_product(y, x, dense(base, base.weight.t()))
    return y


def frozen_input_gradient(dy, base, dlow=None, a=None):
    """dy W, + dlow a if given."""
    if in_fp8(base):
        return fp8_product(dy, base.fp8.columns, None, dlow, a)
    weight = dense(base, base.weight)
    if dlow is None:
        return dy @ weight
    dx = dlow @ a
    add_product(dx, dy, weight)
    return dx


def in_fp8(base):
    """Whether a pass multiplies by the FP8 copies of use_fp8_products: in training only."""
    return base.training and hasattr(base, "fp8")


def add_product(y, left, right):
    """y += left @ right."""
    if torch.compiler.is_compiling():
        torch.ops.tool_calls.add_product(y, left, right)
    else:
        y.addmm_(left, right)


@torch.library.custom_op("tool_calls::add_product", mutates_args={"y"})
def _(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Hidden from the compiler, which would add to a copy of y."""
    y.addmm_(left, right)


def draw_noise(shape, device):
    """A random number for each row and each column of a [tokens, features] input: [tokens +
    features], int32, uniform."""
    return torch.randint(-(2**31), 2**31, (sum(shape),), dtype=torch.int32, device=device)


def hashed_mask(noise, shape, dropout):
    """Dropout's mask of a [tokens, features] input, bool, True for kept entries, by a hash of the
    row's and the column's noise.

    For compiled code: it computes the mask again at each use, in kernels that wait for memory
    anyway, and stores none. Entries are pairwise independent, since the exclusive-or of their
    numbers is. Because of the multiplication, few pairs of rows drop the same columns: pairs whose
    numbers differ in few bits, at a dropout of 0.05 one in a hundred thousand."""
    rows, columns = noise.split(shape)
    # The product wraps around.
    return (rows[:, None] ^ columns) * (0x9E3779B1 - 2**32) >= int(dropout * 2**32) - 2**31


def dense(linear, weight):
    """`linear.weight` or its transpose, dequantised if it is NF4. bitsandbytes reads the transposed
    bytes as the transpose.

    Forward uses one and backward the other: compiled code would keep dense weights that both use,
    for all layers. It only keeps their scales, a sixteenth of a byte per weight."""
    state = quant_state(linear)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight, state)


def dtype_of(linear):
    """Of the dense weight."""
    return (quant_state(linear) or linear.weight).dtype


def quant_state(linear):
    """Of NF4 weights, else None. FSDP2 gathers plain weights; the layer still has the state."""
    return getattr(linear.weight, "quant_state", None) or getattr(linear, "quant_state", None)
