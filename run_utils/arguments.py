"""A script's dataclass as its flags, its recipes and its --help. A user's error is one line."""

import argparse
import ast
import dataclasses
import difflib
import math
import operator
import os
import shutil
import sys
import textwrap
import types
import typing
from pathlib import Path

import yaml

from run_utils.errors import UsageError, one_line, require, say
from run_utils.paths import did_you_mean
from run_utils.redaction import redact

ROOT = Path(__file__).resolve().parent.parent
# Flags of an invocation, not of the experiment. args.yaml leaves them out, so that --config can
# read it.
INVOCATION = ("config", "overwrite_output_dir", "resume_from_checkpoint")
SWEPT = "SWEPT_ARGUMENTS"  # an environment variable of sweep.py's runs: the names of the varied ones
MAPPINGS = ("lr_scheduler_kwargs", "rank_pattern", "alpha_pattern")  # a list NAME=VALUE, or a mapping in YAML
MOST_VALUES = 100_000  # in a YAML file
LIMITS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}
TRUTH = {"yes": True, "true": True, "t": True, "y": True, "1": True}
TRUTH |= {"no": False, "false": False, "f": False, "n": False, "0": False}


def argument(default, help="", *, group=None, free_on_resume=False, **options):
    """A field of a script's dataclass: one flag, with its help and rules.

    group: the heading of --help that starts with this flag. free_on_resume: a resumed run may
    change it and stays the same experiment. options: limits of its value (above, at_least, below,
    at_most; see check_limits), and `inherited`, which evaluate.py reads."""
    metadata = {"help": help, "group": group, "free_on_resume": free_on_resume, **options}
    return dataclasses.field(default=default, metadata=metadata)


class ArgumentParser(argparse.ArgumentParser):
    """The fields of a dataclass as flags, with the rules of transformers' HfArgumentParser, whose
    import takes seconds.

    A field has a default and is a `str`, `int`, `float`, `bool`, `Literal` of texts or a `list` of
    texts or numbers, with or without `| None`. An error is a UsageError of one line, which begins
    with `source`."""

    source = ""

    def __init__(self, arguments_class, description):
        super().__init__(description=description, allow_abbrev=False)
        self.fields = dataclasses.fields(arguments_class)
        for field in self.fields:
            options = value_options(field.type)
            self.add_argument(*spellings(field.name), default=field.default, **options)
            if field.default is True:
                self.add_argument(*spellings(f"no_{field.name}"), dest=field.name, action="store_false")

    def error(self, message):
        raise UsageError(f"{self.source}{message} (see --help)")

    def format_help(self):
        """Each flag once, in the dataclass's groups. Flags without a help text share lines."""
        width = shutil.get_terminal_size((100, 24)).columns
        lines, can_grow = [self.description.strip(), "", LEGEND], False
        for field in self.fields:
            if field.metadata["group"]:
                lines, can_grow = [*lines, "", f"{field.metadata['group']}:"], False
            choices = value_options(field.type).get("choices", ())
            values = [shown(field.default), *(choice for choice in choices if choice != field.default)]
            flag, values = f"  --{field.name}", f"[{' | '.join(values)}]"
            if field.metadata["help"]:
                line = f"{flag:<31} {field.metadata['help']} {values}"
                lines += textwrap.wrap(line, width, subsequent_indent=" " * 32, break_on_hyphens=False)
            elif can_grow and len(f"{lines[-1]} {flag} {values}") <= width:
                lines[-1] += f" {flag} {values}"
            else:
                lines.append(f"{flag} {values}")
            can_grow = not field.metadata["help"]
        return "\n".join(lines) + "\n"


LEGEND = "Flags, in brackets the default and then the other choices; --flag alone is --flag true:"


def spellings(name):
    return dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))


def value_options(field_type):
    """argparse's options for a field's type."""
    if typing.get_origin(field_type) in (types.UnionType, typing.Union):  # `X | None`
        members = [member for member in typing.get_args(field_type) if member is not types.NoneType]
        # One text or a list of texts is read as a list.
        field_type = next((member for member in members if typing.get_origin(member) is list), members[0])
    if field_type is bool:
        return {"type": truth, "nargs": "?", "const": True}
    if typing.get_origin(field_type) is typing.Literal:
        return {"choices": typing.get_args(field_type)}
    if typing.get_origin(field_type) is list:
        return {"type": typing.get_args(field_type)[0], "nargs": "+"}
    return {"type": field_type}


def truth(text):
    if text.lower() not in TRUTH:
        expected = "yes/no, true/false, t/f, y/n, 1/0 (case insensitive)"
        raise argparse.ArgumentTypeError(f"Truthy value expected: got {text} but expected one of {expected}.")
    return TRUTH[text.lower()]


def shown(default):
    return "not set" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def parse_arguments(arguments_class, description, demo_recipe, argv=None):
    """The dataclass's defaults, then the values of `--config FILE`, then the flags: the last value
    wins.

    The YAML file's values are parsed as flags, so that `2e-4` is a number, and a wrong type or
    choice is refused as on the command line. If the flags name no `--config`, model, data set or
    adapter, `demo_recipe` (a file of recipes/) is the recipe. Raises UsageError."""
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser(arguments_class, description)
    argv = with_demo_recipe(argv, demo_recipe)
    recipe = parser.parse_known_args(argv)[0].config
    known = {field.name for field in dataclasses.fields(arguments_class)}
    if recipe:
        recipe_argv = recipe_as_flags(recipe, known - set(INVOCATION))
        parser.source = f"{recipe}: "
        parser.parse_args(recipe_argv)  # a separate pass, so that its errors name the file
        parser.source = ""
        argv = [*recipe_argv, *argv]
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = {f"--{name}" for name in known}
        raise UsageError(f"unknown argument {unknown[0]}{closest(unknown[0], flags)} (see --help)")
    return arguments_class(**vars(values))


