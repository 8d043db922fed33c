"""PEFT's LoRA layers with a forward and a backward of a third of the kernels: the same sums, written out once.

PEFT computes `W x + scaling * B A dropout(x)` as nine operations or more, casts x to float32 on the way and keeps a dropped
copy of x for the backward pass. Here the products accumulate into W x in place, and of the dropout the mask alone is kept.
"""

import functools

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch.autograd.function import once_differentiable


def fuse_lora(model):
    """Give the LoRA layers of a PEFT model with one plain adapter the fused forward. Weights and names stay PEFT's."""
    eligible = {lora.Linear, getattr(lora, "Linear4bit", None)}  # not int8, whose weights have no dense form to ask for
    for module in model.modules():
        if type(module) in eligible and isinstance(module.base_layer, torch.nn.Linear):  # GPT-2's are transposed
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
        dropout = getattr(self.lora_dropout[adapter], "p", 0.0) if self.training else 0.0  # Identity has no p
        return LoraProjection.apply(
            x, self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.base_layer, self.scaling[adapter], dropout
        )


class LoraProjection(torch.autograd.Function):
    """x: [..., in]; a: [r, in] and b: [out, r], float32 or x's dtype; base: a frozen Linear. Returns [..., out]."""

    @staticmethod
    def forward(ctx, x, a, b, base, scaling, dropout):
        weight = dense_weight(base)
        shape, x = x.shape, x.flatten(0, -2).to(weight.dtype)
        dropped, mask = torch.native_dropout(x, dropout, True) if dropout else (x, None)
        low = dropped @ a.t().to(x.dtype)
        y = F.linear(x, weight, base.bias).addmm_(low, (b * scaling).t().to(x.dtype))
        ctx.save_for_backward(x, mask, low, a, b)
        ctx.base, ctx.scaling, ctx.keep, ctx.shape = base, scaling, 1 - dropout, shape
        return y.view(*shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, mask, low, a, b = ctx.saved_tensors
        dy = dy.flatten(0, -2)
        dlow = dy @ (b * ctx.scaling).to(x.dtype)
        db = (dy.t() @ low).to(b.dtype) * ctx.scaling
        da = (dlow.t() @ (x if mask is None else x * mask)).to(a.dtype) / ctx.keep
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ dense_weight(ctx.base)
            if mask is None:
                dx.addmm_(dlow, a.to(x.dtype))
            else:
                dx.addcmul_(dlow @ (a / ctx.keep).to(x.dtype), mask)
            dx = dx.view(ctx.shape)
        return dx, da, db, None, None, None


def dense_weight(linear):
    """[out, in], dequantised where it is NF4."""
    quant_state = getattr(linear.weight, "quant_state", None)
    if quant_state is None:
        return linear.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(linear.weight, quant_state)
