"""Modules whose forward is Llama's, with the kernels of kernels.py, for generation on a GPU.

A whole layer of the families Llama, Qwen2 and Qwen3 has ten kernels instead of twenty. Projections
of the same input are one product, which is faster for few tokens, and products add to the
residual."""

import contextlib
import functools
import inspect
import sys

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from model_utils.attention import isolated_attention
from model_utils.model_facts import unwrapped

try:
    from model_utils import kernels  # they need Triton, which torch for CPUs does not bring
except ImportError:
    kernels = None

SILU = type(ACT2FN["silu"]), nn.SiLU
ATTENTIONS = llama.LlamaAttention, qwen2.Qwen2Attention, qwen3.Qwen3Attention


@contextlib.contextmanager
def fused_modules(model):
    """Run RMSNorm, SwiGLU and rotary positions as one kernel each, in modules with the code of
    transformers' Llama, and layers of dense weights with joined products. Many families have the
    same code; all other modules stay as they are.

    The weights of a layer's joined products become views of one tensor, and stay so."""
    base = unwrapped(model)
    swapped = [(module, type(module)) for module in base.modules() if fused_class(type(module))]
    # Functions of the files of the model's classes.
    files = {sys.modules.get(type(module).__module__) for module in base.modules()}
    patched = {file: file.apply_rotary_pos_emb for file in files if has_llamas_rotary(file)}
    for module, own_class in swapped:
        module.__class__ = fused_class(own_class)
    layers = [module for module in base.modules() if can_join(module)]
    last = getattr(base.get_decoder(), "layers", [None])[-1]
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        layer.joined = (
            Joined(attention.q_proj, attention.k_proj, attention.v_proj),
            Joined(mlp.gate_proj, mlp.up_proj),
        )
        layer.is_last = layer is last
    for file, own_function in patched.items():
        file.apply_rotary_pos_emb = fused_rotary(own_function)
    try:
        yield
    finally:
        for module, own_class in swapped:
            module.__class__ = own_class
        for layer in layers:
            layer.joined = None
        for file, own_function in patched.items():
            file.apply_rotary_pos_emb = own_function


@functools.cache
def fused_class(own_class):
    """The class with a fused forward, or None if the forward is not Llama's."""
    for base, fused in (
        (llama.LlamaRMSNorm, FusedNorm),
        (llama.LlamaMLP, FusedMLP),
        (llama.LlamaDecoderLayer, FusedLayer),
    ):
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
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(kernels.swiglu(gate.flatten(0, -2), up.flatten(0, -2)).view_as(gate))


class FusedLayer:
    joined = None  # qkv and gate_up, Joined each, while the layer can run with them
    is_last = False

    def forward(
        self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False,
        position_embeddings=None, tokens_to_keep=None, **kwargs,
    ):  # fmt: skip
        """tokens_to_keep: the last layer returns only these, [1, kept, hidden]."""
        if not self.joined or past_key_values is None or not can_fuse(hidden_states, *position_embeddings):
            return super().forward(
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **kwargs
            )
        qkv, gate_up = self.joined
        attention = self.self_attn
        batch, tokens, _ = hidden_states.shape
        residual = hidden_states.flatten(0, 1)
        heads = qkv(self.input_layernorm(residual)).unflatten(-1, (-1, attention.head_dim))
        key_heads = attention.k_proj.out_features // attention.head_dim
        query, key, value = heads.split([heads.shape[1] - 2 * key_heads, key_heads, key_heads], dim=1)
        cos, sin = (table.expand(batch, tokens, -1).flatten(0, 1) for table in position_embeddings)
        place = *past_key_values.layer(attention.layer_idx, key, value), *past_key_values.write_at
        query, key = kernels.rotary(query, key, cos, sin, *head_norms(attention), value, place)
        query, key, value = (states.unflatten(0, (batch, tokens)).transpose(1, 2) for states in (query, key, value))
        key, value = past_key_values.to_attend(attention.layer_idx, key, value)
        attended, _ = isolated_attention(
            attention, query, key, value, None, scaling=attention.scaling,
            sliding_window=getattr(attention, "sliding_window", None), **kwargs,
        )  # fmt: skip
        attended = attended.reshape(batch * tokens, -1)
        if self.is_last and tokens_to_keep is not None:
            residual, attended = residual[tokens_to_keep], attended[tokens_to_keep]
        # Products add to the residual: it is nobody's input any more.
        residual.addmm_(attended, attention.o_proj.weight.t())
        gate, up = gate_up(self.post_attention_layernorm(residual)).chunk(2, dim=-1)
        residual.addmm_(kernels.swiglu(gate, up), self.mlp.down_proj.weight.t())
        return residual.view(batch, -1, residual.shape[1])


def can_keep_tokens(model):
    """Whether the model's last layer returns tokens_to_keep alone."""
    return any(getattr(module, "joined", None) and module.is_last for module in unwrapped(model).modules())


def can_join(layer):
    """Whether a module is a layer for FusedLayer: with the code of Llama, Qwen2 or Qwen3 and, on a
    GPU, plain weights without adapters."""
    if not isinstance(layer, FusedLayer) or not isinstance(layer.mlp, FusedMLP):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    linears += [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (
        any(same_code(type(attention).forward, known.forward) for known in ATTENTIONS)
        and has_llamas_rotary(sys.modules[type(attention).__module__])
        and isinstance(mlp.act_fn, SILU)
        and all(type(linear) is nn.Linear and linear.weight.is_cuda for linear in linears)
        and all(linear.bias is None for linear in linears[3:])
    )


class Joined:
    """Linear layers of the same input as one product. Their weights become views of one tensor, and
    stay so."""

    def __init__(self, *linears):
        weights = [linear.weight for linear in linears]
        self.weight = adjacent(weights)
        if self.weight is None:
            self.weight = torch.cat([weight.data for weight in weights])
            for weight, part in zip(weights, self.weight.split([len(weight) for weight in weights]), strict=True):
                weight.data = part
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases) if biases else None

    def __call__(self, x):
        return F.linear(x, self.weight, self.bias)


def adjacent(weights):
    """The tensor whose consecutive rows are the weights, if they are parts of one, else None."""
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or not weight.is_contiguous() or weight.shape[1] != first.shape[1]:
            return None
        end += weight.numel() * weight.element_size()
    rows = sum(len(weight) for weight in weights)
    if first.storage_offset() + rows * first.shape[1] > first.untyped_storage().nbytes() // first.element_size():
        return None  # neighbours in memory by chance
    return first.data.as_strided((rows, first.shape[1]), first.stride())


def head_norms(attention):
    """The weights of the RMSNorms of a query's and a key's heads, and their epsilon, for
    kernels.rotary."""
    if not hasattr(attention, "q_norm"):
        return None, None, 0.0
    return attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon


def fused_rotary(own_function):
    def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
        if unsqueeze_dim != 1 or not can_fuse(q, k, cos, sin):
            return own_function(q, k, cos, sin, unsqueeze_dim)
        batch, _, tokens, head_dim = q.shape
        # In memory the heads of a token are together.
        states = (x.transpose(1, 2).contiguous().flatten(0, 1) for x in (q, k))
        tables = (table.expand(batch, tokens, head_dim).flatten(0, 1) for table in (cos, sin))
        rotated = kernels.rotary(*states, *tables)
        return tuple(x.unflatten(0, (batch, tokens)).transpose(1, 2) for x in rotated)

    return apply_rotary_pos_emb
