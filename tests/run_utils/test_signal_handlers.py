"""Signals of a process by itself; those of a run: tests/test_signals.py."""

import signal
import subprocess
import sys

from conftest import ROOT

from run_utils.signals import SIGNALS, handle_signals

TWICE = """
import os, signal
from run_utils import signals

class Accelerator:
    num_processes = 1

signals.SECONDS_BETWEEN = -1
request = signals.StopRequest(Accelerator(), lambda: "checkpoint-3")
request.check()
os.kill(os.getpid(), signal.SIGINT)
try:
    request.check()
    raise SystemExit("no signal")
except signals.Stopped as stopped:
    assert stopped.number == signal.SIGINT
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit("still there")
"""
AT_ONCE = """
import os, signal
from run_utils import signals
signals.handle_signals(signals.exit_at_once)
os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit("still there")
"""


def run(script):
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, [line.partition(": ")[2] for line in done.stderr.splitlines()]


def test_the_first_ctrl_c_waits_for_the_step_and_the_second_names_the_checkpoint_and_ends_the_process():
    assert run(TWICE) == (
        128 + signal.SIGINT,
        [
            "SIGINT: the step is finished and a checkpoint saved first; Ctrl-C again stops at once",
            "stopped by SIGINT: newest complete checkpoint: checkpoint-3",
        ],
    )


def test_a_signal_before_the_first_step_ends_the_process_with_a_line():
    assert run(AT_ONCE) == (128 + signal.SIGTERM, ["stopped by SIGTERM"])


def test_the_former_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    put_back = handle_signals(lambda number, frame: None)
    assert [signal.getsignal(number) for number in SIGNALS] != before
    put_back()
    assert [signal.getsignal(number) for number in SIGNALS] == before
