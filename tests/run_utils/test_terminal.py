"""Bars on terminals, lines in files: through real pseudo-terminals and files."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT, launch_command

from run_utils import terminal

LOOP = """
from run_utils import terminal
terminal.SECONDS_BETWEEN_LINES = 0
for _ in terminal.progress(iter(range(3)), "Reading rows.jsonl", 3, mininterval=0):
    pass
"""


def on_terminal(command, columns=100):
    """The output of a command on a pseudo-terminal, and its exit code. 0 columns: without a
    size."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, cwd=ROOT, env=environment)
    os.close(side)
    output = b""
    try:
        while data := os.read(main, 65536):
            output += data
    except OSError:  # Linux's end of a pseudo-terminal
        pass
    os.close(main)
    return output.decode(), process.wait()


def in_file(command, path):
    with path.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    return path.read_text(), code


@pytest.mark.parametrize("columns", [0, 60, 100])
def test_a_terminal_has_a_bar_within_its_columns(columns):
    """Without a size, as under `script`, tqdm would draw an empty line."""
    output, code = on_terminal([sys.executable, "-c", LOOP], columns)
    frames = [frame.strip("\n") for frame in output.split("\r") if frame.strip()]
    assert code == 0 and "Reading rows.jsonl: 100%|" in frames[-1] and "3/3" in frames[-1]
    assert len(frames) >= 4 and max(map(len, frames)) <= (columns or 100)


def test_a_file_has_lines_and_no_bar(tmp_path):
    output, code = in_file([sys.executable, "-c", LOOP], tmp_path / "log")
    assert code == 0 and output.splitlines() == [
        f"Reading rows.jsonl: {number} of 3 rows, 0.0 min left" for number in (1, 2)
    ]


def test_without_a_total_a_line_has_the_number_alone(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0)
    assert list(terminal.progress(iter("ab"), "Reading")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["Reading: 1 rows", "Reading: 2 rows"]


def test_short_work_has_no_line_in_a_file(capsys):
    assert list(terminal.progress([1, 2], "Reading")) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "words"), [(30, "0.5 min"), (5999, "100.0 min"), (72_000, "20.0 h")])
def test_long_durations_are_in_hours(seconds, words):
    assert terminal.describe_seconds(seconds) == words


def test_the_next_command_can_be_typed(capsys):
    terminal.print_next("python", "evaluate.py", "--adapter", ROOT / "my runs" / "adapter")
    assert capsys.readouterr().out == f"Next: python evaluate.py --adapter '{ROOT}/my runs/adapter'\n"


@pytest.mark.slow
def test_a_launched_training_draws_its_bar_on_a_terminal_alone(flags, tmp_path):
    flags |= {"max_train_steps": 4, "eval_steps": 2, "eval_generate_examples": 2}
    output, code = on_terminal(launch_command("train.py", flags))
    assert code == 0, output
    frames = [frame.strip("\n") for frame in output.replace("\x1b[A", "").split("\r")]  # without cursor up
    assert [frame for frame in frames if "| 3/4 [00:" in frame and "  lr " in frame and frame.endswith(" left]")]
    lines = [frame for frame in frames if frame.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 2/4", "step 4/4"]  # of the evaluations
    assert max(map(len, [*lines, *(frame for frame in frames if "%|" in frame)])) <= 100

    output, code = in_file(launch_command("train.py", flags | {"output_dir": tmp_path / "other"}), tmp_path / "log")
    assert code == 0, output
    assert "\r" not in output and "%|" not in output
    assert [line.split("  ")[0] for line in output.splitlines() if line.startswith("step ")] == [
        *("step 1/4", "step 2/4", "step 2/4", "step 3/4", "step 4/4", "step 4/4")
    ]
