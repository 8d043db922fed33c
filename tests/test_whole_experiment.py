"""benchmarks.whole_experiment: its parts; how it goes on after a stop, and on another machine."""

import json
import subprocess
import sys

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
