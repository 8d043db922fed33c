"""One pairing of calls with gold's calls, for the metrics, the outcomes, the leaderboard's match
and the report."""

from collections import Counter, defaultdict

from data_utils.tool_calls import hashable, json_equal


def best_pairs(weights):
    """Pairs (i, j) with the largest sum of `weights[i][j]` (scipy's linear_sum_assignment), sorted
    by i. Each i and each j is in at most one pair. Weights are at least 0; weight 0 makes no
    pair."""
    # Late: scipy loads for a second, and train.py's arguments name the metrics.
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    weights = np.asarray(weights, dtype=float)
    if weights.size == 0:
        return []
    return [
        (int(i), int(j)) for i, j in zip(*linear_sum_assignment(weights, maximize=True), strict=True) if weights[i, j]
    ]


def num_equal_calls(calls, gold):
    """The number of pairs of equal calls[i] and gold[j], each call in one pair at most."""
    return (Counter(map(hashable, calls)) & Counter(map(hashable, gold))).total()


def pair_calls(calls, gold):
    """Pairs (i, j) of calls[i] and gold[j] with the same name: first the most equal arguments, then
    the nearest places. An element without a name and arguments is in no pair."""
    # Larger than any sum of nearness, so equal arguments count first.
    size = len(calls) * len(gold) + 1

    def weight(i, j):
        nearness = max(len(calls), len(gold)) - abs(i - j)
        return num_equal(calls[i]["arguments"], gold[j]["arguments"]) * size + nearness

    places, wanted, pairs = places_by_name(calls), places_by_name(gold), []
    for name in places.keys() & wanted.keys():
        weights = [[weight(i, j) for j in wanted[name]] for i in places[name]]
        pairs += [(places[name][i], wanted[name][j]) for i, j in best_pairs(weights)]
    return sorted(pairs)


def places_by_name(calls):
    """`{name: [place of a call]}`."""
    places = defaultdict(list)
    for place, call in enumerate(calls):
        if is_call(call):
            places[call["name"]].append(place)
    return places


def is_call(value):
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)


def num_equal(arguments, gold):
    """The number of arguments equal to gold's."""
    return sum(name in gold and json_equal(value, gold[name]) for name, value in arguments.items())
