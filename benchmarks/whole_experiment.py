"""The article's whole run from one command: 2,900 steps of 8 examples with an evaluation each 100,
then evaluate.py's three systems on 100 rows. Prints the minutes by part.

    python -m benchmarks.whole_experiment                # Qwen3-4B's shape, on one GPU
    python -m benchmarks.whole_experiment --minutes 9    # stops in time; the same command goes on
    python -m benchmarks.whole_experiment --shape tiny --steps 12 --save_steps 4 --train_rows 400 \\
        --eval_rows 8 --test_rows 4 --new_tokens 8       # a dry run on a CPU, minutes

Nothing is downloaded: random weights, and rows of xLAM's lengths (train_throughput.py). The flags
are those of recipes/qwen3_4b_fast.yaml: of 60,000 rows 3,000 are held out, and each evaluation is
on 300 of them. The article does not say on how many its own were: all 3,000 each time would take
longer than the training. A random model never stops, so each answer of evaluate.py has exactly
--new_tokens tokens; xLAM's have 75 on average.

The same command goes on from the newest checkpoint in --work_dir. A checkpoint has 800 MB. To go
on on another machine, carry --work_dir/parts.json alone (2 KB): the weights are random, and a
step's time does not depend on them, so the rest of the steps is trained from a fresh adapter.
parts.json has the seconds by part, up to the newest checkpoint. Steps that a kill lost do not
count.
"""

import argparse
import contextlib
import json
import math
import re
import sys
import time
from pathlib import Path

from benchmarks.processes import LATE, ROOT, run_logged
from run_utils.errors import UserError, require, run_script
from run_utils.files import read_json, write_json

SYSTEMS = ("raw", "prompted", "adapter")
NOT_SETTINGS = ("minutes", "work_dir", "trl_tokens_per_second")  # may differ from call to call
TRL_ROWS_PER_SECOND = 0.09  # transformers' generate, one at a time, measured on an H100
# A step with checkpointing is two forward passes and a backward pass of two more.
FORWARD_SHARE = 1 / 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4b", help="of train_throughput.py")
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--save_steps", type=int, default=100, help="between evaluations, each with a checkpoint")
    parser.add_argument("--train_rows", type=int, default=60000, help="with the held-out ones")
    parser.add_argument("--eval_rows", type=int, default=300, help="of each evaluation in training")
    parser.add_argument("--test_rows", type=int, default=100, help="of each system in evaluate.py")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--minutes", type=float, default=1440, help="stop with a checkpoint after these")
    parser.add_argument(
        "--trl_tokens_per_second", type=float, default=704, help="trl_published of train_throughput.py, here on an H100"
    )
    parser.add_argument("--work_dir", type=Path, default=Path("runs/whole_experiment"))
    args = parser.parse_args()
    end = time.perf_counter() + 60 * args.minutes
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    for name, value in vars(args).items():
        require(not isinstance(value, int | float) or value > 0, f"--{name} must be above 0, not {value}")
    args.work_dir = args.work_dir.resolve()
    parts = Parts(args.work_dir / "parts.json", settings)
    make_inputs(args)
    while parts.steps < args.steps or lacks_end(args, parts):
        train(args, parts, end - time.perf_counter())
        if time.perf_counter() > end:
            break
    is_trained = parts.steps >= args.steps and not lacks_end(args, parts)
    finished = is_trained and evaluate(args, parts, end - time.perf_counter())
    print_table(args, parts)
    if not finished:
        print(f"Not finished: step {parts.steps} of {args.steps}. The same command goes on.")


class Parts:
    """The seconds by part, in a JSON file: of each training folder and of evaluate.py.

    folders: `{"train_from_0": {"steps", "tokens", "training", "evaluations", "processes"}}`. A
    folder's name has the steps that were done before it. A process has `start` and
    `checkpoints`."""

    def __init__(self, path, settings):
        self.path = path
        self.data = {"settings": settings, "folders": {}, "evaluate": {"processes": 0.0, "systems": {}}}
        if path.exists():
            self.data = read_json(path)
            require(
                self.data.get("settings") == settings,
                f"{path} is of other settings, {self.data.get('settings')}: name another --work_dir",
            )

    @property
    def steps(self):
        """The steps behind checkpoints, of all folders."""
        return max((offset_of(name) + folder["steps"] for name, folder in self.data["folders"].items()), default=0)

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.data)

    def total(self, name):
        return sum(folder[name] for folder in self.data["folders"].values())

    def of_processes(self, name):
        return sum(process[name] for folder in self.data["folders"].values() for process in folder["processes"])


