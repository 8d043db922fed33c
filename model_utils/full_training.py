"""The arguments of full fine-tuning (`--use_peft false`), checked before torch is imported."""

from run_utils.errors import require


def check_full_training(args, fields):
    """Raise UsageError unless train.py's other arguments go with --use_peft false. fields: of its
    dataclass, in their groups."""
    group = None
    for field in fields:
        group = field.metadata["group"] or group
        if group == "LoRA" and field.name != "use_peft":
            given = getattr(args, field.name) != field.default
            require(not given, f"--{field.name} is of LoRA, which --use_peft false turns off: leave it out")
    require(
        args.quantization == "none",
        f"--use_peft false trains every weight, and {args.quantization} weights cannot be trained: --quantization none",
    )
    require(not args.cuda_graphs, "--cuda_graphs is for LoRA: leave it out with --use_peft false")
    require(not args.torch_compile, "--torch_compile is for LoRA: leave it out with --use_peft false")
