"""Modules whose forward is Llama's, with the kernels of kernels.py, for generation on a GPU."""

import contextlib
import functools
import inspect
import sys

import torch
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama as llama

from model_utils.model_facts import unwrapped

try:
    from model_utils import kernels  # they need Triton, which torch for CPUs does not bring
except ImportError:
    kernels = None

SILU = type(ACT2FN["silu"]), torch.nn.SiLU


@contextlib.contextmanager
def fused_modules(model):
    """Run RMSNorm, SwiGLU and rotary positions as one kernel each, in modules with the code of
    transformers' Llama. Many families have the same code; all other modules stay as they are."""
    base = unwrapped(model)
    swapped = [(module, type(module)) for module in base.modules() if fused_class(type(module))]
    # Functions of the files of the model's classes.
    files = {sys.modules.get(type(module).__module__) for module in base.modules()}
    patched = {file: file.apply_rotary_pos_emb for file in files if has_llamas_rotary(file)}
    for module, own_class in swapped:
        module.__class__ = fused_class(own_class)
    for file, own_function in patched.items():
        file.apply_rotary_pos_emb = fused_rotary(own_function)
    try:
        yield
    finally:
        for module, own_class in swapped:
            module.__class__ = own_class
        for file, own_function in patched.items():
            file.apply_rotary_pos_emb = own_function


@functools.cache
def fused_class(own_class):
    """The class with a fused forward, or None if the forward is not Llama's."""
    for base, fused in ((llama.LlamaRMSNorm, FusedNorm), (llama.LlamaMLP, FusedMLP)):
        if same_code(own_class.forward, base.forward):
            return type(f"Fused{own_class.__name__}", (fused, own_class), {})
    return None


def has_llamas_rotary(file):
    return all(
        same_code(getattr(file, name, None), getattr(llama, name)) for name in ("apply_rotary_pos_emb", "rotate_half")
    )


def same_code(function, other):
    """Whether two functions differ in nothing but texts and names of variables."""
    code, expected = (getattr(inspect.unwrap(f), "__code__", None) if callable(f) else None for f in (function, other))
    return code is not None and (code.co_code, code.co_names, constants(code)) == (
        expected.co_code,
        expected.co_names,
        constants(expected),
    )


def constants(code):
    return [constant for constant in code.co_consts if not isinstance(constant, str)]


def can_fuse(*tensors):
    return not torch.is_grad_enabled() and all(x.is_cuda and x.dtype == tensors[0].dtype for x in tensors)


class FusedNorm:
    def forward(self, hidden_states):
        if not can_fuse(hidden_states, self.weight):
            return super().forward(hidden_states)
        return kernels.rms_norm(hidden_states, self.weight, self.variance_epsilon)


class FusedMLP:
    def forward(self, x):
        if not isinstance(self.act_fn, SILU) or not can_fuse(x):
            return super().forward(x)
        return self.down_proj(kernels.swiglu(self.gate_proj(x), self.up_proj(x)))


def fused_rotary(own_function):
    def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
        if unsqueeze_dim != 1 or not can_fuse(q, k, cos, sin):
            return own_function(q, k, cos, sin, unsqueeze_dim)
        return kernels.rotary(q, k, cos, sin)

    return apply_rotary_pos_emb
