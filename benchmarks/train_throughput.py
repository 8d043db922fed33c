"""How fast train.py trains, compared with TRL's SFTTrainer: the same model, the same rows, real
tokens counted alike, in one run.

    python -m benchmarks.train_throughput                  # all systems on one GPU, nearly an hour
    python -m benchmarks.train_throughput --systems graphs trl_published
    python -m benchmarks.train_throughput --shape tiny     # a dry run on a CPU

Nothing is downloaded: the model has Qwen3-4B's shape and random weights, the rows have xLAM's
lengths (total log-normal of median 350 and sigma 0.5 within 100 to 1,024 tokens, completion of
median 65 and sigma 0.55). Ours is `accelerate launch train.py`. TRL needs `pip install trl`; its
best setting also needs liger-kernel. Every system runs in a separate process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from data_utils.batching import tokenize_rows
from data_utils.prompt import PROMPT_FORMATS
from data_utils.sources import load_rows
from model_utils.adapters import add_lora
from model_utils.flops import count_flops
from run_utils.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent


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


def ours(batch=8, accumulation=1, quantization="none", **flags):
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "quantization": quantization,
        "gradient_checkpointing": False,
    } | flags


# All with LoRA r=32, alpha=64, dropout 0.05 on the seven projections. A packed block of 8,192
# tokens holds about 20 rows.
OURS = {
    "published": ours(2, 4, "nf4", gradient_checkpointing=True),
    "plain": ours(),
    "liger": ours(liger_kernel=True),
    "graphs": ours(cuda_graphs=True),
    "liger_graphs": ours(liger_kernel=True, cuda_graphs=True),
    "compiled": ours(torch_compile=True),
    "compiled_graphs": ours(torch_compile=True, cuda_graphs=True),
    "compiled_graphs_nf4": ours(8, 1, "nf4", torch_compile=True, cuda_graphs=True),
    "compiled_graphs_fp8": ours(torch_compile=True, cuda_graphs=True, base_precision="fp8"),
    # For 16 to 24 GiB.
    "compiled_graphs_nf4_2x4": ours(2, 4, "nf4", torch_compile=True, cuda_graphs=True),
    "large_liger": ours(40, liger_kernel=True),
    "large_compiled": ours(40, torch_compile=True),
    "large_compiled_graphs": ours(40, torch_compile=True, cuda_graphs=True),
    "large_compiled_graphs_fp8": ours(40, torch_compile=True, cuda_graphs=True, base_precision="fp8"),
    "large_compiled_graphs_nf4": ours(40, 1, "nf4", torch_compile=True, cuda_graphs=True),
}
TRL = {
    "trl_published": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "trl_best": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": False,
        "packing": True, "max_length": 8192, "use_liger_kernel": True,
    },
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--systems", nargs="+", choices=[*OURS, *TRL], default=[*OURS, *TRL])
    parser.add_argument("--measured_steps", type=int, default=15, help="after a third as many to warm up")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--run_trl", help=argparse.SUPPRESS)  # this script calls itself
    args = parser.parse_args()
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    model_dir = args.work_dir / f"model_{args.shape}"
    if args.run_trl:
        return print(json.dumps(run_trl(args, model_dir, TRL[args.run_trl])))
    make_model(model_dir, SHAPES[args.shape])
    make_rows(args.work_dir / "rows.jsonl", AutoTokenizer.from_pretrained(model_dir))
    ceiling = matrix_product_ceiling()
    results = {}
    for name in args.systems:
        start = time.perf_counter()
        measure = measure_ours if name in OURS else measure_trl
        results[name] = measure(args, name, model_dir)
        results[name]["minutes"] = (time.perf_counter() - start) / 60
        # A killed run keeps its measurements.
        print(json.dumps({name: results[name]}), flush=True)
    print_table(results, ceiling, args.shape)


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
    words = [token for token in sorted(tokenizer.get_vocab()) if re.fullmatch("[a-z]{3,}", token)]
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


def measure_ours(args, name, model_dir):
    """The mean of train.py's own train/tokens_per_second after the first quarter of the steps. It
    excludes logging and saving. (TRL's clock runs from one step's end to the next, without
    saving.)"""
    every = max(1, args.measured_steps // 3)
    flags = OURS[name] | {"max_train_steps": 4 * every, "logging_steps": every}
    launch_file = "single_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml"
    return launch_training(args.work_dir, name, model_dir, flags, launch_file)


def launch_training(work_dir, name, model_dir, flags, launch_file, processes=1):
    """`accelerate launch train.py` on the rows of work_dir: speed, memory and curves, or the last
    line of its error."""
    output_dir = work_dir / name
    flags = flags | {
        "model_name_or_path": model_dir,
        "dataset_name": work_dir / "rows.jsonl",
        "output_dir": output_dir,
        "eval_fraction": 0,
    }
    if error := launch("train.py", flags, launch_file, processes, work_dir / f"{name}.log"):
        return {"error": error}
    tags = ("tokens_per_second", "peak_memory_gib", "loss", "grad_norm")
    entries = [entry for entry in read_metrics(output_dir / "metrics.jsonl") if "train/loss" in entry]
    curve = {tag: [entry[f"train/{tag}"] for entry in entries] for tag in tags}
    return {
        "tokens_per_second": float(np.mean(curve["tokens_per_second"][1:])),
        "peak_memory_gib": curve["peak_memory_gib"][-1],
        "loss": curve["loss"],
        "grad_norm": curve["grad_norm"],
    }


def launch(script, flags, launch_file, processes, log):
    """`accelerate launch` of our script, with its output in the file `log`. Returns the last line
    of its error, if any."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", f"--num_processes={processes}"]
    done = subprocess.run(
        [*launcher, "--config_file", ROOT / "accelerate_configs" / launch_file, ROOT / script,
         "--overwrite_output_dir", *(f"--{key}={value}" for key, value in flags.items())],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    log.write_text(done.stdout + done.stderr)
    if not done.returncode:
        return None
    own = [line for line in done.stderr.splitlines() if line.startswith(f"{script}: ")]
    return ([*done.stderr.strip().splitlines(), *own] or ["?"])[-1]


def measure_trl(args, name, model_dir):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_throughput", "--run_trl", name, "--shape", args.shape, "--work_dir", args.work_dir,
         "--measured_steps", str(args.measured_steps)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"WANDB_MODE": "disabled"},
    )  # fmt: skip
    (args.work_dir / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_trl(args, model_dir, settings):
    """SFTTrainer on the same tokens. A micro-batch's real tokens are counted with its loss."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    examples = tokenize_rows(tokenizer, TAGS, load_rows(str(args.work_dir / "rows.jsonl"))[0], 1024).examples
    on_gpu = torch.cuda.is_available()
    warmup = args.measured_steps // 3
    tokens, marks = [0], []

    class Clock(TrainerCallback):
        def on_step_end(self, trainer_args, state, control, **kwargs):
            if on_gpu:
                torch.cuda.synchronize()
            if state.global_step in (warmup, warmup + args.measured_steps):
                marks.append((tokens[0], time.perf_counter()))

    class CountingTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, *arguments, **kwargs):
            mask = inputs.get("attention_mask")
            tokens[0] += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().compute_loss(model, inputs, *arguments, **kwargs)

    # TRL's own chunked loss stays.
    liger = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    config = {
        "output_dir": str(args.work_dir / "trl"), "max_steps": warmup + args.measured_steps, "learning_rate": 1e-4,
        "bf16": on_gpu, "use_cpu": not on_gpu, "completion_only_loss": True, "max_length": 1024,
        "gradient_checkpointing": True, "logging_steps": warmup, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True,
    } | settings  # fmt: skip
    config["use_liger_kernel"] = config.get("use_liger_kernel", False) and on_gpu
    trainer = CountingTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.bfloat16 if on_gpu else torch.float32, device_map="cuda" if on_gpu else "cpu"
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, lora_dropout=0.05, target_modules=TARGETS),
        train_dataset=Dataset.from_list(
            [
                {
                    "input_ids": example.input_ids.tolist(),
                    "completion_mask": example.loss_weights.astype(int).tolist(),
                }
                for example in examples
            ]
        ),
        args=SFTConfig(**config, liger_kernel_config=liger if config["use_liger_kernel"] else None),
        callbacks=[Clock()],
    )
    trainer.train()
    (first_tokens, first_time), (last_tokens, last_time) = marks
    return {
        "tokens_per_second": (last_tokens - first_tokens) / (last_time - first_time),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def flops_per_token(shape):
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
        counted = count_flops(add_lora(model.requires_grad_(False), 32, 64, 0.0, TARGETS), gradient_checkpointing=False)
    # 75 of 400 tokens are completion.
    return counted.per_token + 0.19 * counted.per_completion_token


def print_table(results, ceiling, shape):
    flops = flops_per_token(SHAPES[shape])
    table = Table(title=f"{shape}, {torch.cuda.get_device_name() if ceiling else 'CPU'}, torch {torch.__version__}")
    for column in ("system", "tok/s", "x TRL published", "x TRL best", "of the ceiling", "peak GiB", "minutes in all"):
        table.add_column(column, justify="left" if column == "system" else "right")
    speed = {name: result.get("tokens_per_second") for name, result in results.items()}
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, result["error"][:60])
            continue
        ratios = [f"{speed[name] / speed[peer]:.1f}" if speed.get(peer) else "" for peer in TRL]
        share = f"{speed[name] * flops / ceiling:.0%}" if ceiling else ""
        table.add_row(
            name, f"{speed[name]:,.0f}", *ratios, share, f"{result['peak_memory_gib']:.1f}", f"{result['minutes']:.1f}"
        )
    table.caption = f"{flops / 1e9:.1f} GFLOP a token; ceiling {ceiling / 1e12:.0f} TFLOP/s" if ceiling else None
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
