"""sweep.py: real processes that are killed, resumed, stopped early and compared."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, command_line, descendants, is_running, launch

import evaluate
import sweep
from eval_utils.sweep_evaluations import Evaluations, base_job
from run_utils import journal


@pytest.fixture
def flags(flags, tmp_path):
    evaluation = {"systems": ["raw", "prompted", "adapter"], "num_examples": 4, "max_new_tokens": 4}
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    return flags | {"output_dir": tmp_path / "sweep", "evaluation_config": tmp_path / "evaluation.yaml"}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"grid": ["lora_r=4,0"]}, 2, "r=0,seed=42: --lora_r must be above 0"),
        ({"seeds": 0}, 2, "--seeds must be above 0"),
        ({"runs_per_gpu": 0}, 2, "--runs_per_gpu must be above 0"),
        ({"halving": [8, 4]}, 2, "--halving needs rising steps"),
        ({"halving": [0, 4]}, 2, "--halving needs rising steps above 0"),
        ({"halving": ["half"]}, 2, "--halving needs steps, not half"),
        ({"halving": [2], "eval_fraction": 0}, 2, "--halving needs rows to evaluate"),
        ({"eval_fraction": 0}, 2, "no rows are held out to evaluate"),
        ({"evaluation_config": "absent.yaml"}, 2, "cannot read absent.yaml"),
        ({"unknown_flag": 1}, 2, "unknown argument --unknown_flag"),
    ],
)
def test_a_sweep_that_cannot_end_well_does_not_begin(run_here, flags, changes, code, message):
    result = run_here(sweep, flags | changes)
    assert result.code == code and len(result.err.strip().splitlines()) == 1 and message in result.err
    assert not flags["output_dir"].exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ["raw"]}, "--systems needs adapter"),
        ({"systems": ["adapter", "endpoint"], "endpoint": "http://x/v1", "endpoint_model": "m"}, "evaluates no server"),
        ({"baseline": "prompted"}, "a sweep compares by itself"),
        ({"num_exampels": 4}, "did you mean num_examples?"),
    ],
)
def test_evaluations_that_cannot_start_are_refused_before_the_trainings(run_here, flags, change, message):
    path = flags["evaluation_config"]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    result = run_here(sweep, flags)
    assert result.code == 2 and message in result.err and not flags["output_dir"].exists()


def test_a_folder_of_other_runs_is_refused_before_the_first_starts(run_here, train_here, flags):
    folder = flags["output_dir"] / "runs" / "seed=42"
    own = {name: value for name, value in flags.items() if name != "evaluation_config"}
    train_here(own | {"output_dir": folder, "split_seed": 42, "max_train_steps": 1})
    result = run_here(sweep, flags | {"max_train_steps": 2})
    assert result.code == 1 and "--max_train_steps is 2 but" in result.err and "was trained with 1" in result.err
    assert not (flags["output_dir"] / "sweep.json").exists()


def test_a_folder_without_a_sweep_is_refused(run_here, flags, tmp_path):
    result = run_here(sweep, flags | {"output_dir": tmp_path})
    assert result.code == 1 and "is not empty and holds no sweep: choose another --output_dir" in result.err


def start(flags, log):
    command = [sys.executable, "sweep.py", *command_line(flags)]
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(reached, process, log):
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def parts(folder):
    return [(entry["run"], entry["part"], entry["code"]) for entry in journal.read(folder / "sweep.jsonl")]


def test_the_base_is_answered_once_whichever_run_is_first(run_here, train_here, flags, tmp_path):
    """Another grid in the folder has another first run, with another adapter."""
    del flags["evaluation_config"]
    evaluations = Evaluations(["--num_examples=2", "--max_new_tokens=4"], ["raw"], ["adapter"], False)
    commands = []
    for rank in (4, 8):
        run = train_here(flags | {"max_train_steps": 1, "lora_r": rank, "output_dir": tmp_path / f"r={rank}"})
        job = base_job(evaluations, SimpleNamespace(adapter=run / "adapter"), tmp_path / "base")
        result = run_here(evaluate, job.command[1:])
        assert result.code == 0, result.err
        commands.append(job.command)
    assert commands[0] == commands[1]  # so that a sweep does not run it again


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_signal_and_after_a_kill(flags, tmp_path):
    """SIGTERM in the first run: it saves. SIGKILL in the second: its process ends too. Afterwards
    nothing that is done is done again, and both runs are as they would have been alone."""
    folder, log = flags["output_dir"], tmp_path / "log"
    flags |= {"grid": "lora_r=4,8", "max_train_steps": 60, "save_steps": 20, "lora_dropout": 0.1}
    first, second = (folder / "runs" / f"r={rank},seed=42" for rank in (4, 8))
    process = start(flags, log)
    wait_for((first / "checkpoint-20").exists, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, log.read_text()
    assert parts(folder) == [("r=4,seed=42", "train", 128 + signal.SIGTERM)]
    assert "sweep.py: stopped by SIGTERM; the same command continues" in log.read_text()

    process = start(flags, log)
    wait_for((second / "checkpoint-20").exists, process, log)
    children = descendants(process.pid)
    process.kill()
    process.wait()
    while any(is_running(pid) for pid in children):
        time.sleep(0.01)
    done = parts(folder)
    assert done[1:] == [("r=4,seed=42", "train", 0), ("base", "base", 0), ("r=4,seed=42", "evaluate", 0)]

    process = start(flags, log)
    assert process.wait() == 0, log.read_text()
    assert parts(folder)[len(done) :] == [("r=8,seed=42", "train", 0), ("r=8,seed=42", "evaluate", 0)]
    comparison = json.loads((folder / "comparison" / "metrics.json").read_text())
    assert [found["num_evaluated"] for found in comparison["configurations"]] == [1, 1]
    assert set(comparison["base"]["base"]) == {"raw", "prompted"}
    assert (folder / "comparison" / "report.html").is_file() and "p rows" in log.read_text()

    own = {name: value for name, value in flags.items() if name not in ("grid", "evaluation_config")}
    result = launch("train.py", own | {"lora_r": 8, "split_seed": 42, "output_dir": tmp_path / "alone"})
    assert result.code == 0, result.err
    weights = [run / "adapter" / "adapter_model.safetensors" for run in (second, tmp_path / "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_the_worse_half_ends_early_and_a_failed_run_ends_no_other(flags, tmp_path):
    folder, log = flags["output_dir"], tmp_path / "log"
    flags |= {
        "grid": "learning_rate=1e-5,1e-2,1e30", "max_train_steps": 4, "warmup_ratio": 0, "halving": [1, 2],
        "runs_per_gpu": 2, "evaluate": "false",
    }  # fmt: skip
    process = start(flags, log)
    assert process.wait() == 1, log.read_text()
    text = log.read_text()
    assert "1 of 3 runs failed (lr=1e30,seed=42: train ended with 1: train.py: error: " in text
    assert "the same command continues them" in text
    runs = {run.name: [int(path.name[11:]) for path in run.glob("checkpoint-*")] for run in (folder / "runs").iterdir()}
    assert max(runs["lr=1e-2,seed=42"]) == 4 and max(runs["lr=1e-5,seed=42"]) == 2 and not runs["lr=1e30,seed=42"]
    comparison = json.loads((folder / "comparison" / "metrics.json").read_text())
    first, second = comparison["halving"]
    assert "After step 1, by eval_loss" in first and "lr=1e30 (no evaluation) end" in first
    assert "lr=1e-2" in second.split(" go on; ")[0] and "lr=1e-5" in second.split(" go on; ")[1]
    assert list(comparison["failed"]) == ["lr=1e30,seed=42"]
    assert (folder / "comparison" / "report.html").is_file()
