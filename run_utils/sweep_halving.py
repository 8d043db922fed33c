"""Successive halving: the worse half of a sweep's configurations ends early (Jamieson and
Talwalkar, 2016)."""

import math

from run_utils.errors import UserError
from run_utils.metrics_file import read_metrics


def last_evaluation(run, step):
    """`(step, value)` of the last evaluation up to a step by the run's --best_metric, as a loss:
    the lower, the better. None without one."""
    metric = run.arguments.best_metric
    tag, sign = ("eval/loss", 1) if metric == "eval_loss" else (f"eval/{metric}", -1)
    try:
        entries = read_metrics(run.folder / "metrics.jsonl")
    except UserError:  # no file, or a damaged one
        return None
    found = [(entry["step"], sign * entry[tag]) for entry in entries if tag in entry and 0 < entry["step"] <= step]
    return found[-1] if found else None


def halve(losses):
    """The names of the better half, rounded up, in their order. A configuration without a loss
    ends. Of equal ones, the first is kept.

    losses: `{configuration: loss or None}`."""
    known = {name: loss for name, loss in losses.items() if loss is not None}
    kept = sorted(known, key=known.get)[: math.ceil(len(losses) / 2)]
    return [name for name in known if name in kept]


def mean_losses(runs, step, failed):
    """`{configuration: mean loss over its seeds}` at a step, in the order of the runs. None if no
    run of it has an evaluation. failed: the names of runs, counted as without one."""
    losses = {}
    for run in runs:
        evaluation = None if run.name in failed else last_evaluation(run, step)
        losses.setdefault(run.configuration, []).append(evaluation)
    means = {}
    for name, found in losses.items():
        values = [evaluation[1] for evaluation in found if evaluation]
        means[name] = sum(values) / len(values) if values else None
    return means


def describe_halving(runs, losses, kept, step):
    """The line of a rung, for the terminal and the report."""
    if not runs:
        return f"At step {step}, no run is left"
    metric = runs[0].arguments.best_metric
    sign = 1 if metric == "eval_loss" else -1

    def shown(names):
        found = [
            f"{name} ({'no evaluation' if losses[name] is None else f'{sign * losses[name]:.4f}'})" for name in names
        ]
        return ", ".join(found) or "none"

    ended = [name for name in losses if name not in kept]
    return f"After step {step}, by {metric} (mean over seeds): {shown(kept)} go on; {shown(ended)} end"
