"""Speed, memory and profiles of a run. Its curves: tests/test_train.py."""

import re

import pytest
import torch

from run_utils.progress import peak_memory_gib, start_profiler


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
