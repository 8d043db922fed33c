"""Parameters by role, the FLOP of a training step, and their share of the GPU's peak."""

from collections import Counter
from typing import NamedTuple

import torch

from model_utils.loading import expert_parameters, text_decoder
from model_utils.model_facts import unwrapped

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
        dtype = "nf4" if is_four_bit(parameter) else str(parameter.dtype).removeprefix("torch.")
        role = "trainable" if parameter.requires_grad else "frozen"
        census[f"{role} {dtype}"] += num_weights(parameter)
    return dict(census)


def is_four_bit(parameter):
    return type(parameter).__name__ == "Params4bit"  # stored in whatever dtype


def num_weights(parameter):
    return parameter.quant_state.shape.numel() if is_four_bit(parameter) else parameter.numel()


class Flops(NamedTuple):
    """FLOP of a training step, per token in the layers and per completion token in the head; per token what checkpointing computes
    again; and the devices' peak in FLOP/s, None if it is not known."""

    per_token: float
    per_completion_token: float
    recomputed_per_token: float = 0
    peak: float | None = None

    def utilization(self, num_tokens, num_supervised, seconds):
        """Model FLOP utilisation (MFU): the share of the peak that the model needs, however it is computed."""
        return (self.per_token * num_tokens + self.per_completion_token * num_supervised) / seconds / self.peak

    def hardware_utilization(self, num_tokens, num_supervised, seconds):
        """Hardware FLOP utilisation (HFU): MFU and the share of the peak that checkpointing's recomputation takes."""
        recomputed = self.recomputed_per_token * num_tokens / seconds / self.peak
        return self.utilization(num_tokens, num_supervised, seconds) + recomputed


def count_flops(model, gradient_checkpointing, peak=None):
    """The Flops of training a PEFT model on text.

    A frozen weight costs 4 per token (forward 2, gradient of its input 2; it has no gradient of its own), a trainable one 6,
    and checkpointing runs the layers' forward once more. Only weights that multiply a token count: of a mixture the experts
    that a token meets, of a model that also sees the decoder of text. Left out are attention's own products, a few per cent
    at these lengths. Counted, though nothing computes it, is the gradient of the first projections' input.
    """
    base = unwrapped(model)
    head, decoder = base.get_output_embeddings(), text_decoder(base)
    in_head = set(head.modules())
    layers = Counter()
    shares = shares_at_work(base)
    for path, module in decoder.named_modules():
        if module not in in_head:
            owner = next((owner for owner in shares if path.startswith(owner)), None)
            layers += weights_that_multiply(path, module, shares.get(owner, 1))
    head_weights = sum((weights_that_multiply(path, module) for path, module in head.named_modules()), Counter())
    forward = layers["frozen"] + layers["trainable"]
    return Flops(
        per_token=4 * layers["frozen"] + 6 * layers["trainable"],
        per_completion_token=4 * head_weights["frozen"] + 6 * head_weights["trainable"],
        recomputed_per_token=2 * forward if gradient_checkpointing else 0,
        peak=peak,
    )


def shares_at_work(base):
    """The share of its experts that a token meets, by the path of each mixture's experts in the decoder of text. An adapter on
    them lies under the same path."""
    config = base.config.get_text_config(decoder=True)
    per_token = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    return {
        path.split(".base_layer")[0]: min(1, per_token / len(parameter)) if per_token else 1
        for path, _, parameter in expert_parameters(base)
    }


def weights_that_multiply(path, module, share=1):
    """`{"frozen": ..., "trainable": ...}`: how many weights of this module, not of those within, multiply a token. Vectors do
    not, and rows of an embedding are looked up, as those of a LoRA adapter's A on it are."""
    if isinstance(module, torch.nn.Embedding) or path.endswith("lora_embedding_A"):
        return Counter()
    counted = Counter()
    for parameter in module.parameters(recurse=False):
        if parameter.ndim > 1:
            counted["trainable" if parameter.requires_grad else "frozen"] += share * num_weights(parameter)
    return counted


def peak_flops(accelerator):
    """The bf16 peak of all processes' devices in FLOP/s, or None where it is not known."""
    if accelerator.device.type != "cuda" or accelerator.mixed_precision != "bf16":
        return None
    name = torch.cuda.get_device_name(accelerator.device)
    known = [key for key in PEAK_BF16_FLOPS if name.startswith(key)]
    return PEAK_BF16_FLOPS[max(known, key=len)] * accelerator.num_processes if known else None
