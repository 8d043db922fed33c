"""The model card of an adapter or an export: its origin, prompt, figures and limits."""

import html
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data_utils.prompt import PROMPT_FORMATS
from run_utils.arguments import read_yaml
from run_utils.environment import published_name
from run_utils.errors import UserError, one_line, say
from run_utils.files import file_hash, no_pipe, read_json
from run_utils.metrics_file import read_metrics

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ what }}

| | |
|---|---|
{% for name, value in facts.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Prompt

The query and the tools on offer become this prompt. The model continues it with a JSON list of calls,
`[{"name": ..., "arguments": {...}}]`, and the end-of-sequence token. If no tool fits, the list is empty:

```
{{ prompt }}```

{{ loading }}

## Evaluation

{{ evaluation }}

{{ curve }}

## Limits

- It only calls tools. It does not answer in words or ask back.
- It learnt to abstain (no tool fits) from the training rows alone. If every training row has a call, it always calls.
- Languages other than the training rows', conversations, and more tools per row were not measured, unless stated above.
- Check its calls against the tools before you execute them: `infer.py --strict` does; constrained decoding enforces it.
"""
HOW_TO_LOAD_ADAPTER = """\
```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(folder)
```

or merged into its base, with a chat template that renders the prompt from `messages` and `tools`:
`export.py --adapter folder`."""
HOW_TO_LOAD_MERGED = (
    "With `AutoModelForCausalLM` and `tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)`"
    " or any server that applies the chat template.\n\n"
    'Decoding is greedy: `generation_config.json` has `"temperature": 0.0`, since some servers ignore `do_sample`.\n'
    "transformers warns of it, and refuses to save the model again once another generation setting has changed. This\n"
    "line in front of `save_pretrained` cures it: `model.generation_config.temperature = None`."
)
RECIPE = (
    *("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_train_steps", "per_device_train_batch_size"),
    *(
        "gradient_accumulation_steps",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "max_seq_length",
        "seed",
    ),
)
HEADLINE = {
    "json_valid": "JSON valid",
    "exact_match": "exact match",
    "tools_exist": "tools exist",
    "no_hallucination": "no hallucination",
}


def write_adapter_card(folder, args, environment, **results):
    """Write the README.md of a LoRA adapter. results: curves and evaluation, if known."""
    what = f"A LoRA adapter in PEFT's format, after {environment.get('global_step')} optimizer steps of `train.py`."
    write_card(folder, what, HOW_TO_LOAD_ADAPTER, args, environment, **results)


def write_export_card(folder, adapter, merged_in=None):
    """Write the README.md of an Adapter's export, with its run's curves and its evaluation.

    merged_in: the dtype of a merged model. None: the adapter alone.
    """
    args, environment = adapter.args, adapter.environment
    curves, evaluation = read_curves(adapter.folder.parent, environment), read_evaluation(adapter.folder, args)
    results = {"curves": curves, "evaluation": evaluation}
    if merged_in:
        what = f"The adapter of step {environment.get('global_step')}, merged into its base in {merged_in}."
        write_card(folder, what, HOW_TO_LOAD_MERGED, args, environment, **results, library="transformers")
    else:
        write_adapter_card(folder, args, environment, **results)


def write_card(folder, what, loading, args, environment, *, curves=(), evaluation=None, library="peft"):
    """Write README.md. args, environment: from read_adapter. curves: `(step, training loss,
    held-out loss)`, from read_curves. evaluation: the parsed metrics.json of this adapter or
    export, or None."""
    base = one_line(environment.get("base") or published_name(str(args["model_name_or_path"])))
    data = one_line(environment.get("data") or published_name(str(args.get("dataset_name", "unknown"))))
    prompt_format = PROMPT_FORMATS[args["prompt_format"]]
    title = f"{base.split('/')[-1]} that calls tools"
    card_data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        datasets=[data] if is_hub_id(data) else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["tool-calling", "function-calling", "lora"],
        model_name=title,
        eval_results=evaluation_results(evaluation, data) or None,
    )
    facts = {
        "base": f"{base} at {args.get('model_revision') or 'main'}" if is_hub_id(base) else base,
        "rows": f"{data} at {args['dataset_revision']}" if args.get("dataset_revision") else data,
        "step": environment.get("global_step"),
        "trained on": f"{precision(args.get('quantization'), environment.get('mixed_precision'))}, "
        f"{environment.get('num_processes')} process(es), {listed(environment.get('gpus') or 'a CPU')}",
        "versions": ", ".join(
            f"{name} {environment.get(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes")
        ),
        **{name: args[name] for name in RECIPE if args.get(name) is not None},
        "lora_target_modules": listed(args.get("lora_target_modules") or "all linear layers"),
    }
    card = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        title=escaped(title),
        what=what,
        facts={name: escaped(value) for name, value in facts.items()},
        prompt=prompt_format.render("{query}", "{tools}"),
        loading=loading,
        evaluation=describe_evaluation(evaluation),
        curve=describe_curves(curves, environment),
    )
    card.save(Path(folder) / "README.md")


def is_hub_id(name):
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def listed(value):
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def escaped(value):
    """A value as Markdown that shows it literally, on one line and in one cell. Names come from
    other people's files."""
    return html.escape(re.sub(r"[\\`*\[\]|]", r"\\\g<0>", one_line(value)), quote=False)


def precision(quantization, mixed_precision):
    dtype = "float32" if mixed_precision == "no" else mixed_precision
    return f"a base in {dtype}" if quantization in (None, "none") else f"a base in {quantization}, computing in {dtype}"


def evaluation_results(evaluation, data):
    """The adapter's figures in the form of the hub's leaderboards."""
    figures = (evaluation or {}).get("systems", {}).get("adapter", {})
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=f"{data}, held-out rows",
            metric_type=name,
            metric_name=title,
            metric_value=round(100 * figures[name]["rate"], 2),
        )
        for name, title in HEADLINE.items()
        if figures.get(name)
    ]


