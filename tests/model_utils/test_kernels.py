"""Triton's kernels compute the same as PyTorch, on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama import modeling_llama as llama

if not torch.cuda.is_available():
    pytest.skip("Triton's kernels need a GPU", allow_module_level=True)

from model_utils import kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
HEADS = pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (9, 3, 64), (4, 4, 80)])


def randn(*shape, dtype):
    return torch.randn(*shape, device="cuda").to(dtype)


def assert_near(found, expected):
    tolerance = 1e-5 if found.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance * expected.abs().max())


@DTYPES
@pytest.mark.parametrize("width", [96, 128, 2560])
@torch.no_grad()
def test_rms_norm(dtype, width):
    norm = llama.LlamaRMSNorm(width, 1e-6).to("cuda", dtype)
    norm.weight.data = randn(width, dtype=dtype)
    x = randn(3, 77, width, dtype=dtype)
    assert_near(kernels.rms_norm(x, norm.weight, norm.variance_epsilon), norm(x))


@DTYPES
def test_swiglu(dtype):
    product = randn(5, 6000, dtype=dtype)
    for gate, up in (product.chunk(2, dim=-1), randn(2, 5, 3000, dtype=dtype)):
        assert_near(kernels.swiglu(gate, up), F.silu(gate) * up)


@DTYPES
@HEADS
@torch.no_grad()
def test_rotary(dtype, heads, kv_heads, head_dim):
    # As projections of one product are: the heads of a token are together, tokens are apart.
    product = randn(11, heads + 2 * kv_heads, head_dim, dtype=dtype)
    query, key = product[:, :heads], product[:, heads : heads + kv_heads]
    cos, sin = randn(2, 11, head_dim, dtype=dtype)
    norms = [llama.LlamaRMSNorm(head_dim, 1e-6).to("cuda", dtype) for _ in range(2)]
    for norm in norms:
        norm.weight.data = randn(head_dim, dtype=dtype)

    def transformers(query, key):
        rotated = llama.apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin, 0)
        return [x[0].transpose(0, 1) for x in rotated]

    for found, expected in zip(kernels.rotary(query, key, cos, sin), transformers(query, key), strict=True):
        assert torch.equal(found, expected)
    normed = kernels.rotary(query, key, cos, sin, norms[0].weight, norms[1].weight, 1e-6)
    for found, expected in zip(normed, transformers(norms[0](query), norms[1](key)), strict=True):
        assert_near(found, expected)


@DTYPES
@HEADS
def test_write(dtype, heads, kv_heads, head_dim):
    keys, values, written_keys, written_values = torch.zeros(4, 5, kv_heads, 20, head_dim, device="cuda", dtype=dtype)
    slots = torch.tensor([0] * 6 + [3] * 7, device="cuda")
    positions = torch.tensor([*range(6), *range(7)], device="cuda")
    # The heads of a token are apart in one of them.
    key, value = randn(kv_heads, 13, head_dim, dtype=dtype).transpose(0, 1), randn(13, kv_heads, head_dim, dtype=dtype)
    keys[slots, :, positions], values[slots, :, positions] = key, value
    kernels.write(key, value, written_keys, written_values, slots, positions)
    assert torch.equal(keys, written_keys) and torch.equal(values, written_values)
    # With rotary positions before, from one product.
    product, cos, sin = randn(13, heads + 2 * kv_heads, head_dim, dtype=dtype), *randn(2, 13, head_dim, dtype=dtype)
    query, key, value = product.split([heads, kv_heads, kv_heads], dim=1)
    cache = written_keys, written_values, slots, positions
    expected_query, expected_key = kernels.rotary(query, key, cos, sin)
    keys[slots, :, positions], values[slots, :, positions] = expected_key, value
    new_query, new_key = kernels.rotary(query, key, cos, sin, value=value, cache=cache)
    assert torch.equal(new_query, expected_query) and torch.equal(new_key, expected_key)
    assert torch.equal(keys, written_keys) and torch.equal(values, written_values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("tokens", [1, 2, 8])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (9, 3, 64), (4, 4, 80), (20, 1, 64)])
def test_decode(dtype, window, tokens, heads, kv_heads, head_dim):
    keys, values = randn(2, 5, kv_heads, 300, head_dim, dtype=dtype)
    query = randn(5, tokens, heads, head_dim, dtype=dtype)
    lengths = torch.tensor([tokens, tokens + 4, 64, 65, 300], device="cuda").int()
    places = lengths[:, None] - tokens + torch.arange(tokens, device="cuda")
    ages = places[:, :, None] - torch.arange(300, device="cuda")
    kept = (ages >= 0) & (ages < (window or 300))
    expected = F.scaled_dot_product_attention(
        query.transpose(1, 2).float(), keys.float(), values.float(), kept[:, None], scale=0.1, enable_gqa=True
    )
    assert_near(kernels.decode(query, keys, values, lengths, 0.1, window), expected.transpose(1, 2))
