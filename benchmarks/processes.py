"""A measurement in a process of its own. Figures come as they are measured, the output goes to a
file, and an error is one line."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "MEASURED "  # begins a line of `report`: libraries print lines of JSON too
TAIL = 25  # lines of a failed process's output
GRACE = 60  # seconds to write a checkpoint
LATE = "stopped after "  # begins the error of a process that took too long


def report(**figures):
    """Called by the process: hand figures to `measure`."""
    print(f"\n{MARK}{json.dumps(figures)}", flush=True)


def measure(command, log, timeout, environment=None):
    """Run a command that calls `report`. Returns the list of its figures, printed as they come
    too, and its error as of `run_logged`."""
    found = []

    def read(line):
        if line.startswith(MARK):
            found.append(json.loads(line.removeprefix(MARK)))
            # A killed run keeps its measurements.
            print(json.dumps({log.stem: found[-1]}), flush=True)

    return found, run_logged(command, log, timeout, on_line=read, environment=environment)


def run_logged(command, log, timeout, on_line=lambda line: None, environment=None):
    """Run a command in the repository's root, its output in the file `log`. Returns None, or its
    error in one line; the log's last lines are then on stderr. After `timeout` seconds it gets a
    SIGTERM, and GRACE seconds later it is killed.

    on_line: called with each line of the output as it comes."""
    lines, late, ended = [], threading.Event(), threading.Event()

    def stop():
        late.set()
        send(process, signal.SIGTERM)
        ended.wait(GRACE) or send(process, signal.SIGKILL)

    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
            process_group=0,
        )  # fmt: skip
        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                lines.append(line.rstrip())
                on_line(line)
        except BaseException:  # Ctrl-C
            threading.Thread(target=stop).start()
            file.writelines(process.stdout)
            raise
        finally:
            timer.cancel()
            ended.set()
            send(process, signal.SIGKILL)  # what it has left
            process.wait()
    if not process.returncode and not late.is_set():
        return None
    print(f"--- the end of {log}", *lines[-TAIL:], "---", sep="\n", file=sys.stderr, flush=True)
    if late.is_set():
        return f"{LATE}{timeout:.0f} s"
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}"  # SIGKILL: perhaps out of memory
    ours = [line for line in lines if re.match(r"\w+\.py: ", line)]  # a launcher's traceback may follow it
    return ([f"exit code {process.returncode}"] + [line for line in lines if line] + ours)[-1]


def send(process, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
