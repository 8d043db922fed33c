r"""Train and evaluate a grid of arguments with several seeds, and compare them.

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

from run_utils.arguments import SWEPT, ArgumentParser, argument, check_limits, with_demo_recipe
from run_utils.errors import UserError, require, run_script, say
from run_utils.libraries import load_libraries


@dataclass
class SweepArguments:
    grid: list[str] | None = argument(
        None, "Arguments of train.py with their values: lora_r=8,32 learning_rate=1e-4,3e-4", group="The sweep's own"
    )
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
        None, "YAML file of evaluate.py's arguments; for the demo recipes/demo_evaluate.yaml without fewshot"
    )
    output_dir: str = argument("runs/sweep")

    def __post_init__(self):
        check_limits(self)
        require(not (self.grid and self.vary), "--grid and --vary do not go together: run one after the other")
        steps = self.halving or []
        require(all(step.isdecimal() for step in steps), f"--halving needs steps, not {' '.join(steps)}")
        self.halving = list(map(int, steps))
        require(self.halving == sorted(set(self.halving) - {0}), "--halving needs rising steps above 0")


def parse():
    """The sweep's arguments, with train.py's as `flags`."""
    values, flags = ArgumentParser(SweepArguments, __doc__).parse_known_args()
    args = SweepArguments(**vars(values))
    args.flags = with_demo_recipe(flags, "demo.yaml")
    return args


if __name__ == "__main__":
    args = run_script(parse)
    load_libraries()

from pathlib import Path

import evaluate
import train
from eval_utils.sweep_evaluations import base_job, evaluation_job, plan_evaluations
from eval_utils.sweep_report import write_sweep_report
from eval_utils.sweep_results import compare_runs
from eval_utils.sweep_table import print_comparison
from run_utils.files import write_json
from run_utils.sweep_halving import describe_halving, halve, last_evaluation, mean_losses
from run_utils.sweep_plan import check_runs, claim, group_by_base, merge_plans, parse_grid, plan_runs
from run_utils.sweep_processes import Job, Processes, find_slots


def main(args):
    # Everything is checked before the first run starts
    output_dir = Path(args.output_dir)
    grid = parse_grid(args.grid or [], train.TrainingArguments)
    vary = parse_grid(args.vary or [], train.TrainingArguments, "--vary")
    options = {"grid": grid, "vary": vary, "seeds": args.seeds, "output_dir": output_dir}
    runs = plan_runs(train.TrainingArguments, train.__doc__, args.flags, **options)
    slots = find_slots(args.runs_per_gpu)
    has_rows = all(run.arguments.eval_fraction or run.arguments.eval_dataset_name for run in runs)
    require(has_rows or not args.halving, "--halving needs rows to evaluate: raise --eval_fraction")
    options = {"config": args.evaluation_config, "shared_gpu": args.runs_per_gpu > 1 and slots[0].is_gpu}
    evaluations = plan_evaluations(evaluate.EvaluationArguments, runs[0], **options) if args.evaluate else None
    require(
        has_rows or not evaluations or evaluations.has_rows,
        "no rows are held out to evaluate: raise --eval_fraction, or --evaluate false",
    )
    check_runs(runs)
    claim(output_dir)
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
    bases = group_by_base(output_dir, alive) if evaluations and evaluations.base else {}
    leaders = {of_base[0].name: folder for folder, of_base in bases.items()}
    by_name = {run.name: run for run in alive}

    def follow(job):
        """The evaluations after a training; the base's after that of its first run."""
        if job.part != "train" or not evaluations:
            return []
        run = by_name[job.run]
        base = [base_job(evaluations, run, leaders[run.name])] if run.name in leaders else []
        return [*base, evaluation_job(evaluations, run)]

    coming = ["evaluate"] * len(alive) + ["base"] * len(leaders) if evaluations else []
    processes.work([training_job(run) for run in alive], follow, coming)
    for folder, of_base in bases.items():  # the first run failed: another run leads to the rows
        trained = [run for run in of_base if run.adapter.exists()]
        if trained and of_base[0] not in trained:
            processes.work([base_job(evaluations, trained[0], folder)])

    # Comparison
    minutes = {name: processes.seconds(name, "train") / 60 for name in plans}
    comparison = compare_runs(
        output_dir, plans, minutes, {base.name: base for base in sorted(output_dir.glob("base*"))}
    )
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


def training_job(run, step=None):
    limit = [f"--stop_after_steps={step}"] if step else []
    return Job(run.name, "train", ["train.py", *run.flags, *limit], run.adapter)


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
