"""An adapter merged into its base's weights, and compared with the unmerged one."""

from collections import Counter
from typing import NamedTuple

import psutil
import torch

from model_utils.self_checks import difference, plain_logits, reference_logits, tolerance


class Merge(NamedTuple):
    """Distances from the logits of the unmerged adapter, as shares of their spread."""

    effect: float  # of the base without the adapter
    distance: float  # of the merged model, before its weights are rounded to the base's dtype
    allowed: float  # of `distance`
    rounding: float  # of the merged model after that; 0 if nothing is rounded
    dtype: torch.dtype  # that `distance` was computed in

    @property
    def problem(self):
        """The reason not to use the merged model, as the predicate of a sentence; None if there is none."""
        if not self.distance <= self.allowed:
            return (
                f"moves logits by {self.distance:.1e} of their spread, beyond rounding ({self.allowed:.1e}); the adapter "
                f"itself moves them by {self.effect:.1e}"
            )
        if not self.rounding <= max(self.effect / 2, self.allowed):
            return (
                f"loses it to rounding, which moves logits by {self.rounding:.1e} of their spread; the adapter itself moves "
                f"them by {self.effect:.1e}"
            )
        return None

    def __str__(self):
        blind = "" if self.dtype == torch.float32 else ", for want of memory: one projection left out could pass"
        return (
            f"the adapter moves them by {self.effect:.1e} of their spread, merging it by {self.distance:.1e} (rounding: "
            f"{self.allowed:.1e}), rounding the weights by {self.rounding:.1e}; compared in "
            f"{str(self.dtype).removeprefix('torch.')}{blind}"
        )


def merge_adapter(model, texts):
    """The base of a PEFT model with the adapter in its weights, in the dtypes that these had, and the Merge that the two are
    compared by on `texts` (int32 token ids).

    Both in float32, if memory allows: one projection left out can move logits in bf16 no further than rounding does. What
    counts as rounding in float32 is a hundredth of what the adapter does, or what another attention kernel does if that is
    more.
    """
    dtypes = [(weight, weight.dtype) for weight in model.parameters()]
    if fits_in_float32(model):
        for weight, _ in dtypes:
            weight.data = weight.data.float()
    reference = reference_logits(model, texts)
    with model.disable_adapter():
        effect = difference(all_logits(model, texts), reference)
    allowed, dtype = tolerance(model, texts[0], reference[:1], effect), model.dtype
    merged = model.merge_and_unload().eval()
    distance = difference(all_logits(merged, texts), reference)
    rounding = 0.0
    if any(weight.dtype != before for weight, before in dtypes):
        for weight, before in dtypes:
            weight.data = weight.data.to(before).float()
        rounding = difference(all_logits(merged, texts), reference)
        for weight, before in dtypes:
            weight.data = weight.data.to(before)
    return merged, Merge(effect, distance, allowed, rounding, dtype)


def all_logits(model, texts):
    return [plain_logits(model, [text])[0] for text in texts]


def fits_in_float32(model):
    """Whether the memory that is free on the model's device holds its weights in float32, with half as much to spare."""
    more = sum(weight.numel() * (4 - weight.element_size()) for weight in model.parameters())
    on_gpu = model.device.type == "cuda"
    return 1.5 * more < (torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available)


def adapts_shared_weights(model):
    """Whether a weight under an adapter's layer has another layer that uses it too."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    return any(users[id(parameter)] > 1 for layer in layers for parameter in layer.parameters())
