"""More GPUs and sharding: memory a GPU and tokens a second by model shape, launch file and precision; and whether all cuts train alike.

    python -m benchmarks.scaling                               # 4B and 14B shapes on one GPU and, where there are two, on two
    python -m benchmarks.scaling --shapes 4b --systems single fsdp2
    python -m benchmarks.scaling --equality --shapes 4b        # 20 steps of eight examples, cut in every way
    python -m benchmarks.scaling --equality --shapes tiny      # a dry run on a CPU

Random weights and rows of xLAM's lengths, as in train_throughput.py; `accelerate launch train.py` itself with LoRA r=32, 8 examples
a GPU and step, dropout 0. Equality: the effective batch is 8 whatever the number of processes.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.train_throughput import SHAPES, launch_training, make_model, make_rows

GRAPHS = {"cuda_graphs": True, "torch_compile": True}
SYSTEMS = {  # by name: launch file, processes, flags
    "single": ("single_gpu.yaml", 1, {}),
    "single, graphs": ("single_gpu.yaml", 1, GRAPHS),
    "fsdp2, one GPU": ("fsdp2.yaml", 1, {}),
    "fsdp2, one GPU, compiled": ("fsdp2.yaml", 1, {"torch_compile": True}),
    "ddp": ("multi_gpu.yaml", 2, {}),
    "ddp, graphs": ("multi_gpu.yaml", 2, GRAPHS),
    "fsdp2": ("fsdp2.yaml", 2, {}),
    "fsdp2, compiled": ("fsdp2.yaml", 2, {"torch_compile": True}),
}
CUTS = {  # likewise, with the examples of a micro-batch
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
}
ON_CPU = {"single_gpu.yaml": "cpu.yaml", "multi_gpu.yaml": "cpu_2proc.yaml", "fsdp2.yaml": "cpu_fsdp2.yaml"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["4b", "14b"])
    parser.add_argument("--quantizations", nargs="+", choices=["none", "nf4"], default=["none", "nf4"])
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS, *CUTS])
    parser.add_argument("--equality", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/scaling"))
    args = parser.parse_args()
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for shape in args.shapes:
        model_dir = args.work_dir / f"model_{shape}"
        make_model(model_dir, SHAPES[shape])
        make_rows(args.work_dir / "rows.jsonl", AutoTokenizer.from_pretrained(model_dir))
        (compare_cuts if args.equality else measure)(args, shape, model_dir)


def possible(launch_file, processes, flags):
    gpus = torch.cuda.device_count()
    return processes <= gpus if gpus else "cuda_graphs" not in flags


def run(args, name, model_dir, launch_file, processes, flags):
    if not torch.cuda.is_available():
        launch_file = ON_CPU[launch_file]
    start = time.perf_counter()
    common = {"lora_dropout": 0, "gradient_checkpointing": False, "max_train_steps": args.steps, "logging_steps": 1}
    folder = name.replace(" ", "_").replace(",", "")
    result = launch_training(args.work_dir, folder, model_dir, common | flags, launch_file, processes)
    result["minutes"] = (time.perf_counter() - start) / 60
    print(json.dumps({name: result}), flush=True)  # a killed run keeps what it has measured
    return result


def measure(args, shape, model_dir):
    table = Table("launch", "GPUs", "precision", "tokens/s", "peak GiB a GPU", title=f"{shape}, 8 examples a GPU")
    for quantization in args.quantizations:
        for name, (launch_file, processes, flags) in SYSTEMS.items():
            if name not in (args.systems or SYSTEMS) or not possible(launch_file, processes, flags):
                continue
            flags = flags | {
                "quantization": quantization,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
            }
            result = run(args, f"{shape} {name} {quantization}", model_dir, launch_file, processes, flags)
            figures = ["", result["error"]] if "error" in result else [
                f"{result['tokens_per_second']:,.0f}", f"{result['peak_memory_gib']:.1f}"
            ]  # fmt: skip
            table.add_row(name, str(processes), quantization, *figures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def compare_cuts(args, shape, model_dir):
    """Largest relative difference of a step's loss and gradient norm from one GPU's single pass in the same precision, in the steps with
    the same weights (the first two: the warm-up begins at 0) and in all."""
    columns = ("cut", "loss, first 2 steps", "all steps", "gradient norm, first 2", "all", "tokens/s")
    table = Table(*columns, title=f"{shape}, 8 examples a step: largest difference from 1 x 8, %")
    references = {}
    for name, (launch_file, processes, batch, flags) in CUTS.items():
        if name not in (args.systems or CUTS) or not possible(launch_file, processes, flags):
            continue
        accumulation = 8 // batch // processes
        flags = flags | {
            "quantization": "none",
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
        }
        result = run(args, f"{shape} {name}", model_dir, launch_file, processes, flags)
        if "error" in result:
            table.add_row(name, result["error"])
            continue
        reference = references.setdefault(flags.get("dtype"), result)
        cells = []
        for curve in ("loss", "grad_norm"):
            ratios = [abs(a / b - 1) for a, b in zip(result[curve], reference[curve], strict=True)]
            cells += [f"{100 * max(ratios[:2]):.4f}", f"{100 * max(ratios):.4f}"]
        table.add_row(name, *cells, f"{result['tokens_per_second']:,.0f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
