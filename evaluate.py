"""Three systems side by side on held-out rows: base on the raw prompt, base on the training's prompt, and the LoRA adapter.

    python evaluate.py                                                      # the embedded demo, after train.py
    python evaluate.py --adapter runs/qwen3_4b_qlora/adapter
    accelerate launch -q --config_file accelerate_configs/multi_gpu.yaml evaluate.py --adapter ...

The rows are those that training set aside: the adapter's folder knows them, by content. Writes predictions.jsonl as it goes (a
killed evaluation continues where it was, a finished one is scored again), then scores.jsonl and metrics.json, and prints the
table. The metrics are in eval_utils/metrics.py.
"""

import hashlib
import os
import sys

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
    print("Loading PyTorch and transformers ...", file=sys.stderr)

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_utils.batching import encode_prompts
from data_utils.prompt import PROMPT_FORMATS, format_hash
from data_utils.rows import find_held_out, split_rows
from data_utils.sources import load_rows
from eval_utils import predictions
from eval_utils.metrics import METRICS, SCORING, Output, score, summarize
from model_utils.adapters import load_adapter, naming_adapter, read_adapter, read_split
from model_utils.generation import generate, generated_by
from model_utils.loading import base_fingerprint, load_base_model, load_tokenizer, resolve_model
from run_utils.arguments import (
    UserError,
    argument,
    check_limits,
    parse_arguments,
    require,
    run_script,
    write_yaml,
)
from run_utils.environment import environment_record, file_hash, write_json
from run_utils.launch import start_accelerator

SYSTEMS = ("raw", "prompted", "adapter")  # the adapter last: it may be merged into the base
# The reference article's figures, in %, on its own model and data. It says neither which parser nor which prompt they are of.
PUBLISHED_FOR = ("Qwen/Qwen3-4B-Base", "Salesforce/xlam-function-calling-60k")
PUBLISHED = {
    "published: base": {"json_valid": 63.37, "exact_match": 0.0, "tools_exist": 63.37},
    "published: LoRA": {"json_valid": 100.0, "exact_match": 80.2, "tools_exist": 100.0},
}


@dataclass
class EvaluationArguments:
    """`inherited`: taken from the adapter's training unless given here; its value is for an evaluation without an adapter."""

    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    adapter: str | None = argument(None, "Folder that train.py saved: adapter/ or a checkpoint")
    systems: list[str] | None = argument(None, f"Of {', '.join(SYSTEMS)}; all by default")

    model_name_or_path: str | None = argument(
        None, "By default the adapter's base", group="Model and rows: by default the adapter's own", inherited=None
    )
    model_revision: str | None = argument(None, inherited=None)
    quantization: Literal["none", "nf4", "int8"] | None = argument(None, inherited="none")
    prompt_format: Literal[*PROMPT_FORMATS] | None = argument(
        None, "Of the base alone; an adapter's own is the one that it was trained on", inherited="tags-1"
    )
    dataset_name: str | None = argument(None, "By default the data set of the training", inherited=None)
    dataset_config_name: str | None = argument(None, inherited=None)
    dataset_revision: str | None = argument(None, inherited=None)
    max_bad_rows: float | None = argument(None, inherited=0.01, at_least=0)
    seed: int | None = argument(None, "Of the split; by default the training's", inherited=42)
    eval_fraction: float | None = argument(
        None,
        "By default the training's; 1 takes all rows, of a data set not trained on",
        inherited=0.05,
        above=0,
        at_most=1,
    )
    eval_split: Literal["random", "tools"] | None = argument(None, inherited="random")
    num_examples: int | None = argument(1000, "Of the held-out rows, in the order of their hash", above=0)

    merge_adapter: bool = argument(
        True, "Into weights that are neither quantised nor shared: faster, and checked", group="Generation"
    )
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")
    max_new_tokens: int = argument(512, above=0)
    batch_tokens: int = argument(65536, "Tokens of the cache of keys and values, new ones included", above=0)

    output_dir: str | None = argument(None, "By default evaluation/ beside the adapter", group="Where")
    overwrite_output_dir: bool = argument(False)

    def __post_init__(self):
        check_limits(self)
        require(
            self.adapter or (self.model_name_or_path and self.dataset_name),
            "name an --adapter, or both --model_name_or_path and --dataset_name",
        )
        require(self.adapter or "adapter" not in (self.systems or []), "the system 'adapter' needs --adapter")
        self.systems = self.systems or list(SYSTEMS if self.adapter else SYSTEMS[:2])
        unknown = [system for system in self.systems if system not in SYSTEMS]
        require(not unknown, f"--systems knows {', '.join(SYSTEMS)}, not {', '.join(unknown)}")
        require(len(set(self.systems)) == len(self.systems), "--systems names a system twice")


