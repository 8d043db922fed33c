"""The attention kernel: it separates the examples of a padding-free batch without masks, and
decodes over slots of a cache."""

import importlib.util
import inspect
import warnings

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from run_utils.errors import UserError, describe_error, say

try:
    # torch's own flash attention needs no package.
    from torch.nn.attention.varlen import varlen_attn

    VARLEN_PARAMETERS = set(inspect.signature(varlen_attn).parameters)
except ImportError:
    VARLEN_PARAMETERS = set()
VARLEN_KNOWS_WINDOWS = "window_size" in VARLEN_PARAMETERS  # from torch 2.11 on; causal is a window
# torch 2.11 accepts fewer key-value heads without it.
VARLEN_ASKS_FOR_GQA = "enable_gqa" in VARLEN_PARAMETERS

ISOLATED = "isolated"  # the name in `attn_implementation`
RUNS_FLASH_ATTENTION_3 = {}  # by device, once tried
# cuDNN's backward has NaN in the query's gradient, in torch 2.11 to 2.13 on H100 and H200: with a
# mask, at lengths of 64 modulo 128, if a row's scores are far below 0 (pytorch#196678). Without
# cuDNN, SDPA takes another kernel. varlen_attn never uses cuDNN.
torch.backends.cuda.enable_cudnn_sdp(False)


