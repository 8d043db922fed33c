"""How fast model_utils.generation.generate is, beside the strongest peer, vLLM, and beside
transformers' generate: prompts of xLAM's lengths, 96 new tokens each, greedy.

    python -m benchmarks.generate_throughput                 # Qwen3-4B's shape, on one GPU
    python -m benchmarks.generate_throughput --systems ours vllm_1024 --rows 1000
    python -m benchmarks.generate_throughput --systems transformers --rows 100    # minutes
    python -m benchmarks.generate_throughput --shape tiny --rows 8    # a dry run on a CPU

Nothing is downloaded. A random model does not stop, so all rows get all their tokens from all. Each
system is a process of its own: first --first_rows rows, and the seconds from the command to their
last answer, with its imports, its loading and its compilation; then each number of --rows, three
times after a warm-up. `constrained` has a grammar of the rows' tools (a random model's strings end
earlier with it). What the peers need: benchmarks/README.md.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks.processes import measure, report

# By max_num_seqs: 1,024 is vLLM's default on a GPU of 70 GiB or more, 256 on others. Its CUDA
# graphs end at 512 rows.
VLLM = {"vllm_256": 256, "vllm_1024": 1024}
NEEDS = {"constrained": "xgrammar", **dict.fromkeys(VLLM, "vllm")}
SYSTEMS = ["ours", "constrained", *VLLM, "transformers"]
# One process, and greedy decoding, for which FlashInfer's sampler is not needed.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4b", help="of train_throughput.py")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS[:-1], metavar="NAME", help=", ".join(SYSTEMS)
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--first_rows", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--batch_tokens", default="auto", help="ours: evaluate.py's --batch_tokens")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each system")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--run", choices=SYSTEMS, help=argparse.SUPPRESS)  # this script calls itself
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(*args.rows, args.first_rows, args.repeats) < 1:
        parser.error("--rows, --first_rows and --repeats must be at least 1")
    args.work_dir = args.work_dir.resolve()
    if args.run:
        return run_system(args)

    from benchmarks.train_throughput import SHAPES, make_model, make_rows

    if args.shape not in SHAPES:
        parser.error(f"--shape is one of {', '.join(SHAPES)}")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    make_model(args.work_dir / f"model_{args.shape}", SHAPES[args.shape])
    tokenizer = load_tokenizer(args)
    make_rows(args.work_dir / "prompts.jsonl", tokenizer, count=max(*args.rows, args.first_rows))
    results, errors = [], {}
    for name in args.systems:
        needed = NEEDS.get(name)
        if needed and not importlib.util.find_spec(needed):
            errors[name] = f"not installed: {needed}"
            continue
        found, error = measure(
            [sys.executable, "-m", "benchmarks.generate_throughput", *sys.argv[1:], "--run", name, "--since", time.time()],
            args.work_dir / f"generate_{name}.log", args.timeout, ENVIRONMENT,
        )  # fmt: skip
        results += [{"system": name} | figures for figures in found]
        if error:
            errors[name] = error
    print_tables(args, results, errors)


def load_tokenizer(args):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(args.work_dir / f"model_{args.shape}")


def run_system(args):
    """Report a system's start, its first rows, and its speed. Its imports are counted too."""
    load = load_vllm if args.run in VLLM else load_transformers if args.run == "transformers" else load_ours
    rows = [json.loads(line) for line in (args.work_dir / "prompts.jsonl").read_text().splitlines()]
    generate, peak_memory_gib = load(args, rows)
    report(start_seconds=time.time() - args.since)
    generate(rows[: args.first_rows])
    report(first_rows=args.first_rows, seconds_to_last_answer=time.time() - args.since)
    for count in args.rows:
        for repeat in range(args.repeats + 1):
            start = time.perf_counter()
            num_rows, num_tokens = generate(rows[:count])
            seconds = time.perf_counter() - start
            if repeat:  # after a warm-up
                speeds = {"rows_per_second": num_rows / seconds, "tokens_per_second": num_tokens / seconds}
                report(rows=count, **speeds, peak_memory_gib=peak_memory_gib())


def prompts_of(rows):
    from data_utils.prompt import PROMPT_FORMATS

    return [PROMPT_FORMATS["tags-1"].render(row["query"], row["tools"]) for row in rows]


def load_model(args):
    """The model, and a function that returns the peak of its GPU memory since its last call, in
    GiB."""
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        args.work_dir / f"model_{args.shape}",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device_map="cuda" if on_gpu else "cpu",
    ).eval()

    def peak_memory_gib():
        peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return peak

    return model, peak_memory_gib


