"""One process of `accelerate launch`, and its messages to the other processes."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, gather_object

from run_utils.cores import cores_of_process
from run_utils.errors import SECONDS_OF_LAST_MESSAGES, UserError, say
from run_utils.launch_file import check_engine


def start_accelerator(dtype, may_shard=False, alone=False):
    """The Accelerator for `--dtype` auto, bf16 or fp32, whatever mixed precision the launch file
    names.

    Its gradient accumulation stays at 1, whatever the launch file has: the loop scales the loss.
    Raises UserError if the launch file names an engine that this script cannot use. may_shard:
    whether it can use FSDP2. alone: whether it needs a single process."""
    follow_launcher()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if alone and launched > 1:
        raise UserError("this script works in one process: start it with python, without accelerate launch")
    check_engine(may_shard)
    # The default is on: some processes would then load empty weights, and only Accelerate would
    # send them the rest.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
    if dtype == "auto":
        native = not use_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bf16" if native else "fp32"
    accelerator = Accelerator(
        # With MULTI_GPU and use_cpu in the launch file, each process would train alone without
        # this.
        cpu=use_cpu,
        mixed_precision="bf16" if dtype == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", accelerator.mixed_precision):
        say(f"The launch file's mixed_precision {asked} is not used: --dtype decides ({dtype} here)")
    if not accelerator.is_main_process:
        accelerator.print = lambda *text: None  # Accelerate's own prints once on each machine
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched but {accelerator.num_processes} work together: "
            "launch with one of the files in accelerate_configs/"
        )
    if use_cpu and not threads_were_chosen():
        torch.set_num_threads(cores_of_process())
    return accelerator


def threads_were_chosen():
    """Whether the user has chosen a number of threads per process. Otherwise launchers set 1."""
    if os.environ.get("OMP_NUM_THREADS", "1") != "1" or sys.platform != "linux":
        return "OMP_NUM_THREADS" in os.environ
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # started by hand
        return "OMP_NUM_THREADS" in os.environ
    launcher = Path("/proc") / str(os.getppid())
    try:
        environment, command = (launcher / name for name in ("environ", "cmdline"))
        return b"\0OMP_NUM_THREADS=" in b"\0" + environment.read_bytes() or b"num_cpu_threads" in command.read_bytes()
    except OSError:
        return False


def follow_launcher():
    """Have the kernel stop this process when its launcher dies. `accelerate launch` alone would
    leave it an orphan."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or sys.platform != "linux":
        return  # started by hand
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != launcher:  # it died before the call above
        sys.exit(128 + signal.SIGTERM)


def end_training(accelerator):
    """Leave the group of processes after this process's last message to the others."""
    # Leaving the group holds Python's lock and waits for the group's threads. A thread that waits
    # for the lock would never end.
    time.sleep(SECONDS_OF_LAST_MESSAGES if accelerator.num_processes > 1 else 0)
    accelerator.end_training()


def raise_anywhere(problem):
    """Raise a process's problem (a text, "" if there is none) on all processes. A process that
    continued alone would wait for the others forever."""
    for message in gather_object([problem]):
        if message:
            raise UserError(message)


def check_alike(settings):
    """Raise UserError on all processes if their `settings`, `{name: value}`, differ: each process
    would train its own model, or wait for the others forever."""
    everywhere = gather_object([settings])
    for name, value in everywhere[0].items():
        for process, other in enumerate(everywhere):
            if other.get(name) != value:
                raise UserError(
                    f"the processes differ in {name}: {value} on process 0, {other.get(name)} on process {process}"
                )


def run_on_main(accelerator, act):
    """Call `act()` on the main process while the others wait. Its UserError or OSError is raised on
    all processes."""
    error = None
    if accelerator.is_main_process:
        try:
            act()
        except (UserError, OSError) as caught:
            error = caught
    for main_error in gather_object([error]):
        if main_error:
            raise main_error from None
