"""Compare a LoRA adapter with its base on held-out rows.

    python evaluate.py                                        # the embedded demo, after train.py
    python evaluate.py --adapter runs/qwen3_4b_qlora/adapter
    accelerate launch -q --config_file accelerate_configs/multi_gpu.yaml evaluate.py --adapter ...
    python evaluate.py --rescore runs/demo/evaluation         # score its texts again: no model
    python evaluate.py --compare runs/a/evaluation runs/b/evaluation      # is b's adapter better?

By default the systems are the base on the raw query and tools, the base on training's prompt, and
the adapter; the demo's recipe adds fewshot. The rows are the ones that training held out, found by
content. Others are made from them, and scored apart: the right tool is off the list, or the tools
are changed (data_utils/made_rows.py). Writes predictions.jsonl row by row (after a kill, the same
command continues), then scores.jsonl, metrics.json and report.html, and prints the table. The
metrics are in eval_utils/metrics.py.
"""

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

from dataclasses import dataclass
from typing import Literal

from data_utils.augment import TRANSFORMATIONS, check_names
from data_utils.data_set_names import check_data_sets
from data_utils.prompt import PROMPT_FORMATS, format_hash
from data_utils.systems import SYSTEMS
from demo.retention import TEXTS
from run_utils.arguments import argument, check_limits, number_or_auto, parse_arguments
from run_utils.errors import require, run_script
from run_utils.libraries import load_libraries


