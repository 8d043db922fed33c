"""Which model families train, how they generate, and whether they equal transformers' generate.

    python -m benchmarks.check_families                  # all, minutes on a CPU
    python -m benchmarks.check_families llama mamba2     # some

Each family is a tiny random model in float32 with the demo's tokenizer. train.py trains it for two
steps of LoRA on the demo's rows (on its decoder's linear layers, whatever their names). evaluate.py
generates for some held-out rows from the adapter, or from the base if the family cannot be trained.
The texts must equal plain transformers' and PEFT's, one row at a time.
"""

import argparse
import contextlib
import io
import json
import logging
import shutil
import sys
import traceback
import warnings
from pathlib import Path

import torch
import transformers
from accelerate.state import AcceleratorState
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import evaluate
import train
from data_utils.prompt import PROMPT_FORMATS
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from demo.rows import GENERATORS
from run_utils.arguments import ROOT
from run_utils.errors import UserError

NEW_TOKENS, ROWS = 12, 6
SIZES = {
    "vocab_size": 3072, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
WINDOW, HEADS, EXPERTS = {"sliding_window": 32}, {"head_dim": 16}, {"num_local_experts": 4}
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
ROTARY = {"rope_theta": 10000.0, "original_max_position_embeddings": 128}
FAMILIES = {
    "llama": {}, "llama tied": {"tie_word_embeddings": True}, "mistral": WINDOW, "gemma": HEADS, "gemma2": HEADS | WINDOW,
    "gemma3_text": HEADS | WINDOW | {"num_hidden_layers": 6}, "qwen2": {}, "qwen3": HEADS, "phi": {}, "phi3": {}, "gpt_neox": {},
    "gpt2": {}, "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64}, "bloom": {}, "falcon": {}, "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8}, "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 2048},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4, "window_size": 32},
    "stablelm": {}, "starcoder2": WINDOW, "cohere": {}, "cohere2": WINDOW, "olmo2": {}, "olmo3": WINDOW, "smollm3": {},
    "granite": {}, "gpt_oss": HEADS | WINDOW | EXPERTS, "mixtral": EXPERTS,
    "qwen3_moe": HEADS | FEW_EXPERTS | {"moe_intermediate_size": 32},
    "deepseek_v3": {
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
    },
    "llama4_text": HEADS | EXPERTS | {"attention_chunk_size": 32, "intermediate_size_mlp": 128}, "exaone4": WINDOW, "glm4": HEADS,
    "nemotron": {}, "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1, "state_size": 16}, "mamba": {},
    "lfm2": {},
    "qwen3_next": HEADS | FEW_EXPERTS | {
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_hidden_layers": 4,
    },
    "falcon_h1": {}, "recurrent_gemma": HEADS | {"lru_width": 64, "num_hidden_layers": 3, "attention_window_size": 32},
    "granitemoehybrid": {}, "phimoe": EXPERTS, "helium": HEADS, "arcee": {}, "ernie4_5": {}, "hunyuan_v1_dense": HEADS,
    "seed_oss": HEADS, "apertus": {}, "diffllama": {}, "persimmon": {},
    "xglm": {"d_model": 64, "attention_heads": 4, "num_layers": 2, "ffn_dim": 128}, "gpt_bigcode": {}, "biogpt": {},
    "minimax": HEADS | {"num_local_experts": 2}, "jamba": {}, "doge": {}, "bitnet": {}, "jetmoe": {}, "internlm3": {},
    "modernbert-decoder": {"bos_token_id": 0}, "ctrl": {"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 128, "n_positions": 2048},
    "phi3 longrope": {"original_max_position_embeddings": 128, "rope_parameters": ROTARY | {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}},
    "llama dynamic": {"max_position_embeddings": 128, "rope_parameters": ROTARY | {"rope_type": "dynamic", "factor": 16.0}},
}  # fmt: skip
TAGS = PROMPT_FORMATS["tags-1"]


def build(name):
    """A random model whose answers depend on its input: transformers' initial weights give one
    answer to everything."""
    config = AutoConfig.for_model(name.split()[0], **(SIZES | FAMILIES[name]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


def run_script(module, flags):
    """Run the script's main. Returns the line of its failure, or None. Its output is dropped."""
    AcceleratorState._reset_state(reset_partial_state=True)
    line = []
    for flag, value in flags.items():
        line += [f"--{flag}", *map(str, value)] if isinstance(value, list) else [f"--{flag}={value}"]
    sys.argv = [f"{module.__name__}.py", *line]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module.main(module.parse())
    except UserError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"TRACEBACK {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def plain_texts(folder, adapter, tokenizer, prompts):
    """The texts of plain transformers and PEFT, to the end of the budget."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).get_base_model()
    model.eval().generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    texts = []
    for ids in encode_prompts(tokenizer, prompts):
        ids = torch.from_numpy(ids).long()[None]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :].tolist()))
    return texts


def check(name, work_dir):
    """`(trains, generates by, equal to transformers)`, as words for the table."""
    folder, run = work_dir / "model", work_dir / "run"
    for path in (folder, run):
        shutil.rmtree(path, ignore_errors=True)
    try:
        model = build(name)
        model.save_pretrained(folder)
    except Exception as error:
        return "", "", f"this version of transformers does not build it: {type(error).__name__}"
    AutoTokenizer.from_pretrained(ROOT / "demo" / "base").save_pretrained(folder)
    # Some families split text in their own way.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    common = {"model_name_or_path": folder, "dataset_name": "demo", "quantization": "none", "dtype": "fp32"}
    problem = run_script(
        train,
        common | {
            "output_dir": run, "max_train_examples": 24, "max_eval_examples": 4, "max_train_steps": 2, "warmup_ratio": 0,
            "learning_rate": 1e-2, "lora_dropout": 0, "gradient_checkpointing": "false", "max_seq_length": 2048,
        },
    )  # fmt: skip
    adapter = None if problem else run / "adapter"
    trains = problem or f"yes, {json.loads((adapter / 'environment.json').read_text())['attention']}"
    flags = common | {"output_dir": run / "evaluation", "num_examples": ROWS, "max_new_tokens": NEW_TOKENS}
    flags["no_call_examples"] = 0
    system = "adapter" if adapter else "prompted"
    if failure := run_script(evaluate, flags | {"systems": [system]} | ({"adapter": adapter} if adapter else {})):
        return trains, failure, ""
    predictions = [json.loads(line) for line in (run / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    rows = {row.id: row for row in load_rows("demo", generators=GENERATORS)[0]}
    prompts = [TAGS.render(rows[p["id"]].query, rows[p["id"]].tools) for p in predictions]
    wanted = plain_texts(folder, adapter, tokenizer, prompts)
    pairs = [(prediction["text"], want) for prediction, want in zip(predictions, wanted, strict=True)]
    equal = sum(want.startswith(got) and bool(got or want.startswith(tokenizer.eos_token)) for got, want in pairs)
    by = json.loads((run / "evaluation" / "metrics.json").read_text())["generated_by"]
    return trains, by, f"{equal} of {len(wanted)} ({len(set(wanted))} texts)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="family", help=", ".join(FAMILIES))
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "families")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    table = Table(title=f"transformers {transformers.__version__}, torch {torch.__version__}, float32", show_lines=True)
    for column in ("family", "trains, with attention", "generates by", "as transformers' generate"):
        table.add_column(column)
    for name in args.families or FAMILIES:
        result = check(name, args.work_dir)
        print(f"{name}: {' | '.join(result)}", flush=True)
        table.add_row(name, *result)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
