"""From what several systems said about the same rows to all that metrics.json and the report show."""

import itertools
import json
from collections import Counter, defaultdict

from data_utils.prompt import PROMPT_FORMATS
from eval_utils.metrics import METRICS, Output, score, summarize
from eval_utils.outcomes import OUTCOMES, call_table, kind_of_answer, what_followed
from eval_utils.predictions import describe_messages
from eval_utils.statistics import flips, mcnemar, wilson_interval

TONES = {"right": "good", "order only": "neutral"}  # of outcomes; the others are bad
GOLDS_OWN = ("no_hallucination", "required_coverage", "schema_conformity", "hallucinated_values", "acceptable_match")


def compare_systems(rows, predictions, prompt_formats, seen=None):
    """All results of systems on the same rows, as JSON values.

    rows: Rows. predictions: `{system: {row id: prediction}}`, a prediction a line of predictions.jsonl. prompt_formats: the
    PromptFormat of each system. seen: whether all tools of a row were on offer in training, `{row id: bool}`; None where that
    is not known.
    """
    outputs = {
        system: [Output(row, said[row.id]["text"], prompt_formats[system], said[row.id]["finish"]) for row in rows]
        for system, said in predictions.items()
    }
    scores = {system: [score(output) for output in mine] for system, mine in outputs.items()}
    tags = PROMPT_FORMATS["tags-1"]
    gold = summarize([score(Output(row, row.answers, tags)) for row in rows])
    return {
        "systems": {
            system: {
                "num_examples": len(rows),
                **summarize(scores[system]),
                "outcomes": count_outcomes(scores[system]),
                "call_table": call_table(mine),
                "what_followed": dict(Counter(map(what_followed, mine))),
                **generation_figures([predictions[system][row.id] for row in rows]),
            }
            for system, mine in outputs.items()
        },
        "gold": {name: gold[name] for name in GOLDS_OWN if name in gold},
        "pairs": pairs(rows, scores),
        "slices": slices(rows, scores, seen),
        "worst_tools": worst_tools(rows, scores),
        "warnings": [
            *warnings(rows, outputs),
            *(
                line
                for system, said in predictions.items()
                for line in describe_messages(system, [said[r.id] for r in rows])
            ),
        ],
        "scores": scores,
        "values": {system: [output.value for output in mine] for system, mine in outputs.items()},
    }


def count_outcomes(scores):
    counts = Counter(each["outcome"] for each in scores)
    return {name: counts[name] for name in OUTCOMES}


def generation_figures(predictions):
    finish = [prediction["finish"] for prediction in predictions]
    seconds = sum(prediction["seconds"] for prediction in predictions)
    return {
        "finish": dict(Counter(finish)),
        "came_as": dict(Counter(prediction["came_as"] for prediction in predictions if "came_as" in prediction)),
        "rows_per_second": len(predictions) / seconds if seconds else None,
    }


def pairs(rows, scores):
    """Every two systems beside each other, by exact match."""
    right = {
        system: {row.id: each["exact_match"] for row, each in zip(rows, mine, strict=True)}
        for system, mine in scores.items()
    }
    return [
        {"a": a, "b": b, "metric": "exact_match", "title": METRICS["exact_match"].title, **flips(right[a], right[b])}
        for a, b in itertools.combinations(right, 2)
    ]


