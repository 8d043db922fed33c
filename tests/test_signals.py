"""SIGTERM and SIGINT: to the script, one of its processes or the launcher, whatever the run is
doing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, command_line, curve, descendants, launch, launch_command

pytestmark = pytest.mark.slow


STARTED = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    yield
    for process in STARTED:
        for pid in [*descendants(process.pid), process.pid] if process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    STARTED.clear()


def start(command, log):
    STARTED.append(
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell without job control has what it runs in the background ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    )
    return STARTED[-1]


def script(name, flags):
    return [sys.executable, name, *command_line(flags)]


def wait_for(log, words, process):
    deadline = time.monotonic() + 120
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def ends_within(process, seconds):
    """Exit code once the process and all that it started are gone."""
    code = process.wait(timeout=seconds)
    deadline = time.monotonic() + seconds
    while any(stat_group(pid) == process.pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.05)
    return code


def stat_group(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else int(fields[2])
    except OSError:
        return None


@pytest.fixture
def long(flags):
    """A run too long to end by itself within a test."""
    return flags | {"max_train_steps": 1_000_000, "lora_dropout": 0.1, "eval_steps": 1_000_000, "logging_steps": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_saves_a_checkpoint_and_says_so(long, tmp_path, number):
    process = start(script("train.py", long), tmp_path / "log")
    wait_for(tmp_path / "log", "step 3/", process)
    process.send_signal(number)
    assert ends_within(process, 20) == 128 + number
    lines = (tmp_path / "log").read_text().splitlines()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    first = next(i for i, line in enumerate(lines) if number.name in line)
    assert lines[first].startswith(f"train.py: {number.name}: the step is finished and a checkpoint saved first")
    assert lines[-1] == (
        f"train.py: stopped by {number.name}: {checkpoint} is complete; --resume_from_checkpoint latest goes on from it"
    )
    assert all(line.startswith("step ") for line in lines[first + 1 : -1])
    assert not list((tmp_path / "run").glob("incomplete-*")) and not (tmp_path / "run" / "adapter").exists()


def test_a_checkpoint_is_saved_though_who_reads_the_lines_has_been_stopped_too(long, tmp_path):
    """`train.py 2>&1 | tee log`: a terminal's Ctrl-C goes to both."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        script("train.py", long), cwd=ROOT, stdout=writer, stderr=writer, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    os.close(writer)
    said = b""
    while b"step 3/" not in said:
        said += os.read(reader, 1 << 16)
    os.close(reader)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert (checkpoint / "optimizer.pt").exists()


def test_a_stopped_run_resumed_equals_an_uninterrupted_one(flags, tmp_path):
    """The signal comes in an evaluation with generation, which runs again; the best is found as it
    would have been."""
    flags |= {
        "max_train_steps": 6, "eval_steps": 2, "lora_dropout": 0.1, "eval_fraction": 0.5, "eval_generate_examples": 40,
        "final_adapter": "best", "save_total_limit": 9,
    }  # fmt: skip
    straight = launch("train.py", flags | {"output_dir": tmp_path / "straight"})
    assert straight.code == 0, straight.err
    process = start(script("train.py", flags), tmp_path / "log")
    wait_for(tmp_path / "log", "step 2/6  loss", process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ends_within(process, 20) == 143
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "state.json").read_text())
    assert state["evaluation_due"] and state["eval_loss"] is None
    resumed = launch("train.py", flags | {"resume_from_checkpoint": "latest"})
    assert resumed.code == 0, resumed.err
    for tag in ("train/loss", "train/grad_norm", "eval/loss", "eval/json_valid", "eval/exact_match"):
        assert curve(tmp_path / "run", tag) == curve(tmp_path / "straight", tag), tag
    for step, name in ((6, "adapter_model.safetensors"), (6, "state.json"), (2, "README.md")):
        mine, its = (tmp_path / folder / f"checkpoint-{step}" / name for folder in ("run", "straight"))
        assert mine.read_bytes() == its.read_bytes()
    of = [
        json.loads((tmp_path / folder / "adapter" / "environment.json").read_text()) for folder in ("run", "straight")
    ]
    assert of[0]["global_step"] == of[1]["global_step"] and of[0]["eval_loss"] == of[1]["eval_loss"]


def test_a_signal_in_the_evaluation_at_step_0_leaves_it_for_the_resume(flags, tmp_path):
    flags |= {
        "max_train_steps": 2, "eval_steps": 2, "lora_dropout": 0.1, "eval_fraction": 0.5, "eval_generate_examples": 40,
        "eval_on_start": "true",
    }  # fmt: skip
    straight = launch("train.py", flags | {"output_dir": tmp_path / "straight"})
    assert straight.code == 0, straight.err
    process = start(script("train.py", flags), tmp_path / "log")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ends_within(process, 20) == 143
    state = json.loads((tmp_path / "run" / "checkpoint-0" / "state.json").read_text())
    assert state["evaluation_due"] and not curve(tmp_path / "run", "eval/loss")
    for _ in range(2):  # the second finds the run finished
        assert launch("train.py", flags | {"resume_from_checkpoint": "latest"}).code == 0
    assert [step for step, _ in curve(tmp_path / "run", "eval/loss")] == [0, 2]
    for tag in ("eval/loss", "eval/token_accuracy", "train/loss", "train/num_tokens"):
        assert curve(tmp_path / "run", tag) == curve(tmp_path / "straight", tag)
    weights = [tmp_path / folder / "adapter" / "adapter_model.safetensors" for folder in ("run", "straight")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("processes", "receiver"), [(1, "launcher"), (2, "launcher"), (2, "second"), (2, "group")])
