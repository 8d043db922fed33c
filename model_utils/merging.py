"""An adapter merged into its base's weights, and compared with the unmerged model."""

import contextlib
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
    dtype: torch.dtype  # of the computation of `distance`

    @property
    def problem(self):
        """The reason not to use the merged model, as the predicate of a sentence, or None."""
        if not self.distance <= self.allowed:
            return (
                f"moves logits by {self.distance:.1e} of their spread, beyond rounding ({self.allowed:.1e}); the "
                f"adapter itself moves them by {self.effect:.1e}"
            )
        if not self.rounding <= max(self.effect / 2, self.allowed):
            return (
                f"loses it to rounding, which moves logits by {self.rounding:.1e} of their spread; the adapter itself "
                f"moves them by {self.effect:.1e}"
            )
        return None

    def __str__(self):
        blind = "" if self.dtype == torch.float32 else ", for want of memory: one projection left out could pass"
        return (
            f"the adapter moves them by {self.effect:.1e} of their spread, merging it by {self.distance:.1e} "
            f"(rounding: {self.allowed:.1e}), rounding the weights by {self.rounding:.1e}; compared in "
            f"{str(self.dtype).removeprefix('torch.')}{blind}"
        )


def merge_adapter(model, texts):
    """`(model, Merge)`: the base of a PEFT model with the adapter in its weights, in their former
    dtypes, and its comparison with the unmerged model on `texts` (int32 token ids).

    Both are compared in float32 if memory allows: in bf16, a missing projection can move logits no
    further than rounding does. In float32, rounding may be a hundredth of the adapter's effect, or
    the difference of another attention kernel if that is larger."""
    with float32_weights(model) as dtypes:
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
    return merged, Merge(effect, distance, allowed, rounding, dtype)


def merge_again(model):
    """The merged model of merge_adapter, which has compared this adapter on this base before."""
    with float32_weights(model):
        return model.merge_and_unload().eval()


@contextlib.contextmanager
def float32_weights(model):
    """Have the weights in float32 if memory allows. Yields `[(weight, its dtype), ...]`."""
    dtypes = [(weight, weight.dtype) for weight in model.parameters()]
    if fits_in_float32(model):
        for weight, _ in dtypes:
            weight.data = weight.data.float()
    yield dtypes
    for weight, before in dtypes:
        weight.data = weight.data.to(before)


def all_logits(model, texts):
    return [plain_logits(model, [text])[0] for text in texts]


def fits_in_float32(model):
    """Whether the free memory of the model's device holds the weights in float32, with half as much
    to spare."""
    more = sum(weight.numel() * (4 - weight.element_size()) for weight in model.parameters())
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()  # the cache of keys and values of an earlier generation
    return 1.5 * more < (torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available)


def adapts_shared_weights(model):
    """Whether another layer also uses a weight under an adapter's layer."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    return any(users[id(parameter)] > 1 for layer in layers for parameter in layer.parameters())
