"""Merge an adapter into its base: a folder for transformers, vLLM, mlx-lm or llama.cpp's converter.

    python export.py                                          # the embedded demo, after train.py
    python export.py --adapter runs/qwen3_4b_qlora/adapter --output_dir exports/qwen3_4b_tools
    python evaluate.py --model_name_or_path exports/qwen3_4b_tools \
        --dataset_name ROWS --systems prompted                # its scores
    python export.py --adapter ... --output_dir ... --push_to_hub you/qwen3-4b-tools

The base is loaded unquantised, in bf16, also after training in 4 or 8 bits. The folder also has
the tokenizer with a chat template (training's prompt, from `messages` and `tools`), greedy decoding
with the right end tokens, and a model card. The merged model is compared with the unmerged adapter,
and the folder, read back, with the merged model and the training's token ids.
"""

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

from dataclasses import dataclass
from typing import Literal

from run_utils.arguments import argument, parse_arguments
from run_utils.errors import UserError, require, run_script, say
from run_utils.libraries import load_libraries


@dataclass
class ExportArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    adapter: str | None = argument(None, "Folder that train.py saved: adapter/, model/ or a checkpoint")
    output_dir: str | None = argument(None, "A folder that does not exist yet")
    model_name_or_path: str | None = argument(None, "By default the adapter's base")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    quantization: Literal["none", "nf4", "int8"] = argument("none", "Only none: see the error of the others")
    dtype: Literal["bf16", "fp32"] = argument("bf16", "Of the weights", group="Output")
    merge: bool = argument(True, "false: the adapter alone, without this machine's paths")
    push_to_hub: str | None = argument(None, "Hub id to upload the folder to, made private if it does not exist")

    def __post_init__(self):
        require(self.adapter, "--adapter is missing: a folder that train.py saved")
        require(self.output_dir, "--output_dir is missing: a folder that does not exist yet")
        require(
            self.quantization == "none",
            "weights in 4 or 8 bits cannot take an adapter in: the sum is rounded again, to steps larger than most of "
            "the adapter's changes. Export in bf16, and quantise the export on the server",
        )


def parse():
    return parse_arguments(ExportArguments, __doc__, "demo_export.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    load_libraries()

import shutil
from pathlib import Path

from data_utils.chat import TEMPLATES
from data_utils.chat_format import find_format
from data_utils.example_rows import example_rows, example_texts
from eval_utils.model_card import write_export_card
from model_utils.adapter_files import read_adapter
from model_utils.adapters import load_adapter
from model_utils.export_folder import check_tokenizer, describe_serving, sample_prompts, save_model, save_tokenizer
from model_utils.loading import ModelSource, load_base_model, load_tokenizer, model_source, weight_hashes
from model_utils.merging import adapts_shared_weights, merge_adapter
from model_utils.systems import System
from run_utils.files import apply_umask, describe_free, naming_full_disk, new_folder, read_json, write_json
from run_utils.hub import push
from run_utils.launch import start_accelerator
from run_utils.redaction import published_name
from run_utils.terminal import print_next

MAKE_ROOM = "make room, and the same command exports it"


def main(args):
    adapter = read_adapter(args.adapter)
    output_dir = Path(args.output_dir)
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir} is there already: remove it, or choose another")
    require(args.merge or not adapter.is_whole, f"{args.adapter} is a whole model: --merge false is for an adapter")
    write = write_merged if args.merge else write_adapter
    with new_folder(output_dir) as folder:
        write(args, adapter, folder)
    print(f"{('The model' if adapter.is_whole else 'The merged model') if args.merge else 'The adapter'}: {output_dir}")
    if args.push_to_hub:
        push(output_dir, args.push_to_hub)
    if args.merge:
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[args.dtype]
        print_next("transformers", "serve", output_dir, "--dtype", dtype)
    elif not args.push_to_hub:
        print_next("hf", "upload", "YOU/NAME", output_dir)


