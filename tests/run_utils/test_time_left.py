"""The number of coming events, and their time."""

import itertools

import pytest

from run_utils.time_left import events_left, seconds_left


def test_the_coming_evaluations_and_saves_are_those_of_train_py_s_loop():
    for last_step, save_steps, eval_steps in itertools.product(range(1, 14), (1, 2, 3, 4, 6, 20), (1, 2, 3, 5, 20)):
        for step in range(last_step):
            coming = range(max(step, 1), last_step + 1)
            is_save = [number == last_step or number % save_steps == 0 for number in coming]
            is_eval = [saved or number % eval_steps == 0 for saved, number in zip(is_save, coming, strict=True)]
            events = events_left(step, last_step, eval_steps, save_steps)
            assert events == {"step": last_step - step, "evaluation": sum(is_eval), "save": sum(is_save)}


def test_a_run_without_rows_to_evaluate_has_no_evaluations():
    assert events_left(50, 100, None, 20) == {"step": 50, "evaluation": 0, "save": 3}


def test_the_time_left_is_of_steps_evaluations_and_saves():
    measured = {"step": (20, 10.0), "evaluation": (2, 6.0), "save": (1, 0.5)}
    events = {"step": 30, "evaluation": 4, "save": 2}
    assert seconds_left(events, measured) == (pytest.approx(30 * 0.5 + 4 * 3 + 2 * 0.5), True)


def test_an_event_that_is_not_measured_makes_the_time_a_lower_bound():
    events = {"step": 30, "evaluation": 4, "save": 2}
    measured = {"step": (20, 10.0), "evaluation": (0, 0.0), "save": (1, 0.5)}
    assert seconds_left(events, measured) == (16.0, False)
    assert seconds_left(events | {"evaluation": 0}, measured) == (16.0, True)
