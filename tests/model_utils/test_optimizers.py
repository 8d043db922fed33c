"""Parameter groups and schedules, with PEFT and transformers as oracles."""

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, get_scheduler

import train
from model_utils.adapters import add_lora
from model_utils.optimizers import optimizers, parameter_groups, schedule_options
from run_utils.errors import UserError


@pytest.fixture
def base(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_plus_groups_are_peft_s(base, use_dora):
    model = add_lora(base, 4, 8, 0.0, ["q_proj", "down_proj"], use_dora=use_dora)
    options = {"weight_decay": 0.1, "loraplus_weight_decay": 0.1}
    oracle = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4, **options)
    ours = optimizers()["adamw_torch"](parameter_groups(model, 1e-3, 4), lr=1e-3, weight_decay=0.1)

    def facts(optimizer):
        return [
            (group["lr"], group["weight_decay"], [id(weight) for weight in group["params"]])
            for group in optimizer.param_groups
            if group["params"]
        ]

    assert facts(ours) == facts(oracle) and len(ours.param_groups) == 2


def test_lora_plus_has_no_rate_for_an_embedding(base):
    model = add_lora(base, 4, 8, 0.0, ["embed_tokens"])
    with pytest.raises(UserError, match="LoRA on an embedding"):
        parameter_groups(model, 1e-3, 4)


def arguments(**values):
    return train.TrainingArguments(learning_rate=1e-3, warmup_ratio=0.1, **values)


def test_the_rates_of_both_groups_follow_transformers_schedule(base):
    words = ["num_decay_steps=4", "min_lr_ratio=0.1", "decay_type=linear"]
    args = arguments(loraplus_lr_ratio=4.0, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=words)
    optimizer, scheduler = train.build_optimizer(add_lora(base, 4, 8, 0.0, ["q_proj"]), args, 10)
    oracle = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    kwargs = {"num_decay_steps": 4, "min_lr_ratio": 0.1, "decay_type": "linear"}
    expected = get_scheduler("warmup_stable_decay", oracle, 1, 10, kwargs)
    for _ in range(10):
        (rate,) = expected.get_last_lr()
        assert scheduler.get_last_lr() == pytest.approx([rate, 4 * rate])
        for step in (oracle.step, optimizer.step, expected.step, scheduler.step):
            step()


def test_a_decay_longer_than_the_training_is_refused():
    args = arguments(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=["num_decay_steps=10"])
    with pytest.raises(UserError, match="num_decay_steps=10 and 1 steps of warm-up are more than the 10"):
        schedule_options(args, 10)
