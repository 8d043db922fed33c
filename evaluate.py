"""Three systems side by side on held-out rows: base on the raw prompt, base on the tag prompt, and the LoRA adapter.

    python evaluate.py                                                      # the embedded demo, after train.py
    python evaluate.py --adapter runs/qwen3_4b_qlora/adapter
    accelerate launch -q --config_file accelerate_configs/multi_gpu.yaml evaluate.py --adapter ...

The rows are those that training set aside: the adapter's folder knows them, by content. Writes predictions.jsonl as it goes (a
killed evaluation continues where it was), then metrics.json, and prints the table. The scores are defined in
data_utils/tool_calls.py.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_utils.batching import encode_prompts
from data_utils.prompt import PROMPT_VERSION, render_prompt, render_raw_prompt
from data_utils.rows import find_held_out, load_rows, split_rows
from data_utils.tool_calls import score, wilson_interval
from generation_utils import generate, generated_by
from model_utils import (
    base_fingerprint,
    load_adapter,
    load_base_model,
    load_tokenizer,
    naming_adapter,
    read_adapter,
    read_split,
    resolve_model,
)
from script_utils import (
    UserError,
    environment_record,
    parse_arguments,
    require,
    require_positive,
    run_script,
    start_accelerator,
    write_json,
    write_yaml,
)

SYSTEMS = ("raw", "prompted", "adapter")  # the adapter last: it may be merged into the base
SCORING = "2"  # of predictions.jsonl's verdicts: those of an evaluation scored otherwise are not continued
METRICS = {"json_valid": "JSON valid", "exact_match": "exact match", "tools_exist": "tools exist"}
# The reference article's figures, in %. It does not say which parser, nor which prompt the base had.
PUBLISHED = {"published: base": (63.37, 0.00, 63.37), "published: LoRA": (100.00, 80.20, 100.00)}


@dataclass
class EvaluationArguments:
    config: str | None = field(default=None, metadata={"help": "YAML file of these arguments; flags override it"})
    adapter: str | None = field(default=None, metadata={"help": "Folder that train.py saved: adapter/ or a checkpoint"})
    systems: list[str] | None = field(default=None, metadata={"help": f"Of {', '.join(SYSTEMS)}; all by default"})
    # Model and rows: by default the adapter's own
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default the adapter's base"})
    model_revision: str | None = None
    quantization: Literal["none", "nf4", "int8"] | None = None
    dataset_name: str | None = field(default=None, metadata={"help": "By default the data set of the training"})
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    max_bad_rows: float | None = None
    seed: int | None = field(default=None, metadata={"help": "Of the split; by default the training's"})
    eval_fraction: float | None = field(
        default=None, metadata={"help": "By default the training's; 1 takes all rows, of a data set not trained on"}
    )
    eval_split: Literal["random", "tools"] | None = None
    num_examples: int | None = field(
        default=1000, metadata={"help": "Of the held-out rows, in the order of their hash"}
    )
    # Generation
    merge_adapter: bool = field(
        default=True, metadata={"help": "Into weights that are neither quantised nor shared: faster, and checked"}
    )
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    max_new_tokens: int = 512
    batch_tokens: int = field(
        default=65536, metadata={"help": "Tokens of the cache of keys and values, new ones included"}
    )
    # Where
    output_dir: str | None = field(default=None, metadata={"help": "By default evaluation/ beside the adapter"})
    overwrite_output_dir: bool = False

    def __post_init__(self):
        require_positive(self, "num_examples", "max_new_tokens", "batch_tokens")
        require(
            self.adapter or (self.model_name_or_path and self.dataset_name),
            "name an --adapter, or both --model_name_or_path and --dataset_name",
        )
        require(self.adapter or "adapter" not in (self.systems or []), "the system 'adapter' needs --adapter")
        require(
            self.eval_fraction is None or 0 < self.eval_fraction <= 1, "--eval_fraction must be above 0 and at most 1"
        )
        self.systems = self.systems or list(SYSTEMS if self.adapter else SYSTEMS[:2])
        unknown = [system for system in self.systems if system not in SYSTEMS]
        require(not unknown, f"--systems knows {', '.join(SYSTEMS)}, not {', '.join(unknown)}")
        require(len(set(self.systems)) == len(self.systems), "--systems names a system twice")


# What an evaluation takes from the adapter's training where it is not told otherwise, and else from here.
FROM_TRAINING = {
    "model_name_or_path": None,
    "model_revision": None,
    "quantization": "none",
    "dataset_name": None,
    "dataset_config_name": None,
    "dataset_revision": None,
    "max_bad_rows": 0.01,
    "seed": 42,
    "eval_fraction": 0.05,
    "eval_split": "random",
}


def main():
    args = parse_arguments(EvaluationArguments, __doc__, "demo_evaluate.yaml")
    training_args, training_environment = read_adapter(args.adapter) if args.adapter else ({}, {})
    split = read_split(args.adapter) if args.adapter else None
    for owner, owned in (
        ("model_name_or_path", ["model_revision"]),
        ("dataset_name", ["dataset_revision", "dataset_config_name"]),
    ):
        if getattr(args, owner) not in (None, training_args.get(owner)):  # another repository has other revisions
            for name in owned:
                training_args.pop(name, None)
    own_model, own_data = (getattr(args, name) is None for name in ("model_name_or_path", "dataset_name"))
    for name, otherwise in FROM_TRAINING.items():
        if getattr(args, name) is None:
            setattr(args, name, training_args.get(name, otherwise))
    args.output_dir = args.output_dir or str(
        (Path(args.adapter).parent if args.adapter else Path("runs")) / "evaluation"
    )
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
        "prompt_version": PROMPT_VERSION,
        "base_fingerprint": base_fingerprint(model),
        "adapter_sha256": file_hash(Path(args.adapter) / "adapter_model.safetensors") if args.adapter else None,
        "adapter_step": training_environment.get("global_step"),
        "scoring": SCORING,
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
    done = {(p["system"], p["id"]) for p in read_predictions([output_dir / "predictions.jsonl"])}
    part = output_dir / f"predictions-{accelerator.process_index}.jsonl"
    for system in sorted(args.systems, key=SYSTEMS.index):
        if system == "adapter":
            answered = [render_prompt(row.query, row.tools) + row.answers for row in rows[:2]]
            model = load_adapter(model, args.adapter, encode_prompts(tokenizer, answered) if args.merge_adapter else ())
        todo = [row for row in rows if (system, row.id) not in done]
        todo = sorted(todo, key=lambda row: -len(row.query) - len(row.tools))  # an even share of long rows each
        todo = todo[accelerator.process_index :: accelerator.num_processes]
        with part.open("a", encoding="utf-8") as file:
            predictions = predict(model, tokenizer, todo, system, args.max_new_tokens, args.batch_tokens)
            for prediction in tqdm(predictions, total=len(todo), desc=system, unit="row", disable=not is_main):
                file.write(json.dumps(prediction) + "\n")
                file.flush()
    accelerator.wait_for_everyone()

    if is_main:
        predictions = merge_predictions(output_dir)
        place = {row.id: i for i, row in enumerate(rows)}
        chosen = [prediction for prediction in predictions if prediction["system"] in args.systems]
        if len(chosen) != len(rows) * len(args.systems):
            raise UserError(
                f"{output_dir} has {len(chosen)} predictions for {len(rows)} rows of {len(args.systems)} systems"
            )
        results = summarize(sorted(chosen, key=lambda prediction: place[prediction["id"]]))
        record = {"generated_by": generated_by(model), **identity, **environment_record()}
        write_json(output_dir / "metrics.json", {"systems": results, **record})
        print_table(results, args, training_environment.get("global_step"))
        print(f"Figures: {output_dir / 'metrics.json'}   Every output: {output_dir / 'predictions.jsonl'}")
    accelerator.end_training()


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


def predict(model, tokenizer, rows, system, max_new_tokens, batch_tokens):
    """Generate and score: a prediction (a dict, a line of predictions.jsonl) for each row, in the order they finish."""
    render = render_raw_prompt if system == "raw" else render_prompt
    prompts = [render(row.query, row.tools) for row in rows]
    for index, generation in generate(model, tokenizer, prompts, max_new_tokens, batch_tokens):
        row = rows[index]
        gold = json.loads(row.answers)
        yield {
            "id": row.id,
            "system": system,
            "prompt_sha256": hashlib.sha256(prompts[index].encode()).hexdigest()[:16],
            **generation._asdict(),
            "gold": gold,
            **score(generation.text, gold, json.loads(row.tools)),
        }


def prepare_output_dir(output_dir, identity, args):
    """Make the folder ready to be continued: nothing, or one predictions.jsonl of the same evaluation."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        environment = output_dir / "environment.json"
        if args.overwrite_output_dir:
            for path in (*output_dir.glob("predictions*.jsonl"), output_dir / "metrics.json", environment):
                path.unlink(missing_ok=True)
        try:
            saved = dict(json.loads(environment.read_text(encoding="utf-8")))
        except FileNotFoundError:
            saved = {} if list(output_dir.glob("predictions*.jsonl")) else identity
        except (ValueError, TypeError):
            saved = {}
        if any(saved.get(key) != value for key, value in identity.items()):
            raise UserError(
                f"{output_dir} holds an evaluation of another model, other rows or other settings: "
                "replace it with --overwrite_output_dir, or choose another --output_dir"
            )
        write_yaml(output_dir / "args.yaml", args)
        write_json(environment, environment_record(**identity))
        merge_predictions(output_dir)
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None


