"""How a script ends: what a user can put right is one line and an exit code."""

import errno
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from run_utils.redaction import redact
from run_utils.signals import Stopped, handle_signals, raise_stopped

LOST = ("DistBackendError", "DistNetworkError", "DistStoreError")  # torch's, where another process does not answer


# How long a process sleeps between its last message to the others and its end. A thread of gloo's that still drops the tensors of that
# message waits for Python's lock, and where Python (3.11) ends while a thread waits, the process aborts: "terminate called without
# an active exception", up to every second time. Asleep, this thread does not hold the lock. Seen in torch 2.13.
SECONDS_OF_LAST_MESSAGES = 0.2


class UserError(Exception):
    """A failure that the user can put right. The message is one line: what is wrong, and what to do."""


class UsageError(UserError):
    """Wrong arguments: like UserError, but the script exits with 2 instead of 1."""


def run_script(main, if_stopped=""):
    """Returns `main()`; turns what the user can put right into one line on stderr and an exit code: 1, 2 or 128 + signal.

    if_stopped: what to say after a signal or a full disk.
    """
    name = Path(sys.argv[0]).name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it offers a faster CPU kernel from the hub
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' to each other, not the user's
    # Examples hold any text, terminals do not. Each line is there when it is printed, in a file too.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    restore_signals = handle_signals(raise_stopped)
    try:
        return main()
    except UserError as error:
        code, message = (2 if isinstance(error, UsageError) else 1), f"{name}: error: {error}"
    except Stopped as stopped:
        code, message = 128 + stopped.number, f"{name}: {stopped}" + f"; {if_stopped}" * bool(if_stopped)
    except BrokenPipeError:  # the reader of our stdout, `head` say, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, message = 1, ""
    except OSError as error:
        if not error.strerror:  # not the system's: a library's own, of a connection say
            raise
        where = f"{error.filename}: " if error.filename else ""
        code, message = 1, f"{name}: error: {where}{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += ": make room first" + f"; {if_stopped}" * bool(if_stopped)
    except RuntimeError as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which wrong arguments need not wait for
            code, message = 1, f"{name}: error: {first_line} Lower the batch size or --max_seq_length."
        elif type(error).__name__ in LOST or "/gloo/" in first_line:
            cause = [line for line in str(error).splitlines() if line.strip()][-1]  # NCCL's own is its last
            again = "launch all again, a training with --resume_from_checkpoint latest"
            code, message = 1, f"{name}: error: lost another process, or the network failed ({cause}): {again}"
        else:
            raise
    finally:
        restore_signals()
    is_main = os.environ.get("RANK", "0") == "0"
    if not is_main and code <= 128:
        time.sleep(10)  # main has usually met the same error: the launcher stops us before we repeat it
    if message and (is_main or code <= 128):  # of a signal main alone says it
        try:
            print(" ".join(redact(message).split("\n")), file=sys.stderr, flush=True)
        except OSError:  # its reader is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        handle_signals(signal.SIG_IGN)  # launchers pass on what this process has had already
        time.sleep(SECONDS_OF_LAST_MESSAGES)
    sys.exit(code)


def say(message):
    """A line for the user beside a script's results: on stderr, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(redact(message), file=sys.stderr, flush=True)


def require(condition, message):
    if not condition:
        raise UsageError(message)
