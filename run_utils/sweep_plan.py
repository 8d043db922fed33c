"""The plan of a sweep: its grid, its runs and their names, parsed before the first one starts."""

import copy
import dataclasses
import itertools
import json
import re
import typing
from pathlib import Path
from typing import NamedTuple

from run_utils.arguments import closest, parse_arguments, read_yaml
from run_utils.checkpoint import Saved, check_arguments, complete_checkpoints, read_state
from run_utils.errors import UsageError, UserError, require
from run_utils.files import lock_folder, read_json, write_json
from run_utils.redaction import redact

# In the names of runs. Other arguments have their own names.
SHORT = {
    "learning_rate": "lr",
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "modules",
    "max_train_examples": "rows",
    "max_train_steps": "steps",
    "num_train_epochs": "epochs",
    "model_name_or_path": "model",
    "dataset_name": "data",
}
NOT_IN_GRID = {
    "seed": "--seeds varies it",
    "split_seed": "all runs are evaluated on the same rows",
    "output_dir": "the sweep names the folders",
    "overwrite_output_dir": "the sweep continues",
    "resume_from_checkpoint": "the sweep continues",
    "stop_after_steps": "--halving ends runs early",
}
# A base under another of these has other answers.
OF_BASE = (
    *("config", "model_name_or_path", "model_revision", "trust_remote_code", "quantization", "prompt_format"),
    *("dataset_name", "dataset_config_name", "dataset_revision", "eval_dataset_name", "eval_fraction", "eval_split"),
)
BATCH = "per_device_train_batch_size x gradient_accumulation_steps"
UNCHANGED = "unchanged"  # the name of --vary's first configuration
MOST_RUNS = 1000
LONGEST_NAME = 150  # characters; a file system allows 255 bytes


class Run(NamedTuple):
    """One training of a sweep."""

    name: str  # of its folder: "lr=1e-4,r=8,seed=42"
    settings: dict  # {argument of the grid: its value as text}
    seed: int
    arguments: object  # train.py's
    flags: list  # train.py's command line

    @property
    def configuration(self):
        return self.name.rpartition(",seed=")[0]

    @property
    def folder(self):
        return Path(self.arguments.output_dir)

    @property
    def adapter(self):
        return self.folder / ("adapter" if self.arguments.use_peft else "model")


def parse_grid(words, arguments_class, flag="--grid"):
    """`["learning_rate=1e-4,3e-4", "lora_r=8"]` as `{"learning_rate": ["1e-4", "3e-4"], "lora_r":
    ["8"]}`. Raises UsageError for an unknown argument, or one set by the sweep itself."""
    known = {field.name for field in dataclasses.fields(arguments_class)}
    grid = {}
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        require(name in known, f"{flag}: unknown argument {name!r}{closest(name, known)}")
        require(name not in NOT_IN_GRID, f"{flag}: {name} cannot vary: {NOT_IN_GRID.get(name)}")
        require(name not in grid, f"{flag} names {name} twice: {name}=A,B has both values")
        values = text.split(",")
        require(equals and all(values), f"{flag}: {word!r} must be like {name}=A,B")
        require(len(set(values)) == len(values), f"{flag}: {word!r} has a value twice")
        grid[name] = values
    return grid


def plan_runs(arguments_class, description, flags, *, grid, seeds, output_dir, vary=None):
    """The Runs of a sweep, configuration by configuration: `seeds` runs each, whose seeds follow
    --seed. All share one --split_seed, by default --seed. Raises UsageError if a run's arguments
    are wrong.

    grid, vary: see parse_grid. Of `grid` all combinations are run; of `vary` the unchanged
    configuration and each value alone. flags: of train.py, for all runs."""
    base = parse_arguments(arguments_class, description, "demo.yaml", flags)
    require(
        not (base.overwrite_output_dir or base.resume_from_checkpoint),
        "a sweep continues by itself: leave out --overwrite_output_dir and --resume_from_checkpoint",
    )
    split_seed = base.seed if base.split_seed is None else base.split_seed
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    points += [{name: value} for name, values in (vary or {}).items() for value in values]
    require(len(points) * seeds <= MOST_RUNS, f"{len(points) * seeds:,} runs: at most {MOST_RUNS:,} go together")
    labels = configuration_names(points)
    runs, seen = [], {}
    for label, settings in zip(labels, points, strict=True):
        for seed in range(base.seed, base.seed + seeds):
            name = ",".join([*[label] * bool(label), f"seed={seed}"])
            own = [word for pair in settings.items() for word in as_flag(arguments_class, *pair)]
            own += [f"--seed={seed}", f"--split_seed={split_seed}", f"--output_dir={output_dir / 'runs' / name}"]
            line = [*flags, *own, "--resume_from_checkpoint=latest"]
            try:
                arguments = parse_arguments(arguments_class, description, "demo.yaml", line)
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from None
            runs.append(Run(name, settings, seed, arguments, line))
        twin = seen.setdefault(str(vars(arguments) | {"output_dir": ""}), label)
        require(twin == label, f"{label} and {twin} are the same experiment: leave one out")
    return runs


