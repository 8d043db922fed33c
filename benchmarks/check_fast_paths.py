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
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_liger_kernel_available

from benchmarks.check_parts import TAGS, attention_gradient_errors, wrong_parts
from benchmarks.train_throughput import ROOT, SHAPES, TARGETS, make_model, make_rows
from data_utils.batching import TrainingData, tokenize_rows
from data_utils.sources import load_rows
from model_utils.attention import ISOLATED
from model_utils.cuda_graphs import use_cuda_graphs
from model_utils.fp8 import use_fp8_products
from model_utils.fused_lora import fuse_lora
from model_utils.speed import compile_layers, use_liger_kernels
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
        return errors

    table = Table(
        title=f"Against float32, in {'bf16 on ' + torch.cuda.get_device_name() if on_gpu else 'float32 on a CPU'}"
    )
    for column in ("path", "loss", "difference of the loss", "relative difference of the gradient"):
        table.add_column(column)
    wrong += dropout_errors() + wrong_parts(accelerator.device, tokenizer)
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
