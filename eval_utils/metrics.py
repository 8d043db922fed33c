"""The metrics, in one table: each is a function of one Output (outputs.py). No torch.

To add a metric, add a line to METRICS. evaluate.py, train.py's evaluations, metrics.json, the table
and the report use it, also for finished evaluations: texts are kept, scores are not.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

from data_utils.prompt import PROMPT_FORMATS
from data_utils.tool_calls import check_calls, json_equal, parse_json
from data_utils.tool_schema import conforms, is_required
from eval_utils.ast_match import ast_match
from eval_utils.grounding import leaf_values
from eval_utils.matching import num_equal, num_equal_calls
from eval_utils.outcomes import kind_of_answer, outcome, turn_match
from eval_utils.outputs import Output

GOLDS_OWN = ("no_hallucination", "required_coverage", "schema_conformity", "hallucinated_values", "acceptable_match")
SCORING = "6"  # count up if a definition changes: figures of two versions are not comparable


def json_valid(output):
    """The whole answer is strict JSON: a list or an object."""
    return isinstance(output.value, list | dict)


def lenient_json_valid(output):
    return output.lenient is not None


def exact_match(output):
    """The answer equals gold as JSON, calls in order. true is not 1; 5 is 5.0."""
    return json_equal(output.value, output.gold)


def lenient_exact_match(output):
    return json_equal(output.lenient, output.gold)


def tools_exist(output):
    """A valid answer with at least one call (none if gold has none), to tools on offer only."""
    return _tools_exist(output.value, output, nameless_pass=False)


def lenient_tools_exist(output):
    """As above, for the lenient value. Elements without a name pass."""
    return _tools_exist(output.lenient, output, nameless_pass=True)


def _tools_exist(value, output, nameless_pass):
    if not isinstance(value, list | dict):
        return False
    calls = value if isinstance(value, list) else [value]
    if not calls:
        return not output.gold
    named = [call.get("name") if isinstance(call, dict) else None for call in calls]
    return all(nameless_pass if name is None else isinstance(name, str) and name in output.schemas for name in named)


def no_hallucination(output):
    """Tools exist, all arguments are declared, all values occur in the query or the tools."""
    if not tools_exist(output) or output.calls is None:
        return False
    declared = all(call["arguments"].keys() <= declared_arguments(output, call) for call in output.calls)
    return declared and all(output.sources.is_grounded(value) for value in values(output))


def declared_arguments(output, call):
    return output.schemas.get(call["name"], {"properties": {}})["properties"].keys()


def values(output):
    return [value for call in output.calls or [] for value in leaf_values(call["arguments"])]


def exact_typed(output):
    """Exact match, and 1 is not 1.0."""
    return exact_match(output) and json.dumps(output.value, sort_keys=True) == json.dumps(output.gold, sort_keys=True)


def exact_any_order(output):
    """Exact match in any order of the calls; repeated calls count."""
    return isinstance(output.value, list) and same_calls(output.value, output.gold)


def exact_schema_aware(output):
    """Exact in any order, after NFC, defaults and declared types; one call is a list of one."""
    value = [output.value] if isinstance(output.value, dict) else output.value
    try:
        check_calls(value)
    except ValueError:
        return exact_any_order(output)
    defaults = {tool["name"]: tool.get("parameters") or {} for tool in output.tools}
    sides = [[normalized(call, output.schemas, defaults) for call in calls] for calls in (value, output.gold)]
    return exact_any_order(output) or same_calls(*sides)


def same_calls(calls, gold):
    return len(calls) == len(gold) == num_equal_calls(calls, gold)


def normalized(call, schemas, defaults):
    arguments = {nfc(name): value for name, value in call["arguments"].items()}
    for name, spec in defaults.get(call["name"], {}).items():
        if "default" in spec and not is_required(spec):
            arguments.setdefault(nfc(name), spec["default"])
    declared = schemas.get(call["name"], {"properties": {}})["properties"]
    properties = {nfc(name): schema for name, schema in declared.items()}
    arguments = {name: converted(value, properties.get(name, {})) for name, value in arguments.items()}
    return {"name": call["name"], "arguments": arguments}


def nfc(text):
    return unicodedata.normalize("NFC", text)


def converted(value, schema):
    """The value converted to its declared type if possible: "5" to 5, 5 to "5", "true" to true."""
    declared = schema.get("type")
    if isinstance(value, list):
        places = schema.get("prefixItems", [])
        rest = [schema.get("items", {})] * (len(value) - len(places))
        return [converted(element, inner) for element, inner in zip(value, [*places, *rest], strict=False)]
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties") or {}
        known = {nfc(name): inside for name, inside in known.items()}
        return {nfc(name): converted(element, known.get(nfc(name), rest)) for name, element in value.items()}
    if isinstance(value, str):
        value = nfc(value)
    if (members := schema.get("anyOf") or schema.get("oneOf")) and not conforms(value, schema):
        readings = ((converted(value, member), member) for member in members)
        return next((reading for reading, member in readings if conforms(reading, member)), value)
    if isinstance(value, str) and declared == "boolean" and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if isinstance(value, str) and declared in ("integer", "number"):
        try:
            number = parse_json(value)
        except ValueError:
            return value
        return number if isinstance(number, int | float) and not isinstance(number, bool) else value
    if declared == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return value


def over_call(output):
    """Of the rows without gold calls: the output calls a tool."""
    return None if output.gold else kind_of_answer(output) == "calls"


def missed_call(output):
    """Of the rows with gold calls: the output is a valid empty list."""
    return kind_of_answer(output) == "abstains" if output.gold else None


def acceptable_match(output):
    """Of rows with `acceptable`: the Berkeley leaderboard's AST match, with the best pairs."""
    acceptable = output.task.acceptable
    return None if acceptable is None else ast_match(output.value, acceptable, output.tools)


