"""Slots of a machine, and finished processes that are not started again."""

import json
from pathlib import Path

import torch

from run_utils.sweep_processes import Job, Processes, find_slots


def test_the_first_runs_are_on_different_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    slots = find_slots(2)
    assert [slot.environment for slot in slots] == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("5", "7", "5", "7")]
    assert all(slot.is_gpu for slot in slots)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    (slot,) = find_slots(1)
    assert not slot.is_gpu and slot.environment == {}  # all cores
    assert [int(slot.environment["OMP_NUM_THREADS"]) >= 1 for slot in find_slots(2)] == [True, True]


def ended(run, part, code, *command):
    return {"run": run, "part": part, "code": code, "seconds": 60.0, "command": list(command)}


def test_what_ended_well_by_the_same_command_is_done_unless_the_run_was_trained_again(tmp_path):
    entries = [ended("a", "train", 143, "t"), ended("a", "train", 0, "t"), ended("a", "evaluate", 0, "e")]
    entries += [ended("b", "train", 0, "t"), ended("b", "evaluate", 0, "e"), ended("b", "train", 0, "t", "longer")]
    (tmp_path / "sweep.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"run": "a", "pa')
    processes = Processes(tmp_path, find_slots(1), {})

    def is_done(run, part, *command, result=tmp_path):
        return processes.is_done(Job(run, part, list(command), result))

    assert is_done("a", "train", "t") and is_done("a", "evaluate", "e")
    assert not is_done("a", "train", "t", "longer") and not is_done("a", "train", "t", result=Path("absent"))
    assert is_done("b", "train", "t", "longer") and not is_done("b", "train", "t") and not is_done("b", "evaluate", "e")
    assert not is_done("c", "train", "t")
    assert processes.seconds("a", "train") == 120 and processes.parts()["evaluate"] == {
        "processes": 2,
        "seconds": 120.0,
    }
    assert processes.time_left(["train", "evaluate"]) == "; 2.0 min left"
    assert processes.time_left(["base"]) == "; over 0.0 min left" and processes.time_left([]) == ""
