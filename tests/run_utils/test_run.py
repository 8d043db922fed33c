"""Which checkpoint is the best."""

import pytest

from run_utils.checkpoint import RunState


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
