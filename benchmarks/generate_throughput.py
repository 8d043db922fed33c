"""How fast model_utils.generation.generate is, compared with transformers' generate: 100 prompts
(or --rows) of xLAM's lengths, 96 new tokens each.

    python -m benchmarks.generate_throughput                 # Qwen3-4B's shape, on one GPU
    python -m benchmarks.generate_throughput --shape tiny    # a dry run on a CPU

Nothing is downloaded. A random model does not stop, so all rows get all their tokens from both.
With xgrammar, also with a grammar of the rows' tools. A random model's strings end earlier with it.
"""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.train_throughput import SHAPES, make_model, make_rows
from data_utils.prompt import PROMPT_FORMATS
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from model_utils.cache_size import cache_tokens
from model_utils.generation import choose_engine, generate
from run_utils.arguments import number_or_auto

TAGS = PROMPT_FORMATS["tags-1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--batch_tokens", nargs="+", default=["auto", "65536"])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    model_dir = args.work_dir / f"model_{args.shape}"
    make_model(model_dir, SHAPES[args.shape])
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    make_rows(args.work_dir / "prompts.jsonl", tokenizer, count=args.rows)
    rows, _ = load_rows(str(args.work_dir / "prompts.jsonl"))
    prompts = [TAGS.render(row.query, row.tools) for row in rows]
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.bfloat16 if on_gpu else torch.float32, device_map="cuda" if on_gpu else "cpu"
    ).eval()

    sizes = [cache_tokens(model, number_or_auto("batch_tokens", size)) for size in args.batch_tokens]

    def ours(batch_tokens, tools=None):
        done = list(generate(model, tokenizer, TAGS, prompts, args.new_tokens, batch_tokens=batch_tokens, tools=tools))
        return len(done), sum(generation.num_tokens for _, generation in done)

    def transformers(prompts):
        ids = encode_prompts(tokenizer, prompts)
        width = max(map(len, ids))
        input_ids = torch.zeros(len(ids), width, dtype=torch.int64)
        for row, row_ids in enumerate(ids):
            input_ids[row, width - len(row_ids) :] = torch.from_numpy(row_ids)
        mask = torch.tensor([[column >= width - len(row_ids) for column in range(width)] for row_ids in ids]).long()
        out = model.generate(
            input_ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
            max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens,
        )  # fmt: skip
        return len(ids), len(ids) * (out.shape[1] - width)

    table = Table(
        title=f"{model_dir.name}, {torch.cuda.get_device_name() if on_gpu else 'CPU'}, torch {torch.__version__}"
    )
    for column in ("system", "rows/s", "new tokens/s", "peak GiB"):
        table.add_column(column, justify="left" if column == "system" else "right")
    runs = [(f"ours, {tokens:,} tokens of cache", lambda tokens=tokens: ours(tokens)) for tokens in sizes]
    if importlib.util.find_spec("xgrammar"):
        tools = [json.loads(row.tools) for row in rows]
        runs += [
            (f"constrained, {tokens:,} tokens of cache", lambda tokens=tokens: ours(tokens, tools)) for tokens in sizes
        ]
    runs += [
        # More rows in one batch fill an H200: the logits of all prompts, in float32.
        ("transformers, a padded batch of at most 100", lambda: transformers(prompts[:100])),
        (
            "transformers, one at a time, 5 rows",
            lambda: map(sum, zip(*(transformers([p]) for p in prompts[:5]), strict=True)),
        ),
    ]
    transformers(prompts[:2])  # libraries initialize themselves
    prompt_ids = encode_prompts(tokenizer, prompts)
    start = time.perf_counter()
    choose_engine(model, prompt_ids, max(map(len, prompt_ids)) + args.new_tokens)  # a check once for each model
    print(f"check of the model, with the compilation of kernels: {time.perf_counter() - start:.2f} s", flush=True)
    list(generate(model, tokenizer, TAGS, prompts[:2], 2, batch_tokens=4096))
    for name, run in runs:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        num_rows, num_tokens = run()
        seconds = time.perf_counter() - start
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu else ""
        table.add_row(name, f"{num_rows / seconds:.2f}", f"{num_tokens / seconds:,.0f}", peak)
        print(f"{name}: {num_rows / seconds:.2f} rows/s, {num_tokens} tokens", flush=True)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