@dataclass
class EvaluationArguments:
    """inherited: the default without an adapter. With one, the default is its training's value."""

    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    adapter: str | None = argument(None, "Folder that train.py saved: adapter/, model/ or a checkpoint")
    systems: list[str] | None = argument(None, f"Of {', '.join(SYSTEMS)}; by default raw, prompted and adapter")
    shots: int = argument(2, "Examples in each prompt of fewshot: training rows, chosen by --split_seed", above=0)

    rescore: str | None = argument(None, "Folder of an evaluation to score again, without a model")
    compare: list[str] | None = argument(None, "Folders of evaluations of the same rows")
    baseline: str | None = argument(
        None,
        "In the report's first sentence: a system of the table, or a folder of --compare; by default prompted, or "
        "the first adapter",
    )

    model_name_or_path: str | None = argument(
        None, group="Model and rows, by default the adapter's own", inherited=None
    )
    model_revision: str | None = argument(None, inherited=None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    quantization: Literal["none", "nf4", "int8"] | None = argument(None, inherited="none")
    prompt_format: Literal[*PROMPT_FORMATS] | None = argument(
        None, "For the base alone; an adapter has its own", inherited="tags-1"
    )
    dataset_name: list[str] | None = argument(None, "One, or a list of several", inherited=None)
    eval_dataset_name: str | None = argument(None, inherited=None)
    dataset_config_name: str | None = argument(None, inherited=None)
    dataset_revision: str | None = argument(None, inherited=None)
    max_bad_rows: float | None = argument(None, inherited=0.01, at_least=0)
    seed: int | None = argument(None, inherited=42)
    split_seed: int | None = argument(
        None, "Draws the held-out rows and the shots; by default --seed", inherited=None, at_least=0
    )
    eval_fraction: float | None = argument(
        None, "1 takes all rows, for a data set not trained on", inherited=0.05, above=0, at_most=1
    )
    eval_split: Literal["random", "tools"] | None = argument(None, inherited="random")
    retention: str | None = argument(
        None, f"Plain text whose perplexity is measured too: a file, or {' or '.join(TEXTS)}"
    )
    num_examples: int | None = argument(1000, "Of the held-out rows, in the order of their hash", above=0)
    no_call_examples: int | None = argument(
        None, "Rows again, with the right tool off the list: by default a fifth of them, 200 at most", at_least=0
    )
    perturb: list[str] | None = argument(None, f"All rows again, changed. Of {', '.join(TRANSFORMATIONS)}")

    endpoint: str | None = argument(
        None, "OpenAI-compatible server, such as http://localhost:8000/v1; its key is OPENAI_API_KEY", group="Endpoint"
    )
    endpoint_model: str | None = argument(None, "The model's name on the server")
    endpoint_api: Literal["completions", "chat"] = argument(
        "completions", "The tag prompt, or a chat with OpenAI's tools"
    )

    merge_adapter: bool = argument(
        True, "Into weights neither quantised nor shared: faster, checked", group="Generation"
    )
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")
    max_new_tokens: int = argument(512, above=0)
    batch_tokens: str = argument(
        "auto", "Tokens of the cache of keys and values, new ones included; auto: by free GPU memory", above=0
    )

    output_dir: str | None = argument(None, "By default evaluation/ beside the adapter", group="Output")
    overwrite_output_dir: bool = argument(False)

    def __post_init__(self):
        self.batch_tokens = number_or_auto("batch_tokens", self.batch_tokens)
        check_limits(self)
        check_data_sets(self)
        if self.rescore or self.compare:
            require(not (self.rescore and self.compare), "--rescore and --compare do not go together")
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
        check_names("--perturb", self.perturb)
        require(bool(self.endpoint) == bool(self.endpoint_model), "--endpoint and --endpoint_model go together")
        require(self.baseline in (None, *self.systems), f"--baseline names one of --systems, {', '.join(self.systems)}")
        require(len(set(self.systems)) == len(self.systems), "--systems names a system twice")
        require(not self.retention or self.systems != ["endpoint"], "--retention needs a system other than endpoint")


def parse():
    return parse_arguments(EvaluationArguments, __doc__, "demo_evaluate.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    load_libraries()

import dataclasses
import functools
from pathlib import Path

from data_utils.chat_format import NO_GRAMMAR, find_format
from data_utils.few_shot import shots_identity
from data_utils.held_out import held_out_rows
from data_utils.made_rows import sets_identity
from data_utils.plain_text import read_text
from demo.rows import GENERATORS
from eval_utils.comparison import compare_folders, score_folder
from eval_utils.endpoint import Endpoint
from eval_utils.folder import EvaluationFolder, hash_rows
from eval_utils.predictions import predict
from model_utils.adapter_files import read_adapter
from model_utils.cache_size import cache_tokens
from model_utils.generation import generated_by
from model_utils.loading import base_fingerprint, load_base_model, load_config, load_tokenizer, model_source
from model_utils.model_facts import num_positions
from model_utils.retention import measure_retention
from model_utils.systems import open_systems
from model_utils.token_masks import import_xgrammar
from run_utils.environment import environment_record
from run_utils.launch import check_alike, end_training, run_on_main, start_accelerator
from run_utils.redaction import redact
from run_utils.terminal import progress


def main(args):
    if args.rescore:
        return score_folder(Path(args.rescore), args.baseline)
    if args.compare:
        return compare_folders(args.compare, args.output_dir or "runs/comparison", args.baseline)
    adapter = read_adapter(args.adapter) if args.adapter else None
    inherit(args, adapter)
    accelerator = start_accelerator(args.dtype)
    data = held_out_rows(args, adapter, GENERATORS)
    if any(SYSTEMS[name].grammar for name in args.systems):
        import_xgrammar()  # a missing package fails now, not after hours of the other systems
    tokenizer = base = text = None
    prompt_format = PROMPT_FORMATS[args.prompt_format]
    if args.systems != ["endpoint"] or args.prompt_format == "chat":
        source = model_source(args, adapter)
        tokenizer = load_tokenizer(source)
        prompt_format = find_format(args.prompt_format, tokenizer, adapter.prompt_hash if adapter else None)
    if args.systems != ["endpoint"]:
        text = read_text(args.retention, TEXTS, tokenizer, num_positions(load_config(source)))
        base = load_base_model(source, accelerator)

    identity = identity_of(args, adapter, base, data, accelerator.mixed_precision, prompt_format=prompt_format)
    check_alike(identity | {"--systems": args.systems})
    folder = EvaluationFolder(args.output_dir, identity, accelerator)
    record = environment_record(**identity, cache_tokens=cache_tokens(base, args.batch_tokens) if base else None)
    run_on_main(accelerator, lambda: folder.prepare(args, data, record))
    measure = functools.partial(measure_retention, folder.path, text if accelerator.is_main_process else None)
    measure("base", base)  # before an adapter is merged into it
    options = {"prompt_format": prompt_format, "shots": data.shots, "batch_tokens": record["cache_tokens"]}
    for number, (name, system) in enumerate(systems_of(args, base, tokenizer, adapter, **options), start=1):
        if SYSTEMS[name].adapter:
            measure("adapter", system.model)
        for made, rows in data.sets.items():  # apart: a batch's other rows can change an answer's last bits
            todo, processes = folder.rows_to_answer(name, rows)
            label = f"{name}, system {number} of {len(args.systems)}" + f", {made}" * bool(made)
            label += f", 1 of {processes} processes" * (processes > 1)
            folder.append(progress(predict(name, system, todo, processes, made), label, len(todo)))
    accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        record["generated_by"] = generated_by(base) if base else None
        folder.close(record)
        score_folder(folder.path)
    end_training(accelerator)


def inherit(args, adapter):
    """Fill in missing arguments: from the adapter's training, or else from `inherited`."""
    trained_with = dict(adapter.args) if adapter else {}
    own_format = trained_with.get("prompt_format", args.prompt_format)
    require(args.prompt_format in (None, own_format), f"{args.adapter} was trained with --prompt_format {own_format}")
    dataset_options = ["dataset_revision", "dataset_config_name", "eval_dataset_name"]
    owners = {"model_name_or_path": ["model_revision"], "dataset_name": dataset_options, "seed": ["split_seed"]}
    for owner, options in owners.items():
        if getattr(args, owner) not in (None, trained_with.get(owner)):  # of another repository or split
            for name in options:
                trained_with.pop(name, None)
    for field in dataclasses.fields(args):
        if "inherited" in field.metadata and getattr(args, field.name) is None:
            setattr(args, field.name, trained_with.get(field.name, field.metadata["inherited"]))
    check_limits(args)  # the adapter's file may hold any number
    if args.prompt_format == "chat":
        require(not any(SYSTEMS[name].grammar for name in args.systems), NO_GRAMMAR)
        as_chat = "endpoint" not in args.systems or args.endpoint_api == "chat"
        require(as_chat, "--prompt_format chat needs --endpoint_api chat, whose server has the template")
        require(args.model_name_or_path, "--prompt_format chat needs --model_name_or_path, for its template")
    run_dir = Path(args.adapter).parent if args.adapter else Path("runs")
    args.output_dir = args.output_dir or str(run_dir / "evaluation")


def identity_of(args, adapter, base, data, mixed_precision, *, prompt_format):
    """Everything behind the answers, as JSON values. A folder with another identity is refused."""
    alone = {name: system for name, system in SYSTEMS.items() if not system.shots}  # as in older folders
    formats = {name: PROMPT_FORMATS.get(system.prompt, prompt_format) for name, system in alone.items()}
    return {
        "prompt_format": args.prompt_format,
        "prompt_sha256": {name: format_hash(prompt_format) for name, prompt_format in formats.items()},
        "base_fingerprint": base_fingerprint(base) if base else None,
        "adapter_sha256": adapter.sha256 if adapter else None,
        "adapter_step": adapter.environment.get("global_step") if adapter else None,
        "rows_sha256": hash_rows(data.rows, is_chat=args.prompt_format == "chat"),
        "num_examples": len(data.rows),
        "quantization": args.quantization,
        "mixed_precision": mixed_precision,
        "decoding": {"strategy": "greedy", "max_new_tokens": args.max_new_tokens, "batch_tokens": args.batch_tokens},
        "merge_adapter": args.merge_adapter,
        "chat_markers": prompt_format.markers._asdict() if args.prompt_format == "chat" else None,
        "endpoint": [redact(args.endpoint), args.endpoint_model, *["chat"] * (args.endpoint_api == "chat")],
        **shots_identity(prompt_format, data.shots),
        **sets_identity(data.made),
    }


def systems_of(args, base, tokenizer, adapter, *, prompt_format, **options):
    """`(name, system)` of each of --systems: the server's, the base's, then the adapter's. options:
    more of System's."""
    options["max_new_tokens"] = args.max_new_tokens
    names = [name for name in args.systems if not SYSTEMS[name].server]
    if len(names) < len(args.systems):
        as_chat = args.endpoint_api == "chat"
        server = Endpoint(args.endpoint, args.endpoint_model, prompt_format, args.max_new_tokens, as_chat=as_chat)
        yield "endpoint", server
    yield from open_systems(
        names, base, tokenizer, prompt_format=prompt_format, adapter=adapter, merge=args.merge_adapter, **options
    )


if __name__ == "__main__":
    run_script(lambda: main(args), if_stopped="what is predicted is kept: the same command goes on")
