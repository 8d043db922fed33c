"""The processes of a sweep: one on each slot of the machine, logged and stopped together."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from run_utils import journal
from run_utils.arguments import ROOT
from run_utils.cores import cores_of_process
from run_utils.errors import say
from run_utils.files import is_locked
from run_utils.redaction import redact_command
from run_utils.signals import Stopped
from run_utils.terminal import describe_seconds

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_SAVE = 600  # for the processes of a killed sweep


class Slot(NamedTuple):
    """A place for one process."""

    label: str
    environment: dict  # variables of its process

    @property
    def is_gpu(self):
        return "CUDA_VISIBLE_DEVICES" in self.environment


class Job(NamedTuple):
    """A process of a sweep: a part ("train", "evaluate") of a run."""

    run: str
    part: str
    command: list  # a script and its flags
    result: Path  # a file of its folder, there once it is done

    @property
    def folder(self):
        return self.result.parent


def find_slots(runs_per_gpu):
    """The machine's Slots: `runs_per_gpu` on each GPU or, without a GPU, on the CPU, whose cores
    they share."""
    import torch  # late: see the scripts

    gpus = [str(index) for index in range(torch.cuda.device_count())]
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES"):
        gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")[: len(gpus)]
    places = [(f"GPU {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus] or [("the CPU", {})]
    slots = places * runs_per_gpu  # the first runs are on different GPUs
    threads = {}
    if len(slots) > 1 and "OMP_NUM_THREADS" not in os.environ:  # otherwise each process takes all cores
        threads = {"OMP_NUM_THREADS": str(max(1, cores_of_process() // len(slots)))}
    return [Slot(label, environment | threads) for label, environment in slots]


class Processes:
    """Runs the jobs of a sweep in its folder.

    The folder's sweep.jsonl has a line for each ended process; logs/ has their outputs.
    environment: variables for all processes."""

    def __init__(self, folder, slots, environment):
        self.folder, self.slots, self.environment = folder, slots, environment
        self.journal = folder / "sweep.jsonl"
        self.ended = list(journal.read(self.journal)) if self.journal.exists() else []
        self.failed = {}  # {run: message}
        (folder / "logs").mkdir(exist_ok=True)

    def is_done(self, job):
        """Whether the same command has ended well, with no later training of its run."""
        for entry in reversed(self.ended):
            if entry["run"] == job.run and entry["code"] == 0:
                if entry["part"] == job.part:
                    return entry["command"] == redact_command(job.command) and job.result.exists()
                if entry["part"] == "train":
                    return False
        return False

    def seconds(self, run, part):
        """Of all processes of a run's part, killed ones included."""
        return sum(entry["seconds"] for entry in self.ended if (entry["run"], entry["part"]) == (run, part))

    def parts(self):
        """`{part: {"processes", "seconds"}}` of all processes so far."""
        found = {}
        for entry in self.ended:
            part = found.setdefault(entry["part"], {"processes": 0, "seconds": 0.0})
            part["processes"] += 1
            part["seconds"] += entry["seconds"]
        return found

    def describe_parts(self):
        parts = self.parts().items()
        return "; ".join(
            f"{part}: {of['processes']} process{'es' * (of['processes'] != 1)}, {of['seconds']:.0f} s"
            for part, of in parts
        )

    def work(self, jobs, follow=lambda job: (), coming=()):
        """Run the jobs, as many at a time as there are slots. A failed run is noted and ends no
        other. On a signal the processes save and end, and Stopped is raised.

        follow: a function of a finished job, returns the jobs to do next. coming: the parts to
        follow, for the time left."""
        waiting, running, free = deque(jobs), {}, list(self.slots)
        parts = [job.part for job in waiting] + list(coming)
        total = len(parts)
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.popleft()
                    if self.is_done(job):
                        parts.remove(job.part)
                        say(f"{job.run}: {job.part}: done before")
                        waiting.extendleft(reversed(follow(job)))
                    else:
                        slot = free.pop(0)
                        running[self.start(job, slot)] = job, slot, time.monotonic()
                for process in [process for process in running if process.poll() is not None]:
                    job, slot, started = running.pop(process)
                    free.append(slot)
                    parts.remove(job.part)
                    is_well = self.end(job, process.returncode, time.monotonic() - started)
                    following = follow(job)
                    if is_well:
                        waiting.extendleft(reversed(following))
                    else:
                        for lost in following:
                            parts.remove(lost.part)
                    done = f" ({total - len(parts)} of {total} processes done{self.time_left(parts)})"
                    say(f"{job.run}: {job.part}: {self.describe(job)}{done}")
                if running:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
        except Stopped:
            self.stop(running)
            raise

    def start(self, job, slot):
        wait_until_free(job.folder)
        log = (self.folder / "logs" / f"{job.run}-{job.part}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, str(ROOT / job.command[0]), *job.command[1:]],
            env=os.environ | self.environment | slot.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the sweep alone
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        log.close()
        say(f"{job.run}: {job.part} on {slot.label} ...")
        return process

    def end(self, job, code, seconds):
        """Note the end of a process; returns whether it was well."""
        entry = {"run": job.run, "part": job.part, "code": code, "seconds": seconds}
        entry["command"] = redact_command(job.command)
        self.ended.append(entry)
        journal.append(self.journal, [entry])
        if code == 0:
            self.failed.pop(job.run, None)
        else:
            self.failed[job.run] = f"{job.part} ended with {code}: {self.last_line(job)}"
        return code == 0

    def describe(self, job):
        if job.run in self.failed:
            return f"FAILED, {self.failed[job.run]}"
        return f"{describe_seconds(self.ended[-1]['seconds'])}"

    def last_line(self, job):
        path = self.folder / "logs" / f"{job.run}-{job.part}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        errors = [line for line in lines if ": error: " in line] or [line for line in lines if line.strip()]
        return f"{errors[-1] if errors else 'no output'} ({path})"

    def time_left(self, parts):
        """In words, from the mean seconds of the successful processes."""
        if not parts:
            return ""
        total, known = 0.0, True
        for part in set(parts):
            seconds = [entry["seconds"] for entry in self.ended if entry["part"] == part and entry["code"] == 0]
            known = known and bool(seconds)
            total += parts.count(part) * (sum(seconds) / len(seconds) if seconds else 0)
        return f"; {'' if known else 'over '}{describe_seconds(total / len(self.slots))} left"

    def stop(self, running):
        """End the processes: a training saves a checkpoint first. Another signal kills them."""
        say(f"Stopping {len(running)} process{'es' * (len(running) != 1)}: trainings save a checkpoint first")
        for process in running:
            process.terminate()
        try:
            for process, (job, _, started) in running.items():
                code = process.wait()
                self.end(job, code, time.monotonic() - started)
        except Stopped:
            for process in running:
                process.kill()
            raise


def die_with_parent():
    """In a new process: have the kernel send it SIGTERM if the sweep is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def wait_until_free(folder):
    """Wait until a killed sweep's process no longer saves in a folder. Waits SECONDS_TO_SAVE at
    most: then the next script refuses the folder."""
    if is_locked(folder):
        say(f"{folder}: waiting for the process at work there ...")
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while is_locked(folder) and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