def read_predictions(paths):
    """Every whole prediction in the files; a line cut short by a kill is not one."""
    predictions = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                predictions.append(json.loads(line))
            except ValueError:
                continue
    return predictions


def merge_predictions(output_dir):
    """Gather the processes' files in predictions.jsonl, each prediction once; returns them."""
    predictions = {
        (prediction["system"], prediction["id"]): prediction
        for prediction in read_predictions(sorted(output_dir.glob("predictions*.jsonl")))
    }
    merged = output_dir / "predictions.jsonl.incomplete"
    merged.write_text("".join(json.dumps(prediction) + "\n" for prediction in predictions.values()), encoding="utf-8")
    merged.replace(output_dir / "predictions.jsonl")
    for part in output_dir.glob("predictions-*.jsonl"):
        part.unlink()
    return list(predictions.values())


def summarize(predictions):
    """`{system: {metric: {"k", "n", "rate", "low", "high"}, ...}}`, intervals by Wilson, strict and lenient metrics."""
    results = {}
    for system in dict.fromkeys(prediction["system"] for prediction in predictions):
        mine = [prediction for prediction in predictions if prediction["system"] == system]
        results[system] = {"num_examples": len(mine)}
        for metric in (*METRICS, *(f"lenient_{name}" for name in METRICS)):
            k, n = sum(prediction[metric] for prediction in mine), len(mine)
            low, high = wilson_interval(k, n)
            results[system][metric] = {"k": k, "n": n, "rate": k / n, "low": low, "high": high}
        finish = [prediction["finish"] for prediction in mine]
        results[system]["finish"] = {reason: finish.count(reason) for reason in ("end", "closed", "length", "too_long")}
        seconds = sum(prediction["seconds"] for prediction in mine)
        results[system]["rows_per_second"] = len(mine) / seconds if seconds else None
    return results


