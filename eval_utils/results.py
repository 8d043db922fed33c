"""Several systems' answers to the same rows become an Evaluation: the content of the table, metrics.json and the report."""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import dataclass

from data_utils.prompt import PROMPT_FORMATS
from data_utils.systems import verdict_pair
from eval_utils import predictions as prediction_files
from eval_utils.metrics import METRICS, SCORING, Output, Task, score, summarize
from eval_utils.outcomes import OUTCOMES, call_table, kind_of_answer, what_followed
from eval_utils.predictions import describe_messages
from eval_utils.statistics import flips, mcnemar, wilson_interval
from run_utils.files import write_json

TONES = {"right": "good", "order only": "neutral"}  # of outcomes; the others are bad
GOLDS_OWN = ("no_hallucination", "required_coverage", "schema_conformity", "hallucinated_values", "acceptable_match")


@dataclass
class Evaluation:
    """Several systems' answers to the same rows, scored. The table, scores.jsonl, metrics.json and report.html are each made
    of one.

    systems: the SystemKeys, in the order of the table. predictions: `{key: {row id: prediction}}`. scores, values: `{key:
    [...]}` in the rows' order, of metrics.score and Output.value. figures: JSON values, the systems by their names.
    published: `{label: {metric: percent}}`. record: where the answers come from, of environment.json.
    """

    rows: list
    predictions: dict
    scores: dict
    values: dict
    figures: dict
    title: str
    subtitle: str
    published: dict
    record: dict

    @property
    def systems(self):
        return list(self.scores)


def compare_systems(rows, predictions, prompt_formats, in_training, baseline=()):
    """The scores, the values and the figures of systems on the same rows.

    rows: Rows. predictions: `{SystemKey: {row id: prediction}}`, a prediction a line of predictions.jsonl. prompt_formats: the
    PromptFormat of each system. in_training: see predictions.write_rows. baseline: see systems.verdict_pair.
    """
    first = first_of_equals(rows, predictions, prompt_formats)
    tasks = [Task(row) for row in rows]
    outputs = {
        key: [
            Output(task, by_id[row.id]["text"], prompt_formats[key], by_id[row.id]["finish"])
            for row, task in zip(rows, tasks, strict=True)
        ]
        for key, by_id in predictions.items()
        if first[key] == key
    }
    scores = {key: [score(output) for output in of_system] for key, of_system in outputs.items()}
    tags = PROMPT_FORMATS["tags-1"]
    gold = summarize([score(Output(task, task.row.answers, tags)) for task in tasks])
    verdict = verdict_pair(list(outputs), list(dict.fromkeys(first[key] for key in baseline)))
    figures = {
        "systems": {
            key.name: {
                "num_examples": len(rows),
                **summarize(scores[key]),
                "outcomes": count_outcomes(scores[key]),
                "call_table": call_table(of_system),
                "what_followed": dict(Counter(map(what_followed, of_system))),
                **generation_figures([predictions[key][row.id] for row in rows]),
            }
            for key, of_system in outputs.items()
        },
        "gold": {name: gold[name] for name in GOLDS_OWN if name in gold},
        "pairs": pairs(rows, scores, verdict),
        "near_repeats": near_repeats(rows, scores, in_training["near_repeat"]),
        "slices": slices(tasks, scores, in_training["tools_seen"]),
        "worst_tools": worst_tools(tasks, scores, verdict[1] if verdict else list(outputs)[-1]),
        "warnings": [
            *warnings(tasks, {key: outputs[first[key]] for key in predictions}, first),
            *(
                line
                for key, by_id in predictions.items()
                for line in describe_messages(key.name, [by_id[row.id] for row in rows])
            ),
        ],
    }
    values = {key: [output.value for output in of_system] for key, of_system in outputs.items()}
    return scores, values, figures


def first_of_equals(rows, predictions, prompt_formats):
    """`{key: the first key with the same answers}`: a base that several evaluations have stands once. A tuned system or a server
    has only itself."""
    found, first = {}, {}
    for key, by_id in predictions.items():
        answers = [(by_id[row.id]["text"], by_id[row.id]["finish"]) for row in rows]
        identity = (key.system, prompt_formats[key], *answers) if key.kind.is_base else key
        first[key] = found.setdefault(identity, key)
    return first


