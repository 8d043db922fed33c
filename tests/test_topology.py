"""Runs on 1, 2 and 4 processes (gloo, float32) have equal training and evaluation.

test_loss.py compares gradients for each split of a step; benchmarks/ has FSDP2 and GPUs.
"""

import json

import pytest
import torch
from conftest import curve, first_moments, launch, values

pytestmark = pytest.mark.slow
# processes: (batch size, accumulation), 8 examples a step
TOPOLOGIES = {1: (2, 4), 2: (2, 2), 4: (2, 1)}


@pytest.fixture
def runs(flags, tmp_path):
    """The 10th step has one of 73 rows: three of four processes have no supervised token. 5
    held-out rows leave a process without rows in the last evaluation batch and generation."""
    flags |= {
        "max_train_examples": 73, "eval_fraction": 0.06, "max_train_steps": 12, "eval_steps": 4,
        "per_device_eval_batch_size": 2, "eval_generate_examples": 5, "lr_scheduler_type": "linear",
        "learning_rate": 1e-3,
    }  # fmt: skip
    folders = {}
    for processes, (batch_size, accumulation) in TOPOLOGIES.items():
        folders[processes] = tmp_path / str(processes)
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        done = launch("train.py", flags | split | {"output_dir": folders[processes]}, processes)
        assert done.code == 0, done.err
    return folders


def test_training_is_equal_on_any_number_of_processes(runs):
    one = runs.pop(1)
    num_tokens = dict(curve(one, "train/completion_tokens"))
    assert num_tokens.pop(10) < min(num_tokens.values())
    for processes, run in runs.items():
        # Equal tokens mean equal rows in each step.
        for tag in ("train/completion_tokens", "train/num_tokens", "train/learning_rate", "train/epoch"):
            assert curve(run, tag) == curve(one, tag), (processes, tag)
        for tag in ("eval/json_valid", "eval/exact_match"):
            assert curve(run, tag) == curve(one, tag), (processes, tag)
        for tag in ("train/loss", "train/grad_norm", "eval/loss", "eval/token_accuracy"):
            torch.testing.assert_close(values(run, tag), values(one, tag), rtol=1e-5, atol=0)
        for moment, expected in zip(*(first_moments(folder / "checkpoint-12") for folder in (run, one)), strict=True):
            torch.testing.assert_close(moment, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
        generated = curve(run, "eval/samples")
        assert len(generated) == 3 and generated == curve(one, "eval/samples")


@pytest.mark.parametrize("num_examples", [3, 7])
def test_evaluation_is_equal_on_any_number_of_processes(tiny_model, rows_file, tmp_path, num_examples):
    """Four processes share 7 rows unevenly; of 3 rows one process has none."""
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 1,
             "num_examples": num_examples, "max_new_tokens": 20}  # fmt: skip
    results = {}
    for processes in TOPOLOGIES:
        folder = tmp_path / str(processes)
        done = launch("evaluate.py", flags | {"output_dir": folder}, processes)
        assert done.code == 0, done.err
        lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
        metrics = json.loads((folder / "metrics.json").read_text())["systems"]
        for figures in metrics.values():
            del figures["rows_per_second"]
        results[processes] = ({(line["system"], line["id"]): line["text"] for line in lines}, metrics)
    assert len(results[1][0]) == 2 * (num_examples + num_examples // 5)  # and rows without the right tool
    assert results[2] == results[1] and results[4] == results[1]
