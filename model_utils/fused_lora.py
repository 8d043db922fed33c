"""PEFT's LoRA layers with a third of the kernels in forward and backward: the same sums.

PEFT computes `W x + scaling * B A dropout(x)` in nine operations or more, casts x to float32, and
keeps a dropped-out copy of x for the backward pass. Here W x is added in place to the adapter's
output, and only the dropout mask is kept. Compiled code only keeps the mask's random numbers, and
computes layers of one input together (group_lora)."""

import functools
import itertools

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch.autograd.function import once_differentiable

from model_utils.fp8 import fp8_product

# Layers of one parent that transformers calls with the same input.
GROUPS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


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
            module.group, module.handed = [module], None
    return model


def group_lora(model):
    """Let the fused layers with one input share their work in compiled code. They read the input
    once for all A, and once for the gradients of all A. Its gradient is one tensor from the start,
    and not a sum of one for each layer.

    With dropout they share a mask. Each layer drops as PEFT does, but not independently of the
    others."""
    for parent in model.modules():
        for names in GROUPS:
            group = [layer for name in names if isinstance(layer := getattr(parent, name, None), FusedForward)]
            if len({layer.in_features for layer in group}) == 1:
                for layer in group:
                    layer.group = group


@functools.cache
def fused_class(peft_class):
    return type(f"Fused{peft_class.__name__}", (FusedForward, peft_class), {})


class FusedForward:
    def forward(self, x):
        if not self.is_plain:
            return super().forward(x)
        handed, self.handed = self.handed, None
        if handed and handed[0] is x:
            return handed[1]
        is_alone = handed or not torch.compiler.is_compiling()
        if is_alone or not all(layer.is_plain for layer in self.group):
            return project(x, [self])[0]
        # The first to be called computes for all. The others take it if this very tensor is theirs.
        for layer, y in zip(self.group, project(x, self.group), strict=True):
            layer.handed = x, y
        (_, y), self.handed = self.handed, None
        return y

    @property
    def is_plain(self):
        return not (self.disable_adapters or self.merged)


def project(x, layers):
    """The outputs [..., out] of LoRA layers with the input x [..., in]."""
    parts = []
    for layer in layers:
        (adapter,) = layer.active_adapters
        factors = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        parts.append((layer.base_layer, layer.scaling[adapter], *factors))
    # Identity has no p.
    dropout = getattr(layers[0].lora_dropout[adapter], "p", 0.0) if layers[0].training else 0.0
    # The compiler takes no lists here.
    ys = LoraProjection.apply(x.flatten(0, -2), dropout, *itertools.chain(*zip(*parts, strict=True)))
    return [y.view(*x.shape[:-1], -1) for y in ys]


class LoraProjection(torch.autograd.Function):
    """LoRA layers with one input x, [tokens, in]. parts: their frozen Linears, then their scalings,
    then their A [r, in], then their B [out, r]. A and B have float32 or x's dtype; ranks may
    differ. Returns a tuple of [tokens, out]."""

    @staticmethod
    def forward(ctx, x, dropout, *parts):
        bases, scalings, a, b = quarters(parts)
        x = x.to(dtype_of(bases[0]))
        dropped, mask, noise = x, None, None
        if dropout and torch.compiler.is_compiling():
            noise = draw_noise(x.shape, x.device)
            # Not x * mask as in backward: the compiler would find it in both, and keep it for each
            # projection instead of x.
            dropped = (x.float() * (hashed_mask(noise, x.shape, dropout) / (1 - dropout))).to(x.dtype)
        elif dropout:
            dropped, mask = torch.native_dropout(x, dropout, True)
        low = dropped @ joined(a).t().to(x.dtype)
        lows = low.split([len(part) for part in a], dim=1)
        ys = [
            frozen_product(x, base, part, (factor * scaling).to(x.dtype))
            for base, part, factor, scaling in zip(bases, lows, b, scalings, strict=True)
        ]
        ctx.save_for_backward(x, mask, noise, low, *a, *b)
        ctx.bases, ctx.scalings, ctx.dropout = bases, scalings, dropout
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        x, mask, noise, low, *factors = ctx.saved_tensors
        a, b = factors[: len(dys)], factors[len(dys) :]
        if noise is not None:
            mask = hashed_mask(noise, x.shape, ctx.dropout)
        keep, ranks = 1 - ctx.dropout, [len(part) for part in a]
        dlows, db = [], []
        for dy, part, factor, scaling in zip(dys, low.split(ranks, dim=1), b, ctx.scalings, strict=True):
            dlows.append(dy @ (factor * scaling).to(x.dtype))
            db.append((dy.t() @ part).to(factor.dtype) * scaling)
        dlow = joined(dlows, dim=1)
        da = (dlow.t() @ (x if mask is None else x * mask)).to(a[0].dtype) / keep
        dx = None
        if ctx.needs_input_grad[0]:
            through_a = dlow @ (joined(a) / keep).to(x.dtype)
            dx = through_a if mask is None else None
            for dy, base in zip(dys, ctx.bases, strict=True):
                dx = add_input_gradient(dx, dy, base)
            if mask is not None:
                dx = dx.addcmul_(through_a, mask)
        return dx, *[None] * (1 + 2 * len(dys)), *da.split(ranks), *db


def quarters(items):
    size = len(items) // 4
    return [items[start : start + size] for start in range(0, len(items), size)]


def joined(parts, dim=0):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def frozen_product(x, base, low, b):
    """x Wᵀ + bias + low bᵀ."""
    if in_fp8(base):
        return fp8_product(x, base.fp8.rows, base.bias, low, b.t())
    y = F.linear(low, b, base.bias)
    add_product(y, x, dense(base, base.weight.t()))
    return y


def add_input_gradient(total, dy, base):
    """total + dy W, in place if it can be. total may be None."""
    if in_fp8(base):
        product = fp8_product(dy, base.fp8.columns)
        return product if total is None else total + product
    weight = dense(base, base.weight)
    if total is None:
        return dy @ weight
    add_product(total, dy, weight)
    return total


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