def main():
    args = parse_arguments(EvaluationArguments, __doc__, "demo_evaluate.yaml")
    training_args, training_environment = read_adapter(args.adapter) if args.adapter else ({}, {})
    split = read_split(args.adapter) if args.adapter else None
    own_format = training_args.get("prompt_format", args.prompt_format)
    require(args.prompt_format in (None, own_format), f"{args.adapter} was trained with --prompt_format {own_format}")
    own_model, own_data = args.model_name_or_path is None, args.dataset_name is None
    inherit(args, training_args)
    output_dir = Path(args.output_dir)
    accelerator = start_accelerator(args.dtype)
    is_main = accelerator.is_main_process

    with naming_adapter(args.adapter if own_data else None, "--dataset_name"):
        rows, _ = load_rows(args.dataset_name, args.dataset_revision, args.max_bad_rows, args.dataset_config_name)
    rows = choose_rows(rows, args, training_args, split)[: args.num_examples]
    if not rows:
        raise UserError(f"no rows are held out of {args.dataset_name} at --eval_fraction {args.eval_fraction}")
    with naming_adapter(args.adapter if own_model else None, "--model_name_or_path"):
        model_path = resolve_model(args.model_name_or_path)
    tokenizer = load_tokenizer(model_path, args.model_revision)
    model = load_base_model(model_path, accelerator, args.model_revision, args.quantization)
    # All that predictions depend on: a folder with others is not continued.
    identity = {
        "prompt_format": args.prompt_format,
        "prompt_sha256": {system: format_hash(format_of(system, args)) for system in SYSTEMS},
        "base_fingerprint": base_fingerprint(model),
        "adapter_sha256": file_hash(Path(args.adapter) / "adapter_model.safetensors") if args.adapter else None,
        "adapter_step": training_environment.get("global_step"),
        "rows_sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "num_examples": len(rows),
        "quantization": args.quantization,
        "mixed_precision": accelerator.mixed_precision,
        "decoding": {"strategy": "greedy", "max_new_tokens": args.max_new_tokens, "batch_tokens": args.batch_tokens},
        "merge_adapter": args.merge_adapter,
    }
    if is_main:
        prepare_output_dir(output_dir, identity, args)
    accelerator.wait_for_everyone()

    # Of the merged file alone: the parts are already growing where another process is ahead of this one.
    done = {(p["system"], p["id"]) for p in predictions.read([output_dir / "predictions.jsonl"])}
    part = output_dir / f"predictions-{accelerator.process_index}.jsonl"
    for system in sorted(args.systems, key=SYSTEMS.index):
        prompt_format = format_of(system, args)
        if system == "adapter":
            model = load_adapter(model, args.adapter, texts_to_compare(tokenizer, prompt_format, rows, args))
        todo = [row for row in rows if (system, row.id) not in done]
        todo = sorted(todo, key=lambda row: -len(row.query) - len(row.tools))  # an even share of long rows each
        todo = todo[accelerator.process_index :: accelerator.num_processes]
        with part.open("a", encoding="utf-8") as file:
            said = predict(model, tokenizer, prompt_format, todo, system, args.max_new_tokens, args.batch_tokens)
            predictions.append(file, tqdm(said, total=len(todo), desc=system, unit="row", disable=not is_main))
    accelerator.wait_for_everyone()

    if is_main:
        results = score_all(output_dir, rows, args)
        record = {"generated_by": generated_by(model), "scoring": SCORING, **identity, **environment_record()}
        write_json(output_dir / "metrics.json", {"systems": results, **record})
        print_table(results, args, training_environment.get("global_step"))
        print(f"Figures: {output_dir / 'metrics.json'}   Every output: {output_dir / 'predictions.jsonl'}")
    accelerator.end_training()


def inherit(args, training_args):
    """Fill in what the arguments leave open: from the adapter's training, and else as the fields say."""
    for owner, owned in (
        ("model_name_or_path", ["model_revision"]),
        ("dataset_name", ["dataset_revision", "dataset_config_name"]),
    ):
        if getattr(args, owner) not in (None, training_args.get(owner)):  # another repository has other revisions
            for name in owned:
                training_args.pop(name, None)
    for field in dataclasses.fields(args):
        if "inherited" in field.metadata and getattr(args, field.name) is None:
            setattr(args, field.name, training_args.get(field.name, field.metadata["inherited"]))
    beside = Path(args.adapter).parent if args.adapter else Path("runs")
    args.output_dir = args.output_dir or str(beside / "evaluation")


def choose_rows(rows, args, training_args, split):
    """The rows to evaluate: those that the adapter's training held out, or those that the arguments ask for where they name
    another split or a data set that holds none of them. Refuses rows that were trained on and held-out rows that are gone."""
    own_split = all(getattr(args, name) == training_args.get(name) for name in ("eval_fraction", "seed", "eval_split"))
    if split and own_split:
        held_out, gone = find_held_out(rows, split)
        if gone and (held_out or args.dataset_name == training_args["dataset_name"]):
            raise UserError(
                f"{len(gone)} of the {len(split['held_out'])} rows that {args.adapter} held out are not in "
                f"{args.dataset_name} any more: {shorten(gone)}; name the data set as it was with --dataset_name, or "
                "one of other rows to evaluate with --eval_fraction 1"
            )
        if not gone:
            return held_out
    _, held_out, _ = split_rows(rows, args.eval_fraction, args.seed, args.eval_split)
    trained = set(split["trained"].values()) if split else ()
    if known := [row.id for row in held_out if row.fingerprint in trained]:
        raise UserError(
            f"{len(known)} of the {len(held_out)} rows asked for are rows that {args.adapter} was trained on: {shorten(known)}; "
            "leave out --eval_fraction, --seed and --eval_split to evaluate those that it held out"
        )
    return held_out


