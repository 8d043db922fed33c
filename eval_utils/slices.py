"""Exact match by kind of row, by tool, and with and without near-repeats of training queries."""

import itertools
from collections import defaultdict

from eval_utils.statistics import rate_figure


def near_repeats(rows, scores, near_repeat):
    """`{"count", "slice"}`: the number of rows whose query nearly repeats a training query (see
    data_utils/split.py), and exact match with and without them. The slice is None if all rows or no
    rows are near-repeats. Returns None if near_repeat is unknown."""
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
        title = "queries that equal a training query except for case, blanks, numbers or names"
        found = {"title": title, "values": [slice_figures(value, part, scores) for value, part in places.items()]}
    return {"count": len(parts[True]), "slice": found}


def slices(tasks, scores, in_training, prompt_tokens):
    """Exact match by kind of row: `[{"title", "values": [{"value", "n", "figures": {system:
    rate}}]}]`.

    in_training: see folder.write_rows. prompt_tokens: `(system, [tokens of each row's
    prompt])`, None for an unknown length."""
    rows = [task.row for task in tasks]
    system, lengths = prompt_tokens
    kinds = {
        "number of calls wanted": [str(len(task.gold)) for task in tasks],
        "number of tools on offer": [str(len(task.tools)) for task in tasks],
        f"length of {system}'s prompt, in tokens, by quarters": quarters(lengths),
        "category": [row.category or None for row in rows],
    }
    if of_set := in_training.get("data_set"):
        kinds["data set"] = [of_set[row.id] for row in rows]
    if (seen := in_training["tools_seen"]) is not None:
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


def quarters(lengths):
    """For each length its quarter, with the quarter's shortest and longest length. None for an
    unknown length, and for each of fewer than four lengths."""
    known = sorted(length for length in lengths if length is not None)
    if len(known) < 4:
        return [None] * len(lengths)
    limits = [known[len(known) * i // 4] for i in (1, 2, 3)]

    def quarter(length):
        return sum(length >= limit for limit in limits)

    names = {}
    for place, group in itertools.groupby(known, key=quarter):
        group = list(group)
        names[place] = f"Q{place + 1}: {group[0]:,} – {group[-1]:,}"
    return [None if length is None else names[quarter(length)] for length in lengths]


def slice_figures(value, places, scores):
    figures = {}
    for key, of_system in scores.items():
        figures[key.name] = rate_figure(sum(of_system[place]["exact_match"] for place in places), len(places))
    return {"value": value, "n": len(places), "figures": figures}


def worst_tools(tasks, scores, judged, least=2, most=10):
    """Exact match on the tools that gold calls in at least `least` rows and the judged system gets
    wrong at least once, the worst first."""
    places = defaultdict(list)
    for place, task in enumerate(tasks):
        for name in {call["name"] for call in task.gold}:
            places[name].append(place)
    groups = [slice_figures(name, of_tool, scores) for name, of_tool in places.items() if len(of_tool) >= least]
    groups = [group for group in groups if group["figures"][judged.name]["rate"] < 1]
    groups.sort(key=lambda group: (group["figures"][judged.name]["rate"], -group["n"], group["value"]))
    return {"title": f"the tools that {judged.name} gets right least often", "values": groups[:most]}


def describe_near_repeats(evaluation):
    """One sentence, or None if near-repeats are unknown."""
    found = evaluation.figures["near_repeats"]
    if found is None:
        return None
    line = f"{found['count']} of {len(evaluation.rows)} "
    line += "queries equal a training query except for case, blanks, numbers or names"
    if not found["slice"]:
        return f"{line}."
    _, without, _ = found["slice"]["values"]
    rates = ", ".join(f"{system} {100 * figure['rate']:.2f} %" for system, figure in without["figures"].items())
    return f"{line}. Exact match on the other {without['n']}: {rates}."
