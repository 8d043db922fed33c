"""Single parts of the fast paths against float32 or the CPU, for check_fast_paths.py: gradients of
attention, compiled dropout, decoding from a cache, generated texts."""

import contextlib
import importlib.util
import json
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

from benchmarks.train_throughput import ROOT
from data_utils.prompt import PROMPT_FORMATS
from data_utils.sources import load_rows
from demo.rows import GENERATORS
from model_utils.attention import isolated_attention
from model_utils.fused_lora import LoraProjection, draw_noise, hashed_mask
from model_utils.fused_modules import kernels
from model_utils.generation import generate
from model_utils.speed import COMPILE
from run_utils.errors import describe_error

TAGS = PROMPT_FORMATS["tags-1"]


def wrong_parts(device, tokenizer):
    """The parts that are wrong on a device, apart from attention's gradients."""
    on_gpu = device.type == "cuda"
    off = max(dropout_error(device, [1024]), dropout_error(device, [4096, 1024, 1024]))
    wrong = ["dropout of compiled layers"] * (off > (1e-2 if on_gpu else 1e-5))
    decode_kernels = [None, kernels.decode] if on_gpu and kernels else [None]
    errors = [
        decoding_error(device, window, num_tokens, kernel)
        for window in (None, 16)
        for num_tokens in (1, 8)
        for kernel in decode_kernels
    ]
    wrong += ["decoding"] * (max(errors) > (1e-2 if on_gpu else 0))
    return wrong + ["generation"] * (num_different_texts(device, tokenizer) > 0)


def attention_gradient_errors(device):
    """The attention paths whose gradients differ from eager float32's, on three packed examples
    whose lengths and sum are 64 modulo 128. Scores are around 0, and then around -150, where
    cuDNN's backward fails. cuDNN's line is for comparison."""
    dtype, most = (torch.bfloat16, 3e-2) if device == "cuda" else (torch.float32, 1e-3)
    lengths = torch.tensor([64, 192, 320], device=device)
    document = torch.arange(3, device=device).repeat_interleave(lengths)
    total, heads, kv_heads, head_dim = len(document), 8, 2, 128
    mask = (document[:, None] == document).tril()[None, None]
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, training=False, is_causal=True)
    packed = {"cu_seq_lens_q": F.pad(lengths.cumsum(0), (1, 0)).int(), "max_length_q": int(lengths.max())}
    wrong = []

    def gradients(attention, states, mask):
        states = [state.detach().requires_grad_() for state in states]
        attended, _ = attention(module, *states, mask, scaling=head_dim**-0.5, **packed)
        return torch.autograd.grad(attended, states, weights.to(attended.dtype))

    for center in (0, -150):
        torch.manual_seed(0)
        offset = (-center) ** 0.5 * head_dim**-0.25 * torch.randn(head_dim, device=device).sign()
        states = [torch.randn(1, count, total, head_dim, device=device) for count in (heads, kv_heads, kv_heads)]
        states = [state.to(dtype) for state in (states[0] + offset, states[1] - offset, states[2])]
        weights = torch.randn(1, total, heads, head_dim, device=device).to(dtype)
        additive = torch.zeros(mask.shape, device=device).masked_fill(~mask, torch.finfo(torch.float32).min)
        wanted = gradients(eager_attention_forward, [state.float() for state in states], additive)
        for name, attention, bound in (
            ("isolated", isolated_attention, most),
            ("sdpa", sdpa_attention_forward, most),
            # In bf16, its scores near -150 are rounded to whole numbers.
            ("eager", eager_attention_forward, math.inf),
            ("sdpa by cuDNN", sdpa_attention_forward, None),
        ):
            by_cudnn = bound is None
            if by_cudnn and device == "cpu":
                continue
            kernel = sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if by_cudnn else contextlib.nullcontext()
            try:
                with kernel:
                    found = gradients(attention, states, additive.to(dtype) if name == "eager" else mask)
            except RuntimeError as error:
                if not by_cudnn:
                    raise
                print(f"gradients of {name}: none, {describe_error(error)}")
                continue
            off = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
            print(
                f"gradients of {name}, scores near {center}: those of query, key and value off by "
                f"{', '.join(f'{share:.1e}' for share in off)}",
                flush=True,
            )
            if not by_cudnn and not all(math.isfinite(share) and share <= bound for share in off):
                wrong.append(f"{name} at {center}")
    return wrong


