"""Fused modules take the place of Llama's code only, and leave when generation ends."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Olmo2Config, PhiConfig, Qwen3Config

from model_utils.fused_modules import Joined, fused_modules

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "fused"),
    [
        (LlamaConfig, {"FusedLlamaRMSNorm": 3, "FusedLlamaMLP": 1, "FusedLlamaDecoderLayer": 1}),
        (Qwen3Config, {"FusedQwen3RMSNorm": 5, "FusedQwen3MLP": 1, "FusedQwen3DecoderLayer": 1}),
        (Olmo2Config, {"FusedOlmo2MLP": 1}),  # its RMSNorm rounds later
        (Gemma3TextConfig, {"FusedGemma3MLP": 1}),  # its RMSNorm adds 1 to the weight
        (PhiConfig, {}),
    ],
)
def test_modules_with_llamas_code_are_fused_for_a_while(config, fused):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SHAPE)).eval()
    ids = torch.arange(10)[None]
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        before = model(ids).logits
        with fused_modules(model):
            names = [type(module).__name__ for module in model.modules()]
            # On a CPU the modules compute as before.
            assert torch.equal(model(ids).logits, before)
    assert {name: names.count(name) for name in names if name.startswith("Fused")} == fused
    assert [type(module) for module in model.modules()] == classes


def test_joined_products_are_the_products_of_their_parts():
    torch.manual_seed(0)
    parts = [torch.nn.Linear(8, size, bias=True) for size in (6, 2, 3)]
    x = torch.randn(5, 8)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    joined = Joined(*parts)
    torch.testing.assert_close(joined(x), expected)
    assert Joined(*parts).weight.data_ptr() == joined.weight.data_ptr()  # not copied again
    with torch.no_grad():
        parts[1].weight.add_(1)  # as when an adapter is merged
        parts[2].weight.data = parts[2].weight.data.clone()
        torch.testing.assert_close(Joined(*parts)(x), torch.cat([part(x) for part in parts], dim=-1))
