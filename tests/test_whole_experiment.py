"""benchmarks.whole_experiment refuses wrong arguments in one line, and finishes a stopped run."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

COMMAND = [sys.executable, "-m", "benchmarks.whole_experiment"]


def run(*flags):
    return subprocess.run([*COMMAND, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)


def test_a_wrong_argument_is_one_line(tmp_path):
    (tmp_path / "parts.json").write_text(json.dumps({"settings": {"steps": 3}}))
    for flags, words in ((["--steps", 0], "--steps must be above 0"), ([], "name another --work_dir")):
        done = run("--work_dir", tmp_path, *flags)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr


@pytest.mark.slow
def test_a_stop_after_the_last_step_leaves_the_end_to_the_next_call(tmp_path):
    flags = ["--shape", "tiny", "--steps", 4, "--save_steps", 2, "--train_rows", 200, "--eval_rows", 4]
    flags += ["--test_rows", 2, "--new_tokens", 4, "--work_dir", tmp_path]
    assert run(*flags, "--minutes", 1e-9).returncode == 0  # makes the inputs
    assert "evaluate.py: adapter" in run(*flags).stdout
    # As a signal in the last step leaves it: a checkpoint without the run's end.
    shutil.rmtree(tmp_path / "train_from_0" / "adapter")
    shutil.rmtree(tmp_path / "evaluation")
    parts = json.loads((tmp_path / "parts.json").read_text())
    parts["evaluate"] = {"processes": 0.0, "systems": {}}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    done = run(*flags)
    assert done.returncode == 0 and "evaluate.py: adapter" in done.stdout, done.stderr
    assert json.loads((tmp_path / "parts.json").read_text())["folders"] == parts["folders"]