def lacks_end(args, parts):
    """Whether the training was stopped after its last step's checkpoint: the last evaluation and
    the adapter are to come."""
    folder = args.work_dir / max(parts.data["folders"], key=offset_of)
    return newest_checkpoint(folder) > 0 and not (folder / "adapter").is_dir()


def offset_of(folder_name):
    return int(folder_name.removeprefix("train_from_"))


def make_inputs(args):
    from transformers import AutoTokenizer

    from benchmarks.train_throughput import SHAPES, make_model, make_rows

    require(args.shape in SHAPES, f"--shape is one of {', '.join(SHAPES)}, not {args.shape}")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    make_model(args.work_dir / f"model_{args.shape}", SHAPES[args.shape])
    if not (args.work_dir / "rows.jsonl").exists():
        tokenizer = AutoTokenizer.from_pretrained(args.work_dir / f"model_{args.shape}")
        make_rows(args.work_dir / "rows.jsonl", tokenizer, count=args.train_rows)


def train(args, parts, seconds_left):
    """Run train.py until its end, or for so many seconds, from the newest checkpoint on."""
    import torch

    with_checkpoint = [path.parent.name for path in args.work_dir.glob("train_from_*/checkpoint-*")]
    name = max(with_checkpoint, key=offset_of, default=f"train_from_{parts.steps}")
    output_dir, offset = args.work_dir / name, offset_of(name)
    known = parts.data["folders"].setdefault(
        name, {"steps": 0, "tokens": 0, "training": 0.0, "evaluations": 0.0, "processes": []}
    )
    process, resumed, begun = {"start": 0.0, "checkpoints": 0.0}, 0, time.perf_counter()

    def account():
        """Add what is behind a new checkpoint."""
        steps = newest_checkpoint(output_dir)
        if steps == known["steps"]:
            return
        spent = time.perf_counter() - begun
        process["start"] = process["start"] or spent  # nothing was left to train
        # All seconds after the start that are neither a step's nor an evaluation's.
        process["checkpoints"] = max(0.0, spent - process["start"] - sum(measured(output_dir, resumed)[:2]))
        known["training"], known["evaluations"], known["tokens"] = measured(output_dir, 0, steps)
        known["steps"] = steps
        if process not in known["processes"]:
            known["processes"].append(process)
        parts.save()

    def read(line):
        nonlocal resumed
        if found := re.search(r"^Resuming from .* after step (\d+)", line):
            resumed = int(found[1])
        elif "Training from step" in line:
            process["start"] = time.perf_counter() - begun
            print(f"Step {offset + resumed + 1} begins after {process['start']:.0f} s", flush=True)
        elif re.match(r"step \d+/\d+ +loss", line):
            account()
        elif re.match(r"step \d+/\d+ +eval loss", line):
            print(line.rstrip(), flush=True)

    on_gpu = torch.cuda.is_available()
    flags = {
        "config": ROOT / "recipes" / "qwen3_4b_fast.yaml",
        "model_name_or_path": args.work_dir / f"model_{args.shape}",
        "dataset_name": args.work_dir / "rows.jsonl",
        "output_dir": output_dir,
        "resume_from_checkpoint": "latest",
        "stop_after_steps": args.steps - offset,
        "eval_steps": args.save_steps,
        "save_steps": args.save_steps,
        "logging_steps": math.gcd(10, args.save_steps),  # a checkpoint is then at the end of an entry
        "max_eval_examples": args.eval_rows,
        **({} if on_gpu else {"torch_compile": False, "cuda_graphs": False}),
    }
    launch_file = ROOT / "accelerate_configs" / ("single_gpu.yaml" if on_gpu else "cpu.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--config_file", launch_file]
    command = [*launcher, ROOT / "train.py", *(f"--{flag}={value}" for flag, value in flags.items())]
    run_stoppable(command, args.work_dir / f"{name}.log", seconds_left, read)
    account()


def run_stoppable(command, log, seconds_left, on_line=lambda line: None):
    """Run a command, for so many seconds at most. Raises UserError if it fails otherwise. Returns
    whether it has ended by itself."""
    if seconds_left <= 0:
        return False
    error = run_logged(command, log, seconds_left, on_line)
    require(error is None or error.startswith(LATE), f"{error}; all of it: {log}")
    return error is None


