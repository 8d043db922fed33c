"""Three systems side by side on held-out rows: base on the raw prompt, base on the training's prompt, and the LoRA adapter.

    python evaluate.py                                                      # the embedded demo, after train.py
    python evaluate.py --adapter runs/qwen3_4b_qlora/adapter
    accelerate launch -q --config_file accelerate_configs/multi_gpu.yaml evaluate.py --adapter ...
    python evaluate.py --rescore runs/demo/evaluation          # new scores from the texts: no model is loaded
    python evaluate.py --compare runs/a/evaluation runs/b/evaluation    # finished evaluations of the same rows

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
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from data_utils.batching import encode_prompts
from data_utils.prompt import PROMPT_FORMATS, format_hash
from data_utils.sources import load_rows
from data_utils.split import find_held_out, split_rows
from data_utils.tool_formats import openai_tools
from eval_utils import predictions
from eval_utils.endpoint import complete
from eval_utils.metrics import METRICS, SCORING
from eval_utils.report import write_report
from eval_utils.results import compare_systems, report_of
from model_utils.adapters import load_adapter, naming_adapter, read_adapter, read_split
from model_utils.generation import generate, generated_by
from model_utils.grammar import compile_grammars, import_xgrammar
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
from run_utils.files import file_hash, lock_folder, write_json, write_text
from run_utils.launch import check_alike, end_training, run_on_main, start_accelerator
from run_utils.redaction import redact

# In the order in which they run: the adapter may be merged into the base. By default raw, prompted and adapter.
# The constrained ones are held to a grammar made of each row's tools; eval_utils/report.py says what each is.
SYSTEMS = ["endpoint", "raw", "prompted", "constrained", "adapter", "constrained_adapter"]
TABLE_ORDER = ["raw", "prompted", "constrained", "adapter", "constrained_adapter", "endpoint"]
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
        for system in self.systems:
            require(self.adapter or "adapter" not in system, f"the system {system!r} needs --adapter")
        require(self.endpoint or "endpoint" not in self.systems, "the system 'endpoint' needs --endpoint")
        require(bool(self.endpoint) == bool(self.endpoint_model), "--endpoint and --endpoint_model go together")
        unknown = [system for system in self.systems if system not in SYSTEMS]
        require(not unknown, f"--systems knows {', '.join(SYSTEMS)}, not {', '.join(unknown)}")
        require(len(set(self.systems)) == len(self.systems), "--systems names a system twice")


def main():
    args = parse_arguments(EvaluationArguments, __doc__, "demo_evaluate.yaml")
    if args.rescore:
        if Path(args.rescore).is_dir():
            lock_folder(args.rescore)
        return score_folder(Path(args.rescore))
    if args.compare:
        return compare_folders([Path(folder) for folder in args.compare], Path(args.output_dir or "runs/comparison"))
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
        seen = tools_seen(rows, split)
        if args.eval_dataset_name:
            rows, _ = load_rows(args.eval_dataset_name, max_bad_rows=args.max_bad_rows)
    rows = choose_rows(rows, args, training_args, split)[: args.num_examples]
    if not rows:
        raise UserError(f"no rows are held out of {args.dataset_name} at --eval_fraction {args.eval_fraction}")
    tokenizer = model = base = None
    if any("constrained" in system for system in args.systems):
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
    seen = seen and {row.id: row.tool_names() <= seen for row in rows}
    run_on_main(accelerator, lambda: prepare_output_dir(output_dir, identity, args, rows, seen))

    # Of the merged file alone: the parts are already growing where another process is ahead of this one.
    done = {(p["system"], p["id"]) for p in predictions.read([output_dir / "predictions.jsonl"])}
    part = output_dir / f"predictions-{accelerator.process_index}.jsonl"
    adapted = False
    for system in sorted(args.systems, key=SYSTEMS.index):
        prompt_format = format_of(system, args)
        if "adapter" in system and not adapted:  # once: merging changes the base itself
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


def prepare_output_dir(output_dir, identity, args, rows, seen):
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
        predictions.write_rows(output_dir, rows, seen)
        predictions.merge(output_dir)
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None


def format_of(system, args):
    return PROMPT_FORMATS["raw" if system == "raw" else args.prompt_format]


def texts_to_compare(tokenizer, prompt_format, rows, args):
    """The first rows with their answers, on which a merged adapter must say what it says unmerged; none if it is not merged."""
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
    """`(index, {"text", "num_tokens", "finish", "seconds"})` of each prompt, by the model here or by the server."""
    if system == "endpoint":
        if args.endpoint_api == "chat":
            prompts = [(row.query, openai_tools(json.loads(row.tools))) for row in rows]
        yield from complete(args.endpoint, args.endpoint_model, prompts, args.max_new_tokens)
        return
    grammars = None
    if "constrained" in system:
        vocabulary = model.config.get_text_config().vocab_size
        grammars = compile_grammars(tokenizer, vocabulary, [json.loads(row.tools) for row in rows])
    arguments = (prompts, args.max_new_tokens, args.batch_tokens, grammars)
    for index, generation in generate(model, tokenizer, prompt_format, *arguments):
        yield index, generation._asdict()


def read_folder(folder):
    """A finished evaluation: its rows, `seen` of them, `{system: {row id: prediction}}`, its arguments and its environment."""
    rows, seen = predictions.read_rows(folder)
    try:
        environment = redact(dict(json.loads((folder / "environment.json").read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} holds no evaluation that can be read: environment.json, {error}") from None
    settings = redact(read_yaml(folder / "args.yaml"))
    if not isinstance(settings.get("systems"), list) or settings.get("prompt_format") not in PROMPT_FORMATS:
        raise UserError(f"{folder / 'args.yaml'} names no systems, or a prompt format that is not here")
    said = {}
    for prediction in predictions.read([path for path in [folder / "predictions.jsonl"] if path.exists()]):
        said.setdefault(prediction["system"], {})[prediction["id"]] = prediction
    wanted = [system for system in TABLE_ORDER if system in settings["systems"]]
    for system in wanted:
        if missing := [row.id for row in rows if row.id not in said.get(system, {})]:
            raise UserError(f"{folder} is not finished: {len(missing)} of {len(rows)} rows of {system} are missing")
    return rows, seen, {system: said[system] for system in wanted}, settings, environment


def score_folder(folder):
    """Score the texts of a finished evaluation: scores.jsonl, metrics.json, report.html and the table."""
    rows, seen, said, settings, environment = read_folder(folder)
    formats = {system: PROMPT_FORMATS["raw" if system == "raw" else settings["prompt_format"]] for system in said}
    results = compare_systems(rows, said, formats, seen)
    model = settings.get("model_name_or_path") or settings["endpoint_model"]
    data = settings.get("eval_dataset_name") or settings["dataset_name"]
    step = environment.get("adapter_step")
    subtitle = f"prompt format {settings['prompt_format']}" + f"; adapter of step {step}" * (step is not None)
    published = PUBLISHED if (model, data) == PUBLISHED_FOR else {}
    write_results(folder, results, rows, said, f"{model} on {data}, held-out rows", subtitle, published, environment)


def compare_folders(folders, output_dir):
    """The same for the systems of several finished evaluations of the same rows; a base that says the same in two stands once."""
    require(len({folder.resolve() for folder in folders}) == len(folders), "--compare names a folder twice")
    if output_dir.resolve() in [folder.resolve() for folder in folders] or (output_dir / "predictions.jsonl").exists():
        raise UserError(f"{output_dir} holds an evaluation: name another --output_dir for the comparison")
    output_dir.mkdir(parents=True, exist_ok=True)
    lock_folder(output_dir)
    found = [read_folder(folder) for folder in folders]
    rows = found[0][0]
    labels = short_names(folders)
    said, formats = {}, {}
    for folder, label, (mine, _, systems, settings, _) in zip(folders, labels, found, strict=True):
        if mine != rows:
            other = next((a.id for a, b in itertools.zip_longest(rows, mine) if a != b and a), mine[-1].id)
            raise UserError(f"{folder} is of other rows than {folders[0]}, from row {other} on")
        for system, texts in systems.items():
            known = [[name.split(": ")[1], *(p["text"] for p in each.values())] for name, each in said.items()]
            is_base = system in ("raw", "prompted", "constrained")
            if not is_base or [system, *(texts[row.id]["text"] for row in rows)] not in known:
                name = f"{label}: {system}"
                said[name] = {row.id: texts[row.id] for row in rows}
                formats[name] = PROMPT_FORMATS["raw" if system == "raw" else settings["prompt_format"]]
    results = compare_systems(rows, said, formats, found[0][1])
    record = {"evaluations": {label: environment for label, (*_, environment) in zip(labels, found, strict=True)}}
    write_results(
        output_dir, results, rows, said, f"{len(folders)} evaluations of the same rows", ", ".join(labels), {}, record
    )


def short_names(folders):
    """What the folders' paths differ in: runs/a/evaluation and runs/b/evaluation are a and b."""
    paths = [list(folder.resolve().parts) for folder in folders]
    for end in (0, -1):
        while all(len(path) > 1 for path in paths) and len({path[end] for path in paths}) == 1:
            for path in paths:
                path.pop(end)
    return ["/".join(path) for path in paths]


