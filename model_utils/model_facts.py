"""Facts about a model, mostly from its configuration, and token ids as a batch."""

import math

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from run_utils.errors import UserError


def unwrapped(model):
    """The transformers model inside a PEFT model, with the adapter's layers in it. Any other model
    is returned as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def num_positions(config):
    """The number of the model's positions, for prompt and answer together; infinity if it needs
    none."""
    text_config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len"):  # the latter is MPT's
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            # Scaled rotary positions reach further. The number above has this included in Llama 3,
            # but not in Vicuna.
            rope = rope_parameters(config)
            try:
                factor = float(rope.get("factor") or 1)
                return max(value, int((rope.get("original_max_position_embeddings") or value) * factor))
            except (AttributeError, OverflowError, TypeError, ValueError):
                raise UserError(f"the model's config.json has rope_parameters of other types: {rope}") from None
    return math.inf


def rope_parameters(config):
    return getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}


def length_dependent_from(config):
    """The length above which a text's rotary positions change its neighbours' in a batch, and its
    own as it grows; infinity if the model has no variant that depends on the longest position. Read
    from the configuration, since in bf16 the change may be as small as rounding."""
    rope = rope_parameters(config)
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return math.inf
    text_config = config.get_text_config(decoder=True)
    return rope.get("original_max_position_embeddings") or text_config.max_position_embeddings


def set_attention(model, implementation):
    """Set the attention implementation. Returns the implementation in use: older models keep their
    own."""
    base = unwrapped(model)
    if base.config._attn_implementation != implementation:
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it warns about models that keep their own
        try:
            base.set_attn_implementation(implementation)
        finally:
            transformers_logging.set_verbosity(verbosity)
    return base.config._attn_implementation


def pad(texts, side, device):
    """Token ids (int32 arrays) as one batch, padded at the "left" or the "right": ids and mask,
    int64 [texts, longest]."""
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if side == "left" else slice(len(text))
        ids[row, place] = torch.from_numpy(text.astype(np.int64))
        mask[row, place] = 1
    return ids.to(device), mask.to(device)
