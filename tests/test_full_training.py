"""Full fine-tuning: every weight is trained, saved, resumed, delivered, evaluated and exported."""

import json

import numpy as np
import pytest
import torch
from conftest import EXACT_TAGS, command_line, curve, launch, launch_and_kill
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

import evaluate
import export
import train
from data_utils.dataset import prepare_data
from run_utils.errors import UsageError


@pytest.fixture
def full(flags):
    without = ("lora_r", "lora_alpha", "lora_dropout")
    flags = {name: value for name, value in flags.items() if name not in without}
    return flags | {"use_peft": "false", "learning_rate": 1e-3, "max_train_steps": 4, "save_steps": 2}


def same_files(left, right, *names):
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def test_plain_transformers_and_torch_train_the_same_model(train_here, full, tiny_model, monkeypatch):
    run = train_here(full | {"warmup_ratio": 0})
    monkeypatch.setattr("sys.argv", ["train.py", *command_line(full)])
    args, tokenizer = train.parse(), AutoTokenizer.from_pretrained(tiny_model)
    alone = type("Process", (), {"num_processes": 1, "process_index": 0})()
    alone.main_process_first = torch.no_grad  # any context
    data = prepare_data(args, tokenizer, 2048, alone)
    peer = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, weight_decay=0)
    scheduler = get_scheduler("cosine", optimizer, 0, 4)
    for step in range(4):
        examples = data.train.examples_of(step)
        total = sum(example.num_supervised for example in examples)
        for example in examples:
            ids = torch.from_numpy(example.input_ids.astype(np.int64))[None]
            labels = ids.clone()
            labels[:, : example.prompt_length] = -100
            (peer(input_ids=ids, labels=labels).loss * example.num_supervised / total).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    ours = AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for (name, weight), other, before in zip(
        ours.named_parameters(), peer.parameters(), base.parameters(), strict=True
    ):
        assert weight.dtype == torch.float32 and not torch.equal(weight, before), name
        # Adam's first steps go by the gradient's sign. Near 0, rounding decides it.
        moved, off = (other - before).abs().mean(), (weight - other).abs().mean()
        assert off < 0.02 * moved, name


def test_the_delivered_folder_is_plain_transformers(train_here, full):
    run = train_here(full)
    files = {path.name for path in (run / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "split.json"} <= files
    assert (
        not any(name.endswith(".pt") or name.startswith("adapter") for name in files) and not (run / "adapter").exists()
    )
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied in the file too
    assert "lm_head.weight" not in load_file(run / "model" / "model.safetensors")
    assert AutoTokenizer.from_pretrained(run / "model")("a b").input_ids
    card = (run / "model" / "README.md").read_text()
    assert "library_name: transformers" in card and "A whole model" in card and "lora" not in card.lower()


def test_in_bf16_the_weights_train_in_float32(train_here, full):
    run = train_here(full | {"dtype": "bf16"})
    trained, delivered = (load_file(run / name / "model.safetensors") for name in ("checkpoint-4", "model"))
    assert all(weight.dtype == torch.float32 for weight in trained.values())
    assert all(torch.equal(delivered[name], weight.bfloat16()) for name, weight in trained.items())
    assert AutoModelForCausalLM.from_pretrained(run / "model").dtype == torch.bfloat16


@pytest.mark.parametrize("change", [{}, {"ema_decay": 0.9, "gradient_checkpointing": "true"}])
def test_a_resume_is_exact(train_here, full, tmp_path, change):
    whole = train_here(full | change)
    part = full | change | {"output_dir": tmp_path / "part"}
    train_here(part | {"stop_after_steps": 2})
    part = train_here(part | {"resume_from_checkpoint": "latest"})
    for tag in EXACT_TAGS:
        assert curve(part, tag) == curve(whole, tag)
    assert same_files(part, whole, "model/model.safetensors", "checkpoint-4/model.safetensors")


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(full, tmp_path):
    full |= {"save_steps": 1, "max_train_steps": 6, "save_total_limit": 9}
    whole = tmp_path / "whole"
    result = launch("train.py", full | {"output_dir": whole}, processes=2)
    assert result.code == 0, result.err
    reached = (full["output_dir"] / "checkpoint-2").is_dir
    assert launch_and_kill("train.py", full, reached, tmp_path / "log", processes=2), (tmp_path / "log").read_text()
    result = launch("train.py", full | {"resume_from_checkpoint": "latest"}, processes=2)
    assert result.code == 0, result.err
    assert same_files(full["output_dir"], whole, "model/model.safetensors", "checkpoint-6/model.safetensors")


def test_evaluation_and_export_follow(run_here, train_here, full, tmp_path):
    run = train_here(full)
    result = run_here(evaluate, {"adapter": run / "model", "num_examples": 3, "max_new_tokens": 8})
    assert result.code == 0, result.err
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert list(metrics["systems"]) == ["raw", "prompted", "adapter"]
    assert "exact match" in (run / "model" / "README.md").read_text()
    texts = [json.loads(line) for line in (run / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    prompted, tuned = ({p["id"]: p["text"] for p in texts if p["system"] == name} for name in ("prompted", "adapter"))
    assert prompted != tuned
    result = run_here(export, {"adapter": run / "model", "output_dir": tmp_path / "export", "dtype": "fp32"})
    assert result.code == 0, result.err
    assert "Greedy answers: 2 of 2 are the tuned model's" in result.out or "are the tuned model's" in result.out
    exported, model = (load_file(folder / "model.safetensors") for folder in (tmp_path / "export", run / "model"))
    assert all(torch.equal(exported[name], weight) for name, weight in model.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template
    result = run_here(export, {"adapter": run / "model", "output_dir": tmp_path / "alone", "merge": "false"})
    assert result.code == 2 and "is a whole model: --merge false is for an adapter" in result.err
    result = run_here(evaluate, {"adapter": run / "model", "quantization": "nf4", "output_dir": tmp_path / "nf4"})
    assert result.code == 1 and "--quantization none" in result.err


def test_a_folder_s_mistakes_are_named(run_here, train_here, full):
    run = train_here(full)
    result = run_here(evaluate, {"adapter": run})
    assert result.code == 1 and f"did you mean {run / 'model'}?" in result.err
    (run / "model" / "model.safetensors").write_bytes(b"broken")
    result = run_here(evaluate, {"adapter": run / "model", "systems": ["adapter"]})
    assert result.code == 1 and "cannot load the model" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quantization": "nf4"}, "nf4 weights cannot be trained"),
        ({"quantization": "int8"}, "int8 weights cannot be trained"),
        ({"lora_r": 8}, "--lora_r is of LoRA"),
        ({"lora_target_modules": ["q_proj"]}, "--lora_target_modules is of LoRA"),
        ({"init_adapter": "runs/demo/adapter"}, "--init_adapter is of LoRA"),
        ({"cuda_graphs": "true"}, "--cuda_graphs is for LoRA"),
        ({"torch_compile": "true"}, "--torch_compile is for LoRA"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(run_here, full, change, named):
    result = run_here(train, full | change)
    (line,) = result.err.strip().splitlines()
    assert result.code == 2 and named in line and not full["output_dir"].exists()


def test_fsdp2_is_refused_by_name(full, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *command_line(full)])
    monkeypatch.setattr(train, "is_sharded", lambda: True)
    with pytest.raises(UsageError, match="FSDP2 shards a frozen base"):
        train.parse()
