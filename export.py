"""Merge an adapter into its base: a folder that transformers, vLLM, SGLang or llama.cpp's converter read as any other model.

    python export.py --adapter runs/qwen3_4b_qlora/adapter --output_dir exports/qwen3_4b_tools
    python evaluate.py --model_name_or_path exports/qwen3_4b_tools --systems prompted     # what this export scores
    python export.py --adapter ... --output_dir ... --push_to_hub you/qwen3-4b-tools

The base is taken unquantised, in bf16, whatever it was trained in. With the weights go the tokenizer, whose chat template renders
the prompt that training rendered from `messages` and `tools`, greedy decoding with the right end tokens, and a model card. The
merged model is compared with the adapter on the base, unmerged, and the folder with the merged model.
"""

import sys

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own
    print("Loading PyTorch and transformers ...", file=sys.stderr)

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import GenerationConfig

from data_utils.batching import encode_prompts
from data_utils.chat import TEMPLATES, chat_template, response_template
from data_utils.prompt import PROMPT_FORMATS
from demo.rows import generate_rows
from eval_utils.model_card import (
    HOW_TO_LOAD_ADAPTER,
    HOW_TO_LOAD_MERGED,
    read_curves,
    read_evaluation,
    write_card,
)
from model_utils.adapter_files import naming_adapter, read_adapter
from model_utils.adapters import load_adapter
from model_utils.generation import end_tokens, generate
from model_utils.loading import load_base_model, load_tokenizer, resolve_model, weight_hashes
from model_utils.merging import adapts_shared_weights, merge_adapter
from run_utils.arguments import argument, parse_arguments
from run_utils.environment import published_name
from run_utils.errors import UserError, require, run_script, say
from run_utils.files import describe_free, lock_folder, naming_full_disk, read_json, write_json
from run_utils.launch import start_accelerator

COMPARED_ROWS = 8
MAKE_ROOM = "make room, and the same command exports it"


@dataclass
class ExportArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    adapter: str | None = argument(None, "Folder that train.py saved: adapter/ or a checkpoint")
    output_dir: str | None = argument(None, "A folder that does not exist yet")
    model_name_or_path: str | None = argument(None, "By default the adapter's base")
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


def main():
    args = parse_arguments(ExportArguments, __doc__, "demo_export.yaml")
    training_args, environment = read_adapter(args.adapter)
    output_dir = Path(args.output_dir)
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir} is there already: remove it, or choose another")
    write = write_merged if args.merge else write_adapter
    with new_folder(output_dir) as folder:
        write(args, training_args, environment, folder)
    print(f"{'The merged model' if args.merge else 'The adapter'}: {output_dir}")
    if args.push_to_hub:
        push(output_dir, args.push_to_hub)