def call_precision(output):
    """The share of the calls equal to a gold call."""
    return output.num_right_calls, len(output.calls or [])


def call_recall(output):
    """The share of gold's calls in the answer."""
    return output.num_right_calls, len(output.gold)


def call_f1(output):
    """The harmonic mean of the calls' precision and recall, over all rows."""
    return 2 * output.num_right_calls, len(output.calls or []) + len(output.gold)


def argument_precision(output):
    """The share of the arguments equal to gold's, in the best pairs of calls by name."""
    return num_right_arguments(output), sum(len(call["arguments"]) for call in output.calls or [])


def argument_recall(output):
    """The share of gold's arguments in the answer, with the same pairs of calls."""
    return num_right_arguments(output), sum(len(call["arguments"]) for call in output.gold)


def num_right_arguments(output):
    return sum(num_equal(call["arguments"], gold["arguments"]) for call, gold in output.pairs)


def names_match(output):
    """The calls have gold's names, in any order."""
    calls = output.calls
    return calls is not None and Counter(c["name"] for c in calls) == Counter(c["name"] for c in output.gold)


def required_coverage(output):
    """The share of the called tools' required arguments in the answer."""
    given = total = 0
    for call in known_calls(output):
        required = output.task.required.get(call["name"], output.schemas[call["name"]]["required"])
        given += len(set(required) & call["arguments"].keys())
        total += len(required)
    return given, total


def known_calls(output):
    return [call for call in output.calls or [] if call["name"] in output.schemas]


def schema_conformity(output):
    """The share of the calls to tools on offer whose arguments fit the tool's types."""
    calls = known_calls(output)
    return sum(conforms(call["arguments"], output.schemas[call["name"]]) for call in calls), len(calls)


def unknown_arguments(output):
    """The share of undeclared arguments in the calls to tools on offer."""
    unknown = sum(len(call["arguments"].keys() - declared_arguments(output, call)) for call in known_calls(output))
    return unknown, sum(len(call["arguments"]) for call in known_calls(output))


def hallucinated_values(output):
    """The share of the values found neither in the query nor in the tools."""
    given = values(output)
    return sum(not output.sources.is_grounded(value) for value in given), len(given)


class Metric(NamedTuple):
    """function returns a bool for a rate, a number for a mean or a count, and a pair (numerator,
    denominator) for a ratio, summed over the rows. None: the metric does not apply to the row."""

    title: str
    kind: Literal["rate", "mean", "count", "ratio"]
    function: Callable[[Output], object]
    lenient: Callable[[Output], bool] | None = None  # an upper bound of a rate
    headline: bool = True  # in the terminal's table and in training curves