def with_demo_recipe(argv, demo_recipe):
    """The flags, after --config of the demo's recipe if they name no other run."""
    named = {word.split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    if named & {"__config", "__model_name_or_path", "__dataset_name", "__adapter", "__rescore", "__compare"}:
        return argv
    say(f"No model, data or --config named: running the embedded demo, recipes/{demo_recipe}")
    return ["--config", str(ROOT / "recipes" / demo_recipe), *argv]


def check_limits(arguments):
    """Raise UsageError if a value is outside the limits of its field, or a number is not finite.
    None and texts have no limits."""
    for field in dataclasses.fields(arguments):
        limits = {name: field.metadata[name] for name in LIMITS if name in field.metadata}
        value = getattr(arguments, field.name)
        if limits and value is not None and not isinstance(value, str):
            # Python's integers have no limit; numbers of steps and bytes do.
            require(isinstance(value, float) or abs(value) <= sys.maxsize, f"--{field.name} is beyond {sys.maxsize:,}")
            within = math.isfinite(value) and all(LIMITS[name](value, limit) for name, limit in limits.items())
            words = " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())
            require(within, f"--{field.name} must be {words}, not {value}")


def number_or_auto(name, value):
    """The value of the flag `name`, "auto" or a whole number, as "auto" or an int. Raises
    UsageError."""
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise UsageError(f"--{name} must be auto or a whole number, not {value!r}") from None


def recipe_as_flags(path, known):
    """`{learning_rate: 2e-4, tags: [a, b]}` as `["--learning_rate=2e-4", "--tags", "a", "b"]`."""
    values = read_yaml(path)
    flags = []
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}{closest(str(key), known)}")
        if isinstance(value, dict) and key in MAPPINGS and value:  # as the flag has it
            value = [f"{name}={number}" for name, number in value.items()]
        if isinstance(value, dict) or (isinstance(value, list) and not value):
            raise UsageError(f"{path}: {key} must be a value or a list of values, not {value!r}")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:  # a YAML null means the default
            flags.append(f"--{key}={value}")
    return flags


def as_written(value):
    """An argument's value as it is written after its flag, for a message."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def closest(word, candidates):
    matches = difflib.get_close_matches(word, sorted(candidates), n=1)
    return f": did you mean {matches[0]}?" if matches else ""


def read_yaml(path):
    """The mapping in a YAML file. Raises UsageError if there is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        check_size(values)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {path}: {reason}{did_you_mean(path)}") from None
    # ValueError: an impossible date, too many values. RecursionError: endless nesting.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `name: value` lines")
    return values


def check_size(values):
    """Raise ValueError if nested lists and objects have more than MOST_VALUES values. YAML's
    aliases repeat a list without writing it again, nine times on nine levels or inside itself."""
    found, todo = 0, [values]
    while todo:
        value = todo.pop()
        found += 1
        if found > MOST_VALUES:
            raise ValueError(f"its aliases make more than {MOST_VALUES:,} values")
        if isinstance(value, dict | list | set | tuple):
            todo.extend(value.values() if isinstance(value, dict) else value)


def as_yaml(arguments):
    """The resolved arguments, as the text of a file for `--config`. None means the default and is
    left out. Credentials are `***`."""
    values = {
        name: redact(value)
        for name, value in dataclasses.asdict(arguments).items()
        if value is not None and name not in INVOCATION
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def compared_arguments(args, effective_batch):
    """`(arguments, changed)` for tables of runs: the experiment's arguments that are set, `{name:
    number, boolean or text}`, and the names of the ones that differ from their defaults; in a
    sweep, of the varied ones."""
    fields = [field for field in dataclasses.fields(args) if field.name not in (*INVOCATION, "output_dir")]
    arguments = {field.name: getattr(args, field.name) for field in fields}
    # Arguments that are free on a resume, such as logging_steps, don't change the results.
    changed = {
        field.name
        for field in fields
        if arguments[field.name] != field.default and not field.metadata["free_on_resume"]
    }
    defaults = {field.name: field.default for field in fields}
    if effective_batch != defaults["per_device_train_batch_size"] * defaults["gradient_accumulation_steps"]:
        changed.add("effective_batch")
    arguments["effective_batch"] = effective_batch
    if swept := os.environ.get(SWEPT):
        changed = set(swept.split(","))
    texts = {name: ", ".join(map(str, value)) for name, value in arguments.items() if isinstance(value, list)}
    texts |= {name: redact(value) for name, value in arguments.items() if isinstance(value, str)}
    return {name: value for name, value in (arguments | texts).items() if value is not None}, changed


def arguments_of(script):
    """The dataclass of arguments at the top of a script, by running the script's lines up to its
    `parse`. Importing the script would load PyTorch for seconds."""
    path = ROOT / script
    lines = ast.parse(path.read_text(encoding="utf-8")).body
    end = next(place for place, line in enumerate(lines) if getattr(line, "name", None) == "parse")
    names = {"__name__": path.stem}
    exec(compile(ast.Module(lines[:end], []), str(path), "exec"), names)
    return next(value for value in names.values() if dataclasses.is_dataclass(value))
