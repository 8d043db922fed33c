"""Which checkpoint is the best, whether the disk holds those to come, and what is set aside. Whole
runs: tests/test_resume.py."""

import json
from types import SimpleNamespace

import pytest
import torch

from run_utils.checkpoint import LogEntry, RunState, read_state
from run_utils.output_folder import set_aside
from run_utils.run import Run
from run_utils.training import Training


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("exact_match", [0.5, 0.8, 0.8, 0.7], 3),  # of equals the latest
        ("exact_match", [0.0, 0.0, 0.0], 3),
        ("eval_loss", [2.0, 1.0, 1.0, 1.5], 3),
        ("eval_loss", [1.0, 2.0], 1),
    ],
)
def test_the_best_is_the_latest_of_equals(metric, values, best):
    state = RunState()
    for step, value in enumerate(values, start=1):
        state.global_step = step
        state.add_evaluation({"loss": value, metric: value}, metric)
        assert state.is_best == (state.best_checkpoint == f"checkpoint-{step}")
    assert state.best_checkpoint == f"checkpoint-{best}" and state.best_value == values[best - 1]


@pytest.mark.parametrize(
    ("metric", "values", "stale"),
    [
        ("eval_loss", [2.0, 1.0, 1.5, 1.2], [0, 0, 1, 2]),
        ("eval_loss", [2.0, 2.0, 1.9], [0, 1, 0]),  # an equal one is no better
        ("exact_match", [0.0, 0.0, 0.5, 0.4, 0.6], [0, 1, 0, 1, 0]),
    ],
)
def test_patience_counts_the_evaluations_since_the_last_better_one(metric, values, stale):
    state, counts = RunState(), []
    # The untouched base is no candidate, however good it is.
    state.add_evaluation({"loss": 0.0, "exact_match": 1.0}, metric)
    assert not state.is_best and state.best_value is None and state.best_loss is None
    for state.global_step, value in enumerate(values, start=1):
        state.add_evaluation({"loss": value, "exact_match": value}, metric)
        counts.append(state.stale_evaluations)
        ended = state.stops_early(1), state.stops_early(2), state.stops_early(None)
        assert ended == (counts[-1] >= 1, counts[-1] >= 2, False)
    assert counts == stale and (state.best_loss, state.best_exact_match) == (min(values), max(values))


def test_the_best_loss_of_an_older_checkpoint_is_its_best_value():
    state = RunState(global_step=9, best_value=0.5, best_checkpoint="checkpoint-5")
    state.add_evaluation({"loss": 0.7}, "eval_loss")
    assert state.best_loss == 0.5
    state = RunState(global_step=9, best_value=0.5, best_checkpoint="checkpoint-5")
    state.add_evaluation({"loss": 0.7, "exact_match": 0.4}, "exact_match")
    assert state.best_loss == 0.7


@pytest.mark.parametrize(("free", "warned"), [(160, False), (159, True)])
def test_a_disk_too_small_for_the_checkpoints_to_come_is_a_warning(tmp_path, monkeypatch, free, warned):
    """16 bytes of weights: 48 a checkpoint with Adam's moments, two kept and the next, and the
    adapter."""
    lines = []
    args = SimpleNamespace(output_dir=tmp_path, save_total_limit=2, use_peft=True)
    run = Run(args, SimpleNamespace(print=lines.append), None, None)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    run.check_disk(Training(model=torch.nn.Linear(3, 1), optimizer=None, scheduler=None))
    assert [line.startswith("Warning: 2 checkpoints and the next need ") for line in lines] == [True] * warned


def test_what_is_set_aside_replaces_what_was_set_aside_before(tmp_path):
    for step in (1, 2):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / f"of_step_{step}").touch()
        set_aside(tmp_path / "adapter")
    assert [path.name for path in tmp_path.glob("*")] == ["superseded-adapter"]
    assert [path.name for path in tmp_path.glob("*/*")] == ["of_step_2"]


@pytest.mark.parametrize(
    ("change", "whole"),
    [
        ({}, True),
        ({"global_step": 4}, False),
        ({"completion_tokens": -1}, False),
        ({"completion_tokens": 1.5}, False),
        ({"effective_batch": True}, False),
        ({"loss_sum": float("nan")}, False),
        ({"num_tokens": -1}, False),
        ({"stale_evaluations": None}, False),
        ({"best_loss": float("inf")}, False),
        ({"best_checkpoint": "../checkpoint-3"}, False),
    ],
)
def test_a_state_that_no_run_has_written_is_refused(tmp_path, change, whole):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    state = {"global_step": 3, "effective_batch": 8, "completion_tokens": 20, "best_checkpoint": "checkpoint-3"}
    (folder / "state.json").write_text(json.dumps(state | change))
    if whole:
        # Without weight_sum, as before loss masks: all weights were 1.
        entry = LogEntry(weight_sum=20, completion_tokens=state.pop("completion_tokens"))
        assert read_state(folder) == RunState(entry=entry, **state)
    else:
        with pytest.raises(ValueError, match="state.json"):
            read_state(folder)


@pytest.mark.parametrize(
    ("final_adapter", "best", "delivered"),
    [
        ("best", "checkpoint-6", "checkpoint-6"),
        ("best", None, "checkpoint-9"),  # no evaluation had a finite loss
        ("last", "checkpoint-6", "checkpoint-9"),
    ],
)
def test_the_adapter_is_of_the_last_checkpoint_or_of_the_best_if_asked_for(tmp_path, final_adapter, best, delivered):
    run = Run(SimpleNamespace(output_dir=tmp_path, final_adapter=final_adapter, use_peft=True), None, None, None)
    assert run.to_deliver(RunState(global_step=9, best_checkpoint=best)) == delivered
