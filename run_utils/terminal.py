"""The progress of long work (bars on terminals, plain lines in files and pipes), and the command to
type next."""

import os
import shlex
import shutil
import sys
import time

from tqdm import tqdm

from run_utils.errors import say

SECONDS_BETWEEN_LINES = 30


def shows_bars(file=None):
    """Whether this process draws bars: the main process, if the file (default: stderr) is a
    terminal."""
    return os.environ.get("RANK", "0") == "0" and (file or sys.stderr).isatty()


def bar(items=None, *, file=None, **options):
    """tqdm's bar. It is hidden if this process draws no bars."""
    file = file or sys.stderr
    hidden = not shows_bars(file)
    size = {"dynamic_ncols": True}
    # A pseudo-terminal can have no size, for example under `script`. tqdm would draw an empty line.
    if not hidden and os.get_terminal_size(file.fileno()).columns == 0:
        size = dict(zip(("ncols", "nrows"), shutil.get_terminal_size((100, 24)), strict=True))
    return tqdm(items, disable=hidden, file=file, **size, **options)


def progress(items, title, total=None, unit="row", *, file=None, **options):
    """Yields the items under a bar. Without bars, prints a line on stderr every
    SECONDS_BETWEEN_LINES.

    total: the number of items, by default `len(items)` if there is a length. options: tqdm's."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if shows_bars(file):
        with bar(items, file=file, desc=title, total=total, unit=unit, **options) as shown:
            yield from shown
        return
    started = printed = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - printed >= SECONDS_BETWEEN_LINES and number != total:
            printed = now
            left = f", {describe_seconds((now - started) / number * (total - number))} left" if total else ""
            say(f"{title}: {number:,}{f' of {total:,}' if total else ''} {unit}s{left}")


def print_next(*words):
    """Print the command to type next, the last line of a script."""
    print(f"Next: {shlex.join(map(str, words))}")


def describe_seconds(seconds):
    """A duration in minutes, or in hours beyond 100 minutes."""
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
