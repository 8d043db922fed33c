"""SIGTERM and SIGINT: they end a script while its libraries load, raise Stopped afterwards, and in
a training loop wait for the end of the optimizer step. Imports nothing heavy: scripts import this
module first."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers repeat a terminal's signal, which all processes already have. Only a signal this much
# later is a second Ctrl-C.
SECONDS_BETWEEN = 2.0


class Stopped(BaseException):
    """A signal asked the script to stop. Like KeyboardInterrupt it is not an Exception, so that no
    library catches it.

    number: the signal. message: the state left behind, and how to continue."""

    def __init__(self, number, message=""):
        super().__init__(f"stopped by {signal.Signals(number).name}" + f": {message}" * bool(message))
        self.number = number


def handle_signals(handler):
    """Call `handler(number, frame)` for both signals. Returns a function that restores the old
    handlers."""
    before = [signal.signal(number, handler) for number in SIGNALS]
    return lambda: [signal.signal(number, old) for number, old in zip(SIGNALS, before, strict=True)]


def exit_at_once(number, frame):
    write_line(Stopped(number))
    os._exit(128 + number)


def raise_stopped(number, frame):
    raise Stopped(number)


def write_line(message):
    """Print a line on stderr, from the main process only. Bypasses Python's buffers, which the
    signal may have interrupted."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # stderr's reader, for example `tee`, has ended
            os.write(2, f"{Path(sys.argv[0]).name}: {message}\n".encode())


class StopRequest:
    """From its creation on, both signals wait for `check`. A second Ctrl-C, seconds later, ends the
    process."""

    def __init__(self, accelerator, checkpoint):
        self.accelerator = accelerator
        self.checkpoint = checkpoint  # a function that returns the newest complete one
        self.number = 0  # the signal received, by this process or another one
        self.since = None  # the time of this process's first signal
        self.in_flight = None  # the previous check's result, on its way from the GPU
        handle_signals(self.receive)

    def receive(self, number, frame):
        if self.since is None:
            self.number, self.since = self.number or number, time.monotonic()
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            write_line(f"{signal.Signals(number).name}: the step is finished and a checkpoint saved first{again}")
        elif number == signal.SIGINT and time.monotonic() - self.since > SECONDS_BETWEEN:
            write_line(Stopped(number, f"newest complete checkpoint: {self.checkpoint() or 'none'}"))
            os._exit(128 + number)

    def check(self, wait=False):
        """Raise Stopped, on all processes at once, if one of them has received a signal. All
        processes call this equally often.

        wait: include signals up to this call. Otherwise several GPUs include signals up to the
        previous call, without a wait."""
        if number := self.agreed(wait):
            self.number = number
            raise Stopped(number)

    def agreed(self, wait):
        if self.accelerator.num_processes == 1:
            return self.number
        import torch  # late: see the module's docstring

        # Created on the device: a copy from the CPU would wait for all queued work of the GPU.
        flag = torch.full((), self.number, device=self.accelerator.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if wait or flag.device.type != "cuda":
            return flag.item()
        previous = self.in_flight
        self.in_flight = flag.to("cpu", non_blocking=True), torch.cuda.Event()
        self.in_flight[1].record()
        if previous is None:
            return 0
        previous[1].synchronize()
        return previous[0].item()
