"""The evaluations of a sweep: one of each adapter, one of each base."""

from pathlib import Path
from typing import NamedTuple

from data_utils.systems import SYSTEMS
from run_utils.arguments import ROOT, parse_arguments, read_yaml
from run_utils.errors import require
from run_utils.sweep_processes import Job


class Evaluations(NamedTuple):
    flags: list  # of evaluate.py
    base: list  # the names of the base's systems
    adapter: list  # of the adapter's
    has_rows: bool  # whether the flags name a data set


def plan_evaluations(arguments_class, run, *, config, shared_gpu):
    """The Evaluations of a sweep. Raises UsageError if they could not start.

    arguments_class: evaluate.py's. run: the first Run. config: a YAML file, or None. shared_gpu:
    whether several processes share a GPU."""
    flags = ["--config", config] if config else []
    if config is None and run.arguments.model_name_or_path == "demo":  # without fewshot, which takes minutes
        flags = ["--config", str(ROOT / "recipes" / "demo_evaluate.yaml"), "--systems", "raw", "prompted", "adapter"]
    line = [*flags, "--adapter", str(run.adapter)]
    planned = parse_arguments(arguments_class, "", "demo_evaluate.yaml", line)
    require(not (planned.rescore or planned.compare or planned.baseline), f"{config}: a sweep compares by itself")
    kinds = {name: SYSTEMS[name] for name in planned.systems}
    require(not any(kind.server for kind in kinds.values()), f"{config}: a sweep evaluates no server")
    base, adapted = ([name for name, kind in kinds.items() if kind.adapter == is_on] for is_on in (False, True))
    require(adapted, f"{config}: --systems needs adapter")
    require(
        not shared_gpu or planned.batch_tokens != "auto",
        "--runs_per_gpu needs batch_tokens in --evaluation_config: auto would take all memory of the GPU",
    )
    return Evaluations(flags, base, adapted, bool(planned.dataset_name or planned.eval_dataset_name))


def evaluation_job(evaluations, run):
    folder = run.folder / "evaluation"
    return answers_job(run.name, "evaluate", evaluations.adapter, run.adapter, folder, flags=evaluations.flags)


def base_job(evaluations, run, folder):
    """The base's systems, once for all runs with this base. The run's adapter names the rows; of an
    evaluation that another run has begun, its adapter, since evaluate.py refuses any other."""
    args = folder / "args.yaml"
    begun = read_yaml(args).get("adapter") if args.is_file() else None
    adapter = begun if begun and Path(begun).is_dir() else run.adapter
    return answers_job(folder.name, "base", evaluations.base, adapter, folder, flags=evaluations.flags)


def answers_job(name, part, systems, adapter, folder, *, flags):
    own = ["--systems", *systems, "--adapter", str(adapter), "--output_dir", str(folder)]
    return Job(name, part, ["evaluate.py", *flags, *own], folder / "metrics.json")
