"""--lora_target_modules by kind of layer, in several model families."""

from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING

from model_utils.loading import without_weights
from model_utils.targets import choose_targets
from run_utils.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
FAMILIES = {
    "qwen3": ("q_proj k_proj v_proj o_proj", "gate_proj up_proj down_proj"),
    "gpt2": ("c_attn attn.c_proj", "c_fc mlp.c_proj"),
    "falcon": ("query_key_value dense", "dense_h_to_4h dense_4h_to_h"),
    "opt": ("k_proj v_proj q_proj out_proj", "fc1 fc2"),
    "phi": ("q_proj k_proj v_proj dense", "fc1 fc2"),
    "qwen3_moe": ("q_proj k_proj v_proj o_proj", "experts.gate_up_proj experts.down_proj"),
}


def model_of(family):
    return without_weights(CONFIG_MAPPING[family](**SIZES))


def arguments(*targets, **values):
    defaults = {
        "rank_pattern": None,
        "alpha_pattern": None,
        "init_lora_weights": "true",
        "use_dora": False,
        "lora_r": 4,
    }
    return SimpleNamespace(**defaults | values, lora_target_modules=list(targets))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kinds_of_layers_are_found_by_name(family):
    model = model_of(family)
    attention, mlp = (choose_targets(model, arguments(kind)) for kind in ("attention", "mlp"))
    assert tuple(map(" ".join, (attention, mlp))) == FAMILIES[family]
    linear = choose_targets(model, arguments("all-linear"))
    assert {name.split(".")[-1] for name in (*attention, *mlp) if not name.startswith("experts")} == set(linear)


def test_a_model_without_attention_has_no_such_layers():
    with pytest.raises(UserError, match="no layers of this kind were found in MambaForCausalLM: name them by"):
        choose_targets(model_of("mamba"), arguments("attention"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"use_dora": True}, "--use_dora is for the decoder's linear layers, not for experts.gate_up_proj"),
        ({"init_lora_weights": "olora"}, "--lora_target_modules q_proj leaves them out"),
        ({"rank_pattern": ["k_proj=4"]}, "--rank_pattern names k_proj, which is not one of the LoRA layers"),
    ],
)
def test_variants_without_rules_for_experts_refuse_them(values, named):
    with pytest.raises(UserError, match=named):
        choose_targets(model_of("qwen3_moe"), arguments("q_proj", "experts.gate_up_proj", **values))