def write_results(folder, results, rows, said, title, subtitle, published, record):
    scores = results.pop("scores")
    predictions.write(
        folder / "scores.jsonl",
        (
            {"id": row.id, "system": system, **each}
            for system, mine in scores.items()
            for row, each in zip(rows, mine, strict=True)
        ),
    )
    report = report_of(results | {"scores": scores}, rows, said, title, subtitle, published, record)
    write_report(folder / "report.html", report)
    figures = {name: value for name, value in results.items() if name != "values"}
    write_json(folder / "metrics.json", {"scoring": SCORING, **figures, **record})
    print_table(results, title, subtitle, published)
    print(f"Report, every row in it: {folder / 'report.html'}   Figures: {folder / 'metrics.json'}")


def print_table(results, title, subtitle, published):
    headline = {name: metric for name, metric in METRICS.items() if metric.headline}
    table = Table(title=escape(title), caption_justify="left")
    table.add_column("system")
    for metric in headline.values():
        table.add_column(metric.title + " %" * (metric.kind == "rate"), justify="right")
    for system, figures in results["systems"].items():
        table.add_row(
            escape(system), *(cell(name, metric, figures) for name, metric in headline.items()), end_section=True
        )
    table.caption = (
        f"{next(iter(results['systems'].values()))['num_examples']} rows; {subtitle}. Below each rate its 95% Wilson interval and, "
        "in brackets, the lenient bound: first calls anywhere in the text, those without a name pass."
    )
    if gold := results["gold"].get("no_hallucination"):
        table.caption += f" Gold itself has {100 * gold['rate']:.2f} % without hallucination, by the same rule."
    for name, rates in published.items():
        cells = [f"[dim]{rates[metric]:.2f}[/dim]" if metric in rates else "" for metric in headline]
        table.add_row(f"[dim]{name}[/dim]", *cells)
    if published:
        table.caption += " Published: parser not stated; the figures fit 101 rows."
    console = Console(width=None if sys.stdout.isatty() else 80)
    console.print(table)
    for pair in results["pairs"]:
        kinds = [pair[side].split(": ")[-1] for side in ("a", "b")]  # of a comparison, the name is "label: system"
        if "raw" not in kinds and ("prompted" in kinds or kinds[0] == kinds[1]):  # the others are in the report
            gained, lost = len(pair["b_only"]), len(pair["a_only"])
            console.print(
                f"{pair['b']} beside {pair['a']}: {gained} rows gained, {lost} lost (p = {pair['p']:.2g})",
                highlight=False,
            )
    for system, figures in results["systems"].items():
        stops = ", ".join(f"{count} {name}" for name, count in figures["finish"].items() if count)
        speed = f"{figures['rows_per_second']:.2f} rows/s; " if figures["rows_per_second"] else ""
        console.print(f"{system}: {speed}stopped by {stops}", highlight=False)
    for line in results["warnings"]:
        console.print(line, highlight=False)


def cell(name, metric, figures):
    figure, bound = figures.get(name), figures.get(f"lenient_{name}")
    if figure is None:  # no row is about it
        return ""
    if metric.kind != "rate":
        return f"{figure[metric.kind]:.4g}"
    text = f"{100 * figure['rate']:.2f}\n[dim]{100 * figure['low']:.1f}–{100 * figure['high']:.1f}"
    return text + (f"\n({100 * bound['rate']:.2f})" if bound else "") + "[/dim]"


if __name__ == "__main__":
    run_script(main, if_stopped="what is predicted is kept: the same command goes on")
