"""Variants of LoRA, optimizer and schedule by train.py's arguments: reads their values, and refuses
combinations. No torch."""

import re
from dataclasses import fields

from run_utils.errors import UsageError, require

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
INITS = r"true|false|gaussian|orthogonal|pissa(_niter_[1-9]\d*)?|olora|loftq"
RAMPS = ("linear", "cosine", "1-sqrt")
# transformers' schedules without a metric, with their arguments for --lr_scheduler_kwargs.
SCHEDULES = {
    "cosine": {"num_cycles": float},
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine_with_restarts": {"num_cycles": int},
    "polynomial": {"lr_end": float, "power": float},
    "inverse_sqrt": {"timescale": int},
    "cosine_with_min_lr": {"num_cycles": float, "min_lr": float, "min_lr_rate": float},
    "cosine_warmup_with_min_lr": {
        **{"num_cycles": float, "min_lr": float, "min_lr_rate": float},
        "warmup_lr_rate": float,
    },
    "warmup_stable_decay": {
        **{"num_decay_steps": int, "warmup_type": RAMPS, "decay_type": RAMPS},
        **{"min_lr_ratio": float, "num_cycles": float},
    },
}
# --init_lora_weights by which A and B start as a part of the base's weights.
FROM_WEIGHTS = ("pissa", "olora")


def takes_part(init):
    """Whether an initialisation starts with a part of the base's weights, and the adapter subtracts
    it: see lora_init.py."""
    return init.startswith(FROM_WEIGHTS)


def check_variants(args):
    """Raise UsageError if a value of a variant is wrong, or if two do not go together."""
    if not args.use_peft:
        check_full_training(args)
    args.init_lora_weights = init = args.init_lora_weights.lower()
    known = "true, false, gaussian, orthogonal, pissa, pissa_niter_4, olora or loftq"
    require(re.fullmatch(INITS, init), f"--init_lora_weights must be {known}, not {init}")
    ranks = [args.lora_r, *pattern("rank_pattern", args.rank_pattern).values()]
    pattern("alpha_pattern", args.alpha_pattern)
    schedule_kwargs(args)
    named = f"--init_lora_weights {init}"
    odd = [rank for rank in ranks if rank % 2]
    reader = "--use_dora" if args.use_dora else named
    reads_weights = args.use_dora or init not in ("true", "false", "gaussian")
    refused = [
        (args.init_adapter and init != "true", f"--init_adapter has the first weights already: leave out {named}"),
        (
            reads_weights and args.quantization == "int8",
            f"{reader} reads the base's weights, which int8 layers do not give back: --quantization nf4 or none",
        ),
        (init == "orthogonal" and odd, f"{named} needs even ranks, not {', '.join(map(str, odd))}"),
        (
            init == "loftq" and args.quantization != "nf4",
            f"{named} repairs the rounding of --quantization nf4 alone",
        ),
        (init == "loftq" and args.use_dora, f"{named} and --use_dora do not go together: choose one"),
        (
            takes_part(init) and args.weight_decay,
            f"{named} starts at the weights' largest part, and --weight_decay would take it away: --weight_decay 0",
        ),
        (
            takes_part(init) and args.optim.endswith("8bit"),
            f"{named} keeps half of A and B as it starts, and 8-bit moments would move it, by rounding 0: "
            "--optim adamw_torch or paged_adamw_32bit",
        ),
        (
            args.neftune_noise_alpha and args.cuda_graphs,
            "--neftune_noise_alpha needs each example's length, which a CUDA graph does not have: --cuda_graphs false",
        ),
        (
            args.use_dora and args.cuda_graphs,
            "--use_dora runs PEFT's layers, which were not tried in CUDA graphs: --cuda_graphs false",
        ),
        (
            args.base_precision == "fp8" and args.quantization != "none",
            f"--base_precision fp8 needs a base in bf16, not in {args.quantization}: --quantization none",
        ),
        (
            args.base_precision == "fp8" and args.dtype == "fp32",
            "--base_precision fp8 needs a base in bf16, not in float32: --dtype bf16",
        ),
        (
            args.base_precision == "fp8" and args.use_dora,
            "--use_dora runs PEFT's layers, which have no products in FP8: --base_precision same",
        ),
    ]
    for is_so, problem in refused:
        require(not is_so, problem)