def load_ours(args, rows):
    """By evaluate.py's default settings."""
    from data_utils.prompt import PROMPT_FORMATS
    from model_utils.cache_size import cache_tokens
    from model_utils.generation import generate
    from run_utils.arguments import number_or_auto

    tokenizer = load_tokenizer(args)
    model, peak_memory_gib = load_model(args)
    tags, size = PROMPT_FORMATS["tags-1"], cache_tokens(model, number_or_auto("batch_tokens", args.batch_tokens))

    def run(rows):
        tools = [json.loads(row["tools"]) for row in rows] if args.run == "constrained" else None
        done = list(generate(model, tokenizer, tags, prompts_of(rows), args.new_tokens, batch_tokens=size, tools=tools))
        return len(done), sum(generation.num_tokens for _, generation in done)

    return run, peak_memory_gib


def load_vllm(args, rows):
    """With FlashAttention 3, compiled layers and CUDA graphs, which are its defaults. The prompts
    are given as tokens, and the answers become text, as ours."""
    from vllm import LLM, SamplingParams

    from data_utils.tokens import encode_prompts

    model_dir = str(args.work_dir / f"model_{args.shape}")
    llm = LLM(model_dir, dtype="bfloat16", max_model_len=2048, max_num_seqs=VLLM[args.run])
    sampling = SamplingParams(temperature=0, max_tokens=args.new_tokens, ignore_eos=True)
    tokenizer = load_tokenizer(args)

    def run(rows):
        llm.reset_prefix_cache()  # else a repeat does not read its prompts
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in encode_prompts(tokenizer, prompts_of(rows))]
        done = llm.generate(prompts, sampling, use_tqdm=False)
        return len(done), sum(len(answer.outputs[0].token_ids) for answer in done)

    return run, lambda: None  # it takes the memory that it may, whatever it needs


def load_transformers(args, rows):
    """In padded batches of at most 100 rows: more fill an H200 with the logits of all prompts, in
    float32."""
    import torch

    from data_utils.tokens import encode_prompts

    tokenizer = load_tokenizer(args)
    model, peak_memory_gib = load_model(args)

    def run(rows):
        num_tokens = 0
        for first in range(0, len(rows), 100):
            ids = encode_prompts(tokenizer, prompts_of(rows[first : first + 100]))
            width = max(map(len, ids))
            input_ids = torch.zeros(len(ids), width, dtype=torch.int64)
            mask = torch.zeros_like(input_ids)
            for row, row_ids in enumerate(ids):
                input_ids[row, width - len(row_ids) :] = torch.from_numpy(row_ids)
                mask[row, width - len(row_ids) :] = 1
            out = model.generate(
                input_ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
                max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens,
            )  # fmt: skip
            num_tokens += len(ids) * (out.shape[1] - width)
        return len(rows), num_tokens

    return run, peak_memory_gib


def print_tables(args, results, errors):
    import torch
    from rich.console import Console
    from rich.table import Table

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{args.shape}, {gpu}, torch {torch.__version__}; median of {args.repeats} after a warm-up")
    for column in ("system", "rows", "rows/s", "range", "new tokens/s", "peak GiB"):
        table.add_column(column, justify="left" if column == "system" else "right")
    medians = {}
    for name in args.systems:
        for count in args.rows:
            found = [figures for figures in results if figures["system"] == name and figures.get("rows") == count]
            if found:
                speeds = [figures["rows_per_second"] for figures in found]
                medians[name, count] = statistics.median(speeds)
                tokens = statistics.median(figures["tokens_per_second"] for figures in found)
                peak = max(figures["peak_memory_gib"] or 0 for figures in found)
                shown = [f"{medians[name, count]:.2f}", f"{min(speeds):.2f} to {max(speeds):.2f}", f"{tokens:,.0f}"]
                table.add_row(name, f"{count:,}", *shown, f"{peak:.1f}" if peak else "")
        if name in errors:
            table.add_row(name, "", errors[name][:60])
    console.print(table)

    table = Table(title="the start, and ours beside the strongest peer")
    for column in ("measure", "ours", "peer", "", "ratio"):
        table.add_column(column, justify="left" if column in ("measure", "peer") else "right")
    for figure, title in (
        ("start_seconds", "seconds until it is ready"),
        ("seconds_to_last_answer", f"seconds from the command to the last of {args.first_rows:,} answers"),
    ):
        seconds = {found["system"]: found[figure] for found in results if figure in found}
        for name in seconds:
            if NEEDS.get(name) != "xgrammar" and name != "ours" and "ours" in seconds:
                mine, other = seconds["ours"], seconds[name]
                table.add_row(title, f"{mine:.1f}", name, f"{other:.1f}", f"{mine / other:.2f}")
    for count in args.rows:
        peers = {name: speed for (name, rows), speed in medians.items() if rows == count and name in VLLM}
        if peers and ("ours", count) in medians:
            best, mine = max(peers, key=peers.get), medians["ours", count]
            table.add_row(
                f"rows/s at {count:,} rows", f"{mine:.2f}", best, f"{peers[best]:.2f}", f"{mine / peers[best]:.2f}"
            )
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    main()
