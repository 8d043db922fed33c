"""Do the fast paths compute what the plain one does? Loss and LoRA gradients on the same weights and rows, one table.

    python -m benchmarks.check_fast_paths                  # four layers of Qwen3-4B's shape on a GPU, a minute or two
    python -m benchmarks.check_fast_paths --shape tiny     # on a CPU: without CUDA graphs and Liger

In bf16 two right ways to add up differ in the last digits. So everything is measured against float32, and a fast path is
right if it is no further from it than the plain bf16 path is: transformers' SDPA attention with its block mask, PEFT's own
LoRA layers, nothing compiled. Exits with 1 if one is. Dropout is 0.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import is_liger_kernel_available

from attention_utils import ISOLATED
from benchmarks.train_throughput import ROOT, SHAPES, TARGETS, make_rows
from cuda_graphs import use_cuda_graphs
from data_utils.batching import TrainingData, tokenize_rows
from data_utils.rows import load_rows
from fused_lora import fuse_lora
from model_utils import compile_layers, use_liger_kernels
from train import completion_loss

PATHS = {
    "plain": {"attention": "sdpa"},
    "isolated attention": {"attention": ISOLATED},
    "+ fused LoRA": {"attention": ISOLATED, "fused": True},
    "+ CUDA graphs": {"attention": ISOLATED, "fused": True, "graphs": True},
    "+ Liger": {"attention": ISOLATED, "fused": True, "liger": True},
    "+ Liger + CUDA graphs": {"attention": ISOLATED, "fused": True, "liger": True, "graphs": True},
    "+ compiled": {"attention": ISOLATED, "fused": True, "compiled": True},
    "+ compiled + CUDA graphs": {"attention": ISOLATED, "fused": True, "compiled": True, "graphs": True},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    shape = SHAPES[parser.parse_args().shape]
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if on_gpu else "no", cpu=not on_gpu)
    with tempfile.TemporaryDirectory() as folder:
        rows_file = Path(folder) / "rows.jsonl"
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
        make_rows(rows_file, tokenizer, count=24)
        examples, _ = tokenize_rows(tokenizer, load_rows(str(rows_file))[0], 1024)
    data = TrainingData(examples, 0, 8, 1)

    def loss_and_gradients(dtype, attention, fused=False, liger=False, compiled=False, graphs=False):
        """Over two steps of 8 rows each, so that a graph is replayed on other rows than it was captured with."""
        torch.manual_seed(0)
        model = Qwen3ForCausalLM._from_config(
            Qwen3Config(**shape | {"num_hidden_layers": min(4, shape["num_hidden_layers"])}, tie_word_embeddings=True),
            attn_implementation=attention, dtype=torch.float32,
        )  # fmt: skip
        model = model.to(torch.bfloat16).to(accelerator.device, dtype).requires_grad_(False)  # the same weights for all
        config = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, lora_dropout=0, target_modules=TARGETS)
        model = get_peft_model(model, config)
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in trainable.values():
            parameter.data = torch.randn(parameter.shape).to(accelerator.device) * 0.02  # B too: else A has no gradient
        if fused:
            fuse_lora(model)
        if liger:
            use_liger_kernels(model)
        if compiled:
            compile_layers(model)
        model.train()
        if graphs:
            use_cuda_graphs(accelerator, model, data, 0, 2)
        loss = 0.0
        for step in range(2):
            for batch in data[step].micro_batches:
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    step_loss = completion_loss(model, batch, accelerator.device) / data[step].num_completion_tokens
                step_loss.backward()
                loss += step_loss.item() / 2
        return loss, torch.cat([parameter.grad.flatten() for parameter in trainable.values()])

    wanted_loss, wanted = loss_and_gradients(torch.float32, "sdpa")
    table = Table(
        title=f"Against float32, in {'bf16 on ' + torch.cuda.get_device_name() if on_gpu else 'float32 on a CPU'}"
    )
    for column in ("path", "loss", "difference of the loss", "relative difference of the gradient"):
        table.add_column(column)
    table.add_row("float32", f"{wanted_loss:.6f}", "", "")
    bounds, wrong = None, []
    for name, path in PATHS.items():
        if not on_gpu and (path.get("graphs") or path.get("liger")):
            continue
        if path.get("liger") and not is_liger_kernel_available():
            continue
        if not on_gpu and path.get("compiled"):
            path = path | {"attention": "sdpa"}
        loss, gradient = loss_and_gradients(torch.bfloat16 if on_gpu else torch.float32, **path)
        off = abs(loss - wanted_loss), ((gradient - wanted).norm() / wanted.norm()).item()
        bounds = bounds or (2 * off[0] + 1e-4, 1.25 * off[1] + 1e-5)
        wrong += [name] * (off[0] > bounds[0] or off[1] > bounds[1])
        table.add_row(name, f"{loss:.6f}", f"{off[0]:.2e}", f"{off[1]:.2e}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if wrong:
        sys.exit(f"further from float32 than the plain path: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