def shorten(ids):
    return ", ".join(ids[:5]) + ", ..." * (len(ids) > 5)


def prepare_output_dir(output_dir, identity, args):
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.overwrite_output_dir:
            predictions.clear(output_dir)
        predictions.prepare(output_dir, identity)
        write_yaml(output_dir / "args.yaml", args)
        write_json(output_dir / "environment.json", environment_record(**identity))
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None


def format_of(system, args):
    return PROMPT_FORMATS["raw" if system == "raw" else args.prompt_format]


def texts_to_compare(tokenizer, prompt_format, rows, args):
    """The first rows with their answers, on which a merged adapter must say what it says unmerged; none if it is not merged."""
    texts = [prompt_format.render(row.query, row.tools) + prompt_format.completion(row.answers) for row in rows[:2]]
    return encode_prompts(tokenizer, texts) if args.merge_adapter else ()


def predict(model, tokenizer, prompt_format, rows, system, max_new_tokens, batch_tokens):
    """Generate: a prediction (a dict, a line of predictions.jsonl) for each row, in the order in which they finish."""
    prompts = [prompt_format.render(row.query, row.tools) for row in rows]
    for index, generation in generate(model, tokenizer, prompt_format, prompts, max_new_tokens, batch_tokens):
        yield {
            "id": rows[index].id,
            "system": system,
            "prompt_sha256": hashlib.sha256(prompts[index].encode()).hexdigest()[:16],
            **generation._asdict(),
            "gold": json.loads(rows[index].answers),  # beside the text, for who reads the file
        }


def score_all(output_dir, rows, args):
    """`{system: {metric: figures, "num_examples", "finish", "rows_per_second"}}` of the folder's predictions, and scores.jsonl
    with every row's own scores."""
    said = {(p["system"], p["id"]): p for p in predictions.merge(output_dir)}
    results, lines = {}, []
    for system in sorted(args.systems, key=SYSTEMS.index):
        mine = [said[system, row.id] for row in rows if (system, row.id) in said]
        if len(mine) != len(rows):
            raise UserError(f"{output_dir} has {len(mine)} predictions of {system} for {len(rows)} rows")
        prompt_format = format_of(system, args)
        scores = [score(Output(row, p["text"], prompt_format)) for row, p in zip(rows, mine, strict=True)]
        lines += [{"id": row.id, "system": system, **each} for row, each in zip(rows, scores, strict=True)]
        finish = [p["finish"] for p in mine]
        seconds = sum(p["seconds"] for p in mine)
        results[system] = {
            "num_examples": len(mine),
            **summarize(scores),
            "finish": {reason: finish.count(reason) for reason in ("end", "closed", "length", "too_long")},
            "rows_per_second": len(mine) / seconds if seconds else None,
        }
    predictions.write(output_dir / "scores.jsonl", lines)
    return results


def print_table(results, args, step):
    title = f"{args.model_name_or_path} on {args.dataset_name}, held-out rows"
    table = Table(title=title + f"; adapter of step {step}" * (step is not None), caption_justify="left")
    table.add_column("system")
    for metric in METRICS.values():
        table.add_column(metric.title + " %" * (metric.kind == "rate"), justify="right")
    table.add_column("rows", justify="right")
    for system, figures in results.items():
        cells = [cell(name, metric, figures) for name, metric in METRICS.items()]
        table.add_row(system, *cells, str(figures["num_examples"]), end_section=True)
    table.caption = (
        f"Prompt format {args.prompt_format}. "
        "Below each rate its 95% Wilson interval and, in brackets, the lenient bound: first calls anywhere in the "
        "text, those without a name pass."
    )
    if (args.model_name_or_path, args.dataset_name) == PUBLISHED_FOR:
        for name, rates in PUBLISHED.items():
            cells = [f"[dim]{rates[metric]:.2f}[/dim]" if metric in rates else "" for metric in METRICS]
            table.add_row(f"[dim]{name}[/dim]", *cells, "[dim]101?[/dim]")
        table.caption += " Published: parser not stated; the figures fit 101 rows."
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for system, figures in results.items():
        stops = ", ".join(f"{count} {name}" for name, count in figures["finish"].items() if count)
        speed = f"{figures['rows_per_second']:.2f} rows/s; " if figures["rows_per_second"] else ""
        console.print(f"{system}: {speed}stopped by {stops}", highlight=False)


def cell(name, metric, figures):
    figure, bound = figures[name], figures.get(f"lenient_{name}")
    if metric.kind != "rate":
        return f"{figure[metric.kind]:.4g}"
    text = f"{100 * figure['rate']:.2f}\n[dim]{100 * figure['low']:.1f}–{100 * figure['high']:.1f}"
    return text + (f"\n({100 * bound['rate']:.2f})" if bound else "") + "[/dim]"


if __name__ == "__main__":
    run_script(main)
