"""The comparison of a sweep's configurations: means and spreads over seeds, intervals and tests
over rows. No torch.

The seeds of a configuration answer the same rows. So a row's value is the mean over the seeds, and
the row is the unit of every interval and test over rows. Intervals and tests over rows are about
the same adapters on other rows. The spread and the test over seeds are about adapters of other
seeds."""

import math
import statistics as means
from collections import defaultdict

from data_utils.systems import SYSTEMS
from eval_utils.metrics import METRICS
from eval_utils.report import SIGNIFICANT
from eval_utils.row_sets import CALL_COLUMNS
from eval_utils.statistics import bootstrap_mean, bootstrap_ratio, sign_flips, welch, wilson_interval
from run_utils import journal
from run_utils.errors import UserError
from run_utils.files import read_json
from run_utils.metrics_file import read_metrics

MAIN = "exact_match"  # the measure of the tests and pictures
# The measures in the table, by set of rows, exact match for other sets. metrics.json has all rates.
SHOWN = {"": ("exact_match", "json_valid", "over_call", "missed_call"), "no_call": ("over_call",)}
# Titles as in the table of one evaluation.
TITLES = {
    "over_call": CALL_COLUMNS["own"],
    "no_call: over_call": CALL_COLUMNS["made"],
    "missed_call": CALL_COLUMNS["missed"],
}
RUN_FACTS = ("settings", "seed", "step", "eval_loss", "num_tokens", "minutes", "means")


def measure_name(of_set, metric):
    return f"{of_set}: {metric}" if of_set else metric


def measure_title(name):
    if name in TITLES:
        return TITLES[name]
    of_set, _, metric = name.rpartition(": ")
    title = METRICS[metric].title if metric in METRICS else metric
    return f"{title} ({of_set})" if of_set else title


def is_shown(name):
    of_set, _, metric = name.rpartition(": ")
    return metric in SHOWN.get(of_set, (MAIN,))


def read_evaluation(folder):
    """An evaluation's `{"rows": {id: fingerprint}, "systems": {system: {measure: {row id: value}}},
    "figures": metrics.json}`, or None if it is not finished."""
    try:
        figures = read_json(folder / "metrics.json")
        rows = {row["id"]: row["fingerprint"] for row in journal.read(folder / "rows.jsonl")}
        entries = list(journal.read(folder / "scores.jsonl"))
    except (OSError, UserError):
        return None
    systems = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        for metric, value in entry.items():
            if metric in METRICS and METRICS[metric].kind == "rate" and value is not None:
                systems[entry["system"]][measure_name(entry.get("set", ""), metric)][entry["id"]] = bool(value)
    return {"rows": rows, "systems": systems, "figures": figures}


def read_training(folder):
    """A run's last step, evaluation loss and tokens, as far as its files have them."""
    found = {"step": None, "eval_loss": None, "num_tokens": None}
    try:
        delivered = folder / ("model" if (folder / "model").is_dir() else "adapter")
        environment = read_json(delivered / "environment.json")
        found |= {"step": environment.get("global_step"), "eval_loss": environment.get("eval_loss")}
    except UserError:
        pass  # it has not ended
    try:
        entries = read_metrics(folder / "metrics.jsonl")
        tokens = [entry["train/num_tokens"] for entry in entries if "train/num_tokens" in entry]
        found["num_tokens"] = tokens[-1] if tokens else None
        losses = [(entry["step"], entry["eval/loss"]) for entry in entries if "eval/loss" in entry]
        if losses and found["eval_loss"] is None:
            found["step"], found["eval_loss"] = losses[-1]
    except UserError:
        pass
    return found


def compare_runs(output_dir, plans, minutes, bases=()):
    """The content of comparison/metrics.json, table and report.

    plans: `{run: {"settings", "seed", "arguments"}}` in order. minutes: of each run's training.
    bases: `{label: folder}` of the base's evaluations."""
    runs = {}
    for name, plan in plans.items():
        folder = output_dir / "runs" / name
        evaluation = read_evaluation(folder / "evaluation")
        adapted = adapter_of(evaluation)
        runs[name] = plan | read_training(folder) | {"minutes": minutes.get(name), "evaluation": evaluation}
        runs[name]["answers"] = evaluation["systems"][adapted] if adapted else {}
        runs[name]["means"] = means_of(evaluation["figures"], adapted) if adapted else {}
    axes = list(dict.fromkeys(axis for plan in plans.values() for axis in plan["settings"]))
    for run in runs.values():  # of an earlier grid without this axis: its value for all runs
        own = {axis: str(run["arguments"].get(axis)) for axis in axes}
        run["settings"] = own | run["settings"]
    groups = defaultdict(list)
    for name in runs:
        groups[name.rpartition(",seed=")[0]].append(name)
    configurations = [configuration(label, [runs[name] for name in names], names) for label, names in groups.items()]
    first = next((found for found in configurations if found["answers"]), None)
    for found in configurations:
        if first and found is not first and found["answers"]:
            found["against_first"] = against(first, found)
    of_bases = {label: read_evaluation(folder) for label, folder in dict(bases).items()}
    of_bases = {label: evaluation for label, evaluation in of_bases.items() if evaluation}
    return {
        "axes": axes,
        "first": first and first["name"],
        "num_rows": len(first["answers"]) if first else 0,
        "configurations": [
            {key: found[key] for key in found if key not in ("answers", "rows")} for found in configurations
        ],
        "base": {label: base_figures(evaluation) for label, evaluation in of_bases.items()},
        "base_means": {
            label: {system: means_of(evaluation["figures"], system) for system in evaluation["systems"]}
            for label, evaluation in of_bases.items()
        },
        "runs": {
            name: {key: run[key] for key in RUN_FACTS}
            | {"rates": {measure: rate(of_rows) for measure, of_rows in run["answers"].items()}}
            for name, run in runs.items()
        },
    }


