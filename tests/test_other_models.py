"""Other models and tokenizers: train, resume, evaluate, call, export, load without this project."""

import json
import re

import pytest
import sentencepiece
import torch
from conftest import ROOT, TAGS, values
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

import evaluate
import export
import infer
import train
from benchmarks.check_families import build
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from data_utils.tool_formats import openai_tools
from demo.rows import generate_rows
from model_utils.adapters import linear_layers
from model_utils.loading import ModelSource, load_tokenizer

pytestmark = pytest.mark.slow
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_ON = {
    "llama": SEVEN,
    "mistral": SEVEN,
    "gemma": SEVEN,
    "qwen2": SEVEN,
    "llama tied": SEVEN,  # SmolLM2 is one
    "smollm3": SEVEN,
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}


def demo_tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "demo" / "base")


def without_pad():
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = None
    return tokenizer


def padding_with_the_end():
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def adding_a_bos():
    tokenizer = demo_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


TOKENIZERS = {
    "no pad token": without_pad,
    "pad is end": padding_with_the_end,
    "adds a BOS": adding_a_bos,
    "SentencePiece": None,  # see sentencepiece_folder
    "in Python": ByT5Tokenizer,
}


def sentencepiece_folder(folder):
    """A tokenizer like the first Llama's and Mistral's: a SentencePiece file and a BOS token."""
    texts = folder.parent / "texts.txt"
    texts.write_text("\n".join(" ".join(map(str, row.values())) for row in generate_rows(300, seed=1)))
    sentencepiece.SentencePieceTrainer.train(
        input=texts, model_prefix=folder / "tokenizer", vocab_size=1000, model_type="bpe", byte_fallback=True,
        max_sentence_length=100_000, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def run_all_scripts(run_here, flags, folder, lora_dropout=0.1):
    """Train with a stop and a resume, evaluate, call, export. Returns the run and the export."""
    run = run_all_but_export(run_here, flags, folder, lora_dropout)
    result = run_here(export, {"adapter": run / "adapter", "output_dir": run.parent / "export", "dtype": "fp32"})
    assert result.code == 0, result.err
    return run, run.parent / "export"


def run_all_but_export(run_here, flags, folder, lora_dropout=0.1):
    run, whole = flags["output_dir"], flags["output_dir"].with_name("whole")
    flags |= {"model_name_or_path": folder, "max_train_steps": 4, "save_steps": 2, "eval_steps": 2,
              "lora_dropout": lora_dropout, "warmup_ratio": 0, "eval_generate_examples": 2}  # fmt: skip
    for change in ({"output_dir": whole}, {"stop_after_steps": 2}, {"resume_from_checkpoint": "latest"}):
        result = run_here(train, flags | change)
        assert result.code == 0, result.err
    assert torch.equal(values(run, "train/loss"), values(whole, "train/loss"))
    ours, theirs = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    adapter = run / "adapter"
    result = run_here(evaluate, {"adapter": adapter, "num_examples": 3, "max_new_tokens": 8})
    assert result.code == 0, result.err
    tools = run.parent / "tools.json"
    tools.write_text('[{"name": "f", "description": "d", "parameters": {"x": {"description": "x", "type": "int"}}}]')
    result = run_here(infer, {"adapter": adapter, "query": "f of 3", "tools": tools, "max_new_tokens": 8})
    # The untrained model's output is not a list of calls; the error gives the reason.
    assert result.code == 1 and "is not a list of calls to these tools: cut off at --max_new_tokens 8" in result.err
    return run


def check_the_export(folder, exported, adapter, rows_file):
    """With transformers and PEFT alone: the prompt ids of training, the logits of the adapter."""
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    peer = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    tokenizer, trained_with = AutoTokenizer.from_pretrained(exported), load_tokenizer(ModelSource(folder))
    for row in load_rows(str(rows_file))[0][:4]:
        messages, tools = [{"role": "user", "content": row.query}], openai_tools(json.loads(row.tools))
        ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
        (expected,) = encode_prompts(trained_with, [TAGS.render(row.query, row.tools)])
        assert ids == expected.tolist()
        with torch.no_grad():
            logits, peers = model(torch.tensor([ids])).logits, peer(torch.tensor([ids])).logits
        torch.testing.assert_close(logits, peers, rtol=1e-3, atol=1e-3)
    assert trained_with.eos_token_id in model.generation_config.eos_token_id
    assert model.generation_config.do_sample is False


@pytest.mark.parametrize("name", LORA_ON)
def test_a_family_runs_through_all_scripts(run_here, flags, rows_file, tmp_path, name):
    folder = tmp_path / "model"
    build(name).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    run, exported = run_all_scripts(run_here, flags, folder)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == set(LORA_ON[name])
    assert f"| lora_target_modules | {', '.join(LORA_ON[name])} |" in (exported / "README.md").read_text()
    check_the_export(folder, exported, run / "adapter", rows_file)


@pytest.mark.parametrize("layers", [["embed_tokens", "q_proj"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("name", ["llama", "llama tied"])
def test_an_adapter_on_the_embedding_runs_through_all_scripts(run_here, flags, rows_file, tmp_path, name, layers):
    """The export is refused if embedding and head share weights: the merge would change both."""
    folder = tmp_path / "model"
    build(name).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    flags |= {"lora_target_modules": layers}
    if name == "llama":
        run, exported = run_all_scripts(run_here, flags, folder)
        check_the_export(folder, exported, run / "adapter", rows_file)
        return
    run = run_all_but_export(run_here, flags, folder)
    result = run_here(export, {"adapter": run / "adapter", "output_dir": tmp_path / "export", "dtype": "fp32"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and "changes the head or the input embedding, which share their weights" in line


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize("layers", [None, ATTENTION])
def test_a_mixture_runs_through_all_scripts_with_or_without_lora_on_experts(
    run_here, flags, rows_file, tmp_path, layers
):
    folder = tmp_path / "model"
    build("qwen3_moe").save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    experts = ["experts.gate_up_proj", "experts.down_proj"]
    refused = run_here(train, flags | {"model_name_or_path": folder, "lora_dropout": 0.1})
    assert refused.code == 1 and "PEFT has no dropout for LoRA on the experts'" in refused.err.splitlines()[-1]
    flags |= {"gradient_checkpointing": "true"} | ({"lora_target_modules": layers} if layers else {})
    run, exported = run_all_scripts(run_here, flags, folder, lora_dropout=0)
    base = load_file(folder / "model.safetensors")
    moved = {
        name.split(".")[-2]
        for name, weight in load_file(exported / "model.safetensors").items()
        if not torch.equal(weight, base[name])
    }
    assert moved == {*ATTENTION, *(() if layers else ("gate_proj", "up_proj", "down_proj"))}
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == set(ATTENTION)
    assert set(config["target_parameters"] or []) == set(() if layers else experts)
    check_the_export(folder, exported, run / "adapter", rows_file)


def test_experts_without_lora_or_quantisation_are_reported(run_here, flags, tmp_path):
    folder = tmp_path / "model"
    build("qwen3_moe").save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    flags |= {
        "model_name_or_path": folder,
        "quantization": "nf4",
        "max_train_steps": 1,
        "lora_target_modules": ATTENTION,
    }
    result = run_here(train, flags)
    assert result.code == 0, result.err
    # 2 layers of 4 experts: up, gate and down, 64 x 32 each.
    assert "LoRA leaves out the experts' experts.gate_up_proj, experts.down_proj, 49,152 of the layers'" in result.out
    assert "nf4 is for linear layers: the experts stay in float32, 0.00 GiB" in result.err


def test_layers_that_peft_takes_for_the_experts_are_refused(run_here, flags, tmp_path):
    """deepseek_v3's dense layers and shared experts have the old names of its experts."""
    folder = tmp_path / "model"
    build("deepseek_v3").save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    result = run_here(train, flags | {"model_name_or_path": folder})
    line = result.err.splitlines()[-1]
    assert result.code == 1 and "PEFT takes gate_proj, up_proj, down_proj of this mixture for its experts'" in line
    accepted = re.search(r"--lora_target_modules (.+) leaves", line)[1].split()
    assert accepted[-2:] == ["experts.gate_up_proj", "experts.down_proj"]
    result = run_here(
        train, flags | {"model_name_or_path": folder, "lora_target_modules": accepted, "max_train_steps": 1}
    )
    assert result.code == 0, result.err


def test_routers_heads_and_numbered_modules_get_no_lora():
    """longcat's router contains a layer, modernbert has a head `decoder`, ctrl numbers layers."""
    for name in ("mixtral", "qwen3_moe", "gpt_oss", "jetmoe"):
        assert not {"router", "gate", "layer", "lm_head"} & set(linear_layers(build(name))), name
    assert linear_layers(build("modernbert-decoder")) and "0" not in linear_layers(build("ctrl"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_runs_through_all_scripts(run_here, flags, rows_file, tmp_path, name):
    folder = tmp_path / "model"
    model = build("llama")
    model.resize_token_embeddings(3100)  # more than any tokenizer has
    model.save_pretrained(folder)
    if name == "SentencePiece":
        sentencepiece_folder(folder)
    else:
        TOKENIZERS[name]().save_pretrained(folder)
    run, exported = run_all_scripts(run_here, flags | {"max_seq_length": 4096}, folder)
    check_the_export(folder, exported, run / "adapter", rows_file)


def test_another_models_tokenizer_is_refused_in_one_line(run_here, flags, tmp_path):
    folder = tmp_path / "model"
    build("llama").save_pretrained(folder)
    adding_a_bos().save_pretrained(folder)
    result = run_here(train, flags | {"model_name_or_path": folder})
    assert result.code == 1
    assert "makes token 3072, and the model embeds tokens below 3072 alone" in result.err.splitlines()[-1]


def test_missing_layers_are_reported_with_the_existing_layers(run_here, flags, tmp_path):
    folder = tmp_path / "model"
    build("gpt_neox").save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    result = run_here(train, flags | {"model_name_or_path": folder, "lora_target_modules": ["q_proj", "dense"]})
    assert result.code == 1
    assert (
        "cannot add LoRA to q_proj: the model has no such layers, but query_key_value, dense, dense_h_to_4h, "
        "dense_4h_to_h" in result.err
    )
