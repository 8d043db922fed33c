"""More GPUs and sharding: memory a GPU and tokens a second by model shape, launch file and
precision; and whether all cuts of a step train alike.

    python -m benchmarks.scaling                            # 4B and 14B shapes on one and two GPUs
    python -m benchmarks.scaling --shapes 4b --systems single fsdp2
    python -m benchmarks.scaling --equality --shapes 4b     # 20 steps of eight examples, all cuts
    python -m benchmarks.scaling --equality --shapes tiny   # a dry run on a CPU
    python -m benchmarks.scaling --evaluation --shapes 4b   # evaluate.py: rows/s and memory
    python -m benchmarks.scaling --computed                 # other shapes and GPUs, by arithmetic

Random weights and rows of xLAM's lengths, as in train_throughput.py. Runs `accelerate launch
train.py` with LoRA r=32, 8 examples a GPU and step, dropout 0. Equality: the effective batch is 8
for any number of processes. Evaluation: 400 prompts, 96 new tokens each, since a random model does
not stop.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.train_throughput import (
    ROOT,
    SHAPES,
    TAGS,
    flops_per_token,
    launch,
    launch_training,
    make_model,
    make_rows,
)
from data_utils.batching import TrainingData, num_tokens, tokenize_rows
from data_utils.sources import load_rows

GRAPHS = {"cuda_graphs": True, "torch_compile": True}
SYSTEMS = {  # by name: launch file, processes, flags
    "single": ("single_gpu.yaml", 1, {}),
    "single, graphs, not compiled": ("single_gpu.yaml", 1, {"cuda_graphs": True}),
    "single, graphs": ("single_gpu.yaml", 1, GRAPHS),
    "fsdp2, one GPU": ("fsdp2.yaml", 1, {}),
    "fsdp2, one GPU, compiled": ("fsdp2.yaml", 1, {"torch_compile": True}),
    "ddp": ("multi_gpu.yaml", 2, {}),
    "ddp, graphs": ("multi_gpu.yaml", 2, GRAPHS),
    "fsdp2": ("fsdp2.yaml", 2, {}),
    "fsdp2, compiled": ("fsdp2.yaml", 2, {"torch_compile": True}),
}
CUTS = {  # by name: launch file, processes, examples of a micro-batch, flags
    "1 x 8": ("single_gpu.yaml", 1, 8, {}),
    "8 x 1": ("single_gpu.yaml", 1, 1, {}),
    "1 x 8, float32": ("single_gpu.yaml", 1, 8, {"dtype": "fp32"}),
    "8 x 1, float32": ("single_gpu.yaml", 1, 1, {"dtype": "fp32"}),
    "1 x 8, graphs": ("single_gpu.yaml", 1, 8, {"cuda_graphs": True}),
    "8 x 1, graphs": ("single_gpu.yaml", 1, 1, {"cuda_graphs": True}),
    "1 x 8, FSDP2 on one": ("fsdp2.yaml", 1, 8, {}),
    "2 processes, 1 x 4": ("multi_gpu.yaml", 2, 4, {}),
    "2 processes, 4 x 1, graphs": ("multi_gpu.yaml", 2, 1, {"cuda_graphs": True}),
    "2 processes, 1 x 4, FSDP2": ("fsdp2.yaml", 2, 4, {}),
    "2 processes, 1 x 4, float32": ("multi_gpu.yaml", 2, 4, {"dtype": "fp32"}),
    "2 processes, 1 x 4, FSDP2, float32": ("fsdp2.yaml", 2, 4, {"dtype": "fp32"}),
}
REFERENCES = ("1 x 8", "1 x 8, float32")  # the other cuts are compared with these
MEASURED = {"4b": 25262, "14b": 9254}  # tokens/s of one H200, "single, graphs" in bf16
ON_CPU = {"single_gpu.yaml": "cpu.yaml", "multi_gpu.yaml": "cpu_2proc.yaml", "fsdp2.yaml": "cpu_fsdp2.yaml"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["4b", "14b"])
    parser.add_argument("--quantizations", nargs="+", choices=["none", "nf4"], default=["none", "nf4"])
    parser.add_argument(
        "--systems", nargs="+", help="some of the launches, or with --equality of the cuts, by their names"
    )
    parser.add_argument("--steps", type=int, default=20, help="speed is that of the second half")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/scaling"))
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--equality", action="store_true")
    mode.add_argument("--evaluation", action="store_true")
    mode.add_argument("--computed", action="store_true")
    args = parser.parse_args()
    if args.computed:
        return print_computed(args.work_dir)
    known = CUTS if args.equality else SYSTEMS
    if unknown := set(args.systems or ()) - set(known):
        parser.error(f"--systems knows {', '.join(map(repr, known))}, not {', '.join(map(repr, unknown))}")
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for shape in args.shapes:
        model_dir = args.work_dir / f"model_{shape}"
        make_model(model_dir, SHAPES[shape])
        make_rows(args.work_dir / "rows.jsonl", AutoTokenizer.from_pretrained(model_dir))
        what = compare_cuts if args.equality else measure_evaluation if args.evaluation else measure
        what(args, shape, model_dir)


def possible(processes, flags):
    gpus = torch.cuda.device_count()
    return processes <= gpus if gpus else "cuda_graphs" not in flags


def run(args, name, model_dir, launch_file, processes, flags):
    if not torch.cuda.is_available():
        launch_file = ON_CPU[launch_file]
    start = time.perf_counter()
    common = {"lora_dropout": 0, "gradient_checkpointing": False, "max_train_steps": args.steps}
    folder = name.replace(" ", "_").replace(",", "")
    result = launch_training(args.work_dir, folder, model_dir, common | flags, launch_file, processes)
    result["minutes"] = (time.perf_counter() - start) / 60
    print(json.dumps({name: result}), flush=True)  # a killed run keeps its measurements
    return result


def measure(args, shape, model_dir):
    table = Table("launch", "GPUs", "precision", "tokens/s", "peak GiB a GPU", title=f"{shape}, 8 examples a GPU")
    for quantization in args.quantizations:
        for name, (launch_file, processes, flags) in SYSTEMS.items():
            if name not in (args.systems or SYSTEMS) or not possible(processes, flags):
                continue
            flags = flags | {
                "quantization": quantization,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "logging_steps": max(1, args.steps // 2),  # each entry waits for the GPU
            }
            result = run(args, f"{shape} {name} {quantization}", model_dir, launch_file, processes, flags)
            figures = ["", result["error"]] if "error" in result else [
                f"{result['tokens_per_second']:,.0f}", f"{result['peak_memory_gib']:.1f}"
            ]  # fmt: skip
            table.add_row(name, str(processes), quantization, *figures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def compare_cuts(args, shape, model_dir):
    """Largest relative difference of a step's loss and gradient norm from one GPU's single pass in
    the same precision (for float32's own line, from bf16's). Over the steps with the same weights
    (the first two: the warm-up begins at 0) and over all steps."""
    columns = ("cut", "loss, first 2 steps", "all steps", "gradient norm, first 2", "all")
    table = Table(*columns, title=f"{shape}, 8 examples a step: largest difference from 1 x 8, %")
    references = {}  # by dtype
    for name, (launch_file, processes, batch, flags) in CUTS.items():
        if name not in (*(args.systems or CUTS), *REFERENCES) or not possible(processes, flags):
            continue
        dtype = flags.get("dtype")
        if name not in REFERENCES and dtype not in references:
            continue  # its reference has failed
        flags = flags | {
            "quantization": "none",
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 8 // batch // processes,
            "logging_steps": 1,
        }
        result = run(args, f"{shape} {name}", model_dir, launch_file, processes, flags)
        if "error" in result:
            table.add_row(name, result["error"])
            continue
        reference = references.get(dtype) or references.get(None, result)
        references.setdefault(dtype, result)
        cells = []
        for curve in ("loss", "grad_norm"):
            ratios = [abs(a / b - 1) for a, b in zip(result[curve], reference[curve], strict=True)]
            cells += [f"{100 * max(ratios[:2]):.5f}", f"{100 * max(ratios):.5f}"]
        table.add_row(name, *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def measure_evaluation(args, shape, model_dir):
    table = Table(
        "GPUs", "precision", "rows/s", "GiB in use on the fullest", "minutes in all", title=f"{shape}, evaluate.py"
    )
    for quantization in args.quantizations:
        for launch_file, processes in (("single_gpu.yaml", 1), ("multi_gpu.yaml", 2)):
            if not possible(processes, {}):
                continue
            name = f"evaluation_{shape}_{processes}_{quantization}"
            flags = {
                "model_name_or_path": model_dir, "dataset_name": args.work_dir / "rows.jsonl", "eval_fraction": 1, "num_examples": 400,
                "systems": "prompted", "max_new_tokens": 96, "quantization": quantization, "output_dir": args.work_dir / name,
                "no_call_examples": 0,
            }  # fmt: skip
            launch_file = launch_file if torch.cuda.is_available() else ON_CPU[launch_file]
            start = time.perf_counter()
            with GPUsInUse() as in_use:
                error = launch("evaluate.py", flags, launch_file, processes, args.work_dir / f"{name}.log")
            minutes = (time.perf_counter() - start) / 60
            if error:
                table.add_row(str(processes), quantization, "", error)
                continue
            metrics = json.loads((args.work_dir / name / "metrics.json").read_text())
            speed = metrics["systems"]["prompted"]["rows_per_second"]
            print(json.dumps({name: [speed, in_use.peak, minutes]}), flush=True)
            table.add_row(str(processes), quantization, f"{speed:.1f}", f"{in_use.peak:.1f}", f"{minutes:.1f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


class GPUsInUse:
    """`peak`: the largest new use of memory on one GPU, in GiB, by all processes, sampled twice a
    second."""

    def __enter__(self):
        self.peak, self.ended = 0.0, threading.Event()
        self.before = self.look()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()

    def watch(self):
        while not self.ended.wait(0.5):
            self.peak = max([self.peak, *(now - then for now, then in zip(self.look(), self.before, strict=True))])

    def look(self):
        free_and_total = [torch.cuda.mem_get_info(gpu) for gpu in range(torch.cuda.device_count())]
        return [(total - free) / 2**30 for free, total in free_and_total]


def print_computed(work_dir):
    columns = ("shape", "precision", "GiB a GPU: one, or DDP", "FSDP2 on 2", "4", "8", "tokens/s a GPU")
    table = Table(*columns, title="8 examples a GPU: computed, not measured")
    for shape in (name for name in SHAPES if name != "tiny"):
        for quantization in ("none", "nf4"):
            cells = [f"{computed_gib(SHAPES[shape], quantization, gpus):.0f}" for gpus in (1, 2, 4, 8)]
            table.add_row(shape, quantization, *cells, computed_speed(shape) if quantization == "none" else "")
    table.caption = "tokens/s compiled, with CUDA graphs; the memory neither compiled nor with checkpointing"
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    make_rows(work_dir / "rows.jsonl", tokenizer)
    examples = tokenize_rows(tokenizer, TAGS, load_rows(str(work_dir / "rows.jsonl"))[0], 1024).examples
    shares = ", ".join(f"{gpus} GPUs {time_at_work(examples, gpus):.1%}" for gpus in (2, 4, 8))
    console.print(f"Of the time at work, by the lengths of the rows, if the rest is free: {shares}")


def time_at_work(examples, gpus):
    """The share of time that a GPU does not wait for the GPU with the most tokens in the step."""
    full_steps = range(len(examples) // (8 * gpus))
    shares = [
        TrainingData(examples, 42, 8, 1, num_processes=gpus, process_index=index).chunks(full_steps)
        for index in range(gpus)
    ]
    tokens = np.array([[num_tokens(chunk) for chunk in share] for share in shares])
    return tokens.mean(0).sum() / tokens.max(0).sum()


def computed_speed(shape):
    """The speed at the FLOP/s of the widest measured shape not wider than this shape: wider shapes
    get nearer to the GPU's peak."""
    narrower = [name for name in MEASURED if SHAPES[name]["hidden_size"] <= SHAPES[shape]["hidden_size"]]
    measured = narrower[-1] if narrower else next(iter(MEASURED))
    speed = MEASURED[measured] * flops_per_token(SHAPES[measured]) / flops_per_token(SHAPES[shape])
    return f"{'' if narrower else 'below '}{speed:,.0f}"