def count_outcomes(scores):
    counts = Counter(row_scores["outcome"] for row_scores in scores)
    return {name: counts[name] for name in OUTCOMES}


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
    """Every two systems beside each other, by exact match; the pair of the verdict first."""
    right = {
        key: {row.id: row_scores["exact_match"] for row, row_scores in zip(rows, of_system, strict=True)}
        for key, of_system in scores.items()
    }
    chosen = [verdict] if verdict else []
    chosen += [pair for pair in itertools.combinations(right, 2) if set(pair) != set(verdict)]
    return [
        {
            "a": a.name,
            "b": b.name,
            "metric": "exact_match",
            "title": METRICS["exact_match"].title,
            **flips(right[a], right[b]),
        }
        for a, b in chosen
    ]


def near_repeats(rows, scores, near_repeat):
    """`{"count", "slice"}`: how many rows' queries nearly repeat a training query (see data_utils/split.py), and exact match with and
    without them. The slice is None if all rows are such or none is; the whole is None if it is not known."""
    if near_repeat is None:
        return None
    parts = {True: [], False: []}
    for place, row in enumerate(rows):
        parts[near_repeat[row.id]].append(place)
    found = None
    if parts[True] and parts[False]:
        places = {
            "all rows": range(len(rows)),
            "without near-repeats": parts[False],
            "near-repeats alone": parts[True],
        }
        title = "queries that nearly repeat a training query, but for case, blanks, numbers or names"
        found = {"title": title, "values": [slice_figures(value, part, scores) for value, part in places.items()]}
    return {"count": len(parts[True]), "slice": found}


