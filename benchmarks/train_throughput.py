"""How fast train.py trains, beside the strongest peers: Unsloth, and TRL's SFTTrainer. The same
model, the same rows, real tokens counted alike, in one call.

    python -m benchmarks.train_throughput                  # the main systems on one GPU
    python -m benchmarks.train_throughput --systems ours_8_bf16_d0 unsloth_8_bf16_d0
    python -m benchmarks.train_throughput --list           # all systems, with their settings
    python -m benchmarks.train_throughput --shape tiny     # a dry run on a CPU

Nothing is downloaded: the model has Qwen3-4B's shape and random weights, the rows have xLAM's
lengths (total log-normal of median 350 and sigma 0.5 within 100 to 1,024 tokens, completion of
median 65 and sigma 0.55). Every system is a process of its own: ours is `accelerate launch
train.py`, the peers are train_peers.py. What they need: benchmarks/README.md.
"""

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks.processes import ROOT, measure, run_logged
from benchmarks.train_systems import MAIN, SYSTEMS, describe
from data_utils.prompt import PROMPT_FORMATS
from model_utils.adapters import add_lora
from model_utils.flops import count_flops
from run_utils.metrics_file import read_metrics


def qwen3(hidden, intermediate, layers, heads, tied):
    return {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": tied,
    }  # fmt: skip


SHAPES = {
    "0.6b": qwen3(1024, 3072, 28, 16, True),
    "1.7b": qwen3(2048, 6144, 28, 16, True),
    "4b": qwen3(2560, 9728, 36, 32, True),
    "8b": qwen3(4096, 12288, 36, 32, False),
    "14b": qwen3(5120, 17408, 40, 40, False),
    "32b": qwen3(5120, 25600, 64, 64, False),
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 4096, "tie_word_embeddings": True,
    },
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TAGS = PROMPT_FORMATS["tags-1"]


INTERVALS = 3  # the median and the range are of these


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=MAIN, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the systems and their settings, and end")
    parser.add_argument("--measured_steps", type=int, default=30, help="in three intervals, after a third as many")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each system")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    if args.list:
        return print(*(f"{name}: {describe(system)}" for name, system in SYSTEMS.items()), sep="\n")
    if args.measured_steps < INTERVALS:
        parser.error(f"--measured_steps must be at least {INTERVALS}")
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    model_dir = args.work_dir / f"model_{args.shape}"
    make_model(model_dir, SHAPES[args.shape])
    make_rows(args.work_dir / "rows.jsonl", AutoTokenizer.from_pretrained(model_dir))
    ceiling = matrix_product_ceiling()
    results = {}
    for name in args.systems:
        start = time.perf_counter()
        run = measure_ours if SYSTEMS[name].library == "ours" else measure_peer
        results[name] = run(args, name, SYSTEMS[name], model_dir)
        results[name]["minutes"] = (time.perf_counter() - start) / 60
        # A killed run keeps its measurements.
        print(json.dumps({name: results[name]}), flush=True)
    print_table(results, ceiling, args.shape)
    print_ratios(results)


