"""Parameters by role, the FLOP of a training step, and their share of the GPU's peak."""

from collections import Counter
from typing import NamedTuple

import torch

from model_utils.gpus import peak_of
from model_utils.loading import expert_parameters, text_decoder
from model_utils.model_facts import unwrapped


def dtype_census(model):
    """`{"trainable float32": 66_060_288, "frozen nf4": 3_623_878_656, ...}`: parameters by role and
    dtype."""
    census = Counter()
    for parameter in model.parameters():
        dtype = "nf4" if is_four_bit(parameter) else str(parameter.dtype).removeprefix("torch.")
        role = "trainable" if parameter.requires_grad else "frozen"
        census[f"{role} {dtype}"] += num_weights(parameter)
    return dict(census)


def is_four_bit(parameter):
    return type(parameter).__name__ == "Params4bit"  # its dtype is only for storage


def num_weights(parameter):
    return parameter.quant_state.shape.numel() if is_four_bit(parameter) else parameter.numel()


class Flops(NamedTuple):
    """FLOP of a training step: per token in the layers, per completion token in the head, and per
    token that checkpointing recomputes; and the devices' peak in FLOP/s, None if unknown."""

    per_token: float
    per_completion_token: float
    recomputed_per_token: float = 0
    peak: float | None = None

    def utilization(self, num_tokens, num_supervised, seconds):
        """Model FLOP utilisation (MFU): the model's FLOP as a share of the peak, without
        recomputation."""
        return (self.per_token * num_tokens + self.per_completion_token * num_supervised) / seconds / self.peak

    def hardware_utilization(self, num_tokens, num_supervised, seconds):
        """Hardware FLOP utilisation (HFU): MFU with checkpointing's recomputation."""
        recomputed = self.recomputed_per_token * num_tokens / seconds / self.peak
        return self.utilization(num_tokens, num_supervised, seconds) + recomputed


def count_flops(model, gradient_checkpointing, peak=None):
    """The Flops of training a PEFT model on text.

    A frozen weight costs 4 per token (forward 2, its input's gradient 2; it has no gradient
    itself), a trainable weight 6. Checkpointing repeats the layers' forward. Only weights that
    multiply tokens count: in a mixture, the experts used per token; in a model with vision or
    audio, the text decoder. Attention's own products are left out: a few per cent at these lengths.
    The gradient of the first projections' input is included, though nothing computes it."""
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
    """The share of the experts used per token, by the path of each mixture's experts in the text
    decoder. The path of an adapter on the experts begins with the same path."""
    config = base.config.get_text_config(decoder=True)
    per_token = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    return {
        path.split(".base_layer")[0]: min(1, per_token / len(parameter)) if per_token else 1
        for path, _, parameter in expert_parameters(base)
    }


def weights_that_multiply(path, module, share=1):
    """`{"frozen": ..., "trainable": ...}`: the number of this module's weights, without its
    submodules, in products with a token. Vectors are not, and rows of an embedding are looked up,
    also in a LoRA adapter's A on it."""
    if isinstance(module, torch.nn.Embedding) or path.endswith("lora_embedding_A"):
        return Counter()
    counted = Counter()
    for parameter in module.parameters(recurse=False):
        if parameter.ndim > 1:
            counted["trainable" if parameter.requires_grad else "frozen"] += share * num_weights(parameter)
    return counted


def peak_flops(accelerator):
    """The bf16 peak of all processes' devices in FLOP/s, or None if unknown."""
    if accelerator.device.type != "cuda" or accelerator.mixed_precision != "bf16":
        return None
    peak = peak_of(torch.cuda.get_device_name(accelerator.device))
    return peak * accelerator.num_processes if peak else None
