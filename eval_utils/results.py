"""Scores several systems' answers to the same rows: the content of the table, metrics.json and the
report."""

import itertools
import json
import shlex
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType

from data_utils.made_rows import NO_CALL, SETS
from data_utils.systems import verdict_pair
from eval_utils.json_faults import find_fault
from eval_utils.metrics import METRICS, SCORING, summarize
from eval_utils.outcomes import OUTCOMES, call_table, kind_of_answer, turn_table, what_followed
from eval_utils.retention import PERPLEXITY, describe_retention
from eval_utils.row_sets import (
    ScoredRows,
    call_lines,
    count_outcomes,
    made_figures,
    perturbed_lines,
    score_rows,
)
from eval_utils.server_answers import describe_messages
from eval_utils.slices import describe_near_repeats, near_repeats, slices, worst_tools
from eval_utils.statistics import flips, mcnemar
from run_utils.files import write_json, write_json_lines

MOST_ROWS = 10_000  # on the page: 14 MB with two systems and rows of 366 tokens
TONES = {"right": "good", "order only": "neutral"}  # all other outcomes are bad


@dataclass
class Evaluation:
    """Several systems' answers to the same rows, scored: the source of the table, scores.jsonl,
    metrics.json and report.html.

    systems: the SystemKeys, in the table's order. predictions: `{key: {row id: prediction}}`.
    own: ScoredRows, the data set's. made: `{set: ScoredRows}`. figures: JSON values, by the
    systems' names. published: `{label: {metric: percent}}`. record: the answers' origin, from
    environment.json. commands: `{label: the command's words}`.
    """

    predictions: dict
    own: ScoredRows
    made: dict
    figures: dict
    title: str
    subtitle: str
    published: dict
    record: dict
    commands: dict

    @property
    def rows(self):
        return self.own.rows

    @property
    def sets(self):
        return {"": self.own, **self.made}

    @property
    def systems(self):
        return list(self.own.scores)


def compare_systems(rows, predictions, prompt_formats, in_training, baseline=(), *, made=MappingProxyType({})):
    """The own and made ScoredRows (see Evaluation) and the figures of systems on the same rows.

    rows: Rows. predictions: `{SystemKey: {row id: prediction}}`, as in predictions.jsonl.
    prompt_formats: the PromptFormat of each system. in_training, made: see folder.write_rows.
    baseline: see systems.verdict_pair.
    """
    first = first_of_equals([*rows, *itertools.chain(*made.values())], predictions, prompt_formats)
    shown = {key: by_id for key, by_id in predictions.items() if first[key] == key}
    own = score_rows(rows, shown, prompt_formats)
    made = {name: score_rows(of_set, shown, prompt_formats) for name, of_set in made.items()}
    _, tasks, outputs, scores, gold = own
    verdict = verdict_pair(list(outputs), list(dict.fromkeys(first[key] for key in baseline)))
    judged = verdict[1] if verdict else list(outputs)[-1]
    prompt_tokens = [predictions[judged][row.id].get("num_prompt_tokens") for row in rows]
    figures = {
        "systems": {
            key.name: {
                "num_examples": len(rows),
                **summarize(scores[key]),
                "outcomes": count_outcomes(scores[key]),
                "call_table": call_table(of_system),
                "turn_table": turn_table(of_system),
                "what_followed": dict(Counter(map(what_followed, of_system))),
                **generation_figures([predictions[key][row.id] for row in rows]),
            }
            for key, of_system in outputs.items()
        },
        "gold": summarize(gold),
        "pairs": pairs(rows, scores, verdict),
        "near_repeats": near_repeats(rows, scores, in_training["near_repeat"]),
        "slices": slices(tasks, scores, in_training, (judged.name, prompt_tokens)),
        "worst_tools": worst_tools(tasks, scores, judged),
        "made": made_figures(own, made),
        "warnings": [
            *warnings(own, made, first),
            *(
                line
                for key, by_id in predictions.items()
                for line in describe_messages(key.name, [by_id[row.id] for row in rows])
            ),
        ],
    }
    return own, made, figures