def check_full_training(args):
    """Raise UsageError unless the arguments go with --use_peft false: none of LoRA's is set."""
    group = None
    for field in fields(args):
        group = field.metadata["group"] or group
        if group == "LoRA" and field.name != "use_peft":
            given = getattr(args, field.name) != field.default
            require(
                not given,
                f"--{field.name} is of LoRA, which --use_peft false turns off: leave it out, also of the recipe",
            )
    require(
        args.quantization == "none",
        f"--use_peft false trains every weight, and {args.quantization} weights cannot be trained: --quantization none",
    )
    for name, is_on in {
        "cuda_graphs": args.cuda_graphs,
        "torch_compile": args.torch_compile,
        "base_precision fp8": args.base_precision == "fp8",
    }.items():
        require(not is_on, f"--{name} is for LoRA: leave it out with --use_peft false")


def check_device(args, device_type):
    """Raise UsageError if a variant does not run on a "cpu" or "cuda"."""
    require(
        not (args.optim.startswith("paged") and device_type == "cpu"),
        f"--optim {args.optim} pages between GPU and CPU, and there is no GPU: --optim adamw_torch, or adamw_bnb_8bit",
    )


def lora_options(args):
    """More of LoraConfig's arguments."""
    patterns = {name: pattern(name, getattr(args, name)) for name in ("rank_pattern", "alpha_pattern")}
    return {"use_rslora": args.use_rslora, "use_dora": args.use_dora, **patterns}


def unusual_rate(rate, width):
    """A sentence on a learning rate far from the best known rates of LoRA, or None.

    For models of 1B to 671B weights, Thinking Machines' sweeps (LoRA, AdamW, tulu3, 128 examples a
    step, 780 steps) found the best rates between 1e-4 and 1e-3, at ranks of 1 to 64. No sweeps of
    narrower models are known: the upper end grows with 2048 / width, as a guess."""
    low, high = 1e-4, 1e-3 * max(1, 2048 / width)
    if low / 4 <= rate <= 4 * high:
        return None
    side = "below" if rate < low else "above"
    return (
        f"--learning_rate {rate:g} is far {side} LoRA's best rates in published sweeps, {low:g} to {high:.1g} at this "
        "width (tinker_cookbook/hyperparam_utils.py of Thinking Machines: ranks 1 to 64, 128 examples a step)"
    )


def pairs(flag, words):
    """`["q_proj=64", ...]` as a dict of texts."""
    found = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        require(name and equals and value, f"--{flag} must be like NAME=VALUE, not {word}")
        require(name not in found, f"--{flag} names {name} twice")
        found[name] = value
    return found


def pattern(flag, words):
    """PEFT's rank_pattern or alpha_pattern, `{layer: number above 0}`. Ranks are whole numbers.
    Raises UsageError."""
    found = {}
    for name, value in pairs(flag, words).items():
        require(re.fullmatch(r"[\w.]+", name), f"--{flag} must name layers such as q_proj, not {name}")
        found[name] = read_value(flag, name, value, int if flag == "rank_pattern" or value.isdecimal() else float)
        require(found[name] > 0, f"--{flag} {name} must be above 0")
    return found


def schedule_kwargs(args):
    """--lr_scheduler_kwargs as the arguments of transformers' schedule. Raises UsageError."""
    flag, known = "lr_scheduler_kwargs", SCHEDULES[args.lr_scheduler_type]
    given = pairs(flag, args.lr_scheduler_kwargs)
    if unknown := [name for name in given if name not in known]:
        has = ", ".join(known) or "no arguments"
        raise UsageError(f"--{flag} {unknown[0]}: --lr_scheduler_type {args.lr_scheduler_type} has {has}")
    options = {name: read_value(flag, name, value, known[name]) for name, value in given.items()}
    if "min_lr_rate" in known:
        require(
            len({"min_lr", "min_lr_rate"} & options.keys()) == 1,
            f"--lr_scheduler_type {args.lr_scheduler_type} needs --{flag} min_lr=RATE or min_lr_rate=SHARE",
        )
    if args.lr_scheduler_type == "warmup_stable_decay":
        needed = f"--lr_scheduler_type warmup_stable_decay needs --{flag} num_decay_steps=STEPS"
        require("num_decay_steps" in options, needed)
    for name in ("min_lr", "lr_end"):
        require(options.get(name, 0) < args.learning_rate, f"--{flag} {name} must be below --learning_rate")
    return options


def read_value(flag, name, value, kind):
    """A text as `kind`: int or float, from 0 on, or one of some texts."""
    if isinstance(kind, tuple):
        require(value in kind, f"--{flag} {name} must be {', '.join(kind)}, not {value}")
        return value
    try:
        number = kind(value)
        require(0 <= number < 1e9, f"--{flag} {name} must be a number from 0 on, not {value}")
        return number
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise UsageError(f"--{flag} {name} must be {words}, not {value}") from None
