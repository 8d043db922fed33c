"""The optimizers of --optim, their parameter groups, and the schedule's arguments."""

import functools
import math

import torch

from model_utils.variants import schedule_kwargs
from run_utils.errors import UserError


def optimizers():
    """`{name: function of parameter groups}`, by transformers' names."""
    from bitsandbytes import optim  # late: it takes seconds

    return {
        "adamw_torch": functools.partial(torch.optim.AdamW, fused=False),
        "adamw_torch_fused": functools.partial(torch.optim.AdamW, fused=True),
        "adamw_bnb_8bit": optim.AdamW8bit,
        "paged_adamw_32bit": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }


def parameter_groups(model, learning_rate, loraplus_lr_ratio=None):
    """The trainable parameters in one group, or in two for LoRA+: B and vectors learn
    `loraplus_lr_ratio` times as fast as A (https://arxiv.org/abs/2402.12354). Raises UserError for
    LoRA+ on an embedding, whose A and B are swapped.

    The groups are those of PEFT's create_loraplus_optimizer."""
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not loraplus_lr_ratio:
        return [{"params": list(trainable.values())}]
    if any("lora_embedding" in name for name in trainable):
        raise UserError("--loraplus_lr_ratio has no rate for LoRA on an embedding: leave it out of the target modules")
    fast = {name for name, weight in trainable.items() if "lora_B" in name or weight.ndim == 1}
    return [
        {"params": [weight for name, weight in trainable.items() if name not in fast], "lr": learning_rate},
        {
            "params": [weight for name, weight in trainable.items() if name in fast],
            "lr": learning_rate * loraplus_lr_ratio,
        },
    ]


def schedule_options(args, num_steps):
    """get_scheduler's arguments after the optimizer, by train.py's arguments. Raises UserError if a
    schedule's phases are longer than the training's `num_steps`."""
    warmup, options = math.ceil(args.warmup_ratio * num_steps), schedule_kwargs(args)
    if warmup + (decay := options.get("num_decay_steps", 0)) > num_steps:
        raise UserError(
            f"--lr_scheduler_kwargs num_decay_steps={decay} and {warmup} steps of warm-up are more than the "
            f"{num_steps} of the training"
        )
    return {"num_warmup_steps": warmup, "num_training_steps": num_steps, "scheduler_specific_kwargs": options or None}