def first_of_equals(rows, predictions, prompt_formats):
    """`{key: the first key with the same answers}`: a base in several evaluations is shown once. A
    tuned system or a server has only itself."""
    found, first = {}, {}
    for key, by_id in predictions.items():
        answers = [(by_id[row.id]["text"], by_id[row.id]["finish"]) for row in rows]
        identity = (key.system, prompt_formats[key], *answers) if key.kind.is_base else key
        first[key] = found.setdefault(identity, key)
    return first


def generation_figures(predictions):
    finish = [prediction["finish"] for prediction in predictions]
    seconds = sum(prediction["seconds"] for prediction in predictions)
    return {
        "finish": dict(Counter(finish)),
        "came_as": dict(Counter(prediction["came_as"] for prediction in predictions if "came_as" in prediction)),
        "rows_per_second": len(predictions) / seconds if seconds else None,
        "golds_beyond_grammar": sum(prediction.get("gold_in_grammar") is False for prediction in predictions),
    }


def pairs(rows, scores, verdict):
    """Every two systems compared by exact match; the verdict's pair first."""
    is_right = {
        key: {row.id: row_scores["exact_match"] for row, row_scores in zip(rows, of_system, strict=True)}
        for key, of_system in scores.items()
    }
    chosen = [verdict] if verdict else []
    chosen += [pair for pair in itertools.combinations(is_right, 2) if set(pair) != set(verdict)]
    return [
        {
            "a": a.name,
            "b": b.name,
            "metric": "exact_match",
            "title": METRICS["exact_match"].title,
            **flips(is_right[a], is_right[b]),
        }
        for a, b in chosen
    ]


def warnings(own, made, first):
    """Warnings about abstention. own, made: see Evaluation. first: `{key: the key with its answers
    on the page}`, of all systems."""
    lines = over_call_warnings(own, first, "rows that want no call")
    if NO_CALL in made:
        lines += over_call_warnings(made[NO_CALL], first, "rows whose right tool is off the list")
    if not any(task.gold == [] for task in own.tasks):
        alone = ": abstention is measured on made rows alone" if NO_CALL in made else ", so abstention is not measured"
        lines = [f"Every row wants a call{alone}.", *lines]
    return lines


def over_call_warnings(scored, first, rows):
    """An adapter calls on rows on which its base rightly abstains. rows: their name in the line."""
    without = [place for place, task in enumerate(scored.tasks) if not task.gold]
    lines = []
    for after in first:
        before = after._replace(system="constrained" if after.kind.grammar else "prompted")
        if not after.kind.adapter or before not in first:
            continue
        answers = [scored.outputs[first[key]] for key in (before, after)]
        kinds = [tuple(kind_of_answer(of_system[place]) for of_system in answers) for place in without]
        parsed = [pair for pair in kinds if "broken" not in pair]
        more, fewer = parsed.count(("abstains", "calls")), parsed.count(("calls", "abstains"))
        if more > fewer and mcnemar(more, fewer) < 0.05:
            lines.append(
                f"{after.name} calls too often: of {len(parsed)} {rows} (both outputs parse), it calls in {more} in "
                f"which {first[before].name} abstains; the reverse in {fewer}."
            )
    return lines


def write_results(folder, evaluation):
    """Write scores.jsonl and metrics.json, the latter first: it identifies the folder."""
    write_json(folder / "metrics.json", {"scoring": SCORING, **evaluation.figures, **evaluation.record})
    write_json_lines(
        folder / "scores.jsonl",
        (
            {"id": row.id, "system": key.name, **({"set": name} if name else {}), **row_scores}
            for name, of_set in evaluation.sets.items()
            for key, scores in of_set.scores.items()
            for row, row_scores in zip(of_set.rows, scores, strict=True)
        ),
    )


