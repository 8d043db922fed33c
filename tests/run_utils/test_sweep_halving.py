"""The better half goes on."""

import json
from pathlib import Path

import pytest

import train
from run_utils.sweep_halving import describe_halving, halve, last_evaluation, mean_losses
from run_utils.sweep_plan import parse_grid, plan_runs


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ({"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}, ["b", "c"]),
        ({"a": 3.0, "b": 1.0, "c": 2.0}, ["b", "c"]),  # rounded up
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, ["a", "b"]),
        ({"a": None, "b": 1.0, "c": None, "d": 4.0}, ["b", "d"]),
        ({"a": None, "b": None}, []),
        ({"a": -0.9, "b": -0.8}, ["a"]),  # rates, as losses
        ({"a": 5.0}, ["a"]),
    ],
)
def test_the_better_half_is_kept_in_its_order(losses, kept):
    assert halve(losses) == kept


def runs_with(tmp_path, curves, **flags):
    """Runs of two ranks and two seeds with these evaluations, `{run: {step: {tag: value}}}`."""
    grid = parse_grid(["lora_r=8,16"], train.TrainingArguments)
    argv = ["--config", "recipes/demo.yaml", *(f"--{name}={value}" for name, value in flags.items())]
    options = {"grid": grid, "seeds": 2, "output_dir": tmp_path}
    runs = plan_runs(train.TrainingArguments, train.__doc__, argv, **options)
    for run in runs:
        run.folder.mkdir(parents=True)
        entries = [{"step": step, **figures} for step, figures in curves.get(run.name, {}).items()]
        Path(run.folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return runs


def test_a_configuration_counts_by_the_mean_of_its_seeds_at_the_step(tmp_path):
    curves = {
        "r=8,seed=42": {0: {"eval/loss": 9.0}, 10: {"eval/loss": 1.0}, 20: {"eval/loss": 0.0}},
        "r=8,seed=43": {10: {"eval/loss": 4.0}},
        "r=16,seed=42": {10: {"eval/loss": 2.0}},
        "r=16,seed=43": {10: {"eval/loss": 2.5}},
    }
    runs = runs_with(tmp_path, curves)
    losses = mean_losses(runs, 10, failed=())
    assert losses == {"r=8": 2.5, "r=16": 2.25}
    assert mean_losses(runs, 10, failed={"r=8,seed=43"}) == {"r=8": 1.0, "r=16": 2.25}
    line = describe_halving(runs, losses, halve(losses), 10)
    assert line == "After step 10, by eval_loss (mean over seeds): r=16 (2.2500) go on; r=8 (2.5000) end"


def test_a_higher_rate_is_better_and_the_untouched_base_is_no_candidate(tmp_path):
    curves = {
        "r=8,seed=42": {0: {"eval/exact_match": 0.9}, 10: {"eval/exact_match": 0.5}},
        "r=16,seed=42": {0: {"eval/exact_match": 0.9}},
    }
    runs = runs_with(tmp_path, curves, best_metric="exact_match", eval_generate_examples=4)
    assert last_evaluation(runs[0], 10) == (10, -0.5) and last_evaluation(runs[2], 10) is None
    losses = mean_losses(runs, 10, failed=())
    assert halve(losses) == ["r=8"]
    assert "r=8 (0.5000) go on; r=16 (no evaluation) end" in describe_halving(runs, losses, ["r=8"], 10)


def test_a_rung_after_all_runs_have_failed_has_a_line(tmp_path):
    """The sweep then ends with the runs' own errors."""
    runs = runs_with(tmp_path, {})
    losses = mean_losses(runs, 4, failed={run.name: "no memory" for run in runs})
    assert halve(losses) == [] and describe_halving([], mean_losses([], 8, {}), [], 8) == "At step 8, no run is left"