def computed_gib(shape, quantization, gpus):
    """Weights by their number. Activations (without compiling or checkpointing) in proportion to
    the 4B shape's, measured in a pass of 3,536 tokens."""

    def widths(shape):  # of a layer's linear layers, (in, out)
        hidden, inner = shape["hidden_size"], shape["intermediate_size"]
        query, key = (shape[heads] * shape["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
        return [(hidden, query), (hidden, key), (hidden, key), (query, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]  # fmt: skip

    def activations(shape):  # the widths of a layer's kept tensors, in about these numbers
        query = shape["num_attention_heads"] * shape["head_dim"]
        return shape["num_hidden_layers"] * (shape["hidden_size"] + shape["intermediate_size"] + 2 * query)

    layers, vocabulary = shape["num_hidden_layers"], shape["vocab_size"] * shape["hidden_size"]
    layer = sum(inputs * outputs for inputs, outputs in widths(shape)) * (2 if quantization == "none" else 0.516)
    rest = vocabulary * 2 * (1 if shape["tie_word_embeddings"] else 2)
    adapter = (
        layers * sum(32 * (inputs + outputs) for inputs, outputs in widths(shape)) * 16
    )  # weight, gradient, two moments
    base = layers * layer + rest
    if gpus > 1:  # gathered at a time: embedding and head, and two layers
        base = base / gpus + rest + 2 * layer
    return (base + adapter) / 2**30 + 18.9 * activations(shape) / activations(SHAPES["4b"])


if __name__ == "__main__":
    main()
