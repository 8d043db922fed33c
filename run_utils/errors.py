"""The end of a script: one line and an exit code for a failure that the user can fix."""

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

# Errors of torch if another process does not answer.
LOST = ("DistBackendError", "DistNetworkError", "DistStoreError")
# The time of a process's sleep between its last message to the others and its end. A gloo thread
# still frees the message's tensors, and waits for Python's lock. If Python (3.11) ends while a
# thread waits, the process aborts with "terminate called without an active exception", up to every
# second time. A sleeping process does not hold the lock. Seen in torch 2.13.
SECONDS_OF_LAST_MESSAGES = 0.2


class UserError(Exception):
    """A failure that the user can fix. The message is one line: the problem, and the remedy."""


class UsageError(UserError):
    """Wrong arguments: like UserError, but the script exits with 2 instead of 1."""


def run_script(main, if_stopped=""):
    """Return `main()`. A UserError, a signal or a full disk becomes one line on stderr and an exit
    code: 1, 2 or 128 + signal.

    if_stopped: advice after a signal or a full disk."""
    name = Path(sys.argv[0]).name
    # It advertises a faster CPU kernel from the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # These warnings are for the libraries' developers.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Examples have any text, and terminals cannot print all of it. Lines reach a file at once too.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    restore_signals = handle_signals(raise_stopped)
    try:
        return main()
    except UserError as error:
        code, message = (2 if isinstance(error, UsageError) else 1), f"{name}: error: {error}"
    except Stopped as stopped:
        code, message = 128 + stopped.number, f"{name}: {stopped}" + f"; {if_stopped}" * bool(if_stopped)
    except BrokenPipeError:  # stdout's reader, for example `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, message = 1, ""
    except OSError as error:
        if not error.strerror:  # a library's own error, for example of a connection
            raise
        where = f"{error.filename}: " if error.filename else ""
        code, message = 1, f"{name}: error: {where}{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += ": make room first" + f"; {if_stopped}" * bool(if_stopped)
    except RuntimeError as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        # Compared by name: wrong arguments must not wait for torch's import.
        if type(error).__name__ == "OutOfMemoryError":
            advice = "Lower --batch_tokens; in training the batch size or --max_seq_length."
            code, message = 1, f"{name}: error: {first_line} {advice}"
        elif type(error).__name__ in LOST or "/gloo/" in first_line:
            # NCCL's own error is the last line.
            cause = [line for line in str(error).splitlines() if line.strip()][-1]
            again = "launch all again, a training with --resume_from_checkpoint latest"
            code, message = 1, f"{name}: error: lost another process, or the network failed ({cause}): {again}"
        else:
            raise
    finally:
        restore_signals()
    is_main = os.environ.get("RANK", "0") == "0"
    if not is_main and code <= 128:
        # The main process usually has the same error, and its launcher stops this process before it
        # prints it too.
        time.sleep(10)
    if message and (is_main or code <= 128):  # after a signal only main prints
        try:
            print(" ".join(redact(message).split("\n")), file=sys.stderr, flush=True)
        except OSError:  # stderr's reader has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        handle_signals(signal.SIG_IGN)  # launchers repeat a signal already received
        time.sleep(SECONDS_OF_LAST_MESSAGES)
    sys.exit(code)


def say(message):
    """Print a line for the user beside a script's results: on stderr, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(redact(message), file=sys.stderr, flush=True)


def one_line(value):
    return " ".join(str(value).split())


def describe_error(error):
    """An exception's type and at most 300 characters of its text, on one line."""
    text = one_line(error)
    return f"{type(error).__name__}: {text[:300]}{'...' * (len(text) > 300)}"


def require(condition, message):
    if not condition:
        raise UsageError(message)
