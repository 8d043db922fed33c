"""One way to pair calls with gold's, for the metrics, the outcomes, the leaderboard's match and the report's page."""

from data_utils.tool_calls import json_equal


def best_pairs(weights):
    """Pairs (i, j), each i and each j in one at most, whose sum of `weights[i][j]` is the largest (scipy's
    linear_sum_assignment). Weights are at least 0, and two of weight 0 are no pair. Sorted by i."""
    # Late: they load for a second, and train.py's arguments name the metrics.
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    weights = np.asarray(weights, dtype=float)
    if weights.size == 0:
        return []
    return [
        (int(i), int(j)) for i, j in zip(*linear_sum_assignment(weights, maximize=True), strict=True) if weights[i, j]
    ]


def equal_calls(calls, gold):
    """Pairs (i, j) of equal calls[i] and gold[j], as many as there can be."""
    return best_pairs([[json_equal(call, wanted) for wanted in gold] for call in calls])


def pair_calls(calls, gold):
    """Pairs (i, j) of calls[i] and gold[j] of one name, with as many equal arguments as can be, and among these the nearest in
    place. An element that is no call, of a name with arguments, is in no pair."""
    size = len(calls) * len(gold) + 1  # above any sum of nearness: one equal argument more counts more

    def weight(i, j):
        call, wanted = calls[i], gold[j]
        if not (is_call(call) and is_call(wanted) and call["name"] == wanted["name"]):
            return 0
        nearness = max(len(calls), len(gold)) - abs(i - j)
        return num_equal(call["arguments"], wanted["arguments"]) * size + nearness

    return best_pairs([[weight(i, j) for j in range(len(gold))] for i in range(len(calls))])


def is_call(value):
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)


def num_equal(arguments, gold):
    """How many arguments equal gold's."""
    return sum(name in gold and json_equal(value, gold[name]) for name, value in arguments.items())
