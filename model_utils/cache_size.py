"""The size of generation's cache of keys and values, by the memory that is free."""

import torch

from run_utils.errors import say

FIXED_TOKENS = 65536  # on a CPU, and for models whose configuration does not give a token's size
MOST_TOKENS = 2**19  # more slots than these hold are not faster
SHARE = 0.7  # of the free memory; prompts' activations and logits need the rest


def cache_tokens(model, batch_tokens):
    """The tokens of the cache for a value of `--batch_tokens`. For "auto" on a GPU, they depend on
    the free memory, and a line on stderr has them."""
    if batch_tokens != "auto":
        return batch_tokens
    size = bytes_per_token(model)
    if model.device.type != "cuda" or not size:
        return FIXED_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    tokens = max(1, min(MOST_TOKENS, int(SHARE * free / size)))
    gib = tokens * size / 2**30
    say(f"--batch_tokens auto: a cache of up to {tokens:,} tokens ({gib:.1f} of {free / 2**30:.1f} GiB free)")
    return tokens


def bytes_per_token(model):
    """The bytes of a token's keys and values in all layers; None if the model's configuration has
    no usual names for their sizes."""
    config = model.config.get_text_config(decoder=True)
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not isinstance(layers, int) or not isinstance(heads, int):
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * layers * kv_heads * head_dim * model.dtype.itemsize
