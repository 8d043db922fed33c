"""benchmarks.whole_experiment: its parts; how it goes on after a stop, and on another machine."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

COMMAND = [sys.executable, "-m", "benchmarks.whole_experiment"]
SMALL = "--shape tiny --steps 24 --save_steps 4 --train_rows 400 --eval_rows 4 --test_rows 3 --new_tokens 4".split()


def run(*flags):
    return subprocess.run([*COMMAND, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)


def read(work_dir):
    return json.loads((work_dir / "parts.json").read_text())


def test_a_wrong_argument_is_one_line(tmp_path):
    (tmp_path / "parts.json").write_text(json.dumps({"settings": {"steps": 3}}))
    for flags, words in ((["--steps", 0], "--steps must be above 0"), ([], "name another --work_dir")):
        done = run("--work_dir", tmp_path, *flags)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr


@pytest.mark.slow
def test_it_goes_on_after_a_stop_and_on_another_machine(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    process = subprocess.Popen([*COMMAND, *SMALL, "--work_dir", first], cwd=ROOT)
    deadline = time.monotonic() + 1200
    try:
        while not (first / "parts.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 128 + signal.SIGTERM
    stopped = read(first)["folders"]["train_from_0"]["steps"]
    assert 4 <= stopped < 24
    other.mkdir()
    (other / "parts.json").write_text((first / "parts.json").read_text())

    for work_dir in (first, other):
        done = run(*SMALL, "--work_dir", work_dir)
        assert done.returncode == 0 and "Not finished" not in done.stdout, done.stderr
        parts = read(work_dir)
        assert sum(folder["steps"] for folder in parts["folders"].values()) == 24
        assert set(parts["evaluate"]["systems"]) == {"raw", "prompted", "adapter"}
        assert all(seconds > 0 for seconds in parts["evaluate"]["systems"].values())
        for folder in parts["folders"].values():
            assert folder["training"] > 0 and folder["evaluations"] > 0 and folder["processes"][-1]["start"] > 0
    resumed, carried = read(first)["folders"], read(other)["folders"]
    # On the same machine from the checkpoint, and all seconds of both processes count.
    assert len(resumed["train_from_0"]["processes"]) == 2
    # On another machine the rest of the steps, and the first machine's seconds are kept.
    assert list(carried) == ["train_from_0", f"train_from_{stopped}"] and carried["train_from_0"]["steps"] == stopped
    before = read(first)
    assert "in all" in run(*SMALL, "--work_dir", first).stdout and read(first) == before  # the table alone