def print_table(results, args, step):
    title = f"{args.model_name_or_path} on {args.dataset_name}, held-out rows"
    table = Table(title=title + f"; adapter of step {step}" * (step is not None), caption_justify="left")
    table.add_column("system")
    for title in METRICS.values():
        table.add_column(f"{title} %", justify="right")
    table.add_column("rows", justify="right")
    for system, figures in results.items():
        cells = []
        for metric in METRICS:
            strict, lenient = figures[metric], figures[f"lenient_{metric}"]
            interval = f"{100 * strict['low']:.1f}–{100 * strict['high']:.1f}"
            cells.append(f"{100 * strict['rate']:.2f}\n[dim]{interval}\n({100 * lenient['rate']:.2f})[/dim]")
        table.add_row(system, *cells, str(figures["num_examples"]), end_section=True)
    for name, rates in PUBLISHED.items():
        table.add_row(f"[dim]{name}[/dim]", *(f"[dim]{rate:.2f}[/dim]" for rate in rates), "[dim]101?[/dim]")
    table.caption = (
        "Below each figure its 95% Wilson interval and, in brackets, the lenient bound: first calls anywhere in the "
        "text, those without a name pass. Published: Qwen3-4B-Base on xLAM, parser not stated; the figures fit 101 rows."
    )
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for system, figures in results.items():
        stops = ", ".join(f"{count} {name}" for name, count in figures["finish"].items() if count)
        speed = f"{figures['rows_per_second']:.2f} rows/s; " if figures["rows_per_second"] else ""
        console.print(f"{system}: {speed}stopped by {stops}", highlight=False)


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    run_script(main)