def newest_checkpoint(folder):
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def measured(folder, after, last=10**9):
    """Seconds of training, seconds of evaluations, and tokens, of a run's steps after `after` up to
    `last`."""
    from run_utils.metrics_file import read_metrics

    training = evaluations = tokens = logged = 0
    entries = []
    with contextlib.suppress(UserError):  # no file yet
        entries = read_metrics(folder / "metrics.jsonl")
    for entry in entries:
        is_wanted = after < entry["step"] <= last
        if "train/num_tokens" in entry:
            new, logged = entry["train/num_tokens"] - logged, entry["train/num_tokens"]
            training += is_wanted * new / entry["train/tokens_per_second"]
            tokens += is_wanted * new
        evaluations += is_wanted * entry.get("eval/seconds", 0.0)
    return training, evaluations, tokens


def evaluate(args, parts, seconds_left):
    """Run evaluate.py on the adapter. Returns whether it has ended."""
    folder = max(parts.data["folders"], key=offset_of)
    output_dir, begun = args.work_dir / "evaluation", time.perf_counter()
    known = parts.data["evaluate"]
    if known["systems"]:
        return True
    flags = {
        "adapter": args.work_dir / folder / "adapter",
        "num_examples": args.test_rows,
        "no_call_examples": 0,
        "max_new_tokens": args.new_tokens,
        "output_dir": output_dir,
    }
    require(flags["adapter"].is_dir(), f"{flags['adapter']} is gone: name another --work_dir")
    command = [sys.executable, ROOT / "evaluate.py", *(f"--{flag}={value}" for flag, value in flags.items())]
    has_ended = run_stoppable([*command, "--systems", *SYSTEMS], args.work_dir / "evaluate.log", seconds_left)
    known["processes"] += time.perf_counter() - begun
    if has_ended:
        figures = read_json(output_dir / "metrics.json")["systems"]
        known["systems"] = {name: args.test_rows / figures[name]["rows_per_second"] for name in SYSTEMS}
    parts.save()
    return has_ended


def print_table(args, parts):
    from rich.console import Console
    from rich.table import Table

    systems, tokens = parts.data["evaluate"]["systems"], parts.total("tokens")
    evaluations = parts.steps // args.save_steps
    evaluated = evaluations * args.eval_rows * tokens / max(1, 8 * parts.steps)
    starts = sum(len(folder["processes"]) for folder in parts.data["folders"].values())
    lines = [
        (f"start until the first step ({starts} times)", parts.of_processes("start"), None),
        (
            f"training: {parts.steps:,} steps, {tokens:,} tokens",
            parts.total("training"),
            tokens / args.trl_tokens_per_second,
        ),
        (
            f"evaluations: {evaluations} of {args.eval_rows} rows",
            parts.total("evaluations"),
            evaluated * FORWARD_SHARE / args.trl_tokens_per_second,
        ),
        ("checkpoints, and the end", parts.of_processes("checkpoints"), None),
    ]
    if systems:
        rest = max(0.0, parts.data["evaluate"]["processes"] - sum(systems.values()))
        lines += [("evaluate.py: start, scores, report", rest, None)]
        by_trl = args.test_rows / TRL_ROWS_PER_SECOND
        lines += [(f"evaluate.py: {name}, {args.test_rows} rows", systems[name], by_trl) for name in SYSTEMS]
    table = Table(title=f"{args.shape}: the whole experiment, in minutes")
    for column in ("part", "measured", "TRL as published, computed"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, seconds, by_trl in lines:
        table.add_row(part, f"{seconds / 60:.2f}", "" if by_trl is None else f"{by_trl / 60:.0f}")
    totals = [sum(seconds for _, seconds, _ in lines), sum(by_trl or 0 for _, _, by_trl in lines)]
    table.add_row("in all", f"{totals[0] / 60:.2f}", f"{totals[1] / 60:.0f}")
    print(json.dumps({"parts": {part: round(seconds, 2) for part, seconds, _ in lines}, "seconds": totals[0]}))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(
        f"Computed: {args.trl_tokens_per_second:g} tokens/s of training, {TRL_ROWS_PER_SECOND} rows/s one at a time "
        "(benchmarks/README.md); an evaluation is a quarter of a step's work."
    )


if __name__ == "__main__":
    run_script(main, if_stopped="the same command goes on")