def means_of(figures, system):
    """The means among an evaluation's figures of a system, such as --retention's perplexity."""
    found = figures.get("systems", {}).get(system, {})
    return {name: value["mean"] for name, value in found.items() if isinstance(value, dict) and "mean" in value}


def adapter_of(evaluation):
    """The evaluated system of the adapter: the first in the order of the tables, or None."""
    names = [name for name in SYSTEMS if SYSTEMS[name].adapter and evaluation and name in evaluation["systems"]]
    return names[0] if names else None


def rate(of_rows):
    return sum(of_rows.values()) / len(of_rows)


def configuration(label, runs, names):
    """The figures of one configuration's runs."""
    answered = [run for run in runs if run["answers"]]
    same = [run for run in answered if run["evaluation"]["rows"] == answered[0]["evaluation"]["rows"]]
    measures = list(dict.fromkeys(measure for run in same for measure in run["answers"]))
    pooled = {measure: pool([run["answers"].get(measure, {}) for run in same]) for measure in measures}
    return {
        "name": label or "all",
        "settings": runs[0]["settings"],
        "seeds": [run["seed"] for run in runs],
        "runs": names,
        "num_evaluated": len(same),
        "step": spread([run["step"] for run in runs]),
        "eval_loss": spread([run["eval_loss"] for run in runs]),
        "minutes": spread([run["minutes"] for run in runs]),
        "num_tokens": spread([run["num_tokens"] for run in runs]),
        "rates": {measure: pooled_rate(of_rows) for measure, of_rows in pooled.items() if of_rows},
        "means": {name: spread([run["means"].get(name) for run in same]) for name in same[0]["means"]} if same else {},
        "answers": pooled.get(MAIN, {}),
        "rows": same[0]["evaluation"]["rows"] if same else {},
    }


def pool(answers):
    """`{row id: [value of each run]}` of the rows in all runs."""
    first, *rest = answers
    shared = [row_id for row_id in first if all(row_id in other for other in rest)]
    return {row_id: [of_rows[row_id] for of_rows in answers] for row_id in shared}


def pooled_rate(pooled):
    """A rate's mean over seeds with its spread, and its 95% interval over rows: Wilson's with one
    seed, else by bootstrap over the rows."""
    by_seed = list(zip(*pooled.values(), strict=True))
    rates = [sum(of_seed) / len(of_seed) for of_seed in by_seed]
    if len(rates) == 1:
        low, high = wilson_interval(sum(by_seed[0]), len(by_seed[0]))
    else:
        low, high = bootstrap_ratio(*zip(*((sum(row), len(row)) for row in pooled.values()), strict=True))
    return spread(rates) | {"low": low, "high": high, "num_rows": len(pooled)}


def spread(values):
    """`{"mean", "sd", "values"}`; the standard deviation over seeds, None for one."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": means.fmean(known) if known else None,
        "sd": means.stdev(known) if len(known) > 1 else None,
        "values": values,
    }


def against(first, other):
    """A configuration against the first, by exact match on the same rows; None if the rows differ.

    p: of sign_flips over rows. p_seeds: of Welch's test over the seeds' rates."""
    if first["rows"] != other["rows"]:
        return None
    a, b = first["answers"], other["answers"]
    of_a, of_b = (len(next(iter(answers.values()))) for answers in (a, b))
    scale = math.lcm(of_a, of_b)
    shared = [row_id for row_id in a if row_id in b]
    differences = [sum(b[row_id]) * (scale // of_b) - sum(a[row_id]) * (scale // of_a) for row_id in shared]
    low, high = bootstrap_mean([difference / scale for difference in differences])
    rates = [found["rates"][MAIN]["values"] for found in (first, other)]
    return {
        "metric": MAIN,
        "num_rows": len(shared),
        "difference": sum(differences) / scale / len(shared),
        "low": low,
        "high": high,
        "rows_better": sum(difference > 0 for difference in differences),
        "rows_worse": sum(difference < 0 for difference in differences),
        "p": sign_flips(differences),
        "p_seeds": welch(*rates),
    }


def base_figures(evaluation):
    """`{system: {measure: rate's figure}}` of a base's evaluation."""
    return {
        system: {measure: pooled_rate(pool([of_rows])) for measure, of_rows in measures.items()}
        for system, measures in evaluation["systems"].items()
    }


def is_clear(test, num_tests):
    """Whether an `against_first` holds for other rows, by Bonferroni's correction for all tests,
    and for other seeds, if there are several."""
    by_seeds = test["p_seeds"] is None or test["p_seeds"] < SIGNIFICANT
    return by_seeds and test["p"] * num_tests < SIGNIFICANT
