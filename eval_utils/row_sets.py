"""The scores of a set of rows: the data set's own, or one made from them by an evaluation (see
data_utils/made_rows.py). The sets are never mixed in one figure."""

from collections import Counter
from typing import NamedTuple

from data_utils.made_rows import NO_CALL, SETS, original_id
from eval_utils.metrics import METRICS, score, score_gold
from eval_utils.outcomes import OUTCOMES, call_table
from eval_utils.outputs import Output, Task
from eval_utils.statistics import flips, rate_figure

# The figures of the table "When not to call".
CALL_COLUMNS = {
    "own": "calls, own rows without calls",
    "made": "calls, right tool off the list",
    "missed": "no call, own rows with calls",
}


class ScoredRows(NamedTuple):
    """One set of rows with the systems' answers: tasks in the rows' order, and for each SystemKey,
    in the same order, Outputs and scores (metrics.score). gold: metrics.score_gold of each."""

    rows: list
    tasks: list
    outputs: dict
    scores: dict
    gold: list


def score_rows(rows, predictions, prompt_formats):
    """predictions: `{SystemKey: {row id: prediction}}`. prompt_formats: of each key."""
    tasks = [Task(row) for row in rows]
    outputs, scores, gold = {key: [] for key in predictions}, {key: [] for key in predictions}, []
    for task in tasks:  # all answers to a row at once: they share what its query and tools hold
        for key, by_id in predictions.items():
            output = output_of(task, by_id[task.row.id], prompt_formats[key])
            outputs[key].append(output)
            scores[key].append(score(output))
        gold.append(score_gold(task))
    return ScoredRows(rows, tasks, outputs, scores, gold)


def output_of(task, prediction, prompt_format):
    """The Output of a prediction. Of a server's message, only its content has the prompt format."""
    is_list = prediction.get("came_as", "text") not in ("text", "content", "empty turn")
    return Output(task, prediction["text"], prompt_format, prediction["finish"], is_list=is_list)


def count_outcomes(scores):
    counts = Counter(row_scores["outcome"] for row_scores in scores)
    return {name: counts[name] for name in OUTCOMES}


def made_figures(own, made):
    """`{set: {"num_rows", "left_out", "systems": {name: figures}}}` of the made sets.

    own, made: ScoredRows and `{set: ScoredRows}`. left_out: the number of own rows without a made
    one. A system's figures are its rates, outcomes and call_table. no_call also has the number of
    answers with a call to a tool off the list. A perturbed set has `exact_match_before`, of the
    same rows unperturbed, and the `flips` from them (statistics.flips, by the made rows' ids)."""
    places = {row.id: place for place, row in enumerate(own.rows)}
    found = {}
    for name, of_set in made.items():
        originals = {row.id: places[original_id(row.id, name)] for row in of_set.rows}
        found[name] = {
            "num_rows": len(of_set.rows),
            "left_out": len(own.rows) - len(of_set.rows),
            "systems": {
                key.name: {
                    **rates(scores),
                    "outcomes": count_outcomes(scores),
                    "call_table": call_table(of_set.outputs[key]),
                    **(
                        {"calls_off_the_list": sum(map(calls_off_the_list, of_set.outputs[key]))}
                        if name == NO_CALL
                        else change(of_set.rows, scores, own.scores[key], originals)
                    ),
                }
                for key, scores in of_set.scores.items()
            },
        }
    return found


def rates(scores):
    found = {}
    for name, metric in METRICS.items():
        results = [row_scores[name] for row_scores in scores if row_scores[name] is not None]
        if metric.kind == "rate" and results:
            found[name] = rate_figure(sum(results), len(results))
    return found


def calls_off_the_list(output):
    return any(call["name"] not in output.schemas for call in output.calls or [])


def change(rows, scores, own_scores, originals):
    """One system's answers to perturbed rows against its answers to the same rows unperturbed."""
    before = {row.id: own_scores[originals[row.id]]["exact_match"] for row in rows}
    after = {row.id: row_scores["exact_match"] for row, row_scores in zip(rows, scores, strict=True)}
    return {"exact_match_before": rate_figure(sum(before.values()), len(before)), "flips": flips(before, after)}


def call_lines(figures):
    """The lines of the table "When not to call": `[{"system", "own", "missed", "made", "notes":
    {column: [str]}}]`, with the figures of over_call and missed_call on the data set's own rows and
    of over_call on the rows made; None without such rows. Empty if no row wants no call."""
    made = figures["made"].get(NO_CALL, {"systems": {}})["systems"]
    lines = []
    for system, own in figures["systems"].items():
        of_made = made.get(system, {})
        tables = {"own": own["call_table"]["gold_none"], "missed": own["call_table"]["gold_calls"]}
        tables["made"] = of_made.get("call_table", {}).get("gold_none", {"broken": 0})
        notes = {column: [f"{counts['broken']} broken"] * bool(counts["broken"]) for column, counts in tables.items()}
        if count := of_made.get("calls_off_the_list"):
            notes["made"].append(f"{count} to tools not offered")
        lines.append(
            {
                "system": system,
                "own": own.get("over_call"),
                "missed": own.get("missed_call"),
                "made": of_made.get("over_call"),
                "notes": notes,
            }
        )
    return lines if any(line["own"] or line["made"] for line in lines) else []


def call_columns(lines):
    """The columns of call_lines with figures, as `{column: title}`."""
    return {column: title for column, title in CALL_COLUMNS.items() if any(line[column] for line in lines)}


def perturbed_lines(figures):
    """The lines of the table of perturbed rows: `[{"made", "title", "num_rows", "left_out",
    "systems": {name: figures}}]`."""
    return [
        {"made": name, "title": SETS.get(name, name), **of_set}
        for name, of_set in figures["made"].items()
        if name != NO_CALL
    ]
