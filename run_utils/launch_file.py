"""The engine of a launch file: `accelerate launch` passes it in environment variables. Imports
nothing heavy: the arguments import this module."""

import os

from run_utils.errors import UserError


def is_sharded():
    """Whether the launch file asks for FSDP, which spreads the base over the processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_engine(may_shard):
    def is_on(variable):
        return os.environ.get(variable, "false").lower() == "true"

    if is_on("ACCELERATE_USE_DEEPSPEED") or is_on("ACCELERATE_USE_MEGATRON_LM"):
        engine = "DeepSpeed" if is_on("ACCELERATE_USE_DEEPSPEED") else "Megatron-LM"
        raise UserError(
            f"{engine} owns the backward pass and the optimizer's step, which are written out here: launch with "
            "accelerate_configs/fsdp2.yaml, which shards the model too"
        )
    if is_sharded() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("the launch file asks for the first FSDP: fsdp_version: 2, as in accelerate_configs/fsdp2.yaml")
    if is_sharded() and is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError(
            "fsdp_activation_checkpointing in the launch file is not for this loop: --gradient_checkpointing true"
        )
    if (is_sharded() and is_on("FSDP_OFFLOAD_PARAMS")) or is_on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise UserError("the launch file asks for offloading or another parallelism: use accelerate_configs/fsdp2.yaml")
    if is_sharded() and not may_shard:
        raise UserError(
            "FSDP2 is for training: here each process works on rows of its own with the whole model. Launch with "
            "accelerate_configs/multi_gpu.yaml (without a GPU cpu_2proc.yaml), or start it with python"
        )