def slices(tasks, scores, seen):
    """Exact match by kind of row: `[{"title", "values": [{"value", "n", "figures": {system: rate}}]}]`."""
    rows = [task.row for task in tasks]
    lengths = sorted(len(row.query) + len(row.tools) for row in rows)
    quarters = [lengths[len(lengths) * i // 4] for i in (1, 2, 3)] if len(lengths) >= 4 else []

    def length(row):
        place = sum(len(row.query) + len(row.tools) >= limit for limit in quarters)
        return f"{place + 1}. quarter" + (f", from {quarters[place - 1]:,}" if place else "")

    kinds = {
        "number of calls wanted": [str(len(task.gold)) for task in tasks],
        "number of tools on offer": [str(len(task.tools)) for task in tasks],
        "length of query and tools, in characters": [length(row) for row in rows],
        "category": [row.category or None for row in rows],
    }
    if seen is not None:
        kinds["tools on offer"] = [
            "all seen in training" if seen[row.id] else "some never seen in training" for row in rows
        ]
    found = []
    for title, values in kinds.items():
        groups = defaultdict(list)
        for place, value in enumerate(values):
            if value is not None:
                groups[value].append(place)
        order = sorted(groups, key=lambda value: (not value.isdecimal(), int(value) if value.isdecimal() else 0, value))
        if len(groups) > 1:
            found.append({"title": title, "values": [slice_figures(v, groups[v], scores) for v in order]})
    return found


def slice_figures(value, places, scores):
    figures = {}
    for key, of_system in scores.items():
        k, n = sum(of_system[place]["exact_match"] for place in places), len(places)
        low, high = wilson_interval(k, n)
        figures[key.name] = {"k": k, "n": n, "rate": k / n, "low": low, "high": high}
    return {"value": value, "n": len(places), "figures": figures}


def worst_tools(tasks, scores, judged, least=2, most=10):
    """The tools that gold calls in at least two rows with the fewest exact matches of the judged system, worst first."""
    places = defaultdict(list)
    for place, task in enumerate(tasks):
        for name in {call["name"] for call in task.gold}:
            places[name].append(place)
    groups = [slice_figures(name, of_tool, scores) for name, of_tool in places.items() if len(of_tool) >= least]
    groups.sort(key=lambda group: (group["figures"][judged.name]["rate"], -group["n"], group["value"]))
    return {"title": f"the tools that {judged.name} gets right least often", "values": groups[:most]}


def warnings(tasks, outputs, first):
    """Lines about over-calls: an adapter that calls where its own base abstains, rightly.

    outputs: `{key: [Output]}` of all systems, first: the key under which the answers of each are shown.
    """
    without = [place for place, task in enumerate(tasks) if not task.gold]
    if not without:
        return ["No row here wants no call: whether a system still abstains where no tool fits is not measured."]
    lines = []
    for after in outputs:
        before = after._replace(system="constrained" if after.kind.grammar else "prompted")
        if not after.kind.adapter or before not in outputs:
            continue
        kinds = [(kind_of_answer(outputs[before][i]), kind_of_answer(outputs[after][i])) for i in without]
        parsed = [pair for pair in kinds if "broken" not in pair]
        more, fewer = parsed.count(("abstains", "calls")), parsed.count(("calls", "abstains"))
        if more > fewer and mcnemar(more, fewer) < 0.05:
            lines.append(
                f"Of {len(parsed)} rows without a call where both outputs parse, {after.name} calls in {more} where "
                f"{first[before].name} abstains, the reverse in {fewer}: it calls too often."
            )
    return lines


def write_results(folder, evaluation):
    """scores.jsonl and metrics.json. The latter first: it shows whose the others are."""
    write_json(folder / "metrics.json", {"scoring": SCORING, **evaluation.figures, **evaluation.record})
    prediction_files.write(
        folder / "scores.jsonl",
        (
            {"id": row.id, "system": key.name, **row_scores}
            for key, of_system in evaluation.scores.items()
            for row, row_scores in zip(evaluation.rows, of_system, strict=True)
        ),
    )


def describe_near_repeats(evaluation):
    """A sentence; None if near-repeats are not known."""
    found = evaluation.figures["near_repeats"]
    if found is None:
        return None
    line = f"{found['count']} of {len(evaluation.rows)} queries equal a training query but for case, blanks, numbers or names"
    if not found["slice"]:
        return f"{line}."
    _, without, _ = found["slice"]["values"]
    rates = ", ".join(f"{system} {100 * figure['rate']:.2f} %" for system, figure in without["figures"].items())
    return f"{line}. Exact match on the other {without['n']}: {rates}."


def report_of(evaluation):
    """The dict that eval_utils/report.py renders."""
    figures = evaluation.figures
    systems = [key.name for key in evaluation.systems]
    of_systems = figures["systems"]
    near_repeats = figures["near_repeats"] or {"slice": None}
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
            for name, metric in METRICS.items()
        ],
        "figures": of_systems,
        "gold": figures["gold"],
        "outcomes": [
            {"name": name, "title": name, "help": meaning, "tone": TONES.get(name, "bad")}
            for name, meaning in OUTCOMES.items()
        ],
        "outcome_counts": {system: of_systems[system]["outcomes"] for system in systems},
        "call_table": {system: of_systems[system]["call_table"] for system in systems},
        **{name: figures[name] for name in ("pairs", "worst_tools", "warnings")},
        "notes": [*filter(None, [describe_near_repeats(evaluation)])],
        "slices": [*filter(None, [near_repeats["slice"]]), *figures["slices"]],
        "published": evaluation.published,
        "rows": [
            {
                "id": row.id,
                "query": row.query,
                "tools": json.loads(row.tools),
                "gold": json.loads(row.answers),
                "category": row.category or None,
                "outputs": {key.name: row_output(evaluation, key, place) for key in evaluation.systems},
            }
            for place, row in enumerate(evaluation.rows)
        ],
        "record": evaluation.record,
    }


def row_output(evaluation, key, place):
    prediction = evaluation.predictions[key][evaluation.rows[place].id]
    scores = evaluation.scores[key][place]
    return {
        "text": prediction["text"],
        "value": evaluation.values[key][place],
        "outcome": scores["outcome"],
        "finish": prediction["finish"],
        "num_tokens": prediction["num_tokens"],
        "scores": {name: value for name, value in scores.items() if name != "outcome"},
    }
