"""Merge an adapter into its base: a folder that transformers, vLLM, SGLang or llama.cpp's converter read as any other model.

    python export.py --adapter runs/qwen3_4b_qlora/adapter --output_dir exports/qwen3_4b_tools
    python evaluate.py --model_name_or_path exports/qwen3_4b_tools --systems prompted     # what this export scores
    python export.py --adapter ... --output_dir ... --push_to_hub you/qwen3-4b-tools

The base is taken unquantised, in bf16, whatever it was trained in. With the weights go the tokenizer, whose chat template renders
the prompt that training rendered from `messages` and `tools`, greedy decoding with the right end tokens, and a model card. The
merged model is compared with the adapter on the base, unmerged, and the folder with the merged model.
"""

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

from dataclasses import dataclass
from typing import Literal

from run_utils.arguments import argument, parse_arguments
from run_utils.errors import UserError, require, run_script, say


@dataclass
class ExportArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    adapter: str | None = argument(None, "Folder that train.py saved: adapter/ or a checkpoint")
    output_dir: str | None = argument(None, "A folder that does not exist yet")
    model_name_or_path: str | None = argument(None, "By default the adapter's base")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    quantization: Literal["none", "nf4", "int8"] = argument("none", "Others than none are refused, with the reason")
    dtype: Literal["bf16", "fp32"] = argument("bf16", "Of the weights", group="What is written")
    merge: bool = argument(True, "false: the adapter alone, without what only this machine knows")
    push_to_hub: str | None = argument(None, "Hub id to upload the folder to, made private if it does not exist")

    def __post_init__(self):
        require(self.adapter, "--adapter is missing: a folder that train.py saved")
        require(self.output_dir, "--output_dir is missing: a folder that does not exist yet")
        require(
            self.quantization == "none",
            "weights in 4 or 8 bits cannot take an adapter in: the sum is rounded again, to steps larger than most of what the "
            "adapter changes. Export in bf16, and quantise that where it is served",
        )


def parse():
    return parse_arguments(ExportArguments, __doc__, "demo_export.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    say("Loading PyTorch and transformers ...")

import shutil
from pathlib import Path

from transformers import GenerationConfig

from data_utils.chat import TEMPLATES, chat_template, response_template
from data_utils.example_rows import example_rows, example_texts
from data_utils.prompt import PROMPT_FORMATS
from eval_utils.model_card import HOW_TO_LOAD_ADAPTER, HOW_TO_LOAD_MERGED, read_curves, read_evaluation, write_card
from model_utils.adapter_files import read_adapter
from model_utils.adapters import load_adapter
from model_utils.generation import end_tokens
from model_utils.loading import ModelSource, load_base_model, load_tokenizer, model_source, weight_hashes
from model_utils.merging import adapts_shared_weights, merge_adapter
from model_utils.systems import System
from run_utils.environment import published_name
from run_utils.files import describe_free, naming_full_disk, new_folder, read_json, write_json
from run_utils.hub import push
from run_utils.launch import start_accelerator

MAKE_ROOM = "make room, and the same command exports it"


def main(args):
    adapter = read_adapter(args.adapter)
    output_dir = Path(args.output_dir)
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir} is there already: remove it, or choose another")
    write = write_merged if args.merge else write_adapter
    with new_folder(output_dir) as folder:
        write(args, adapter, folder)
    print(f"{'The merged model' if args.merge else 'The adapter'}: {output_dir}")
    if args.push_to_hub:
        push(output_dir, args.push_to_hub)


