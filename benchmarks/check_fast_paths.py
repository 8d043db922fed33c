"""Do the fast paths compute the same as the plain path? Loss and LoRA gradients on the same weights
and rows, one table.

    python -m benchmarks.check_fast_paths  # four layers of Qwen3-4B's shape, minutes on a GPU
    python -m benchmarks.check_fast_paths --shape tiny  # on a CPU: without CUDA graphs and Liger
    python -m benchmarks.check_fast_paths --attention_gradients  # attention paths only, seconds

In bf16, two correct orders of summation differ in the last digits. So everything is compared with
float32. A fast path is correct if it is no further from float32 than the plain bf16 path:
transformers' SDPA attention with its block mask, PEFT's own LoRA layers, nothing compiled. Exits
with 1 if a path is wrong.

Dropout is 0 in the table. In checks beside the table, dropout must follow the seed and move the
gradients as far as PEFT's dropout. Compiled layers, one alone and three of one input, must drop the
elements that their hash selects, forward and backward. Decoding must attend to exactly the part of
each cache slot that a mask shows. The demo's model must give the CPU's texts in float32, with slots
used again (on a CPU, it is compared with itself). Each attention path must have the gradients of
eager float32 on packed examples of 64 tokens modulo 128, for which cuDNN's kernel is wrong
(pytorch#196678).
"""

import argparse
import contextlib
import importlib.util
import json
import math
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward
from transformers.utils import is_liger_kernel_available

from benchmarks.train_throughput import ROOT, SHAPES, TARGETS, make_model, make_rows
from data_utils.batching import TrainingData, tokenize_rows
from data_utils.prompt import PROMPT_FORMATS
from data_utils.sources import load_rows
from demo.rows import GENERATORS
from model_utils.attention import ISOLATED, isolated_attention
from model_utils.cuda_graphs import use_cuda_graphs
from model_utils.fp8 import use_fp8_products
from model_utils.fused_lora import LoraProjection, draw_noise, fuse_lora, hashed_mask
from model_utils.fused_modules import kernels
from model_utils.generation import generate
from model_utils.speed import COMPILE, compile_layers, use_liger_kernels
from run_utils.errors import describe_error
from train import completion_loss

