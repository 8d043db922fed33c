"""FSDP2 on two CPU processes: a sharded base, and one process's training and checkpoints."""

import re
import subprocess

import pytest
import torch
from conftest import EXACT_TAGS, ROOT, curve, first_moments, launch, launch_and_kill, launch_command, values
from safetensors.torch import load_file

import evaluate
import train

FSDP2 = "cpu_fsdp2.yaml"


@pytest.fixture
def few_steps(flags):
    """Four examples per step on one or two processes."""
    return flags | {"max_train_steps": 6, "save_steps": 3, "eval_steps": 3, "per_device_train_batch_size": 2}


def cut(flags, processes, output_dir, **more):
    return flags | {"gradient_accumulation_steps": 2 // processes, "output_dir": output_dir} | more


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"quantization": "nf4", "gradient_checkpointing": "true"},
        {"quantization": "nf4", "torch_compile": "true"},
        {"lora_target_modules": ["lm_head", "q_proj"]},
    ],
    ids=["float32", "nf4, checkpointing", "nf4, compiled", "a head"],
)
def test_two_processes_train_like_one(few_steps, tmp_path, more):
    folders = []
    for processes, config in ((1, None), (2, FSDP2)):
        folders.append(tmp_path / f"{processes}")
        result = launch("train.py", cut(few_steps, processes, folders[-1], **more), processes, config)
        assert result.code == 0, result.err
    assert "FSDP2:" in result.out
    equal = ("train/loss", "train/grad_norm", "eval/loss", "eval/token_accuracy", "train/completion_tokens")
    for tag in (*equal, "train/learning_rate", "eval/loss_values", "eval/accuracy_syntax", "eval/entropy_end"):
        torch.testing.assert_close(values(folders[1], tag), values(folders[0], tag), rtol=1e-5, atol=0)
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in reversed(folders))
    assert ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours)
    for moment, expected in zip(
        first_moments(folders[1] / "checkpoint-3"), first_moments(folders[0] / "checkpoint-3"), strict=True
    ):
        torch.testing.assert_close(moment, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_a_killed_run_resumes_sharded_or_not(few_steps, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    dropping = {"lora_dropout": 0.1}
    assert launch("train.py", cut(few_steps, 2, straight, **dropping), 2, FSDP2).code == 0
    flags = cut(few_steps, 2, killed, **dropping)
    reached = (killed / "checkpoint-3").exists
    assert launch_and_kill("train.py", flags, reached, tmp_path / "log", 2, config=FSDP2)
    assert not (killed / "adapter").exists()
    result = launch("train.py", flags | {"resume_from_checkpoint": "latest"}, 2, FSDP2)
    assert result.code == 0 and "Resuming from" in result.out, result.err
    for tag in EXACT_TAGS:
        assert curve(killed, tag)[-len(curve(straight, tag)) :] == curve(straight, tag), tag
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (killed, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # One process with the whole base resumes the checkpoint of two processes. Its dropout draws
    # other numbers, so the loss is only close.
    alone = cut(few_steps, 1, killed, **dropping) | {"resume_from_checkpoint": killed / "checkpoint-3"}
    result = launch("train.py", alone)
    assert result.code == 0, result.err
    torch.testing.assert_close(values(killed, "eval/loss")[-1:], values(straight, "eval/loss")[-1:], rtol=0.05, atol=0)


SHARDS = """
import os, sys, torch
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from model_utils.adapters import add_lora, linear_layers
from model_utils.loading import ModelSource, load_base_model
from model_utils.speed import prepare_model
from run_utils.launch import end_training, start_accelerator
accelerator = start_accelerator("fp32", may_shard=True)
model = load_base_model(ModelSource(sys.argv[1], quantization=sys.argv[2]), accelerator)
model = add_lora(model, 4, 8, 0.0, linear_layers(model))
whole = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
model = prepare_model(accelerator, model, cuda_graphs=False)
frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
assert all(isinstance(parameter, DTensor) for parameter in frozen), "not all of the base is sharded"
assert not any(isinstance(parameter, DTensor) for parameter in model.parameters() if parameter.requires_grad)
local = sum(parameter.to_local().numel() for parameter in frozen)
assert 0.45 * whole < local < 0.55 * whole, (local, whole)
print("half")
end_training(accelerator)
"""


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_each_process_holds_half_of_the_base(tiny_model, tmp_path, quantization):
    """A base that is not sharded would save no memory, without any error."""
    script = tmp_path / "shards.py"
    script.write_text(SHARDS)
    command = [*launch_command(script, {}, 2, FSDP2)[:-1], script, tiny_model, quantization]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("half") == 2, done.stderr


@pytest.mark.parametrize(
    ("engine", "more", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed owns the backward pass .* accelerate_configs/fsdp2.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "Megatron-LM owns the backward pass"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "the first FSDP: fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"cuda_graphs": "true"}, "--cuda_graphs false"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"quantization": "int8"}, "--quantization nf4 or none"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"base_precision": "fp8"},
            "--base_precision same with FSDP2",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            {},
            "--gradient_checkpointing true",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            {},
            "use accelerate_configs/fsdp2.yaml",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"eval_generate_examples": 2},
            "--eval_generate_examples 0 .* with FSDP2",
        ),
    ],
)
def test_unsupported_engines_and_settings_are_refused_by_name(run_here, flags, monkeypatch, engine, more, message):
    for name, value in engine.items():
        monkeypatch.setenv(name, value)
    result = run_here(train, flags | more)
    (line,) = result.err.strip().splitlines()
    # 2 for a flag that contradicts the launch file, 1 for a launch file that is refused alone.
    assert result.code == (2 if more else 1), result.err
    assert re.search(message, line), line
    assert not flags["output_dir"].exists()


def test_evaluation_keeps_the_whole_model_on_each_process(run_here, tiny_model, rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": tmp_path / "evaluation"}
    result = run_here(evaluate, flags)
    assert result.code == 1 and "accelerate_configs/multi_gpu.yaml" in result.err.splitlines()[-1]
    assert not (tmp_path / "evaluation").exists()
