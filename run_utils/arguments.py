"""A script's dataclass becomes its flags, its recipes and its --help; what a user can put right ends in one line."""

import argparse
import dataclasses
import difflib
import errno
import logging
import math
import operator
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from run_utils.redaction import redact
from run_utils.signals import Stopped, handle_signals, raise_stopped

ROOT = Path(__file__).resolve().parent.parent
# About this invocation, not about the experiment: never written to args.yaml, so that it can be passed to --config.
INVOCATION = ("config", "overwrite_output_dir", "resume_from_checkpoint")
LOST = ("DistBackendError", "DistNetworkError", "DistStoreError")  # torch's, where another process does not answer
# How long a process sleeps between its last message to the others and its end. A thread of gloo's that still drops the tensors of that
# message waits for Python's lock, and where Python (3.11) ends while a thread waits, the process aborts: "terminate called without
# an active exception", up to every second time. Asleep, this thread does not hold the lock. Seen in torch 2.13.
SECONDS_OF_LAST_MESSAGES = 0.2
MOST_VALUES = 100_000  # in a YAML file
LIMITS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}


class UserError(Exception):
    """A failure that the user can put right. The message is one line: what is wrong, and what to do."""


class UsageError(UserError):
    """Wrong arguments: like UserError, but the script exits with 2 instead of 1."""


def argument(default=dataclasses.MISSING, help=None, *, group=None, free_on_resume=False, **options):
    """A field of a script's dataclass: one flag, with all that is to know about it.

    group: the heading of --help that starts with this flag. free_on_resume: a resumed run may change it without becoming
    another experiment. options: limits on its value (above, at_least, below, at_most; see check_limits), and `inherited`,
    which evaluate.py reads.
    """
    metadata = {"help": help, "group": group, "free_on_resume": free_on_resume, **options}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def run_script(main, if_stopped=""):
    """Run `main`; turn what the user can put right into one line on stderr and an exit code: 1, 2 or 128 + signal.

    if_stopped: what to say after a signal or a full disk.
    """
    name = Path(sys.argv[0]).name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it offers a faster CPU kernel from the hub
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' to each other, not the user's
    # Examples hold any text, terminals do not. Each line is there when it is printed, in a file too.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    restore_signals = handle_signals(raise_stopped)
    try:
        main()
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
    else:
        return
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


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the examples, and shows defaults."""


class OneLineParser(HfArgumentParser):
    """HfArgumentParser whose --help has the dataclass's groups, and whose errors are one line that names their recipe."""

    source = ""
    group = None

    def add_argument(self, *flags, **options):
        metadata = {name: options.pop(name, None) for name in ("group", "free_on_resume", "inherited", *LIMITS)}
        if metadata["group"]:
            self.group = self.add_argument_group(metadata["group"])
        if self.group is None:
            return super().add_argument(*flags, **options)
        return self.group.add_argument(*flags, **options)

    def error(self, message):
        raise UsageError(f"{self.source}{message} (see --help)")


def parse_arguments(arguments_class, description, demo_recipe, argv=None):
    """Defaults of the dataclass, then the values of `--config FILE`, then the flags: the later one wins.

    The values of the YAML file go through the parser as flags, so that `2e-4` is a number and a wrong type or choice is
    refused as it is on the command line. With no `--config`, model, data set or adapter named, `demo_recipe` (a file of
    recipes/) is the recipe. Raises UsageError.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = OneLineParser(
        arguments_class,
        description=description,
        usage="%(prog)s [--flag value ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    recipe = parser.parse_known_args(argv)[0].config
    known = {field.name for field in dataclasses.fields(arguments_class)}
    named = {word.split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    if not named & {"__config", "__model_name_or_path", "__dataset_name", "__adapter", "__rescore", "__compare"}:
        recipe = str(ROOT / "recipes" / demo_recipe)
        say(f"No model, data or --config named: running the embedded demo, recipes/{demo_recipe}")
    if recipe:
        recipe_argv = recipe_as_flags(recipe, known - set(INVOCATION))
        parser.source = f"{recipe}: "
        parser.parse_args(recipe_argv)  # its own pass, so that its errors name the file
        parser.source = ""
        argv = [*recipe_argv, *argv]
    arguments, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        flags = {f"--{name}" for name in known}
        raise UsageError(f"unknown argument {unknown[0]}{closest(unknown[0], flags)} (see --help)")
    return arguments


def check_limits(arguments):
    """Raises UsageError for a value outside the limits of its field, or a number that is not finite. None is no value."""
    for field in dataclasses.fields(arguments):
        limits = {name: field.metadata[name] for name in LIMITS if name in field.metadata}
        value = getattr(arguments, field.name)
        if limits and value is not None:
            # An integer of hundreds of digits is no float, and no number of steps or bytes.
            require(isinstance(value, float) or abs(value) <= sys.maxsize, f"--{field.name} is beyond {sys.maxsize:,}")
            within = math.isfinite(value) and all(LIMITS[name](value, limit) for name, limit in limits.items())
            words = " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())
            require(within, f"--{field.name} must be {words}, not {value}")


def require(condition, message):
    if not condition:
        raise UsageError(message)


def recipe_as_flags(path, known):
    """`{learning_rate: 2e-4, tags: [a, b]}` as `["--learning_rate=2e-4", "--tags", "a", "b"]`."""
    values = read_yaml(path)
    flags = []
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}{closest(str(key), known)}")
        if isinstance(value, dict) or (isinstance(value, list) and not value):
            raise UsageError(f"{path}: {key} must be a value or a list of values, not {value!r}")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:  # a YAML null means the default
            flags.append(f"--{key}={value}")
    return flags


def closest(word, candidates):
    matches = difflib.get_close_matches(word, sorted(candidates), n=1)
    return f": did you mean {matches[0]}?" if matches else ""


def read_yaml(path):
    """The mapping in a YAML file; raises UsageError when there is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        check_size(values)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, nesting without end
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `name: value` lines")
    return values


def check_size(values):
    """Raises ValueError if there are more than MOST_VALUES in nested lists and objects: aliases of YAML repeat a list without
    writing it out, nine times in nine levels or in itself."""
    found, todo = 0, [values]
    while todo:
        value = todo.pop()
        found += 1
        if found > MOST_VALUES:
            raise ValueError(f"its aliases make more than {MOST_VALUES:,} values")
        if isinstance(value, dict | list | set | tuple):
            todo.extend(value.values() if isinstance(value, dict) else value)


def as_yaml(arguments):
    """The resolved arguments, as the text of a file that `--config` takes. None means the default and is left out,
    credentials are `***`."""
    values = {
        name: redact(value)
        for name, value in dataclasses.asdict(arguments).items()
        if value is not None and name not in INVOCATION
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
