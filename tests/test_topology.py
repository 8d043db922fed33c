"""One experiment on 1, 2 and 4 processes: the same training and the same evaluation, however it is shared out (gloo, float32).

Gradients by every way to cut a step up are in test_loss.py, FSDP2 and GPUs in benchmarks/.
"""

import json

import pytest
import torch
from conftest import curve, first_moments, launch, values

pytestmark = pytest.mark.slow
TOPOLOGIES = {1: (2, 4), 2: (2, 2), 4: (2, 1)}  # processes: (batch size, accumulation), 8 examples a step


@pytest.fixture
def runs(flags, tmp_path):
    """73 training rows: every tenth step has one example, and three of four processes nothing that is supervised. 5 held-out rows:
    the last evaluation batch, and the last rows to generate for, are not for all."""
    flags |= {
        "max_train_examples": 73, "eval_fraction": 0.06, "max_train_steps": 12, "eval_steps": 4, "per_device_eval_batch_size": 2,
        "eval_generate_examples": 5, "lr_scheduler_type": "linear", "learning_rate": 1e-3,
    }  # fmt: skip
    folders = {}
    for processes, (batch_size, accumulation) in TOPOLOGIES.items():
        folders[processes] = tmp_path / str(processes)
        own = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        done = launch("train.py", flags | own | {"output_dir": folders[processes]}, processes)
        assert done.code == 0, done.err
    return folders


def test_training_is_the_same_experiment(runs):
    one = runs.pop(1)
    assert curve(one, "train/completion_tokens")[9][1] < min(
        v for s, v in curve(one, "train/completion_tokens") if s != 10
    )
    for processes, run in runs.items():
        for tag in (
            "train/learning_rate",
            "train/completion_tokens",
            "train/epoch",
            "eval/json_valid",
            "eval/exact_match",
        ):
            assert curve(run, tag) == curve(one, tag), (
                processes,
                tag,
            )  # the tokens of each step: its rows are the same
        for tag in ("train/loss", "train/grad_norm", "eval/loss"):
            torch.testing.assert_close(values(run, tag), values(one, tag), rtol=1e-5, atol=0)
        for mine, its in zip(*(first_moments(folder / "checkpoint-12") for folder in (run, one)), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4 * its.abs().max())
        generated = curve(run, "eval/samples")
        assert len(generated) == 3 and generated == curve(one, "eval/samples")


@pytest.mark.parametrize("num_examples", [3, 7])
def test_evaluation_says_the_same(tiny_model, rows_file, tmp_path, num_examples):
    """Seven rows for four processes, and three: one of them has none."""
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 1, "num_examples": num_examples,
             "max_new_tokens": 20}  # fmt: skip
    said = {}
    for processes in TOPOLOGIES:
        folder = tmp_path / str(processes)
        done = launch("evaluate.py", flags | {"output_dir": folder}, processes)
        assert done.code == 0, done.err
        lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
        metrics = json.loads((folder / "metrics.json").read_text())["systems"]
        for figures in metrics.values():
            del figures["rows_per_second"]
        said[processes] = ({(line["system"], line["id"]): line["text"] for line in lines}, metrics)
    assert len(said[1][0]) == 2 * num_examples
    assert said[2] == said[1] and said[4] == said[1]
