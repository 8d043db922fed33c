"""Threads, precision and exit of processes under `accelerate launch`."""

import os
import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState
from conftest import ROOT

from run_utils.errors import UserError
from run_utils.launch import start_accelerator, threads_were_chosen

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
SCRIPT = """
import os, torch
from run_utils.launch import start_accelerator, threads_were_chosen
start_accelerator("fp32")
os.write(1, b"%d\\n" % torch.get_num_threads())  # one write: two processes' prints can mix
"""


@pytest.fixture
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accumulation_is_the_loop_s_whatever_the_launch_file_has(monkeypatch, fresh_state):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert start_accelerator("fp32").gradient_accumulation_steps == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only there are the cores of a process known")
@pytest.mark.parametrize(("processes", "threads"), [("1", 6), ("2", 3), ("8", 1)])
def test_processes_share_the_cores_that_they_may_use(monkeypatch, fresh_state, processes, threads):
    chosen = []
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(40 if pid else 6)))
    monkeypatch.setattr("os.cpu_count", lambda: 40)
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    start_accelerator("fp32")
    assert chosen[-1] == threads


@pytest.mark.skipif(sys.platform != "linux", reason="reads the launcher's command line")
@pytest.mark.parametrize(
    ("environment", "flags", "were_chosen"),
    [({}, [], False), ({"OMP_NUM_THREADS": "1"}, [], True), ({}, ["--num_cpu_threads_per_process=1"], True)],
)
def test_one_thread_is_a_wish_if_the_launcher_was_told_so(monkeypatch, environment, flags, were_chosen):
    command = [sys.executable, "-c", "print(flush=True); input()", *flags]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # by the launcher
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as launcher:
        launcher.stdout.readline()  # Popen returns before /proc has the new environment
        monkeypatch.setattr("os.getppid", lambda: launcher.pid)
        assert threads_were_chosen() is were_chosen
        launcher.communicate("\n")


@pytest.mark.parametrize(
    "settings",
    [
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
    ],
)
def test_offloading_and_other_parallelism_are_refused_with_the_file_that_is_read(monkeypatch, fresh_state, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="offloading or another parallelism: use accelerate_configs/fsdp2"):
        start_accelerator("fp32", may_shard=True)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or CORES == 1, reason="reads the launcher's command line; one thread is all there is"
)
@pytest.mark.parametrize(
    ("launcher", "environment", "threads"),
    [
        ([], {}, CORES),
        ([], {"OMP_NUM_THREADS": "1"}, 1),
        (["--num_cpu_threads_per_process=1"], {}, 1),
        (["--num_processes=2"], {}, CORES // 2),
    ],
)
def test_threads_are_all_cores_or_the_number_set(tmp_path, launcher, environment, threads):
    """torch's launcher defaults to one thread for several processes, which the script overrides."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    config = "cpu_2proc.yaml" if "--num_processes=2" in launcher else "cpu.yaml"
    done = launch_script(tmp_path, config, launcher, clean | environment)
    assert done.stdout.split() == [str(threads)] * (2 if launcher == ["--num_processes=2"] else 1), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_unused_launcher_precision_is_reported_once(tmp_path, precision):
    done = launch_script(tmp_path, "cpu_2proc.yaml", [f"--mixed_precision={precision}"], os.environ)
    lines = [line for line in done.stderr.splitlines() if "--dtype decides (fp32 here)" in line]
    assert len(lines) == (precision == "bf16") and len(done.stdout.split()) == 2, done.stderr


REFUSED = """
from accelerate.utils import gather_object
from run_utils.errors import UserError, run_script
from run_utils.launch import start_accelerator, threads_were_chosen

def main():
    start_accelerator("fp32")
    for _ in range(20):
        gather_object([0])
    raise UserError("refused")

run_script(main)
"""


@pytest.mark.slow
def test_an_error_right_after_a_message_does_not_abort(tmp_path):
    """A gloo thread waiting for the GIL at exit aborted the process in almost half of the runs."""
    for _ in range(6):
        done = launch_script(tmp_path, "cpu_2proc.yaml", [], os.environ, REFUSED)
        assert done.returncode == 1 and "script.py: error: refused" in done.stderr
        assert "terminate called" not in done.stderr and "exitcode: 1" in done.stderr, done.stderr


def launch_script(folder, config, launcher, environment, text=SCRIPT):
    """Run `accelerate launch` on a script with one of our launch files and more flags."""
    script = folder / "script.py"
    script.write_text(text)
    command = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
    config = ["--config_file", ROOT / "accelerate_configs" / config]
    environment = environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *config, *launcher, script], env=environment, capture_output=True, text=True)
