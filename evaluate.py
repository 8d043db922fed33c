"""Three systems side by side on held-out rows: base on the raw prompt, base on the training's prompt, and the LoRA adapter.

    python evaluate.py                                                      # the embedded demo, after train.py
    python evaluate.py --adapter runs/qwen3_4b_qlora/adapter
    accelerate launch -q --config_file accelerate_configs/multi_gpu.yaml evaluate.py --adapter ...
    python evaluate.py --rescore runs/demo/evaluation          # new scores from the texts: no model is loaded
    python evaluate.py --compare runs/a/evaluation runs/b/evaluation    # is b's adapter better than a's, on the same rows?

The rows are those that training set aside: the adapter's folder knows them, by content. Writes predictions.jsonl as it goes (a
killed evaluation continues where it was), then scores.jsonl, metrics.json and report.html, and prints the table. The metrics are
in eval_utils/metrics.py.
"""

import hashlib
import os
import sys

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own
    if os.environ.get("RANK", "0") == "0":
        print("Loading PyTorch and transformers ...", file=sys.stderr)

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from data_utils.batching import encode_prompts
from data_utils.prompt import PROMPT_FORMATS, format_hash
from data_utils.sources import load_rows
from data_utils.split import find_held_out, split_rows
from data_utils.systems import SYSTEMS, SystemKey
from data_utils.tool_formats import openai_tools
from eval_utils import predictions
from eval_utils.endpoint import complete
from eval_utils.report import write_report
from eval_utils.results import Evaluation, compare_systems, report_of, write_results
from eval_utils.table import print_table
from model_utils.adapters import load_adapter, naming_adapter, read_adapter, read_split
from model_utils.generation import generate, generated_by
from model_utils.grammar import accepts, import_xgrammar
from model_utils.loading import base_fingerprint, load_base_model, load_tokenizer, resolve_model
from run_utils.arguments import (
    UserError,
    argument,
    as_yaml,
    check_limits,
    parse_arguments,
    read_yaml,
    require,
    run_script,
)
from run_utils.environment import environment_record
from run_utils.files import file_hash, lock_folder, no_pipe, read_json, write_json, write_text
from run_utils.launch import check_alike, end_training, run_on_main, start_accelerator
from run_utils.redaction import redact

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
    systems: list[str] | None = argument(None, f"Of {', '.join(SYSTEMS)}; by default raw, prompted and adapter")

    rescore: str | None = argument(None, "Folder of a finished evaluation to score again, without a model")
    compare: list[str] | None = argument(None, "Folders of finished evaluations of the same rows, to set side by side")
    baseline: str | None = argument(
        None,
        "What the report's first sentence compares with: a system's name as in the table, such as 'prompted' or 'run_a: adapter', "
        "or one of the folders of --compare; by default the prompted base, with --compare the first adapter",
    )

    model_name_or_path: str | None = argument(
        None, "By default the adapter's base", group="Model and rows: by default the adapter's own", inherited=None
    )
    model_revision: str | None = argument(None, inherited=None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    quantization: Literal["none", "nf4", "int8"] | None = argument(None, inherited="none")
    prompt_format: Literal[*PROMPT_FORMATS] | None = argument(
        None, "Of the base alone; an adapter's own is the one that it was trained on", inherited="tags-1"
    )
    dataset_name: str | None = argument(None, "By default the data set of the training", inherited=None)
    eval_dataset_name: str | None = argument(None, "Where the training had its rows to evaluate from", inherited=None)
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

    endpoint: str | None = argument(
        None, "OpenAI-compatible server, such as http://localhost:8000/v1; its key is OPENAI_API_KEY", group="Endpoint"
    )
    endpoint_model: str | None = argument(None, "The name of the model there")
    endpoint_api: Literal["completions", "chat"] = argument(
        "completions", "The tag prompt as text, or the query as a chat with OpenAI's tools"
    )

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
        if self.rescore or self.compare:
            require(not (self.rescore and self.compare), "--rescore and --compare are two different things")
            require(not self.compare or len(self.compare) > 1, "--compare needs two folders or more")
            return
        default = [*["endpoint"] * bool(self.endpoint), "raw", "prompted", *["adapter"] * bool(self.adapter)]
        self.systems = self.systems or default
        require(
            self.adapter or (self.dataset_name and (self.model_name_or_path or self.systems == ["endpoint"])),
            "name an --adapter, or both --model_name_or_path and --dataset_name",
        )
        unknown = [system for system in self.systems if system not in SYSTEMS]
        require(not unknown, f"--systems knows {', '.join(SYSTEMS)}, not {', '.join(unknown)}")
        for system in self.systems:
            require(self.adapter or not SYSTEMS[system].adapter, f"the system {system!r} needs --adapter")
            require(self.endpoint or not SYSTEMS[system].server, f"the system {system!r} needs --endpoint")
        require(bool(self.endpoint) == bool(self.endpoint_model), "--endpoint and --endpoint_model go together")
        require(self.baseline in (None, *self.systems), f"--baseline names one of --systems, {', '.join(self.systems)}")
        require(len(set(self.systems)) == len(self.systems), "--systems names a system twice")


def main():
    args = parse_arguments(EvaluationArguments, __doc__, "demo_evaluate.yaml")
    if args.rescore:
        if Path(args.rescore).is_dir():
            lock_folder(args.rescore)
        return score_folder(Path(args.rescore), args.baseline)
    if args.compare:
        output_dir = Path(args.output_dir or "runs/comparison")
        return compare_folders([Path(folder) for folder in args.compare], output_dir, args.baseline)
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
        trained_tools = tools_seen(rows, split)
        if args.eval_dataset_name:
            rows, _ = load_rows(args.eval_dataset_name, max_bad_rows=args.max_bad_rows)
    rows = choose_rows(rows, args, training_args, split)[: args.num_examples]
    if not rows:
        raise UserError(f"no rows are held out of {args.dataset_name} at --eval_fraction {args.eval_fraction}")
    tokenizer = model = base = None
    if any(SYSTEMS[system].grammar for system in args.systems):
        import_xgrammar()  # told now, and not after the systems before
    if args.systems != ["endpoint"]:
        with naming_adapter(args.adapter if own_model else None, "--model_name_or_path"):
            model_path = resolve_model(args.model_name_or_path)
        tokenizer = load_tokenizer(model_path, args.model_revision, args.trust_remote_code)
        model = base = load_base_model(
            model_path, accelerator, args.model_revision, args.quantization, args.trust_remote_code
        )
    # All that predictions depend on: a folder with others is not continued.
    identity = {
        "prompt_format": args.prompt_format,
        "prompt_sha256": {system: format_hash(format_of(system, args)) for system in SYSTEMS},
        "base_fingerprint": base_fingerprint(base) if base else None,
        "adapter_sha256": file_hash(Path(args.adapter) / "adapter_model.safetensors") if args.adapter else None,
        "adapter_step": training_environment.get("global_step"),
        "rows_sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "num_examples": len(rows),
        "quantization": args.quantization,
        "mixed_precision": accelerator.mixed_precision,
        "decoding": {"strategy": "greedy", "max_new_tokens": args.max_new_tokens, "batch_tokens": args.batch_tokens},
        "merge_adapter": args.merge_adapter,
        "endpoint": [redact(args.endpoint), args.endpoint_model, *["chat"] * (args.endpoint_api == "chat")],
    }
    check_alike(identity | {"--systems": args.systems})
    in_training = {
        "tools_seen": trained_tools and {row.id: row.tool_names() <= trained_tools for row in rows},
        "near_repeat": find_near_repeats(rows, split),
    }
    run_on_main(accelerator, lambda: prepare_output_dir(output_dir, identity, args, rows, in_training))

    # Of the merged file alone: the parts are already growing where another process is ahead of this one.
    done = {(p["system"], p["id"]) for p in predictions.read([output_dir / "predictions.jsonl"])}
    part = output_dir / f"predictions-{accelerator.process_index}.jsonl"
    adapted = False
    for system in sorted(args.systems, key=lambda system: SYSTEMS[system].adapter):  # last: it is merged into the base
        prompt_format = format_of(system, args)
        if SYSTEMS[system].adapter and not adapted:  # once: merging changes the base itself
            adapted = True
            model = load_adapter(base, args.adapter, texts_to_compare(tokenizer, prompt_format, rows, args))
        todo = [row for row in rows if (system, row.id) not in done]
        todo = sorted(todo, key=lambda row: -len(row.query) - len(row.tools))  # an even share of long rows each
        at_work = min(accelerator.num_processes, len(todo))
        todo = todo[accelerator.process_index :: accelerator.num_processes]
        shown = system + f", 1 of {at_work} processes" * (at_work > 1)
        with part.open("a", encoding="utf-8") as file:
            said = predict(model, tokenizer, prompt_format, todo, system, args, at_work)
            predictions.append(file, tqdm(said, total=len(todo), desc=shown, unit="row", disable=not is_main))
    accelerator.wait_for_everyone()

    if is_main:
        predictions.merge(output_dir)
        write_json(
            output_dir / "environment.json",
            environment_record(**identity, generated_by=generated_by(base) if base else None),
        )
        score_folder(output_dir)
    end_training(accelerator)


def inherit(args, training_args):
    """Fill in what the arguments leave open: from the adapter's training, and else as the fields say."""
    for owner, owned in (
        ("model_name_or_path", ["model_revision"]),
        ("dataset_name", ["dataset_revision", "dataset_config_name", "eval_dataset_name"]),
    ):
        if getattr(args, owner) not in (None, training_args.get(owner)):  # another repository has other revisions
            for name in owned:
                training_args.pop(name, None)
    for field in dataclasses.fields(args):
        if "inherited" in field.metadata and getattr(args, field.name) is None:
            setattr(args, field.name, training_args.get(field.name, field.metadata["inherited"]))
    check_limits(args)  # of what the adapter's file has, too
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


def tools_seen(rows, split):
    """The names of the tools that were on offer in the rows that an adapter was trained on; None where these are not known."""
    trained = set(split["trained"].values()) if split else set()
    return set().union(*(row.tool_names() for row in rows if row.fingerprint in trained)) or None


def find_near_repeats(rows, split):
    """`{row id: whether its query nearly repeats one trained on}`, by content; None if training has not looked at all of these rows."""
    if (
        not split
        or split["near_repeats"] is None
        or {row.fingerprint for row in rows} - set(split["held_out"].values())
    ):
        return None
    found = {split["held_out"][row_id] for row_id in split["near_repeats"]}
    return {row.id: row.fingerprint in found for row in rows}


def prepare_output_dir(output_dir, identity, args, rows, in_training):
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock_folder(output_dir)
        if args.overwrite_output_dir:
            predictions.clear(output_dir)
        predictions.check_folder(output_dir, identity)
        write_json(
            output_dir / "environment.json", environment_record(**identity)
        )  # first: it says whose the others are
        write_text(output_dir / "args.yaml", as_yaml(args))
        predictions.write_rows(output_dir, rows, in_training)
        predictions.merge(output_dir)
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None


def format_of(system, args):
    return PROMPT_FORMATS[SYSTEMS[system].prompt or args.prompt_format]


def texts_to_compare(tokenizer, prompt_format, rows, args):
    """The first rows with their answers, to compare the merged adapter with the unmerged one; none if it is not merged."""
    texts = [prompt_format.render(row.query, row.tools) + prompt_format.completion(row.answers) for row in rows[:2]]
    return encode_prompts(tokenizer, texts) if args.merge_adapter else ()


def predict(model, tokenizer, prompt_format, rows, system, args, at_work):
    """Generate: a prediction (a dict, a line of predictions.jsonl) for each row, in the order in which they finish. Its seconds
    are divided by the number of processes at work: those of all rows add up to the time that the processes took, on average."""
    prompts = [prompt_format.render(row.query, row.tools) for row in rows]
    for index, said in answer(model, tokenizer, prompt_format, prompts, rows, system, args):
        yield {
            "id": rows[index].id,
            "system": system,
            "prompt_sha256": hashlib.sha256(prompts[index].encode()).hexdigest()[:16],
            **said,
            "seconds": said["seconds"] / at_work,
            "gold": json.loads(rows[index].answers),  # beside the text, for who reads the file
        }


def answer(model, tokenizer, prompt_format, prompts, rows, system, args):
    """`(index, {"text", "num_tokens", "finish", "seconds"})` of each prompt, by the model here or by the server; of a constrained
    system with "gold_in_grammar", whether its grammar has the row's gold."""
    if SYSTEMS[system].server:
        if args.endpoint_api == "chat":
            prompts = [(row.query, openai_tools(json.loads(row.tools))) for row in rows]
        yield from complete(args.endpoint, args.endpoint_model, prompts, args.max_new_tokens)
        return
    tools = [json.loads(row.tools) for row in rows] if SYSTEMS[system].grammar else None
    arguments = (prompts, args.max_new_tokens, args.batch_tokens, tools)
    for index, generation in generate(model, tokenizer, prompt_format, *arguments):
        prediction = generation._asdict()
        if tools and generation.finish != "too_long":
            gold = prompt_format.completion(rows[index].answers)
            vocab_size = model.config.get_text_config().vocab_size
            prediction["gold_in_grammar"] = accepts(tokenizer, vocab_size, tools[index], gold)
        yield index, prediction


class Finished(NamedTuple):
    """A finished evaluation, as its folder holds it."""

    rows: list
    in_training: dict  # see predictions.write_rows
    answers: dict  # {system: {row id: prediction}}, in the order of the tables
    settings: dict  # args.yaml
    environment: dict

    def prompt_format(self, system):
        return PROMPT_FORMATS[SYSTEMS[system].prompt or self.settings["prompt_format"]]


def read_folder(folder):
    rows, in_training = predictions.read_rows(folder)
    environment = redact(read_json(folder / "environment.json"))
    settings = redact(read_yaml(no_pipe(folder / "args.yaml")))
    if not isinstance(settings.get("systems"), list) or settings.get("prompt_format") not in [*PROMPT_FORMATS]:
        raise UserError(f"{folder / 'args.yaml'} names no systems, or a prompt format that is not here")
    answers = {}
    for prediction in predictions.read([path for path in [folder / "predictions.jsonl"] if path.exists()]):
        answers.setdefault(prediction["system"], {})[prediction["id"]] = prediction
    wanted = [system for system in SYSTEMS if system in settings["systems"]]
    for system in wanted:
        if missing := [row.id for row in rows if row.id not in answers.get(system, {})]:
            raise UserError(f"{folder} is not finished: {len(missing)} of {len(rows)} rows of {system} are missing")
    return Finished(rows, in_training, {system: answers[system] for system in wanted}, settings, environment)


def score_folder(folder, baseline=None):
    """Score the texts of a finished evaluation: scores.jsonl, metrics.json, report.html and the table."""
    finished = read_folder(folder)
    settings, step = finished.settings, finished.environment.get("adapter_step")
    model = settings.get("model_name_or_path") or settings.get("endpoint_model")
    data = settings.get("eval_dataset_name") or settings.get("dataset_name")
    evaluation = score_systems(
        {"": finished},
        baseline or settings.get("baseline"),
        title=f"{model} on {data}, held-out rows",
        subtitle=f"prompt format {settings['prompt_format']}" + f"; adapter of step {step}" * (step is not None),
        published=PUBLISHED if (model, data) == PUBLISHED_FOR else {},
        record=finished.environment,
    )
    write_evaluation(folder, evaluation)


def compare_folders(folders, output_dir, baseline=None):
    """The same for the systems of several finished evaluations of the same rows; a base with the same answers in two stands once."""
    require(len({folder.resolve() for folder in folders}) == len(folders), "--compare names a folder twice")
    output_dir.mkdir(parents=True, exist_ok=True)
    lock_folder(output_dir)
    predictions.check_comparison_folder(output_dir)
    evaluations = dict(zip(short_names(folders), map(read_folder, folders), strict=True))
    first, *others = evaluations.values()
    for folder, finished in zip(folders[1:], others, strict=True):
        if finished.rows != first.rows:
            pairs = itertools.zip_longest(first.rows, finished.rows)
            other = next((a.id for a, b in pairs if a != b and a), finished.rows[-1].id)
            raise UserError(f"{folder} is of other rows than {folders[0]}, from row {other} on")
    labels = {folder.resolve(): label for folder, label in zip(folders, evaluations, strict=True)}
    evaluation = score_systems(
        evaluations,
        labels.get(Path(baseline).resolve(), baseline) if baseline else None,
        title=f"{len(folders)} evaluations of the same rows",
        subtitle=", ".join(evaluations),
        published={},
        record={"evaluations": {label: finished.environment for label, finished in evaluations.items()}},
    )
    write_evaluation(output_dir, evaluation)


def short_names(folders):
    """The part of each path that the others do not share: runs/a/evaluation and runs/b/evaluation are a and b."""
    paths = [list(folder.resolve().parts) for folder in folders]
    for end in (0, -1):
        while all(len(path) > 1 for path in paths) and len({path[end] for path in paths}) == 1:
            for path in paths:
                path.pop(end)
    return ["/".join(path) for path in paths]


def score_systems(evaluations, baseline, **about):
    """The systems of `{label: Finished}`, all of the same rows, as one Evaluation. baseline: as in --baseline. about: its other
    fields."""
    rows = next(iter(evaluations.values())).rows
    answers = {
        SystemKey(label, system): by_id
        for label, finished in evaluations.items()
        for system, by_id in finished.answers.items()
    }
    formats = {key: evaluations[key.label].prompt_format(key.system) for key in answers}
    named = [key for key in answers if key.name == baseline] or [key for key in answers if key.label == baseline]
    require(named or not baseline, f"--baseline names {', '.join(key.name for key in answers)}, not {baseline}")
    # Adapters may have been trained on different rows: a fact about one need not hold for all.
    adapted = [finished.in_training for finished in evaluations.values() if finished.settings.get("adapter")]
    in_training = {
        fact: adapted[0][fact] if adapted and all(facts[fact] == adapted[0][fact] for facts in adapted) else None
        for fact in predictions.TRAINING_FACTS
    }
    results = compare_systems(rows, answers, formats, in_training, named)
    return Evaluation(rows, answers, *results, **about)


def write_evaluation(folder, evaluation):
    write_results(folder, evaluation)
    write_report(folder / "report.html", report_of(evaluation))
    print_table(evaluation)
    print(f"Report, every row in it: {folder / 'report.html'}   Figures: {folder / 'metrics.json'}")


if __name__ == "__main__":
    run_script(main, if_stopped="what is predicted is kept: the same command goes on")
