"""The model card of an adapter and of an export: where it comes from, what it was measured at, how it is asked, what it cannot do."""

import html
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data_utils.prompt import PROMPT_FORMATS
from run_utils.arguments import UserError, read_yaml, say
from run_utils.environment import published_name
from run_utils.files import file_hash, no_pipe, read_json

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
## How it is asked

A query and the tools on offer become this prompt, and what follows it is a JSON list of calls, `[{"name": ..., "arguments": {...}}]`, and the
end-of-sequence token; a list without calls where no tool serves:

```
{{ prompt }}```

{{ loading }}

## How good it is

{{ evaluation }}

{{ curve }}

## Limits

- It calls tools and says nothing else: no answers in words, no questions back.
- Whether it refrains from calling where no tool serves was learnt from the training rows alone: where these always call, it always calls.
- Queries in other languages than the training rows', conversations, and more tools than these offer were not measured unless said above.
- Its calls are to be checked against the tools before they are executed: `infer.py --strict` does, constrained decoding enforces it.
"""
HOW_TO_LOAD_ADAPTER = """\
```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(folder)
```

or merged into its base, with a chat template that renders the prompt from `messages` and `tools`: `export.py --adapter folder`."""
HOW_TO_LOAD_MERGED = (
    "With `AutoModelForCausalLM` and `tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)`, or any server "
    "that applies the chat template."
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


def write_card(folder, what, loading, args, environment, curves=(), evaluation=None, library="peft"):
    """Write README.md. args, environment: what read_adapter gives. curves: `(step, training loss, held-out loss)`, as read_curves gives them.
    evaluation: a metrics.json, parsed, of this adapter or export, or None."""
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


def one_line(value):
    return " ".join(str(value).split())


def listed(value):
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def escaped(value):
    """A value as Markdown that shows it as it is, on one line and in one cell: names come from other people's files."""
    return html.escape(re.sub(r"[\\`*\[\]|]", r"\\\g<0>", one_line(value)), quote=False)


def precision(quantization, mixed_precision):
    dtype = "float32" if mixed_precision == "no" else mixed_precision
    return f"a base in {dtype}" if quantization in (None, "none") else f"a base in {quantization}, computing in {dtype}"


def evaluation_results(evaluation, data):
    """The figures of the adapter as the hub's leaderboards read them."""
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
    """Markdown on a metrics.json, or on the lack of one."""
    if not evaluation:
        return "Not evaluated on the rows that training held out: `python evaluate.py --adapter DIR` does that."
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
    """`(step, training loss, held-out loss)` at some of a run's evaluations up to an adapter's step, from its TensorBoard files.
    The last are those of the adapter, whose environment.json, parsed, has its step and held-out loss. None where a loss is not
    known; no entries without files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last_step = environment.get("global_step")
    if not isinstance(last_step, int) or not (Path(run) / "logs").is_dir():
        return []
    files = [path for path in (Path(run) / "logs").rglob("*") if not path.is_dir()]
    if not all(path.is_file() for path in files):  # a pipe would be waited for
        say(f"The card has no curves: not all in {Path(run) / 'logs'} are files")
        return []
    events = EventAccumulator(str(Path(run) / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    if "train/loss" not in events.Tags().get("scalars", ()):
        return []
    train = {event.step: event.value for event in events.Scalars("train/loss")}
    has_evaluations = "eval/loss" in events.Tags()["scalars"]
    held_out = {event.step: event.value for event in events.Scalars("eval/loss")} if has_evaluations else {}
    held_out = {step: loss for step, loss in held_out.items() if step < last_step}
    held_out[last_step] = environment.get("eval_loss")
    steps = sorted(held_out)
    chosen = sorted({round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)})
    return [(step, latest(train, step), held_out[step]) for step in (steps[place] for place in chosen)]


def latest(losses, step):
    """The newest loss, of a dict by step, that a step has had: a later one is of other weights."""
    earlier = [at for at in losses if at <= step]
    return losses[max(earlier)] if earlier else None


def check_figures(metrics):
    """For read_json: fails unless a metrics.json has the figures of a card."""
    for figures in dict(metrics["systems"]).values():
        for name in HEADLINE:
            if figures.get(name):
                _ = [100 * figures[name][key] + 0.0 for key in ("rate", "low", "high")]
        _ = figures["num_examples"]


def read_evaluation(adapter, training_args):
    """The figures of evaluation/ beside an adapter, where evaluate.py puts them, if they are of this adapter on the rows that its
    training held out; else None."""
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
