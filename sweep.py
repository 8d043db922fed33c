"""Train and evaluate a grid of arguments with several seeds, and compare them.

    python sweep.py --grid learning_rate=1e-3,2e-3 lora_r=8,16 --seeds 2      # the embedded demo
    python sweep.py --config recipes/smollm2_135m.yaml --dataset_name rows.jsonl \
        --grid max_train_examples=100,300,1000 --seeds 3 --evaluation_config evaluation.yaml

Every other flag is train.py's and is for all runs. In --grid, a comma separates an argument's
values, and + joins the values of a list: lora_target_modules=q_proj+v_proj,down_proj. --grid runs
all combinations; --vary, in its place, changes one argument at a time. One run trains on each GPU,
or on the CPU. All runs share --split_seed: they are evaluated on the same rows. After a kill, the
same command continues. Another --grid adds runs to the folder. Writes runs/NAME,
comparison/metrics.json and comparison/report.html, and prints the table.
"""

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

import math
from dataclasses import dataclass

from data_utils.systems import SYSTEMS
from run_utils.arguments import (
    ROOT,
    SWEPT,
    ArgumentParser,
    argument,
    check_limits,
    parse_arguments,
    with_demo_recipe,
)
from run_utils.errors import UserError, require, run_script, say


@dataclass
class SweepArguments:
    grid: list[str] | None = argument(None, "Arguments of train.py with their values: lora_r=8,32 learning_rate=...")
    vary: list[str] | None = argument(None, "Like --grid, but one change at a time, beside the unchanged run")
    seeds: int = argument(1, "Runs of each configuration: their seeds follow --seed", above=0)
    runs_per_gpu: int = argument(
        1, "At the same time, for small models; without a GPU on the CPU, whose cores they share", above=0
    )
    halving: list[str] | None = argument(
        None, "Steps after which the worse half of the configurations ends, by the mean --best_metric"
    )
    evaluate: bool = argument(True, "false: compare evaluation losses only")
    evaluation_config: str | None = argument(
        None, "YAML file of evaluate.py's arguments; by default recipes/demo_evaluate.yaml for the demo"
    )
    output_dir: str = argument("runs/sweep")

    def __post_init__(self):
        check_limits(self)
        require(not (self.grid and self.vary), "--grid and --vary do not go together: run one after the other")
        steps = self.halving or []
        require(all(step.isdecimal() for step in steps), f"--halving needs steps, not {' '.join(steps)}")
        self.halving = list(map(int, steps))
        require(self.halving == sorted(set(self.halving)), "--halving needs rising steps")


def parse():
    """The sweep's arguments, with train.py's as `flags`."""
    values, flags = ArgumentParser(SweepArguments, __doc__).parse_known_args()
    args = SweepArguments(**vars(values))
    args.flags = with_demo_recipe(flags, "demo.yaml")
    return args


if __name__ == "__main__":
    args = run_script(parse)
    say("Loading PyTorch and transformers ...")

from pathlib import Path

import evaluate
import train
from eval_utils.sweep_report import write_sweep_report
from eval_utils.sweep_results import compare_runs
from eval_utils.sweep_table import print_comparison
from run_utils.files import lock_folder, write_json
from run_utils.sweep_halving import describe_halving, halve, last_evaluation, mean_losses
from run_utils.sweep_plan import check_runs, group_by_base, merge_plans, parse_grid, plan_runs
from run_utils.sweep_processes import Job, Processes, find_slots


