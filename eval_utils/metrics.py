"""The metrics, in one table: each is a function of what a model said about one row. Pure functions, no torch.

To add a metric, add a line to METRICS: evaluate.py, the evaluations inside train.py, metrics.json and the table of results
take it from there, of evaluations that are finished already too (texts are kept, scores are not).
"""

import functools
import json
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from data_utils.tool_calls import json_equal, lenient_value

SCORING = "3"  # counted up when a definition below changes: figures of two versions are not to be compared


class Output:
    """What a model said about one row: the text, read as its prompt format reads it, and what it is compared with."""

    def __init__(self, row, text, prompt_format):
        self.text = text
        self.gold = json.loads(row.answers)  # the list of calls wanted
        self.tool_names = row.tool_names()  # of those on offer
        try:
            self.value = prompt_format.parse(text)
        except ValueError:
            self.value = None

    @functools.cached_property
    def lenient(self):
        """What a forgiving parser finds: the value for upper bounds, since that of published figures is not known."""
        return lenient_value(self.text)


def json_valid(output):
    """The answer is strict JSON, all of it, a list or an object."""
    return isinstance(output.value, list | dict)


def lenient_json_valid(output):
    return output.lenient is not None


def exact_match(output):
    """The answer equals gold as JSON, calls in order."""
    return json_equal(output.value, output.gold)


def lenient_exact_match(output):
    return json_equal(output.lenient, output.gold)


def tools_exist(output):
    """The answer is valid and makes at least one call (none only where gold has none), all to tools on offer."""
    return _tools_exist(output.value, output, nameless_pass=False)


def lenient_tools_exist(output):
    """As above, of the lenient value, and elements that name no tool pass."""
    return _tools_exist(output.lenient, output, nameless_pass=True)


def _tools_exist(value, output, nameless_pass):
    if not isinstance(value, list | dict):
        return False
    calls = value if isinstance(value, list) else [value]
    if not calls:
        return not output.gold
    named = [call.get("name") if isinstance(call, dict) else None for call in calls]
    return all(nameless_pass if name is None else isinstance(name, str) and name in output.tool_names for name in named)


class Metric(NamedTuple):
    title: str
    kind: Literal["rate", "mean", "count"]
    function: Callable[[Output], float]  # a rate's is true or false
    lenient: Callable[[Output], float] | None = None  # an upper bound of it


METRICS = {
    "json_valid": Metric("JSON valid", "rate", json_valid, lenient_json_valid),
    "exact_match": Metric("exact match", "rate", exact_match, lenient_exact_match),
    "tools_exist": Metric("tools exist", "rate", tools_exist, lenient_tools_exist),
}


def score(output):
    """`{name: value}` of one output; an upper bound's name begins with `lenient_`."""
    scores = {name: metric.function(output) for name, metric in METRICS.items()}
    return scores | {f"lenient_{name}": metric.lenient(output) for name, metric in METRICS.items() if metric.lenient}


def summarize(scores):
    """The figures of many outputs' scores, by metric: of a rate `{"k", "n", "rate", "low", "high"}` with its Wilson interval,
    of a mean `{"n", "mean"}`, of a count `{"n", "count"}`. A row that does not parse is a miss, never an exclusion."""
    figures = {}
    for name in scores[0] if scores else ():
        kind = METRICS[name if name in METRICS else name.removeprefix("lenient_")].kind
        total, n = sum(each[name] for each in scores), len(scores)
        if kind == "rate":
            low, high = wilson_interval(total, n)
            figures[name] = {"k": total, "n": n, "rate": total / n, "low": low, "high": high}
        else:
            figures[name] = {"n": n, kind: total / n if kind == "mean" else total}
    return figures


def wilson_interval(k, n, z=1.959964):
    """The 95% interval of a proportion k/n, as (low, high): Wilson (1927), which holds near 0 and 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    p = k / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)
