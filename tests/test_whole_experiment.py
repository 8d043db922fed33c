"""benchmarks.whole_experiment refuses wrong arguments in one line."""

import json
import subprocess
import sys

from conftest import ROOT

COMMAND = [sys.executable, "-m", "benchmarks.whole_experiment"]


def run(*flags):
    return subprocess.run([*COMMAND, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)


def test_a_wrong_argument_is_one_line(tmp_path):
    (tmp_path / "parts.json").write_text(json.dumps({"settings": {"steps": 3}}))
    for flags, words in ((["--steps", 0], "--steps must be above 0"), ([], "name another --work_dir")):
        done = run("--work_dir", tmp_path, *flags)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr
