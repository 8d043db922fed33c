"""A process that loads the four scripts once and forks for each job, without the seconds of the
imports.

A line on stdin is a JSON list of jobs. Its answer, a line on stdout, is the list of their results,
in the same order. A job:
    {"folder": its working folder, which gets `stdout`, `stderr` and `network`,
     "script": "train.py", "argv": [...], "seconds": limit,
     "command": None, or a command line to start instead of the script's own `main`}
A result:
    {"code": exit code, negative for a signal, "seconds": ..., "timed_out": ..., "peak": GiB}
"""

import atexit
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MEMORY = 8 * 2**30  # bytes a job may take
AT_ONCE = 2  # jobs


def load_scripts():
    sys.path.insert(0, str(ROOT))
    scripts = {f"{name}.py": importlib.import_module(name) for name in ("train", "evaluate", "infer", "export")}
    # The scripts load these late.
    late = "peft bitsandbytes datasets openai pyarrow.parquet scipy.optimize scipy.stats"
    for name in (*late.split(), "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)
    return scripts


def start(job, scripts):
    """Fork; the child never returns. Returns the child's process id."""
    if pid := os.fork():
        return pid
    os.setsid()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(job["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ["NETWORK_LOG"] = f"{job['folder']}/network"
    if job["command"]:
        os.execv(job["command"][0], job["command"])
    faulthandler.enable()
    faulthandler.dump_traceback_later(job["seconds"] * 0.9)  # of one that hangs, the place
    sys.argv = [job["script"], *job["argv"]]
    code = 0
    try:
        script = scripts[job["script"]]
        script.run_script(lambda: script.main(script.parse()))
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(jobs, scripts):
    results, running, waiting = [None] * len(jobs), {}, list(reversed(range(len(jobs))))
    while running or waiting:
        while waiting and len(running) < AT_ONCE:
            place = waiting.pop()
            running[start(jobs[place], scripts)] = place, time.monotonic(), set()
        time.sleep(0.01)
        for pid, (place, since, late) in list(running.items()):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            seconds = time.monotonic() - since
            if not ended and seconds > jobs[place]["seconds"]:
                os.killpg(pid, signal.SIGKILL)
                late.add(pid)
            if ended:
                running.pop(pid)
                results[place] = {
                    "code": os.waitstatus_to_exitcode(status),
                    "seconds": round(seconds, 2),
                    "timed_out": bool(late),
                    "peak": round(usage.ru_maxrss / 2**20, 2),
                }
    return results


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    loaded = load_scripts()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), loaded)), file=answers, flush=True)
