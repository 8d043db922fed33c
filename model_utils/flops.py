"""Parameters by role, the FLOP of a training step, and what share of the GPU's peak that is."""

from collections import Counter
from typing import NamedTuple

import torch

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets; the longest matching name counts.
PEAK_BF16_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 210e12,
}


def dtype_census(model):
    """`{"trainable float32": 66_060_288, "frozen nf4": 3_623_878_656, ...}`: parameters by role and dtype."""
    census = Counter()
    for parameter in model.parameters():
        four_bit = type(parameter).__name__ == "Params4bit"  # stored in whatever dtype
        dtype = "nf4" if four_bit else str(parameter.dtype).removeprefix("torch.")
        role = "trainable" if parameter.requires_grad else "frozen"
        census[f"{role} {dtype}"] += parameter.quant_state.shape.numel() if four_bit else parameter.numel()
    return dict(census)


class Flops(NamedTuple):
    """FLOP of a training step, per token in the layers and per completion token in the head, and the devices' peak in FLOP/s,
    None where it is not known."""

    per_token: int
    per_completion_token: int
    peak: float | None = None

    def utilization(self, num_tokens, num_completion_tokens, seconds):
        """Model FLOP utilisation (MFU): the share of the peak that training made use of."""
        return (self.per_token * num_tokens + self.per_completion_token * num_completion_tokens) / seconds / self.peak


def count_flops(model, gradient_checkpointing, peak=None):
    """The Flops of training a PEFT model.

    A frozen weight costs 4 per token (forward 2, gradient of its input 2; it has no gradient of its own), a LoRA weight
    6, and checkpointing runs the layers' forward once more. Attention's own products are left out: at these lengths a
    few per cent.
    """
    head = model.get_output_embeddings().weight
    embeddings = {id(weight): weight.numel() for weight in (model.get_input_embeddings().weight, head)}
    census = dtype_census(model)
    frozen = sum(count for role, count in census.items() if role.startswith("frozen")) - sum(embeddings.values())
    trainable = sum(count for role, count in census.items() if role.startswith("trainable"))
    again = 2 if gradient_checkpointing else 0
    return Flops(frozen * (4 + again) + trainable * (6 + again), 4 * head.numel(), peak)


def peak_flops(accelerator):
    """The bf16 peak of all processes' devices in FLOP/s, or None where it is not known."""
    if accelerator.device.type != "cuda" or accelerator.mixed_precision != "bf16":
        return None
    name = torch.cuda.get_device_name(accelerator.device)
    known = [key for key in PEAK_BF16_FLOPS if name.startswith(key)]
    return PEAK_BF16_FLOPS[max(known, key=len)] * accelerator.num_processes if known else None