@torch.compiler.assume_constant_result  # compiled layers call it, and cannot trace it
def has_varlen_kernel(device, dtype):
    """Whether torch's variable-length flash attention runs here. It needs torch 2.11 and an NVIDIA
    GPU of the Ampere generation or newer."""
    return (
        VARLEN_KNOWS_WINDOWS
        and device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def use_flash_attention_3(device):
    """Have torch's flash attention run FlashAttention 3, in the whole process, if its package is
    installed. It is for GPUs of the Hopper generation. Returns whether it does: it may not load, or
    have failed a check before."""
    if device not in RUNS_FLASH_ATTENTION_3:
        RUNS_FLASH_ATTENTION_3[device] = activate_flash_attention_3(device)
    return RUNS_FLASH_ATTENTION_3[device]


def leave_flash_attention_3(device, problem):
    """Have torch's flash attention run FlashAttention 2 from now on, and say why."""
    say(f"FlashAttention 3 is not used: {problem}")
    torch.nn.attention.restore_flash_attention_impl()
    RUNS_FLASH_ATTENTION_3[device] = False


def activate_flash_attention_3(device):
    hopper = VARLEN_KNOWS_WINDOWS and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    if not hopper or importlib.util.find_spec("flash_attn_interface") is None:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # ten lines on the kernels that this replaces
            torch.nn.attention.activate_flash_attention_impl("FA3")
    except Exception as error:  # a library for another torch or CUDA raises anything
        say(f"FlashAttention 3 is installed, but does not load: {describe_error(error)}")
        return False
    return True


def isolated_attention(
    module, query, key, value, attention_mask, scaling, dropout=0.0, cu_seq_lens_q=None, max_length_q=None,
    cu_seq_lens_k=None, max_length_k=None, slot_lengths=None, decode_kernel=None, sliding_window=None, **kwargs,
):  # fmt: skip
    """Causal attention within each example of a padding-free batch, or, with `slot_lengths`, of the
    new tokens of each cache slot.

    query: [batch, heads, tokens, head_dim]; key, value: [batch, kv_heads, tokens, head_dim];
    returns [batch, tokens, heads, head_dim]. Padding-free: batch 1, examples end to end, none
    longer than max_length_q; example i is from cu_seq_lens_q[i] to cu_seq_lens_q[i + 1] (int32).
    With cu_seq_lens_k and max_length_k, an example has keys and values of earlier tokens too.
    Decoding: the batch is the slots, with their new tokens as queries; key and value are the cache;
    slot_lengths [slots] (int32) is the number of a slot's tokens, the new ones included.
    decode_kernel: kernels.decode, or None.

    Only the blocks on the diagonal are computed, without a tokens x tokens mask. The function is
    only registered with `AttentionInterface`: transformers makes no masks for it, so padded batches
    are refused."""
    if kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise UserError(f"{ISOLATED} attention has neither capped scores nor sinks, which this model needs")
    if cu_seq_lens_q is None and slot_lengths is None:
        raise ValueError("isolated attention needs cu_seq_lens_q: padded batches are not supported")
    if torch.is_autocast_enabled(query.device.type):  # as autocast does for PyTorch's own attention
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (states.to(dtype) for states in (query, key, value))
    if slot_lengths is not None and decode_kernel:
        return decode_kernel(query.transpose(1, 2), key, value, slot_lengths, scaling, sliding_window), None
    if slot_lengths is not None:
        return decode(query, key, value, slot_lengths, sliding_window=sliding_window, scaling=scaling), None
    if cu_seq_lens_k is None:
        cu_seq_lens_k, max_length_k = cu_seq_lens_q, max_length_q
    if has_varlen_kernel(query.device, query.dtype):
        if dropout:
            raise UserError(f"{ISOLATED} attention has no dropout on a GPU, which this model needs")
        window = -1 if sliding_window is None else sliding_window - 1
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        gqa = {"enable_gqa": True} if VARLEN_ASKS_FOR_GQA else {}
        attended = varlen_attn(
            query, key, value, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k,
            scale=scaling, window_size=(window, 0), **gqa,
        )  # fmt: skip
        return attended[None], None
    starts = (query, cu_seq_lens_q), (key, cu_seq_lens_k), (value, cu_seq_lens_k)
    blocks = zip(*(states.split(start.diff().tolist(), dim=2) for states, start in starts), strict=True)
    attended = [
        one_example(*block, sliding_window=sliding_window, scaling=scaling, dropout=dropout) for block in blocks
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def one_example(query, key, value, *, sliding_window, scaling, dropout):
    tokens, length, mask = query.shape[2], key.shape[2], None
    window = length if sliding_window is None else sliding_window
    if tokens < length or window < length:
        places = torch.arange(length, device=query.device)
        ages = places[length - tokens :, None] - places
        mask = (ages >= 0) & (ages < window)
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def decode(query, key, value, slot_lengths, *, sliding_window, scaling):
    """Query heads with the same key-value head take the place of query tokens, so no key is
    copied."""
    slots, kv_heads, length, head_dim = key.shape
    tokens = query.shape[2]
    query = query.unflatten(1, (kv_heads, -1)).transpose(2, 3)  # [slots, kv_heads, tokens, group, head_dim]
    if has_varlen_kernel(query.device, query.dtype):
        # This needs no mask, and reads no slot beyond its length. It calls the operator under
        # varlen_attn, which only has seqused_k from torch 2.12 on. A sequence is one key-value head
        # of a slot.
        starts = torch.arange(slots * kv_heads + 1, dtype=torch.int32, device=query.device)
        window = {} if sliding_window is None else {"window_size_left": sliding_window - 1, "window_size_right": 0}
        attended, *_ = torch.ops.aten._flash_attention_forward(
            query.flatten(0, 2), key.reshape(-1, 1, head_dim), value.reshape(-1, 1, head_dim), starts * tokens,
            starts * length, tokens, length, 0.0, tokens > 1, False, scale=scaling,
            seqused_k=slot_lengths.repeat_interleave(kv_heads), **window,
        )  # fmt: skip
    else:
        places = slot_lengths[:, None] - tokens + torch.arange(tokens, device=query.device)  # of the new tokens
        ages = places[:, :, None] - torch.arange(length, device=query.device)
        kept = ages >= 0 if sliding_window is None else (ages >= 0) & (ages < sliding_window)
        kept = kept.repeat_interleave(query.shape[3], dim=1)[:, None]
        attended = F.scaled_dot_product_attention(query.flatten(2, 3), key, value, kept, scale=scaling)
    attended = attended.reshape(slots, kv_heads, tokens, -1, value.shape[-1])
    return attended.transpose(1, 2).flatten(2, 3)


AttentionInterface.register(ISOLATED, isolated_attention)