def describe_evaluation(evaluation):
    """Markdown about a metrics.json, or about its absence."""
    if not evaluation:
        return "Not evaluated on the rows that training held out: `python evaluate.py --adapter DIR` evaluates them."
    lines = [
        f"| held-out rows, % (95 % interval) | {' | '.join(HEADLINE.values())} |",
        "|---" * (len(HEADLINE) + 1) + "|",
    ]
    for system, figures in evaluation["systems"].items():
        cells = [
            f"{100 * figures[name]['rate']:.1f} ({100 * figures[name]['low']:.1f}–{100 * figures[name]['high']:.1f})"
            if figures.get(name)
            else ""
            for name in HEADLINE
        ]
        lines.append(f"| {escaped(system)}, {figures['num_examples']} rows | {' | '.join(cells)} |")
    measured_on = precision(evaluation.get("quantization"), evaluation.get("mixed_precision"))
    return "\n".join([*lines, "", f"Greedy decoding; measured on {escaped(measured_on)}."])


def describe_curves(curves, environment):
    if not curves:
        loss = environment.get("eval_loss")
        return f"Loss on held-out rows at this step: {loss:.4f}." if loss is not None else ""
    lines = ["| step | training loss | held-out loss |", "|---|---|---|"]
    for step, *losses in curves:
        cells = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_curves(run, environment, most=8):
    """`(step, training loss, held-out loss)` of some of a run's evaluations up to an adapter's
    step, from its metrics.jsonl. An unknown loss is None. Empty without the file, as in runs of
    older versions.

    environment: the adapter's environment.json, parsed, with its step and held-out loss.
    """
    last_step, file = environment.get("global_step"), Path(run) / "metrics.jsonl"
    if not isinstance(last_step, int) or not file.exists():
        return []
    try:
        entries = read_metrics(file)
        train, held_out = (
            {entry["step"]: float(entry[name]) for entry in entries if name in entry}
            for name in ("train/loss", "eval/loss")
        )
    except (UserError, TypeError, ValueError, OverflowError) as error:
        say(f"The card has no curves: {error}")
        return []
    if not train:
        return []
    held_out = {step: loss for step, loss in held_out.items() if step < last_step}
    held_out[last_step] = environment.get("eval_loss")
    steps = sorted(held_out)
    chosen = sorted({round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)})
    return [(step, latest(train, step), held_out[step]) for step in (steps[place] for place in chosen)]


def latest(losses, step):
    """The newest loss up to a step, from a dict by step: a later loss is of other weights."""
    earlier = [logged for logged in losses if logged <= step]
    return losses[max(earlier)] if earlier else None


def check_figures(metrics):
    """For read_json: raises unless a metrics.json has the card's figures."""
    for figures in dict(metrics["systems"]).values():
        for name in HEADLINE:
            if figures.get(name):
                _ = [100 * figures[name][key] + 0.0 for key in ("rate", "low", "high")]
        _ = figures["num_examples"]


def read_evaluation(adapter, training_args):
    """The figures in evaluation/ beside an adapter, evaluate.py's default folder, if they are of
    this adapter on its held-out rows. Otherwise None."""
    folder = Path(adapter).parent / "evaluation"
    if not folder.exists():
        return None
    try:
        environment = read_json(folder / "environment.json")
        metrics = read_json(folder / "metrics.json", check_figures)
        args = read_yaml(no_pipe(folder / "args.yaml"))
    except UserError as error:
        say(f"The card has no evaluation: {error}")
        return None
    rows = ("dataset_name", "dataset_config_name", "dataset_revision", "eval_dataset_name")
    if any(args.get(name) != training_args.get(name) for name in rows):
        return None
    if environment.get("adapter_sha256") != file_hash(Path(adapter) / "adapter_model.safetensors"):
        return None
    return metrics | {name: environment.get(name) for name in ("quantization", "mixed_precision")}
