"""The cache of generation has a size on every device."""

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config, RwkvConfig

from model_utils.cache_size import FIXED_TOKENS, bytes_per_token, cache_tokens

QWEN3 = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (Qwen3Config(**QWEN3, num_key_value_heads=2, head_dim=32), 2 * 3 * 2 * 32 * 4),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64), 2 * 2 * 32 * 4),
        (RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64), None),  # no heads
    ],
)
def test_a_token_s_bytes_follow_from_the_configuration(config, size):
    model = AutoModelForCausalLM.from_config(config)
    assert bytes_per_token(model) == size
    assert cache_tokens(model, "auto") == FIXED_TOKENS  # on a CPU
    assert cache_tokens(model, 300) == 300
