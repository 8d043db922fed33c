"""The model card of an adapter or an export: its origin, prompt, figures and limits."""

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from data_utils.prompt import PROMPT_FORMATS
from eval_utils.card_figures import (
    describe_curves,
    escaped,
    evaluation_results,
    evaluation_section,
    precision,
    read_curves,
    read_evaluation,
    rows_name,
)
from run_utils.errors import one_line
from run_utils.redaction import published_name, published_names

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

{{ prompt }}

{{ loading }}

## Evaluation

{{ evaluation }}

{{ curve }}

## Limits

- {{ words }}
- It learnt to abstain (no tool fits) from the training rows alone. If every training row has a call, it always calls.
- In an agent's loop it stops after a tool's result only if its training rows have such turns. After rows of single
  questions it may repeat its call for ever: limit the number of requests.
- Languages other than the training rows', conversations, and more tools per row were not measured, unless stated above.
- Check its calls against the tools before you execute them: `infer.py --strict` does; constrained decoding enforces it.
"""
PROMPT = """\
The query and the tools on offer become this prompt. The model continues it with a JSON list of calls,
`[{"name": ..., "arguments": {...}}]`, and the end-of-sequence token. If no tool fits, the list is empty:

```
PROMPT```"""
ONLY_CALLS = "It only calls tools. It does not answer in words or ask back."
IN_WORDS = "It answers in words and asks back only as its training rows did; its words were not judged."
CHAT_PROMPT = """\
The prompt is the base's own chat template: `tokenizer.apply_chat_template(messages, tools=tools,
add_generation_prompt=True)`, without further arguments. The model continues it as the template writes the
assistant's turn: calls between the template's own markers, or words."""
HOW_TO_LOAD_ADAPTER = """\
```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(folder)
```

or merged into its base, with a chat template that renders the prompt from `messages` and `tools`:
`export.py --adapter folder`."""
HOW_TO_LOAD_MODEL = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```

A copy with a chat template that renders the prompt from `messages` and `tools`: `export.py --adapter folder`."""
HOW_TO_LOAD_MERGED = (
    "With `AutoModelForCausalLM` and `tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)`"
    " or any server that applies the chat template.\n\n"
    'Decoding is greedy: `generation_config.json` has `"temperature": 0.0`, since some servers ignore `do_sample`.\n'
    "transformers warns of it, and refuses to save the model again once another generation setting has changed. This\n"
    "line in front of `save_pretrained` cures it: `model.generation_config.temperature = None`."
)
RECIPE = (
    *("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_train_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "lora_r", "lora_alpha", "lora_dropout", "ema_decay", "dataset_shares"),
    *("max_seq_length", "seed", "split_seed"),
)

VARIANTS = (  # of train.py's, named if they are not its defaults
    *("lr_scheduler_kwargs", "label_smoothing_factor", "neftune_noise_alpha", "loraplus_lr_ratio"),
    *("use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern", "optim", "loss_mask"),
    *("loss_weights", "no_call_fraction", "augment", "base_precision"),
)
DEFAULTS = (None, False, 0, "true", "adamw_torch_fused", "completion_only", "same")


def write_adapter_card(folder, args, environment, **results):
    """Write the README.md of a LoRA adapter, or of a whole model. results: curves and evaluation,
    if known."""
    steps = f"after {environment.get('global_step')} optimizer steps of `train.py`."
    if args.get("use_peft", True):
        what = f"A LoRA adapter in PEFT's format, {steps}"
        write_card(folder, what, HOW_TO_LOAD_ADAPTER, args, environment, **results)
    else:
        what = f"A whole model in transformers' format, each weight trained, {steps}"
        write_card(folder, what, HOW_TO_LOAD_MODEL, args, environment, **results, library="transformers")


def write_export_card(folder, adapter, merged_in=None):
    """Write the README.md of an Adapter's export, with its run's curves and its evaluation.

    merged_in: the dtype of a merged model. None: the adapter alone.
    """
    args, environment = adapter.args, adapter.environment
    curves, evaluation = read_curves(adapter.folder.parent, environment), read_evaluation(adapter.folder, args)
    results = {"curves": curves, "evaluation": evaluation}
    if merged_in:
        what = f"The adapter of step {environment.get('global_step')}, merged into its base in {merged_in}."
        if adapter.is_whole:
            what = f"The fully fine-tuned model of step {environment.get('global_step')}, in {merged_in}."
        write_card(folder, what, HOW_TO_LOAD_MERGED, args, environment, **results, library="transformers")
    else:
        write_adapter_card(folder, args, environment, **results)


def write_card(folder, what, loading, args, environment, *, curves=(), evaluation=None, library="peft"):
    """Write README.md. args, environment: from read_adapter. curves: `(step, training loss,
    held-out loss)`, from read_curves. evaluation: the parsed metrics.json of this adapter or
    export, or None."""
    base = one_line(environment.get("base") or published_name(str(args["model_name_or_path"])))
    data = one_line(environment.get("data") or published_names(args.get("dataset_name", "unknown")))
    prompt_format = PROMPT_FORMATS[args["prompt_format"]]
    is_lora = args.get("use_peft", True)
    title = f"{base.split('/')[-1]} that calls tools"
    card_data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        datasets=list(filter(is_hub_id, data.split(", "))) or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["tool-calling", "function-calling", *["lora"] * is_lora],
        model_name=title,
        eval_results=evaluation_results(evaluation) or None,
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
        **{name: args[name] for name in RECIPE if args.get(name) is not None and (is_lora or name[:5] != "lora_")},
        **{name: listed(args[name]) for name in VARIANTS if args.get(name) not in DEFAULTS},
        **({"init_adapter": published_name(str(args["init_adapter"]))} if args.get("init_adapter") else {}),
        **({"lora_target_modules": listed(args.get("lora_target_modules") or "all linear layers")} if is_lora else {}),
    }
    card = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        title=escaped(title),
        what=what,
        facts={name: escaped(value) for name, value in facts.items()},
        prompt=PROMPT.replace("PROMPT", prompt_format.render("{query}", "{tools}")) if prompt_format else CHAT_PROMPT,
        words=ONLY_CALLS if prompt_format or not args.get("train_words", True) else IN_WORDS,
        loading=loading,
        evaluation=evaluation_section(evaluation),
        curve=describe_curves(
            curves, environment.get("eval_loss"), rows_name({**args, "dataset_name": data.split(", ")})
        ),
    )
    card.save(Path(folder) / "README.md")


def is_hub_id(name):
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def listed(value):
    return ", ".join(map(str, value)) if isinstance(value, list) else value
