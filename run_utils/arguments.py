"""A script's dataclass becomes its flags, its recipes and its --help; what a user can put right ends in one line."""

import argparse
import dataclasses
import difflib
import math
import operator
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from run_utils.errors import UsageError, require, say
from run_utils.redaction import redact

ROOT = Path(__file__).resolve().parent.parent
# About this invocation, not about the experiment: never written to args.yaml, so that it can be passed to --config.
INVOCATION = ("config", "overwrite_output_dir", "resume_from_checkpoint")
LIMITS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}


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
            within = math.isfinite(value) and all(LIMITS[name](value, limit) for name, limit in limits.items())
            words = " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())
            require(within, f"--{field.name} must be {words}, not {value}")


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
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, nesting without end
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `name: value` lines")
    return values


def as_yaml(arguments):
    """The resolved arguments, as the text of a file that `--config` takes. None means the default and is left out,
    credentials are `***`."""
    values = {
        name: redact(value)
        for name, value in dataclasses.asdict(arguments).items()
        if value is not None and name not in INVOCATION
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
