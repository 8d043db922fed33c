"""Each variant as a user runs it: trained, killed, resumed, loaded by PEFT, evaluated, exported."""

import json
import shutil

import pytest
import torch
from conftest import EXACT_TAGS, curve, launch, launch_and_kill
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import evaluate
import export
import infer
import train

VARIANTS = {
    "rslora_patterns": {
        "use_rslora": "true",
        "rank_pattern": ["q_proj=8", "down_proj=2"],
        "alpha_pattern": ["q_proj=4"],
    },
    "dora": {"use_dora": "true"},
    "gaussian": {"init_lora_weights": "gaussian", "optim": "adamw_bnb_8bit", "lora_r": 64},
    "false": {"init_lora_weights": "false", "lora_target_modules": "attention"},
    "orthogonal": {"init_lora_weights": "orthogonal", "lora_target_modules": "mlp"},
    "pissa": {"init_lora_weights": "pissa", "loraplus_lr_ratio": 4, "lora_target_modules": "all-linear"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4", "use_rslora": "true"},
    "olora": {"init_lora_weights": "olora", "rank_pattern": ["q_proj=8"], "lora_dropout": 0.1},
    "loftq": {"init_lora_weights": "loftq", "quantization": "nf4"},
    "noise": {
        "neftune_noise_alpha": 5,
        "label_smoothing_factor": 0.1,
        "loraplus_lr_ratio": 4,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": ["num_decay_steps=2"],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_resumed_bit_for_bit_and_works_everywhere(name, run_here, train_here, flags, tiny_model, tmp_path):
    flags |= {"max_train_steps": 4, "save_steps": 2, "save_total_limit": 9} | VARIANTS[name]
    run = train_here(flags)
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    flags |= {"output_dir": tmp_path / "again"}
    shutil.copytree(run, flags["output_dir"])
    shutil.rmtree(flags["output_dir"] / "checkpoint-4")
    shutil.rmtree(flags["output_dir"] / "adapter")
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 0 and "after step 2" in result.out, result.err
    again = load_file(flags["output_dir"] / "adapter" / "adapter_model.safetensors")
    assert weights.keys() == again.keys() and all(torch.equal(weights[key], again[key]) for key in weights)
    for tag in EXACT_TAGS:
        assert curve(flags["output_dir"], tag) == curve(run, tag), tag

    # The original base under plain PEFT has the logits of the merged export.
    adapter, options = run / "adapter", {"adapter": run / "adapter", "output_dir": tmp_path / "evaluation"}
    assert run_here(evaluate, options | {"systems": "adapter", "max_new_tokens": 8, "num_examples": 2}).code == 0
    result = run_here(infer, {"adapter": adapter, "query": "x", "tools": "demo/math_tools.json", "max_new_tokens": 4})
    assert "not a list of calls" in result.err, result.err  # four steps teach nothing
    result = run_here(export, {"adapter": adapter, "output_dir": tmp_path / "export", "dtype": "fp32"})
    if name == "loftq":
        assert result.code == 1 and "repairs the rounding of its base in nf4" in result.err
        return
    assert result.code == 0, result.err
    ids = torch.arange(5, 45)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        before = base(ids).logits
        logits, expected = PeftModel.from_pretrained(base, adapter)(ids).logits, exported(ids).logits
    moved = (expected - before).abs().max()
    assert moved > 0.01 and (logits - expected).abs().max() < 0.01 * moved


@pytest.mark.slow
def test_a_killed_run_of_pissa_on_two_processes_equals_an_uninterrupted_one(flags, tmp_path):
    flags |= {
        "max_train_steps": 8,
        "save_steps": 1,
        "save_total_limit": 9,
        "init_lora_weights": "pissa_niter_4",
        "neftune_noise_alpha": 5,
    }
    flags |= {"per_device_train_batch_size": 1}
    whole = flags["output_dir"]
    assert launch("train.py", flags, processes=2).code == 0
    flags |= {"output_dir": tmp_path / "killed"}
    reached = (flags["output_dir"] / "checkpoint-3").is_dir
    killed = launch_and_kill("train.py", flags, reached, tmp_path / "log", processes=2)
    result = launch("train.py", flags | {"resume_from_checkpoint": "latest"}, processes=2)
    assert killed and result.code == 0, result.err
    name = "adapter/adapter_model.safetensors"
    assert second_halves(whole / "checkpoint-1") == second_halves(whole / "adapter")  # DDP averages masked gradients
    assert (whole / name).read_bytes() == (flags["output_dir"] / name).read_bytes()


def second_halves(folder):
    """Sums of A0 and B0 by name: the halves that never train."""
    weights = load_file(folder / "adapter_model.safetensors")
    return {key: weight.chunk(2, dim=int("lora_B" in key))[1].double().sum().item() for key, weight in weights.items()}


def test_shorthands_are_recorded_as_names_and_smoothing_is_of_training_alone(train_here, flags, tmp_path):
    flags |= {"max_train_steps": 1, "eval_on_start": "true"}
    plain = train_here(flags)
    smooth = train_here(flags | {"label_smoothing_factor": 0.1, "output_dir": tmp_path / "smooth"})
    assert curve(plain, "eval/loss")[0] == curve(smooth, "eval/loss")[0]
    assert curve(plain, "train/loss") != curve(smooth, "train/loss")
    attention = train_here(flags | {"lora_target_modules": "attention", "output_dir": tmp_path / "attention"})
    config = json.loads((attention / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim": "paged_adamw_8bit"}, "there is no GPU: --optim adamw_torch, or adamw_bnb_8bit"),
        ({"rank_pattern": "qproj=4"}, "--rank_pattern names qproj, which is not one of the LoRA layers: q_proj"),
        ({"init_lora_weights": "pissa", "lora_r": 33}, "finds at most 32 parts in k_proj, and its rank is 33"),
        ({"use_dora": "true", "lora_target_modules": ["q_proj", "embed_tokens"]}, "not for embed_tokens"),
    ],
)
def test_a_combination_is_refused_before_anything_loads(run_here, flags, change, named, monkeypatch):
    monkeypatch.setattr("model_utils.training_model.load_base_model", None)
    result = run_here(train, flags | change)
    (line,) = result.err.strip().splitlines()
    assert result.code in (1, 2) and named in line


def test_a_resume_of_another_variant_is_refused_by_name(run_here, train_here, flags):
    flags |= {"max_train_steps": 2, "save_steps": 1}
    train_here(flags)
    for name, value in {"use_dora": "true", "init_lora_weights": "pissa", "neftune_noise_alpha": 5}.items():
        result = run_here(train, flags | {name: value, "resume_from_checkpoint": "latest"})
        assert result.code == 1 and f"--{name} is " in result.err