def report_of(evaluation):
    """The report in the form of eval_utils/report.py."""
    figures = evaluation.figures
    systems = [key.name for key in evaluation.systems]
    of_systems = figures["systems"]
    near_repeats = figures["near_repeats"] or {"slice": None}
    no_call = figures["made"].get(NO_CALL)
    shown = rows_to_show(evaluation)
    return {
        "title": evaluation.title,
        "subtitle": evaluation.subtitle,
        "systems": systems,
        "system_help": {key.name: key.kind.help for key in evaluation.systems},
        "metrics": [
            {
                "name": name,
                "title": metric.title,
                "kind": metric.kind,
                "help": " ".join((metric.function.__doc__ or "").split()),
                "headline": metric.headline,
            }
            for name, metric in (METRICS | ({"perplexity": PERPLEXITY} if "retention" in figures else {})).items()
        ],
        "figures": of_systems,
        "gold": figures["gold"],
        "outcomes": [
            {"name": name, "title": name, "help": meaning, "tone": TONES.get(name, "bad")}
            for name, meaning in OUTCOMES.items()
        ],
        "outcome_counts": {system: of_systems[system]["outcomes"] for system in systems},
        "call_table": {
            system: of_systems[system]["call_table"]
            | ({"gold_made": no_call["systems"][system]["call_table"]["gold_none"]} if no_call else {})
            for system in systems
        },
        "turn_table": {system: of_systems[system]["turn_table"] for system in systems},
        **{name: figures[name] for name in ("pairs", "worst_tools", "warnings")},
        "when_not_to_call": call_lines(figures),
        "perturbed": perturbed_lines(figures),
        "sets": {name: SETS.get(name, name) for name in evaluation.sets},
        "notes": [*filter(None, [describe_near_repeats(evaluation)]), *describe_retention(figures)],
        "slices": [*filter(None, [near_repeats["slice"]]), *figures["slices"]],
        "published": evaluation.published,
        "rows": [
            {
                "id": row.id,
                "query": row.query,
                "tools": json.loads(row.tools),
                "gold": json.loads(row.answers),
                "category": row.category or None,
                "set": name,
                "outputs": {
                    key.name: row_output(
                        evaluation.predictions[key][row.id], of_set.scores[key][place], of_set.outputs[key][place]
                    )
                    for key in evaluation.systems
                },
            }
            for name, of_set, place, row in shown
        ],
        "rows_left_out": sum(len(of_set.rows) for of_set in evaluation.sets.values()) - len(shown),
        "commands": {label: shlex.join(["python", *words]) for label, words in evaluation.commands.items()},
        "record": evaluation.record,
    }


def rows_to_show(evaluation):
    """`(set's name, ScoredRows, place, row)` of the rows for the page, in order. Of more than
    MOST_ROWS, the first ones of each set and of each outcome of the judged system, equally many."""
    pairs = evaluation.figures["pairs"]
    judged = next((key for key in evaluation.systems if pairs and key.name == pairs[0]["b"]), evaluation.systems[-1])
    found, ranks, seen = [], [], Counter()
    for name, of_set in evaluation.sets.items():
        for place, (row, scores) in enumerate(zip(of_set.rows, of_set.scores[judged], strict=True)):
            found.append((name, of_set, place, row))
            ranks.append(seen[name, scores["outcome"]])
            seen[name, scores["outcome"]] += 1
    chosen = sorted(range(len(found)), key=ranks.__getitem__)[:MOST_ROWS]
    return [found[place] for place in sorted(chosen)]


def row_output(prediction, scores, output):
    return {
        "text": output.text,
        "value": output.value if output.parsed else output.lenient,
        "fault": None if output.parsed else find_fault(output.text, output.error),
        "outcome": scores["outcome"],
        "finish": prediction["finish"],
        "num_tokens": prediction["num_tokens"],
        "num_prompt_tokens": prediction.get("num_prompt_tokens"),
        "scores": {name: value for name, value in scores.items() if name != "outcome"},
    }