def write_merged(args, adapter, folder):
    """Write the base with the adapter in its weights, and read it back. UserError if the merged model's logits are not the
    unmerged adapter's, or the weights read back not those merged."""
    if adapter.prompt_format not in TEMPLATES:
        raise UserError(
            f"the prompt format {adapter.prompt_format} has no chat template: write one, and name it in data_utils/chat.py"
        )
    accelerator = start_accelerator(args.dtype, alone=True)
    source = model_source(args, adapter)
    tokenizer, base = load_tokenizer(source), load_base_model(source, accelerator)
    needed = sum(weight.numel() * weight.element_size() for weight in base.parameters())
    if shutil.disk_usage(folder).free < needed:
        say(f"Warning: the merged model needs {describe_free(folder, needed)}: make room while it is compared")
    model = load_adapter(base, adapter)
    if adapts_shared_weights(model):
        raise UserError(
            "the adapter changes the head or the input embedding, which share their weights: it cannot be merged into one "
            "of them. Load the adapter itself with PEFT"
        )
    if (trained_in := adapter.args.get("quantization", "none")) != "none":
        print(f"Trained on the base in {trained_in}, merged into the base in {args.dtype}: evaluate the export itself")

    unmerged_answers = example_answers(model, tokenizer, adapter)
    texts = example_texts(tokenizer, PROMPT_FORMATS[adapter.prompt_format], example_rows())
    merged, merge = merge_adapter(model, texts)
    if merge.problem:
        raise UserError(f"merging the adapter {merge.problem}: nothing is exported")

    describe_serving(merged, tokenizer, adapter.prompt_format)
    what = f"The adapter of step {adapter.environment.get('global_step')}, merged into its base in {args.dtype}."
    with naming_full_disk(args.output_dir, needed, MAKE_ROOM):
        tokenizer.save_pretrained(folder)
        merged.save_pretrained(folder)
        describe(adapter, folder, what, HOW_TO_LOAD_MERGED, "transformers")

    written = weight_hashes(merged)
    del model, merged, base
    exported = load_base_model(ModelSource(str(folder)), accelerator)
    if changed := [name for name, digest in weight_hashes(exported).items() if written.get(name) != digest]:
        raise UserError(
            f"read back, {len(changed)} weights are not those merged, {changed[0]} first: nothing is exported"
        )
    answers = example_answers(exported, tokenizer, adapter)
    same = sum(answer == unmerged for answer, unmerged in zip(answers, unmerged_answers, strict=True))
    print(f"Logits of {len(texts)} rows: {merge}")
    print(f"Greedy answers: {same} of {len(answers)} are the unmerged adapter's to the last token")


def example_answers(model, tokenizer, adapter):
    """The model's answers to the example rows, as texts."""
    prompt_format = PROMPT_FORMATS[adapter.prompt_format]
    system = System(model, tokenizer, prompt_format, max_new_tokens=256, batch_tokens=16384)
    answers = dict(system.answer(example_rows()))
    return [answers[index].text for index in sorted(answers)]


def describe_serving(model, tokenizer, prompt_format):
    """Give a model and its tokenizer what servers read: chat template, response template and greedy decoding with the right end
    tokens."""
    try:
        tokenizer.chat_template = chat_template(tokenizer, prompt_format)
    except ValueError as error:
        raise UserError(f"{error}: serve the adapter itself") from None
    tokenizer.response_template = response_template(tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(end_tokens(model, tokenizer) - {None}),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def write_adapter(args, adapter, folder):
    """Write the adapter alone, as others may have it: its base by the hub's name, and nothing of the machine that trained it."""
    base = adapter.args["model_name_or_path"]
    if (adapter.environment.get("base") or published_name(base)) != base or "/" not in base:
        raise UserError(
            f"the base {base} is not on the hub: nobody else could load the adapter on it. Export the merged model"
        )
    config = read_json(adapter.folder / "adapter_config.json")
    config |= {"base_model_name_or_path": base, "revision": adapter.args.get("model_revision")}
    step = adapter.environment.get("global_step")
    what = f"A LoRA adapter in PEFT's format, after {step} optimizer steps of `train.py`."
    weights = adapter.folder / "adapter_model.safetensors"
    with naming_full_disk(args.output_dir, weights.stat().st_size, MAKE_ROOM):
        write_json(folder / "adapter_config.json", config)
        shutil.copy(weights, folder)
        describe(adapter, folder, what, HOW_TO_LOAD_ADAPTER, "peft")


def describe(adapter, folder, what, loading, library):
    """Write the model card."""
    curves = read_curves(adapter.folder.parent, adapter.environment)
    evaluation = read_evaluation(adapter.folder, adapter.args)
    write_card(
        folder, what, loading, adapter.args, adapter.environment, curves=curves, evaluation=evaluation, library=library
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
