"""The model of a run: a base, its attention, a new adapter on it, and the record of their
origin."""

import torch

from data_utils.prompt import format_hash
from model_utils.adapters import adapter_record, add_lora, describe_experts, expert_names, layer_width
from model_utils.flops import dtype_census
from model_utils.fp8 import check_fp8
from model_utils.full_model import describe_size, train_all_weights
from model_utils.generation import choose_engine
from model_utils.loading import base_fingerprint, choose_attention, load_base_model
from model_utils.neftune import add_noise
from model_utils.variants import check_device, lora_options, takes_part, unusual_rate
from model_utils.warm_start import load_weights
from run_utils.clock import lap
from run_utils.environment import environment_record
from run_utils.errors import say
from run_utils.launch import check_alike
from run_utils.redaction import published_name, published_names


def load_model(args, source, data, accelerator, *, max_new_tokens):
    """`(model, engine, record)`: the base with a new LoRA adapter, or to train whole, its Engine
    for generation, and a dict for environment.json. Prints the model's attention, adapted layers
    and sizes.

    args: train.py's. source: the base's ModelSource. data: its examples test the attention, and its
    prompts, with max_new_tokens more, the engine."""
    check_device(args, accelerator.device.type)
    if args.base_precision == "fp8":
        check_fp8(accelerator.device)
    base = load_base_model(source, accelerator)
    say("Comparing its attention with plain transformers ...")
    attention = choose_attention(
        base, args.attn_implementation, args.model_name_or_path, data.examples, args.torch_compile
    )
    fingerprint = base_fingerprint(base)
    if not args.use_peft:
        train_all_weights(base)
    # Before training, so that a model without fast generation is named early.
    engine = choose_engine(base, data.prompt_ids, max(map(len, data.prompt_ids)) + max_new_tokens)
    lap("checks")
    record = environment_record(
        base=published_name(args.model_name_or_path),
        data=published_names(args.dataset_name),
        prompt_format=args.prompt_format,
        prompt_sha256=format_hash(data.prompt_format),
        base_fingerprint=fingerprint,
        mixed_precision=accelerator.mixed_precision,
        num_processes=accelerator.num_processes,
        attention=attention,
        generated_by=engine.name,
    )
    check_alike({"their base model": record["base_fingerprint"]})
    if not args.use_peft:
        if args.neftune_noise_alpha:
            add_noise(base, args.neftune_noise_alpha)
        accelerator.print(f"Attention: {attention}\n{describe_size(base)}")
        return base.train(), engine, record
    if left_out := [name for name in expert_names(base) if name not in args.lora_target_modules]:
        accelerator.print(f"LoRA leaves out {describe_experts(base, left_out)}")
    original = None
    if args.init_lora_weights == "loftq":  # on the CPU, beside the quantised base
        original = load_base_model(source._replace(quantization="none"), accelerator, "cpu")
    torch.manual_seed(args.seed)
    model = add_lora(
        base,
        args.lora_r,
        args.lora_alpha,
        args.lora_dropout,
        args.lora_target_modules,
        init=args.init_lora_weights,
        original=original,
        **lora_options(args),
    )
    record["adapter"] = adapter_record(model)
    if args.neftune_noise_alpha:
        add_noise(model, args.neftune_noise_alpha)
    if args.init_adapter:
        accelerator.print("\n".join(load_weights(model, args.init_adapter, record)))
        check_alike({"their --init_adapter": record["init_adapter_sha256"]})
    accelerator.print(f"Attention: {attention}")
    accelerator.print(f"LoRA on: {', '.join(args.lora_target_modules)}")
    if args.use_dora:
        accelerator.print("DoRA: PEFT's own layers run, which are slower than the fused ones")
    if takes_part(args.init_lora_weights):
        halves = "half of A and B stays as it starts, to subtract the base's part"
        accelerator.print(f"LoRA starts by {args.init_lora_weights}: an adapter of twice the rank; {halves}")
    if remark := unusual_rate(args.learning_rate, layer_width(base)):
        accelerator.print(remark)
    accelerator.print("Parameters: " + ", ".join(f"{count:,} {role}" for role, count in dtype_census(model).items()))
    lap("adapter")
    return model.train(), engine, record