def test_launched_training_saves_one_checkpoint_and_leaves_no_orphan(long, tmp_path, processes, receiver, number):
    process = start(launch_command("train.py", long, processes), tmp_path / "log")
    wait_for(tmp_path / "log", "step 3/", process)
    if receiver == "group":  # as a terminal's Ctrl-C
        os.killpg(process.pid, number)
    elif receiver == "second":
        second = next(
            pid for pid in descendants(process.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
        )
        os.kill(second, number)
    else:
        process.send_signal(number)
    assert ends_within(process, 25) != 0
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert (checkpoint / "optimizer.pt").exists() and not list((tmp_path / "run").glob("incomplete-*"))
    text = (tmp_path / "log").read_text()
    assert f"{checkpoint} is complete; --resume_from_checkpoint latest goes on from it" in text
    assert "terminate called" not in text
    if processes == 2:  # one process's launcher ends before its script can say anything
        assert text.index("train.py: ") < text.find("Traceback") or "Traceback" not in text
    step = int(checkpoint.name.split("-")[1])
    resumed = launch("train.py", long | {"resume_from_checkpoint": "latest", "stop_after_steps": step + 1}, processes)
    assert resumed.code == 0 and f"after step {step}" in resumed.out, resumed.err


@pytest.mark.parametrize("seconds_later", [0, 2.5])
def test_a_second_interrupt_stops_at_once_if_it_is_not_the_first_one_passed_on(long, tmp_path, seconds_later):
    # slow steps
    long |= {"save_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 20}
    process = start(script("train.py", long), tmp_path / "log")
    wait_for(tmp_path / "log", "step 3/", process)
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path / "log", "train.py: SIGINT", process)
    os.kill(process.pid, signal.SIGSTOP)  # in the middle of its step
    time.sleep(seconds_later)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert ends_within(process, 20) == 130
    saved = sorted(int(path.name[11:]) for path in (tmp_path / "run").glob("checkpoint-*"))
    end = (tmp_path / "log").read_text().splitlines()[-1]
    if seconds_later:
        newest = tmp_path / "run" / f"checkpoint-{saved[-1]}"
        assert end == f"train.py: stopped by SIGINT: newest complete checkpoint: {newest}"
    else:
        assert saved[-1] >= 3 and "goes on from it" in end
    resumed = launch("train.py", long | {"resume_from_checkpoint": "latest", "stop_after_steps": saved[-1] + 1})
    assert resumed.code == 0 and f"after step {saved[-1]}" in resumed.out, resumed.err


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_evaluation_goes_on_where_it_was(flags, tiny_model, rows_file, tmp_path, processes):
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": tmp_path / "evaluation",
             "systems": "prompted", "eval_fraction": 1, "max_new_tokens": 60, "batch_tokens": 1,
             "no_call_examples": 0}  # fmt: skip
    command = script("evaluate.py", flags) if processes == 1 else launch_command("evaluate.py", flags, 2)
    process = start(command, tmp_path / "log")
    parts = tmp_path / "evaluation"
    deadline = time.monotonic() + 120
    while sum(path.read_text().count("\n") for path in parts.glob("predictions-*.jsonl")) < 5:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code = ends_within(process, 25)
    assert code == 143 if processes == 1 else code != 0
    text = (tmp_path / "log").read_text()
    assert "stopped by SIGTERM; what is predicted is kept: the same command goes on" in text
    assert "terminate called" not in text
    before = {path: path.read_text().splitlines() for path in parts.glob("predictions*.jsonl")}
    kept = {json.loads(line)["id"]: line for lines in before.values() for line in lines if line.endswith("}")}
    assert 5 <= len(kept) < 84
    done = launch("evaluate.py", flags, processes)
    assert done.code == 0, done.err
    after = {json.loads(line)["id"]: line for line in (parts / "predictions.jsonl").read_text().splitlines()}
    # its seconds too: not made again
    assert len(after) == 84 and all(after[row] == line for row, line in kept.items())


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "infer.py"])
def test_an_interrupt_while_the_libraries_load_is_one_line(name, tmp_path):
    process = start([sys.executable, name], tmp_path / "log")
    deadline = time.monotonic() + 60
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    *loading, line = (tmp_path / "log").read_text().splitlines()
    assert line == f"{name}: stopped by SIGINT" and loading[1:] == ["Loading PyTorch and transformers ..."]