def dropout_error(device, widths):
    """Outputs and gradients of compiled layers of one input against the same layers in float32,
    with an uncompiled mask."""
    draw = {"device": device, "requires_grad": True}
    bases = [torch.nn.Linear(2560, width, False, device).requires_grad_(False) for width in widths]
    x, a = torch.randn(3000, 2560, **draw), [torch.randn(32, 2560, **draw) for _ in widths]
    b = [torch.randn(width, 32, **draw) for width in widths]
    weights = [torch.randn(3000, width, device=device) for width in widths]

    def with_gradients(ys):
        loss = sum((y * weight).sum() for y, weight in zip(ys, weights, strict=True))
        return *ys, *torch.autograd.grad(loss, (x, *a, *b))

    torch.manual_seed(1)
    mask = hashed_mask(draw_noise(x.shape, x.device), x.shape, 0.05)
    low = [(x * mask / 0.95) @ factor.t() for factor in a]
    wanted = with_gradients([base(x) + 2 * part @ factor.t() for base, part, factor in zip(bases, low, b, strict=True)])
    if device.type == "cuda":
        bases = [base.bfloat16() for base in bases]
    project = torch.compile(LoraProjection.apply, **COMPILE)
    torch.manual_seed(1)
    got = with_gradients(project(x.to(bases[0].weight.dtype), 0.05, *bases, *[2.0] * len(bases), *a, *b))
    off = [((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in zip(got, wanted, strict=True)]
    print(
        f"dropout of {len(widths)} compiled layers of one input: outputs and gradients off by "
        f"{', '.join(f'{share:.1e}' for share in off)}",
        flush=True,
    )
    return max(off)


def decoding_error(device, sliding_window, num_tokens, decode_kernel=None):
    """Eight slots filled to different lengths: this device's path, in bf16 on a GPU, against the
    CPU's mask in float32. num_tokens: new ones in a slot. decode_kernel: the path's kernel, None
    for PyTorch's."""
    lengths = torch.tensor([8, 15, 16, 17, 300, 128, 129, 400], dtype=torch.int32) - 8 + num_tokens
    states = torch.randn(8, 32, num_tokens, 128), torch.randn(8, 8, 400, 128), torch.randn(8, 8, 400, 128)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    wanted, got = (
        isolated_attention(
            None, *(state.to(place, to) for state in states), None, 128**-0.5,
            slot_lengths=lengths.to(place), sliding_window=sliding_window, decode_kernel=kernel,
        )[0].cpu().flatten(1)
        for place, to, kernel in (("cpu", torch.float32, None), (device, dtype, decode_kernel))
    )  # fmt: skip
    off = ((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()
    by = "Triton" if decode_kernel else "PyTorch"
    print(
        f"decoding {num_tokens} tokens by {by}, {sliding_window or 'all'} seen: a slot's attention off by {off:.1e}",
        flush=True,
    )
    return off


def num_different_texts(device, tokenizer):
    """Of 32 rows in a few slots: free rows and, with xgrammar, two in three with the grammar of
    their tools."""
    demo = AutoModelForCausalLM.from_pretrained(ROOT / "demo" / "base", dtype=torch.float32).eval()
    rows = load_rows("demo", generators=GENERATORS)[0][:32]
    prompts = [TAGS.render(row.query, row.tools) for row in rows]
    choices = {"generation": None}
    if importlib.util.find_spec("xgrammar"):
        choices["constrained generation"] = [json.loads(row.tools) if i % 3 else None for i, row in enumerate(rows)]
    total = 0
    for name, tools in choices.items():
        on_cpu, here = (
            dict(generate(demo.to(place), tokenizer, TAGS, prompts, 64, batch_tokens=4096, tools=tools))
            for place in ("cpu", device)
        )
        different = sum(on_cpu[i].text != here[i].text for i in range(32))
        print(f"{name} in float32: {different} of 32 texts are not the CPU's", flush=True)
        total += different
    return total