def slices(rows, scores, seen):
    """Exact match by kind of row: `[{"title", "values": [{"value", "n", "figures": {system: rate}}]}]`."""
    lengths = sorted(len(row.query) + len(row.tools) for row in rows)
    quarters = [lengths[len(lengths) * i // 4] for i in (1, 2, 3)] if len(lengths) >= 4 else []

    def length(row):
        place = sum(len(row.query) + len(row.tools) >= limit for limit in quarters)
        return f"{place + 1}. quarter" + (f", from {quarters[place - 1]:,}" if place else "")

    kinds = {
        "number of calls wanted": lambda row: str(len(json.loads(row.answers))),
        "number of tools on offer": lambda row: str(len(json.loads(row.tools))),
        "length of query and tools, in characters": length,
        "category": lambda row: row.category or None,
    }
    if seen is not None:
        kinds["tools on offer"] = lambda row: "all seen in training" if seen[row.id] else "some never seen in training"
    found = []
    for title, kind in kinds.items():
        groups = defaultdict(list)
        for place, row in enumerate(rows):
            if (value := kind(row)) is not None:
                groups[value].append(place)
        order = sorted(groups, key=lambda value: (not value.isdecimal(), int(value) if value.isdecimal() else 0, value))
        if len(groups) > 1:
            found.append({"title": title, "values": [slice_figures(v, groups[v], scores) for v in order]})
    return found


def slice_figures(value, places, scores):
    figures = {}
    for system, mine in scores.items():
        k, n = sum(mine[place]["exact_match"] for place in places), len(places)
        low, high = wilson_interval(k, n)
        figures[system] = {"k": k, "n": n, "rate": k / n, "low": low, "high": high}
    return {"value": value, "n": len(places), "figures": figures}


def worst_tools(rows, scores, least=2, most=10):
    """The tools that gold calls in at least two rows with the fewest exact matches of the last system, worst first."""
    places = defaultdict(list)
    for place, row in enumerate(rows):
        for name in {call["name"] for call in json.loads(row.answers)}:
            places[name].append(place)
    last = list(scores)[-1]
    groups = [slice_figures(name, mine, scores) for name, mine in places.items() if len(mine) >= least]
    groups.sort(key=lambda group: (group["figures"][last]["rate"], -group["n"], group["value"]))
    return {"title": f"the tools that {last} gets right least often", "values": groups[:most]}


def warnings(rows, outputs):
    """Lines about whether training has taught the model to call where nothing fits."""
    without = [place for place, row in enumerate(rows) if not json.loads(row.answers)]
    if not without:
        return ["No row here wants no call: whether a system still abstains where no tool fits is not measured."]
    lines = []
    for before, after in (("prompted", "adapter"), ("constrained", "constrained_adapter")):
        if before not in outputs or after not in outputs:
            continue
        kinds = [(kind_of_answer(outputs[before][i]), kind_of_answer(outputs[after][i])) for i in without]
        parsed = [pair for pair in kinds if "broken" not in pair]
        more, fewer = parsed.count(("abstains", "calls")), parsed.count(("calls", "abstains"))
        if more > fewer and mcnemar(more, fewer) < 0.05:
            lines.append(
                f"Of {len(parsed)} rows without a call where both outputs parse, {after} calls in {more} where {before} "
                f"abstains, the reverse in {fewer}: it calls too often."
            )
    return lines


def report_of(results, rows, predictions, title, subtitle, published, record):
    """The dict that eval_utils/report.py renders."""
    systems = list(results["systems"])
    return {
        "title": title,
        "subtitle": subtitle,
        "systems": systems,
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
        "figures": results["systems"],
        "gold": results["gold"],
        "outcomes": [
            {"name": name, "title": name, "help": meaning, "tone": TONES.get(name, "bad")}
            for name, meaning in OUTCOMES.items()
        ],
        "outcome_counts": {system: results["systems"][system]["outcomes"] for system in systems},
        "call_table": {system: results["systems"][system]["call_table"] for system in systems},
        **{name: results[name] for name in ("pairs", "slices", "worst_tools", "warnings")},
        "published": published,
        "rows": [
            {
                "id": row.id,
                "query": row.query,
                "tools": json.loads(row.tools),
                "gold": json.loads(row.answers),
                "category": row.category or None,
                "outputs": {system: row_output(results, predictions, system, row, i) for system in systems},
            }
            for i, row in enumerate(rows)
        ],
        "record": record,
    }


def row_output(results, predictions, system, row, place):
    said, scores = predictions[system][row.id], results["scores"][system][place]
    return {
        "text": said["text"],
        "value": results["values"][system][place],
        "outcome": scores["outcome"],
        "finish": said["finish"],
        "num_tokens": said["num_tokens"],
        "scores": {name: value for name, value in scores.items() if name != "outcome"},
    }