def make_model(folder, shape):
    """Random weights in bf16, with the demo's tokenizer: the rows' ids do not matter for the
    speed."""
    if (folder / "config.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    config = Qwen3Config(**shape, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # the measurement has the GPU to itself


def make_rows(path, tokenizer, count=4000, seed=0):
    """Rows of as many tokens as xLAM's. A word is one token in the demo's tokenizer, and the blank
    before it another."""
    rng = np.random.default_rng(seed)
    words = np.array([token for token in sorted(tokenizer.get_vocab()) if re.fullmatch("[a-z]{3,}", token)])
    tools = json.dumps([{"name": "write", "description": "Writes.", "parameters": {"text": {"type": "str"}}}])
    rows = []
    for i in range(count):
        total = int(np.clip(rng.lognormal(np.log(350), 0.5), 100, 1024))
        completion = int(min(rng.lognormal(np.log(65), 0.55), total / 2))
        query = " ".join(rng.choice(words, max(1, (total - completion - 105) // 2)))
        answer = [{"name": "write", "arguments": {"text": " ".join(rng.choice(words, max(1, (completion - 7) // 2)))}}]
        rows.append({"id": i, "query": query, "tools": tools, "answers": json.dumps(answer)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def matrix_product_ceiling():
    """FLOP/s of a bf16 matrix product of 8192 x 8192 x 8192, or None on a CPU."""
    if not torch.cuda.is_available():
        return None
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ b
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return 20 * 2 * 8192**3 / (start.elapsed_time(end) / 1e3)


def measure_ours(args, name, system, model_dir):
    """train.py's own train/tokens_per_second of three intervals. They exclude logging and saving.
    (The peers' clock runs from one step's end to the next, without saving.)"""
    examples, precision, dropout = system.setting
    every = args.measured_steps // INTERVALS
    flags = {
        "per_device_train_batch_size": examples,
        "gradient_accumulation_steps": 1,
        "quantization": "nf4" if precision == "nf4" else "none",
        **({"base_precision": "fp8"} if precision == "fp8" else {}),
        "gradient_checkpointing": False,
        "lora_dropout": dropout,
        "max_train_steps": (1 + INTERVALS) * every,
        "logging_steps": every,
    } | system.options
    launch_file = "single_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml"
    return launch_training(args.work_dir, name, model_dir, flags, launch_file, timeout=args.timeout)


def launch_training(work_dir, name, model_dir, flags, launch_file, processes=1, timeout=1800):
    """`accelerate launch train.py` on the rows of work_dir: speed, memory and curves, or its error
    in one line. The first interval of the log is the warm-up."""
    output_dir = work_dir / name
    flags = flags | {
        "model_name_or_path": model_dir,
        "dataset_name": work_dir / "rows.jsonl",
        "output_dir": output_dir,
        "eval_fraction": 0,
    }
    if error := launch("train.py", flags, launch_file, processes, work_dir / f"{name}.log", timeout):
        return {"error": error}
    tags = ("tokens_per_second", "peak_memory_gib", "loss", "grad_norm")
    entries = [entry for entry in read_metrics(output_dir / "metrics.jsonl") if "train/loss" in entry]
    curve = {tag: [entry[f"train/{tag}"] for entry in entries] for tag in tags}
    return middle(curve["tokens_per_second"][1:]) | {
        "peak_memory_gib": curve["peak_memory_gib"][-1],
        "loss": curve["loss"],
        "grad_norm": curve["grad_norm"],
    }


def middle(speeds):
    """The median of some speeds, and their range."""
    return {"tokens_per_second": statistics.median(speeds), "range": [min(speeds), max(speeds)]}


def launch(script, flags, launch_file, processes, log, timeout=1800):
    """`accelerate launch` of our script, with its output in the file `log`. Returns its error in
    one line, if any."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", f"--num_processes={processes}"]
    flags = [f"--{key}={value}" for key, value in flags.items()]
    launch_file = ROOT / "accelerate_configs" / launch_file
    command = [*launcher, "--config_file", launch_file, ROOT / script, "--overwrite_output_dir", *flags]
    return run_logged(command, log, timeout)


def measure_peer(args, name, system, model_dir):
    every = args.measured_steps // INTERVALS
    job = {
        "library": system.library, "options": system.options, **system.setting._asdict(), "every": every,
        "model_dir": str(model_dir), "work_dir": str(args.work_dir),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.train_peers", json.dumps(job)]
    # Unsloth writes modules of its own, and asks a server whether it is up.
    environment = {
        "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(args.work_dir / "unsloth_compiled_cache"),
    }  # fmt: skip
    found, error = measure(command, args.work_dir / f"{name}.log", args.timeout, environment)
    if error or not found:
        return {"error": error or "it measured nothing"}
    return middle(found[-1].pop("speeds")) | found[-1]


def flops_per_token(shape):
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
        counted = count_flops(add_lora(model.requires_grad_(False), 32, 64, 0.0, TARGETS), gradient_checkpointing=False)
    # 75 of 400 tokens are completion.
    return counted.per_token + 0.19 * counted.per_completion_token


def print_table(results, ceiling, shape):
    flops = flops_per_token(SHAPES[shape])
    table = Table(title=f"{shape}, {torch.cuda.get_device_name() if ceiling else 'CPU'}, torch {torch.__version__}")
    for column in ("system", "setting", "tok/s", "range", "of the ceiling", "peak GiB", "minutes in all"):
        table.add_column(column, justify="left" if column in ("system", "setting") else "right")
    for name, result in results.items():
        setting = describe(SYSTEMS[name])
        if "error" in result:
            table.add_row(name, result["error"][:100])
            continue
        speed, (low, high) = result["tokens_per_second"], result["range"]
        share = f"{speed * flops / ceiling:.0%}" if ceiling else ""
        figures = [f"{speed:,.0f}", f"{low:,.0f} to {high:,.0f}", share, f"{result['peak_memory_gib']:.1f}"]
        table.add_row(name, setting, *figures, f"{result['minutes']:.1f}")
    caption = f"{flops / 1e9:.1f} GFLOP a token; ceiling {ceiling / 1e12:.0f} TFLOP/s" if ceiling else None
    table.caption = caption and f"tok/s: the median of {INTERVALS} intervals. {caption}"
    console().print(table)


def print_ratios(results):
    """Each of our fast systems beside each peer of its setting."""
    table = Table(title="tokens/s: the median, and the ratio")
    for column in ("ours", "peer", "ours tok/s", "peer tok/s", "ratio"):
        table.add_column(column, justify="left" if column in ("ours", "peer") else "right")
    measured = {name: result["tokens_per_second"] for name, result in results.items() if "error" not in result}
    for name, speed in measured.items():
        for peer, other in measured.items():
            is_pair = name.startswith("ours_") and SYSTEMS[peer].library != "ours"
            if is_pair and SYSTEMS[name].setting.beside(SYSTEMS[peer].setting):
                table.add_row(name, peer, f"{speed:,.0f}", f"{other:,.0f}", f"{speed / other:.2f}")
    if table.row_count:
        console().print(table)


def console():
    return Console(width=None if sys.stdout.isatty() else 150)


if __name__ == "__main__":
    main()