@contextlib.contextmanager
def new_folder(path):
    """A folder under another name, which is `path` once all that happens within has gone well, and gone if not."""
    unfinished = path.with_name(f"incomplete-{path.name}")
    marker = unfinished / ".unfinished_export"
    if unfinished.exists():
        if not marker.exists():
            raise UserError(
                f"{unfinished} is there, and no export has left it: remove it, or choose another --output_dir"
            )
        lock_folder(unfinished)  # refused while that export is still at work
        shutil.rmtree(unfinished)
    try:
        unfinished.mkdir(parents=True)
        lock_folder(unfinished)
        marker.touch()
        yield unfinished
        marker.unlink()
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_merged(args, training_args, environment, folder):
    """Write the base with the adapter in its weights, and read it back. UserError if the merged model's logits are not the
    unmerged adapter's, or the weights read back not those merged."""
    name = training_args["prompt_format"]
    if name not in TEMPLATES:
        raise UserError(f"the prompt format {name} has no chat template: write one, and name it in data_utils/chat.py")
    accelerator = start_accelerator(args.dtype, alone=True)
    with naming_adapter(args.adapter if not args.model_name_or_path else None, "--model_name_or_path"):
        model_path = resolve_model(args.model_name_or_path or training_args["model_name_or_path"])
    revision = training_args.get("model_revision") if not args.model_name_or_path else None
    tokenizer = load_tokenizer(model_path, revision, args.trust_remote_code)
    base = load_base_model(model_path, accelerator, revision, "none", args.trust_remote_code)
    needed = sum(weight.numel() * weight.element_size() for weight in base.parameters())
    if shutil.disk_usage(folder).free < needed:
        say(f"Warning: the merged model needs {describe_free(folder, needed)}: make room while it is compared")
    model = load_adapter(base, args.adapter)
    if adapts_shared_weights(model):
        raise UserError(
            "the adapter changes the head or the input embedding, which share their weights: it cannot be merged into one "
            "of them. Load the adapter itself with PEFT"
        )
    if training_args.get("quantization", "none") != "none":
        print(
            f"Trained on the base in {training_args['quantization']}, merged into the base in {args.dtype}: evaluate the export itself"
        )

    # Merge, and compare with the unmerged adapter
    prompt_format = PROMPT_FORMATS[name]
    rows = generate_rows(COMPARED_ROWS, seed=1)
    prompts = [prompt_format.render(row["query"], row["tools"]) for row in rows]
    answered = [prompt + prompt_format.completion(row["answers"]) for prompt, row in zip(prompts, rows, strict=True)]
    texts = encode_prompts(tokenizer, answered)
    unmerged_answers = generated(model, tokenizer, prompt_format, prompts)
    merged, merge = merge_adapter(model, texts)
    if merge.problem:
        raise UserError(f"merging the adapter {merge.problem}: nothing is exported")

    try:
        tokenizer.chat_template = chat_template(tokenizer, name)
    except ValueError as error:
        raise UserError(f"{error}: serve the adapter itself") from None
    tokenizer.response_template = response_template(tokenizer)
    merged.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(end_tokens(merged, tokenizer) - {None}),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    what = f"The adapter of step {environment.get('global_step')}, merged into its base in {args.dtype}."
    with naming_full_disk(args.output_dir, needed, MAKE_ROOM):
        tokenizer.save_pretrained(folder)
        merged.save_pretrained(folder)
        describe(args, training_args, environment, folder, what, HOW_TO_LOAD_MERGED, "transformers")

    written = weight_hashes(merged)
    del model, merged, base
    exported = load_base_model(str(folder), accelerator)
    if changed := [name for name, digest in weight_hashes(exported).items() if written.get(name) != digest]:
        raise UserError(
            f"read back, {len(changed)} weights are not those merged, {changed[0]} first: nothing is exported"
        )
    answers = generated(exported, tokenizer, prompt_format, prompts)
    same = sum(answer == unmerged for answer, unmerged in zip(answers, unmerged_answers, strict=True))
    print(f"Logits of {len(texts)} rows: {merge}")
    print(f"Greedy answers: {same} of {len(answers)} are the unmerged adapter's to the last token")


def write_adapter(args, training_args, environment, folder):
    """Write the adapter alone, as others may have it: its base by the hub's name, and nothing of the machine that trained it."""
    base = training_args["model_name_or_path"]
    if (environment.get("base") or published_name(base)) != base or "/" not in base:
        raise UserError(
            f"the base {base} is not on the hub: nobody else could load the adapter on it. Export the merged model"
        )
    source = Path(args.adapter)
    config = read_json(source / "adapter_config.json")
    config |= {"base_model_name_or_path": base, "revision": training_args.get("model_revision")}
    what = f"A LoRA adapter in PEFT's format, after {environment.get('global_step')} optimizer steps of `train.py`."
    with naming_full_disk(args.output_dir, (source / "adapter_model.safetensors").stat().st_size, MAKE_ROOM):
        write_json(folder / "adapter_config.json", config)
        shutil.copy(source / "adapter_model.safetensors", folder)
        describe(args, training_args, environment, folder, what, HOW_TO_LOAD_ADAPTER, "peft")


def describe(args, training_args, environment, folder, what, loading, library):
    curves = read_curves(Path(args.adapter).parent, environment)
    evaluation = read_evaluation(args.adapter, training_args)
    write_card(folder, what, loading, training_args, environment, curves=curves, evaluation=evaluation, library=library)


def generated(model, tokenizer, prompt_format, prompts):
    answers = dict(generate(model, tokenizer, prompt_format, prompts, 256, batch_tokens=16384))
    return [answers[index].text for index in range(len(prompts))]


def push(folder, repo_id):
    """Upload a folder; UserError with the hub's reason where that fails. The folder stays."""
    try:
        HfApi().create_repo(repo_id, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder} is complete, but could not be uploaded to {repo_id} ({type(error).__name__}): {reason}"
        ) from None
    print(f"On the hub: {HfApi().endpoint}/{repo_id}")


if __name__ == "__main__":
    run_script(main)
