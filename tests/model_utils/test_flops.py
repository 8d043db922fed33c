"""The FLOP formula of a step against torch's counter, on tiny models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from benchmarks.check_families import SIZES, build
from model_utils.adapters import add_lora, linear_layers
from model_utils.flops import count_flops


def with_adapter(model, more=(), checkpointing=False):
    model.requires_grad_(False).set_attn_implementation("eager")
    model = add_lora(model, 4, 8, 0.0, [*linear_layers(model), *more]).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # count_flops includes the gradient of the embedding's output, which training never needs.
    model.get_base_model().get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())
    return model


def measured_flops(model, num_tokens):
    """FLOP of a forward and backward pass over one text, with the head on half of its tokens."""
    ids = torch.arange(num_tokens)[None] + 1
    # torch does not count the in-place product of the fused LoRA layers.
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, out_shape: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(input_ids=ids, use_cache=False, logits_to_keep=num_tokens // 2).logits.sum().backward()
    return counter.get_total_flops()


def measured_per_token(model):
    """FLOP per token without attention's products, which grow with the square of the length."""
    return 2 * measured_flops(model, 16) / 16 - measured_flops(model, 32) / 32


def image_model(hidden_size):
    text = SIZES | {"head_dim": 16, "sliding_window": 64}
    vision = {"hidden_size": hidden_size, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=0, pad_token_id=0,
            image_token_index=3000, boi_token_index=3001, eoi_token_index=3002,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("qwen3", []), ("qwen3", ["lm_head"]), ("qwen3", ["embed_tokens"]), ("llama tied", []), ("gpt2", []),
        ("qwen3_moe", []), ("mixtral", []),
    ],
)  # fmt: skip
def test_model_flop_equals_torchs_count(name, more):
    model = build(name)
    if name in ("qwen3_moe", "mixtral"):
        model.set_experts_implementation("eager")  # torch does not count grouped products
    model = with_adapter(model, more)
    flops = count_flops(model, gradient_checkpointing=False)
    assert measured_per_token(model) == pytest.approx(flops.per_token + flops.per_completion_token / 2, rel=1e-4)
    assert flops.recomputed_per_token == 0


def test_adapters_on_experts_count_for_the_experts_that_run():
    """PEFT adds B A to each expert's weights at a constant cost; the count is of B A x instead."""
    model = build("qwen3_moe")
    without = count_flops(with_adapter(build("qwen3_moe")), False).per_token
    model = with_adapter(model, ["experts.gate_up_proj", "experts.down_proj"])
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name and p.requires_grad)
    # 2 of 4 experts run
    assert experts and count_flops(model, False).per_token == without + 6 * experts * 2 / 4


@pytest.mark.parametrize("hidden_size", [32, 256])
def test_an_image_tower_that_never_runs_is_not_counted(hidden_size):
    model = with_adapter(image_model(hidden_size))
    flops = count_flops(model, gradient_checkpointing=False)
    assert measured_per_token(model) == pytest.approx(flops.per_token + flops.per_completion_token / 2, rel=1e-4)


def test_only_the_hardware_flop_includes_checkpointing():
    plain, checkpointed = (count_flops(with_adapter(build("qwen3")), again, peak=1e12) for again in (False, True))
    assert plain[:2] == checkpointed[:2]
    assert plain.utilization(100, 40, 2.0) == plain.hardware_utilization(100, 40, 2.0)
    assert plain.utilization(100, 40, 2.0) == checkpointed.utilization(100, 40, 2.0)
    hardware_flop = checkpointed.hardware_utilization(100, 50, 2.0) * 2.0 * 1e12
    assert measured_per_token(with_adapter(build("qwen3"), checkpointing=True)) == pytest.approx(
        hardware_flop / 100, rel=1e-4
    )