FUSED = {"attention": ISOLATED, "fused": True}
PATHS = {
    "plain": {"attention": "sdpa"},
    "isolated attention": {"attention": ISOLATED},
    "+ fused LoRA": FUSED,
    "+ CUDA graphs": FUSED | {"graphs": True},
    "+ compiled": FUSED | {"compiled": True},
    "+ compiled + CUDA graphs": FUSED | {"compiled": True, "graphs": True},
    "plain, NF4": {"attention": "sdpa", "nf4": True},
    "+ fused LoRA, NF4": FUSED | {"nf4": True},
    "+ CUDA graphs, NF4": FUSED | {"graphs": True, "nf4": True},
    "+ compiled + CUDA graphs, NF4": FUSED | {"compiled": True, "graphs": True, "nf4": True},
    "+ fused LoRA, FP8": FUSED | {"fp8": True},
    "+ compiled + CUDA graphs, FP8": FUSED | {"compiled": True, "graphs": True, "fp8": True},
    # Last: Liger changes transformers for the whole process.
    "+ Liger": FUSED | {"liger": True},
    "+ Liger + CUDA graphs": FUSED | {"liger": True, "graphs": True},
}
# FP8 rounds more than bf16, on purpose: of the loss and of the gradients. On an H200, six steps of
# this random model were off by 0.05 to 0.07 and 0.13, whether products accumulate fast or not.
FP8_BOUNDS = 0.1, 0.15
TAGS = PROMPT_FORMATS["tags-1"]


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--attention_gradients", action="store_true", help="check these alone")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    on_gpu = torch.cuda.is_available()
    wrong = attention_gradient_errors("cuda" if on_gpu else "cpu")
    if args.attention_gradients:
        sys.exit(f"wrong attention gradients: {', '.join(wrong)}" if wrong else 0)
    accelerator = Accelerator(mixed_precision="bf16" if on_gpu else "no", cpu=not on_gpu)
    folder = tempfile.TemporaryDirectory()
    model_dir, rows_file = Path(folder.name) / "model", Path(folder.name) / "rows.jsonl"
    make_model(model_dir, shape | {"num_hidden_layers": min(4, shape["num_hidden_layers"])})
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    make_rows(rows_file, tokenizer, count=16)
    data = TrainingData(tokenize_rows(tokenizer, TAGS, load_rows(str(rows_file))[0], 1024)[0], 0, 4, 2)

    def build(
        dtype, attention, fused=False, liger=False, compiled=False, graphs=False, nf4=False, fp8=False, dropout=0.0
    ):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, attn_implementation=attention, device_map={"": accelerator.device},
            quantization_config=quantization if nf4 else None,
        )  # fmt: skip
        if nf4 and dtype == torch.float32:
            model = model.dequantize().float()
        model.requires_grad_(False)
        config = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, lora_dropout=dropout, target_modules=TARGETS)
        model = get_peft_model(model, config)
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:  # B too: else A has no gradient
                parameter.data = torch.randn(parameter.shape).to(accelerator.device) * 0.02
        if fused:
            fuse_lora(model)
        if fp8:
            use_fp8_products(model)
        if liger:
            use_liger_kernels(model)
        if compiled:
            compile_layers(model)
        model.train()
        if graphs:
            use_cuda_graphs(accelerator, model, data, range(2))
        return model

    def step(model, k):
        """Loss and gradients of optimizer step k: two micro-batches of four rows."""
        model.zero_grad()
        loss = 0.0
        for batch in data[k].micro_batches:
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                micro_loss = completion_loss(model, batch, accelerator.device) / data[k].weight_sum
            micro_loss.backward()
            loss += micro_loss.item()
        return loss, torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])

    def loss_and_gradients(dtype, **path):
        model = build(dtype, **path)
        # The compared values are from a second step, whose rows no graph was captured with.
        step(model, 0)
        return step(model, 1)

    def dropout_errors():
        dtype = torch.bfloat16 if on_gpu else torch.float32
        attention = ISOLATED if on_gpu else "sdpa"
        without = step(build(dtype, attention), 1)[1]
        plain, errors = None, []
        for fused, compiled, graphs in [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]:
            if graphs and not on_gpu:
                continue
            model = build(dtype, attention, fused, compiled=compiled, graphs=graphs, dropout=0.05)
            (first, gradient), (again, _), (other, _) = (
                (torch.manual_seed(seed), step(model, 1))[1] for seed in (1, 1, 2)
            )
            moved = ((gradient - without).norm() / without.norm()).item()
            plain = plain or moved
            path = "dropout" + ", fused" * fused + ", compiled" * compiled + ", CUDA graphs" * graphs
            print(
                f"{path}: moves the gradients by {moved:.1%}; losses of seeds 1, 1, 2: {first}, {again}, {other}",
                flush=True,
            )
            if first != again or first == other or not 0.8 < moved / plain < 1.25:
                errors.append(path)
        alone, together = hashed_dropout_error([1024]), hashed_dropout_error([4096, 1024, 1024])
        return errors + ["dropout of compiled layers"] * (max(alone, together) > (1e-2 if on_gpu else 1e-5))

    def hashed_dropout_error(widths):
        """Outputs and gradients of compiled layers of one input against the same layers in float32,
        with an uncompiled mask."""
        draw = {"device": accelerator.device, "requires_grad": True}
        bases = [torch.nn.Linear(2560, width, False, accelerator.device).requires_grad_(False) for width in widths]
        x, a = torch.randn(3000, 2560, **draw), [torch.randn(32, 2560, **draw) for _ in widths]
        b = [torch.randn(width, 32, **draw) for width in widths]
        weights = [torch.randn(3000, width, device=accelerator.device) for width in widths]

        def with_gradients(ys):
            loss = sum((y * weight).sum() for y, weight in zip(ys, weights, strict=True))
            return *ys, *torch.autograd.grad(loss, (x, *a, *b))

        torch.manual_seed(1)
        mask = hashed_mask(draw_noise(x.shape, x.device), x.shape, 0.05)
        low = [(x * mask / 0.95) @ factor.t() for factor in a]
        wanted = with_gradients(
            [base(x) + 2 * part @ factor.t() for base, part, factor in zip(bases, low, b, strict=True)]
        )
        if on_gpu:
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

    def decoding_error(sliding_window, num_tokens, decode_kernel=None):
        """Eight slots filled to different lengths: this device's path, in bf16 on a GPU, against
        the CPU's mask in float32. num_tokens: new ones in a slot. decode_kernel: the path's kernel,
        None for PyTorch's."""
        lengths = torch.tensor([8, 15, 16, 17, 300, 128, 129, 400], dtype=torch.int32) - 8 + num_tokens
        states = torch.randn(8, 32, num_tokens, 128), torch.randn(8, 8, 400, 128), torch.randn(8, 8, 400, 128)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        wanted, got = (
            isolated_attention(
                None, *(state.to(device, to) for state in states), None, 128**-0.5,
                slot_lengths=lengths.to(device), sliding_window=sliding_window, decode_kernel=kernel,
            )[0].cpu().flatten(1)
            for device, to, kernel in (("cpu", torch.float32, None), (accelerator.device, dtype, decode_kernel))
        )  # fmt: skip
        off = ((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()
        by = "Triton" if decode_kernel else "PyTorch"
        print(
            f"decoding {num_tokens} tokens by {by}, {sliding_window or 'all'} seen: a slot's attention off by {off:.1e}",
            flush=True,
        )
        return off

    def num_different_texts():
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
                dict(generate(demo.to(device), tokenizer, TAGS, prompts, 64, batch_tokens=4096, tools=tools))
                for device in ("cpu", accelerator.device)
            )
            different = sum(on_cpu[i].text != here[i].text for i in range(32))
            print(f"{name} in float32: {different} of 32 texts are not the CPU's", flush=True)
            total += different
        return total

    table = Table(
        title=f"Against float32, in {'bf16 on ' + torch.cuda.get_device_name() if on_gpu else 'float32 on a CPU'}"
    )
    for column in ("path", "loss", "difference of the loss", "relative difference of the gradient"):
        table.add_column(column)
    wrong += dropout_errors()
    decode_kernels = [None, kernels.decode] if on_gpu and kernels else [None]
    errors = [
        decoding_error(window, num_tokens, kernel)
        for window in (None, 16)
        for num_tokens in (1, 8)
        for kernel in decode_kernels
    ]
    wrong += ["decoding"] * (max(errors) > (1e-2 if on_gpu else 0))
    wrong += ["generation"] * (num_different_texts() > 0)
    wanted, bounds = {}, {}  # by whether the base is NF4
    for name, path in PATHS.items():
        if not on_gpu and (path.get("graphs") or path.get("liger")):
            continue
        if path.get("liger") and not is_liger_kernel_available():
            continue
        if not on_gpu and path.get("compiled"):
            path = path | {"attention": "sdpa"}
        if on_gpu and path.get("fp8") and torch.cuda.get_device_capability() < (9, 0):
            continue
        nf4 = path.get("nf4", False)
        if nf4 not in wanted:
            wanted[nf4] = loss_and_gradients(torch.float32, attention="sdpa", nf4=nf4)
            table.add_row("float32, of NF4" if nf4 else "float32", f"{wanted[nf4][0]:.6f}", "", "")
        try:
            dtype = torch.bfloat16 if on_gpu or path.get("fp8") else torch.float32
            loss, gradient = loss_and_gradients(dtype, **path)
        except Exception:  # the other paths are checked all the same
            traceback.print_exc()
            wrong.append(name)
            table.add_row(name, "failed")
            continue
        off = abs(loss - wanted[nf4][0]), ((gradient - wanted[nf4][1]).norm() / wanted[nf4][1].norm()).item()
        if name.startswith("plain"):
            bounds[nf4] = 2 * off[0] + 1e-3, 1.25 * off[1] + 1e-5
        elif path.get("fp8"):
            wrong += [name] * (off[0] > FP8_BOUNDS[0] or off[1] > FP8_BOUNDS[1])
        elif nf4 not in bounds or off[0] > bounds[nf4][0] or off[1] > bounds[nf4][1]:
            wrong.append(name)
        table.add_row(name, f"{loss:.6f}", f"{off[0]:.2e}", f"{off[1]:.2e}")
        print(name, loss, *off, flush=True)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if wrong:
        sys.exit(f"failed, or further from float32 than the plain path: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