def write_merged(args, adapter, folder):
    """Write the base with the adapter in its weights, and read it back. Raises UserError if merging
    changes the logits, or writing the weights."""
    if adapter.prompt_format not in (*TEMPLATES, "chat"):  # chat: the base's own
        raise UserError(f"the prompt format {adapter.prompt_format} has no chat template: add it to data_utils/chat.py")
    accelerator = start_accelerator(args.dtype, alone=True)
    source = model_source(args, adapter)
    tokenizer = load_tokenizer(source)
    prompt_format = find_format(adapter.prompt_format, tokenizer, adapter.prompt_hash)
    base = load_base_model(source, accelerator)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in base.parameters())
    if shutil.disk_usage(folder).free < num_bytes:
        say(f"Warning: the merged model needs {describe_free(folder, num_bytes)}: make room while it is compared")

    # The adapter on the base, unmerged
    model = load_adapter(base, adapter)
    if adapts_shared_weights(model):
        raise UserError(
            "the adapter changes the head or the input embedding, which share their weights: it cannot be merged into "
            "one of them. Load the adapter itself with PEFT"
        )
    if (trained_in := adapter.args.get("quantization", "none")) != "none":
        print(f"Trained on the base in {trained_in}, merged into the base in {args.dtype}: evaluate the export itself")
    tuned = "tuned model" if adapter.is_whole else "unmerged adapter"
    say(f"Answering the example rows with the {tuned} ...")
    unmerged_answers = example_answers(model, tokenizer, prompt_format)

    # In the base's weights, with the same logits
    texts = example_texts(tokenizer, prompt_format, example_rows())
    merged = model
    if not adapter.is_whole:
        say(f"Merging the adapter, and comparing the logits of {len(texts)} rows ...")
        merged, merge = merge_adapter(model, texts)
        if merge.problem:
            raise UserError(f"merging the adapter {merge.problem}: nothing is exported")

    # In the folder
    say(f"Writing {num_bytes / 2**30:.2f} GiB to {args.output_dir}, and reading them back ...")
    describe_serving(merged, tokenizer, adapter.prompt_format, prompt_format)
    with naming_full_disk(args.output_dir, num_bytes, MAKE_ROOM):
        save_tokenizer(tokenizer, source, folder)
        save_model(merged, folder)
        write_export_card(folder, adapter, merged_in=args.dtype)
        apply_umask(*folder.iterdir())

    # From the folder, with the same token ids and weights
    prompts = sample_prompts(adapter.folder, tokenizer, prompt_format)
    check_tokenizer(tokenizer, source, folder, prompts, prompt_format.end_token)
    written = weight_hashes(merged)
    del model, merged, base
    exported = load_base_model(ModelSource(str(folder)), accelerator)
    if changed := [name for name, digest in weight_hashes(exported).items() if written.get(name) != digest]:
        problem = f"read back, {len(changed)} weights are not those merged, {changed[0]} first"
        raise UserError(f"{problem}: nothing is exported")
    say("Answering the example rows with the exported model ...")
    answers = example_answers(exported, tokenizer, prompt_format)
    num_same = sum(answer == unmerged for answer, unmerged in zip(answers, unmerged_answers, strict=True))
    if not adapter.is_whole:
        print(f"Logits of {len(texts)} rows: {merge}")
    print(f"Token ids of {len(prompts)} prompts: the saved tokenizer's are those of training")
    print(f"Greedy answers: {num_same} of {len(answers)} are the {tuned}'s to the last token")


def example_answers(model, tokenizer, prompt_format):
    """The model's answers to the example rows, as texts."""
    system = System(model, tokenizer, prompt_format, max_new_tokens=256, batch_tokens=16384)
    answers = dict(system.answer(example_rows()))
    return [answers[index].text for index in sorted(answers)]


def write_adapter(args, adapter, folder):
    """Write the adapter alone, to be published: the base's hub id, and no path of this machine."""
    base = adapter.args["model_name_or_path"]
    if (adapter.environment.get("base") or published_name(base)) != base or "/" not in base:
        raise UserError(f"the base {base} is not on the hub: nobody else could load the adapter on it. Use --merge")
    config = read_json(adapter.folder / "adapter_config.json")
    config |= {"base_model_name_or_path": base, "revision": adapter.args.get("model_revision")}
    weights = adapter.folder / "adapter_model.safetensors"
    with naming_full_disk(args.output_dir, weights.stat().st_size, MAKE_ROOM):
        write_json(folder / "adapter_config.json", config)
        shutil.copyfile(weights, folder / weights.name)  # with the mode of a new file
        write_export_card(folder, adapter)


if __name__ == "__main__":
    run_script(lambda: main(args))
