"""Variants' values, and the combinations refused before anything loads."""

import inspect

import pytest
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

import train
from model_utils.optimizers import optimizers
from model_utils.variants import OPTIMIZERS, SCHEDULES, pattern, schedule_kwargs, unusual_rate
from run_utils.errors import UsageError


def arguments(**values):
    return train.TrainingArguments(**{"quantization": "none", "gradient_checkpointing": False} | values)


def test_the_schedules_are_transformers_own():
    known = {name.value: function for name, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    assert known.keys() - SCHEDULES.keys() == {"reduce_lr_on_plateau", "greedy"}  # these need a metric
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "num_stable_steps", "last_epoch"}
    for name, options in SCHEDULES.items():
        assert options.keys() == inspect.signature(known[name]).parameters.keys() - given, name


def test_each_optimizer_has_a_class():
    assert tuple(optimizers()) == OPTIMIZERS


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"init_lora_weights": "svd"}, "pissa_niter_4, olora or loftq, not svd"),
        ({"init_lora_weights": "pissa_niter_0"}, "not pissa_niter_0"),
        ({"init_lora_weights": "loftq"}, "--quantization nf4"),
        ({"init_lora_weights": "loftq", "quantization": "nf4", "use_dora": True}, "--use_dora do not go together"),
        ({"init_lora_weights": "pissa", "quantization": "int8"}, "reads the base's weights"),
        ({"use_dora": True, "quantization": "int8"}, "--quantization nf4 or none"),
        ({"init_lora_weights": "pissa", "weight_decay": 0.1}, "--weight_decay 0"),
        ({"init_lora_weights": "olora", "optim": "adamw_bnb_8bit"}, "--optim adamw_torch or paged_adamw_32bit"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": ["q_proj=3"]}, "needs even ranks, not 3"),
        ({"neftune_noise_alpha": 5.0, "cuda_graphs": True}, "--cuda_graphs false"),
        ({"use_dora": True, "cuda_graphs": True}, "--cuda_graphs false"),
        ({"base_precision": "fp8", "quantization": "nf4"}, "not in nf4: --quantization none"),
        ({"base_precision": "fp8", "quantization": "int8"}, "not in int8: --quantization none"),
        ({"base_precision": "fp8", "dtype": "fp32"}, "--dtype bf16"),
        ({"base_precision": "fp8", "use_dora": True}, "--base_precision same"),
        ({"base_precision": "fp8", "use_peft": False}, "--base_precision fp8 is for LoRA"),
        ({"rank_pattern": ["q_proj"]}, "--rank_pattern must be like NAME=VALUE, not q_proj"),
        ({"rank_pattern": ["q_proj=1", "q_proj=2"]}, "names q_proj twice"),
        ({"rank_pattern": [".*=4"]}, "must name layers such as q_proj, not .*"),
        ({"alpha_pattern": ["q_proj=0"]}, "--alpha_pattern q_proj must be above 0"),
        ({"rank_pattern": ["q_proj=1.5"]}, "--rank_pattern q_proj must be a whole number, not 1.5"),
        ({"lr_scheduler_kwargs": ["min_lr=1e-5"]}, "--lr_scheduler_type cosine has num_cycles"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": ["power=2"]}, "linear has no arguments"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs --lr_scheduler_kwargs num_decay_steps=STEPS"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr=RATE or min_lr_rate=SHARE"),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": ["min_lr=1"]}, "below --learning_rate"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": ["lr_end=1"]}, "below --learning_rate"),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": ["timescale=2.5"]}, "a whole number, not 2.5"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": ["power=nan"]}, "a number from 0 on, not nan"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": ["num_decay_steps=5", "decay_type=x"]},
            "decay_type must be linear, cosine, 1-sqrt, not x",
        ),
    ],
)
def test_wrong_values_and_combinations_are_refused_by_name(values, named):
    with pytest.raises(UsageError) as error:
        arguments(**values)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_values_are_read_with_their_types():
    assert pattern("rank_pattern", ["q_proj=64", "attn.c_proj=8"]) == {"q_proj": 64, "attn.c_proj": 8}
    assert pattern("alpha_pattern", ["q_proj=1.5", "k_proj=8"]) == {"q_proj": 1.5, "k_proj": 8}
    words = ["num_decay_steps=200", "min_lr_ratio=0.1", "decay_type=1-sqrt"]
    args = arguments(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=words)
    assert schedule_kwargs(args) == {"num_decay_steps": 200, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"}
    assert arguments(init_lora_weights="True").init_lora_weights == "true"  # YAML's true


@pytest.mark.parametrize(
    ("rate", "width", "side"),
    [(1e-4, 2560, None), (2e-3, 192, None), (1e-3, 576, None), (2e-5, 2560, "below"), (1e-2, 2560, "above")],
)
def test_a_rate_is_remarked_on_only_far_from_the_published_ones(rate, width, side):
    remark = unusual_rate(rate, width)
    assert (remark is None) if side is None else f"far {side}" in remark