# exact_typed, exact_match, exact_any_order, exact_schema_aware: each contains the previous metric.
METRICS = {
    "json_valid": Metric("JSON valid", "rate", json_valid, lenient_json_valid),
    "exact_match": Metric("exact match", "rate", exact_match, lenient_exact_match),
    "tools_exist": Metric("tools exist", "rate", tools_exist, lenient_tools_exist),
    "no_hallucination": Metric("no hallucination", "rate", no_hallucination),
    "exact_typed": Metric("exact, 1 is not 1.0", "rate", exact_typed, headline=False),
    "exact_any_order": Metric("exact, any order of calls", "rate", exact_any_order, headline=False),
    "exact_schema_aware": Metric("exact, by the tools' types and defaults", "rate", exact_schema_aware, headline=False),
    "acceptable_match": Metric("leaderboard's AST match", "rate", acceptable_match, headline=False),
    "over_call": Metric("calls where gold has none", "rate", over_call, headline=False),
    "missed_call": Metric("abstains where gold calls", "rate", missed_call, headline=False),
    "turn_match": Metric("calls, answers or asks as gold does", "rate", turn_match, headline=False),
    "names_match": Metric("names match", "rate", names_match, headline=False),
    "call_precision": Metric("calls: precision", "ratio", call_precision, headline=False),
    "call_recall": Metric("calls: recall", "ratio", call_recall, headline=False),
    "call_f1": Metric("calls: F1", "ratio", call_f1, headline=False),
    "argument_precision": Metric("arguments: precision", "ratio", argument_precision, headline=False),
    "argument_recall": Metric("arguments: recall", "ratio", argument_recall, headline=False),
    "required_coverage": Metric("required arguments given", "ratio", required_coverage, headline=False),
    "schema_conformity": Metric("calls that fit their schema", "ratio", schema_conformity, headline=False),
    "unknown_arguments": Metric("undeclared arguments", "ratio", unknown_arguments, headline=False),
    "hallucinated_values": Metric("values from nowhere", "ratio", hallucinated_values, headline=False),
}


def score(output):
    """`{name: value}` of one output, with "outcome" and each upper bound as `lenient_` + name."""
    scores = {name: metric.function(output) for name, metric in METRICS.items()}
    bounds = {f"lenient_{name}": metric.lenient(output) for name, metric in METRICS.items() if metric.lenient}
    return {"outcome": outcome(output), **scores, **bounds}


def score_gold(task):
    """`{name: value}` of a Task's gold as an answer, by the metrics that do not compare with
    gold."""
    output = Output(task, task.row.answers, PROMPT_FORMATS["tags-1"])
    return {name: METRICS[name].function(output) for name in GOLDS_OWN}


def summarize(scores):
    """A rate's figure is `{"k", "n", "rate", "low", "high"}` (Wilson's interval), a ratio's `{"k",
    "n", "ratio", "low", "high"}` (bootstrap), a mean's `{"n", "mean"}`, a count's `{"n", "count"}`.
    Answers that do not parse are misses, never excluded. Metrics without rows are left out."""
    from eval_utils.statistics import bootstrap_ratio, rate_figure  # late: scipy, as in matching

    kinds = {name: metric.kind for name, metric in METRICS.items()}
    kinds |= {f"lenient_{name}": "rate" for name, metric in METRICS.items() if metric.lenient}
    figures = {}
    for name, kind in kinds.items():
        if not scores or name not in scores[0]:
            continue
        results = [row_scores[name] for row_scores in scores if row_scores[name] is not None]
        if not results:
            continue
        if kind == "rate":
            figures[name] = rate_figure(sum(results), len(results))
        elif kind == "ratio":
            k, n = (sum(pair[i] for pair in results) for i in (0, 1))
            if n:
                low, high = bootstrap_ratio(*zip(*results, strict=True))
                figures[name] = {"k": k, "n": n, "ratio": k / n, "low": low, "high": high}
        else:
            figures[name] = {"n": len(results), kind: sum(results) / len(results) if kind == "mean" else sum(results)}
    return figures
