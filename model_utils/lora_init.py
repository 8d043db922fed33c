"""First values of A and B from the base's weights (PiSSA, OLoRA, LoftQ), or orthogonal ones.

PEFT's PiSSA and OLoRA begin with a part B0 A0 of each weight W and take it out of the base, so that
their adapters need a base changed in the same way. Here the base keeps it:

    (W - s B0 A0) + s B A = W + s [B, -B0] [A; A0]

This is a plain LoRA of twice the rank, whose second half never trains: the form to which PEFT
converts these adapters when it saves them (LoraModel.subtract_mutated_init). So checkpoints,
merging, quantised bases and servers need no rules for it, and a resume no second decomposition."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils.integrations import dequantize_module_weight
from transformers.pytorch_utils import Conv1D

from model_utils.variants import takes_part


def doubled(sizes):
    """LoraConfig's rank, alpha and patterns for twice the rank and the same scaling."""
    by_root = sizes.get("use_rslora")  # alpha / sqrt(r)
    factors = {"r": 2, "rank_pattern": 2, "lora_alpha": 2**0.5 if by_root else 2}
    factors["alpha_pattern"] = factors["lora_alpha"]
    return sizes | {name: multiplied(sizes[name], factor) for name, factor in factors.items() if sizes.get(name)}


def multiplied(value, factor):
    """A number, or each of a dict's, times `factor`."""
    return {name: number * factor for name, number in value.items()} if isinstance(value, dict) else value * factor


@torch.no_grad()
def initialise(model, init, original=None):
    """Fill A and B of a PEFT model's LoRA layers by --init_lora_weights.

    original: for LoftQ, the unquantised base. For PiSSA and OLoRA, the layers have twice the rank.
    """
    for path, layer in model.get_base_model().named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        a, b, scaling = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
        weight = dense_weight(layer.get_base_layer())
        if init == "loftq":
            rest = dense_weight(original.get_submodule(path)).to(weight.device) - weight
            first_a, first_b = principal_part(rest / scaling, len(a))
        else:
            rank = len(a) // 2 if takes_part(init) else len(a)
            first_a, first_b = peft_factors(weight, init, rank, scaling)
        if takes_part(init):
            first_a, first_b = torch.cat([first_a, first_a]), torch.cat([first_b, -first_b], dim=1)
        a.copy_(first_a)
        b.copy_(first_b)


def freeze_first_values(model):
    """Keep the gradients of A0 and B0, the second halves of A and B, at zero. So Adam never moves
    them, without weight decay and with moments in 32 bits: bitsandbytes' 8-bit AdamW rounds a
    moment of 0 beside larger ones to another number (seen on a CPU)."""
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            half = len(a) // 2
            a.register_hook(lambda gradient, half=half: torch.cat([gradient[:half], torch.zeros_like(gradient[half:])]))
            b.register_hook(
                lambda gradient, half=half: torch.cat([gradient[:, :half], torch.zeros_like(gradient[:, half:])], dim=1)
            )


def dense_weight(linear):
    """The weight of a linear layer, float32 [out, in], dequantised."""
    weight = dequantize_module_weight(linear).detach().float()
    return weight.t() if isinstance(linear, Conv1D) else weight


def principal_part(weight, rank):
    """`(A, B)` with the product B A nearest to `weight`. PEFT's LoftQ leaves out LoRA's scaling:
    it adds `scaling` times the rounding error. Here the caller divides by it."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def peft_factors(weight, init, rank, scaling):
    """`(A, B)` of PEFT's own initialisation of a linear layer with this weight."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, *weight.t().shape, bias=False, device=weight.device)
    layer.weight.data = weight.clone().contiguous()  # PEFT changes it
    holder = torch.nn.ModuleDict({"layer": layer})
    config = LoraConfig(r=rank, lora_alpha=scaling * rank, init_lora_weights=init, target_modules=["layer"])
    layer = inject_adapter_in_model(config, holder)["layer"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight
