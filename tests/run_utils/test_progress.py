"""Speed, memory and profiles of a run. Its curves: tests/test_train.py."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import curve

from data_utils.batching import OptimizerStep
from run_utils.checkpoint import RunState
from run_utils.errors import UserError
from run_utils.progress import TrainingLog, peak_memory_gib, start_profiler
from train import TrainingArguments


def test_an_entry_s_figures_are_of_the_steps_since_the_last(tmp_path, monkeypatch, capsys):
    """By a clock that goes on by a second with each look: two for a step, two for each reading of
    losses."""
    seconds = itertools.count()
    monkeypatch.setattr("run_utils.progress.time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    accelerator = SimpleNamespace(is_main_process=True, device=torch.device("cpu"), reduce=lambda tensor: tensor)
    args = TrainingArguments()
    run = SimpleNamespace(args=args, accelerator=accelerator, output_dir=tmp_path)
    state = RunState()
    log = TrainingLog(run, state, last_step=10, steps_per_epoch=5, flops=SimpleNamespace(peak=None))
    for steps in ((1, 2), (3,)):
        for state.global_step in steps:
            log.start_step()
            step = OptimizerStep([], num_tokens=100, num_supervised=20, weight_sum=20.0, row_ids=["a"], seconds=0.5)
            log.end_step(step, torch.tensor(10.0 * state.global_step), torch.tensor(1.0), [1e-3])
        log.read_losses()
        log.write()
    run.last_good = lambda: "last good checkpoint: checkpoint-2"
    with pytest.raises(UserError, match="after step 3 has loss nan; last good checkpoint: checkpoint-2"):
        log.start_evaluation()
        log.write_evaluation({"loss": float("nan")}, "")
    log.close(is_finished=False)
    figures = {
        "tokens_per_second": [200 / 3, 100 / 2],
        "loss": [30 / 40, 30 / 20],
        "completion_tokens": [40, 20],
        "num_tokens": [200, 300],  # since the run's start
        "data_wait_fraction": [1 / 3, 0.5 / 2],
        "epoch": [2 / 5, 3 / 5],
    }
    for name, values in figures.items():
        assert curve(tmp_path, f"train/{name}") == [
            (step, pytest.approx(value)) for step, value in zip((2, 3), values, strict=True)
        ]
    assert capsys.readouterr().out.splitlines() == [
        "step 2/10  loss 0.7500  lr 1.00e-03  67 tok/s  0.2 min left",  # 8 steps of 1.5 seconds
        "step 3/10  loss 1.5000  lr 1.00e-03  50 tok/s  0.2 min left",
    ]


@pytest.mark.parametrize(("cuda_graphs", "gib"), [(False, 1), (True, 3)])
def test_memory_inside_cuda_graphs_is_counted_as_reserved(monkeypatch, cuda_graphs, gib):
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 2**30)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda device: 3 * 2**30)
    assert peak_memory_gib(torch.device("cuda", 0), cuda_graphs) == gib


def test_a_cpu_s_memory_is_that_of_the_process():
    assert 0.05 < peak_memory_gib(torch.device("cpu"), False) < 1000


@pytest.mark.parametrize(
    ("steps", "steps_done", "profiled"), [("4:5", 2, (4, 5)), ("2:3", 2, (3,)), ("1:2", 0, (1, 2))]
)
def test_a_profile_is_of_its_steps_after_a_resume_too_and_begins_with_what_takes_longest(
    tmp_path, steps, steps_done, profiled
):
    profiler = start_profiler(steps, steps_done, tmp_path)
    for step in range(steps_done + 1, 7):
        with torch.profiler.record_function(f"step-{step}-here"):
            torch.ones(100, 100) @ torch.ones(100, 100)
        profiler.step()
    profiler.stop()
    (file,) = (tmp_path / "profile").glob("*.txt")
    text = file.read_text()
    assert {int(step) for step in re.findall(r"step-(\d)-here", text)} == set(profiled)
    assert file.name == f"steps-{profiled[0]}-{profiled[-1]}.txt" and file.with_suffix(".json.gz").exists()
    shares = [float(share) for share in re.findall(r"^ +\S.*? ([\d.]+)%", text, re.MULTILINE)]
    assert len(shares) > 2 and shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("steps", "steps_done"), [(None, 0), ("1:2", 2), ("1:2", 5)])
def test_steps_that_are_done_are_not_profiled(tmp_path, steps, steps_done):
    assert start_profiler(steps, steps_done, tmp_path) is None