def main(args):
    # Everything is checked before the first run starts
    output_dir = Path(args.output_dir)
    grid, vary = (parse_grid(words or [], train.TrainingArguments) for words in (args.grid, args.vary))
    options = {"grid": grid, "vary": vary, "seeds": args.seeds, "output_dir": output_dir}
    runs = plan_runs(train.TrainingArguments, train.__doc__, args.flags, **options)
    evaluates_loss = all(run.arguments.eval_fraction or run.arguments.eval_dataset_name for run in runs)
    require(evaluates_loss or not args.halving, "--halving needs rows to evaluate: raise --eval_fraction")
    slots = find_slots(args.runs_per_gpu)
    evaluation = plan_evaluation(args, runs, slots) if args.evaluate else None
    check_runs(runs)
    output_dir.mkdir(parents=True, exist_ok=True)
    lock_folder(output_dir)
    plans = merge_plans(output_dir / "sweep.json", runs)
    swept = {"seed", *(name for plan in plans.values() for name in plan["settings"])}
    processes = Processes(output_dir, slots, {SWEPT: ",".join(sorted(swept))})
    places = ", ".join(dict.fromkeys(slot.label for slot in slots))
    say(f"{len(runs)} runs in {output_dir / 'runs'}, {len(slots)} at a time on {places}")

    # Training, and the evaluation of each adapter as soon as there is one
    alive, halvings = runs, []
    for step in args.halving:
        alive, line = train_to(step, alive, processes)
        halvings.append(line)
        print(line)
    bases = group_by_base(output_dir, alive) if evaluation else {}
    leaders = {of_base[0].name: folder for folder, of_base in bases.items()}
    by_name = {run.name: run for run in alive}

    def follow(job):
        """The evaluations after a training; the base's after that of its first run."""
        if job.part != "train" or not evaluation:
            return []
        run = by_name[job.run]
        base = [base_job(evaluation, run, leaders[run.name])] if run.name in leaders else []
        return [*base, evaluation_job(evaluation, run)]

    coming = ["evaluate"] * len(alive) + ["base"] * len(leaders) if evaluation else []
    processes.work([training_job(run) for run in alive], follow, coming)
    for folder, of_base in bases.items():  # the first run failed: another run leads to the rows
        trained = [run for run in of_base if run.adapter.exists()]
        if trained and of_base[0] not in trained:
            processes.work([base_job(evaluation, trained[0], folder)])

    # Comparison
    minutes = {name: processes.seconds(name, "train") / 60 for name in plans}
    comparison = compare_runs(output_dir, plans, minutes, {folder.name: folder for folder in bases})
    comparison |= {"halving": halvings, "parts": processes.parts(), "failed": processes.failed}
    (output_dir / "comparison").mkdir(exist_ok=True)
    write_json(output_dir / "comparison" / "metrics.json", comparison)
    write_sweep_report(output_dir / "comparison" / "report.html", comparison)
    print_comparison(comparison)
    print(processes.describe_parts())
    print(f"Figures: {output_dir / 'comparison' / 'metrics.json'}")
    print(f"Curves: tensorboard --logdir {output_dir / 'runs'}")
    print(f"Next: open {output_dir / 'comparison' / 'report.html'} in a browser")
    if failed := processes.failed:
        lines = "; ".join(f"{name}: {message}" for name, message in failed.items())
        raise UserError(f"{len(failed)} of {len(runs)} runs failed ({lines}); the same command continues them")


def plan_evaluation(args, runs, slots):
    """`(flags, systems of the base, systems of the adapter)` of the evaluations. Raises UsageError
    if they cannot start."""
    config = args.evaluation_config
    if config is None and runs[0].arguments.model_name_or_path == "demo":
        config = str(ROOT / "recipes" / "demo_evaluate.yaml")
    flags = ["--config", config] if config else []
    line = [*flags, "--adapter", str(runs[0].adapter)]
    planned = parse_arguments(evaluate.EvaluationArguments, evaluate.__doc__, "demo_evaluate.yaml", line)
    require(not (planned.rescore or planned.compare or planned.baseline), f"{config}: a sweep compares by itself")
    kinds = {name: SYSTEMS[name] for name in planned.systems}
    require(not any(kind.server for kind in kinds.values()), f"{config}: a sweep evaluates no server")
    adapted = [name for name, kind in kinds.items() if kind.adapter]
    require(adapted, f"{config}: --systems needs adapter")
    on_gpus = any("CUDA_VISIBLE_DEVICES" in slot.environment for slot in slots)
    require(
        args.runs_per_gpu == 1 or not on_gpus or planned.batch_tokens != "auto",
        "--runs_per_gpu needs a batch_tokens in --evaluation_config: auto would take all memory of the GPU",
    )
    return flags, [name for name, kind in kinds.items() if kind.is_base], adapted


def training_job(run, step=None):
    limit = [f"--stop_after_steps={step}"] if step else []
    return Job(run.name, "train", ["train.py", *run.flags, *limit], run.adapter)


def evaluation_job(evaluation, run):
    flags, _, systems = evaluation
    return answers_job(run.name, "evaluate", [*flags, "--systems", *systems], run, run.folder / "evaluation")


def base_job(evaluation, run, folder):
    """The base's systems, once for all runs with this base. The run's adapter names the rows."""
    flags, systems, _ = evaluation
    return answers_job(folder.name, "base", [*flags, "--systems", *systems], run, folder)


def answers_job(name, part, flags, run, folder):
    line = ["evaluate.py", *flags, "--adapter", str(run.adapter), "--output_dir", str(folder)]
    return Job(name, part, line, folder / "metrics.json")


def train_to(step, runs, processes):
    """Train runs to a step, if they are not beyond it. Returns the runs of the better half of the
    configurations, and a line about it."""
    behind = [run for run in runs if (last_evaluation(run, math.inf) or (0, 0))[0] < step]
    processes.work([training_job(run, step) for run in behind])
    losses = mean_losses(runs, step, processes.failed)
    kept = halve(losses)
    return [run for run in runs if run.configuration in kept], describe_halving(runs, losses, kept, step)


if __name__ == "__main__":
    run_script(lambda: main(args), if_stopped="the same command continues")