def as_flag(arguments_class, name, text):
    """A value of the grid as words of a command line. `+` joins the values of a list."""
    types = typing.get_type_hints(arguments_class)[name]
    if any(typing.get_origin(member) is list for member in (types, *typing.get_args(types))):
        return [f"--{name}", *text.split("+")]
    return [f"--{name}={text}"]


def configuration_names(points):
    """A folder's name for each point of the grid, such as "lr=1e-4,r=8". Raises UsageError if two
    points would share one."""
    names = [",".join(f"{SHORT.get(name, name)}={readable(text)}" for name, text in point.items()) for point in points]
    if len(points) > 1 and not names[0]:
        names[0] = UNCHANGED
    if len(set(names)) < len(names):  # paths with the same last part
        names = [
            ",".join(f"{SHORT.get(name, name)}={safe(text)}" for name, text in point.items()) or UNCHANGED
            for point in points
        ]
    require(len(set(names)) == len(names), "two values have the same name in a folder's name")
    require(max(map(len, names)) <= LONGEST_NAME, f"the name {max(names, key=len)[:60]}... is too long")
    return names


def readable(text):
    """A value in a folder's name; of a path the last part."""
    return safe(
        Path(text).stem if text.endswith((".yaml", ".json", ".jsonl", ".csv", ".parquet")) else text.split("/")[-1]
    )


def safe(text):
    return re.sub(r"[^\w.+-]+", "_", text)


def experiment(arguments):
    """A run's arguments without seed, folder and the ones free on a resume. Of the batch, the
    factors are free, their product is not."""
    fields = [field for field in dataclasses.fields(arguments) if not field.metadata["free_on_resume"]]
    found = {field.name: redact(getattr(arguments, field.name)) for field in fields if field.name != "seed"}
    return found | {BATCH: arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps}


def check_runs(runs):
    """Raise UserError, as train.py would later, if a run's folder has a run of other arguments."""
    for run in runs:
        checkpoints = complete_checkpoints(run.folder)
        try:
            state, args = read_state(checkpoints[-1]), read_yaml(checkpoints[-1] / "args.yaml")
        except Exception:  # no checkpoint, or a broken one: train.py resumes from the one before
            continue
        arguments = copy.copy(run.arguments)
        arguments.lora_target_modules = args.get("lora_target_modules")  # train.py has replaced the default
        check_arguments(arguments, Saved(checkpoints[-1], state, args, *4 * [None]))


def claim(output_dir):
    """Take a sweep's folder, new or with a sweep. Raises UserError for any other folder."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in output_dir.iterdir()]
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None
    if others and "sweep.json" not in others:
        raise UserError(f"{output_dir} is not empty and holds no sweep: choose another --output_dir")
    lock_folder(output_dir)


def merge_plans(path, runs):
    """Record the runs in the sweep's file, after the runs of earlier grids, and return all records,
    `{run: {"settings", "seed", "arguments"}}`. Raises UserError if an argument outside of the grids
    differs: two sweeps would be mixed."""
    known = read_json(path)["runs"] if path.exists() else {}
    axes = {name for record in known.values() for name in record["settings"]}
    axes |= {name for run in runs for name in run.settings}
    if axes & {"per_device_train_batch_size", "gradient_accumulation_steps"}:
        axes.add(BATCH)
    if "config" in axes:  # recipes may differ in anything
        axes.update(experiment(runs[0].arguments))
    for run in runs:
        # With the values of axes that are free on a resume, for the pictures.
        of_axes = {name: getattr(run.arguments, name) for name in axes & vars(run.arguments).keys()}
        now = json.loads(json.dumps({**of_axes, **experiment(run.arguments)}))
        record = {"settings": run.settings, "seed": run.seed, "arguments": now}
        for name, then in next(iter(known.values()), record)["arguments"].items():
            if name not in axes and now.get(name) != then:
                raise UserError(
                    f"{path.parent} holds a sweep with --{name} {then}, not {now.get(name)}: vary it with --grid, or "
                    "choose another --output_dir"
                )
        known[run.name] = record
    write_json(path, {"runs": known})
    return known


def group_by_base(output_dir, runs):
    """The runs by base, prompt and rows, `{folder of the base's evaluation: [Run]}`, in
    their order."""
    varying = [name for name in OF_BASE if any(name in run.settings for run in runs)]
    groups = {}
    for run in runs:
        names = configuration_names([{name: run.settings[name] for name in varying if name in run.settings}])
        groups.setdefault(output_dir / "-".join(["base", *filter(None, names)]), []).append(run)
    return groups
