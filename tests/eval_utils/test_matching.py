"""The pairing of calls, compared with trying all pairings."""

import itertools
import json

from hypothesis import example, given
from hypothesis import strategies as st

from data_utils.tool_calls import hashable, json_equal
from eval_utils.matching import best_pairs, num_equal, num_equal_calls, pair_calls

ARGUMENTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from([1, True, "x"]), max_size=3)
CALLS = st.lists(st.builds(lambda name, arguments: {"name": name, "arguments": arguments}, st.sampled_from("fg"), ARGUMENTS), max_size=4)  # fmt: skip

LEAVES = st.sampled_from([0, 1, 1.0, True, False, None, "", "1"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner))


def all_pairings(num_left, num_right):
    """Every way to give each left element one right element or none."""
    for choice in itertools.product([None, *range(num_right)], repeat=num_left):
        taken = [j for j in choice if j is not None]
        if len(set(taken)) == len(taken):
            yield [(i, j) for i, j in enumerate(choice) if j is not None]


@given(CALLS, CALLS)
@example([{"name": "f", "arguments": {"a": 1, "b": 1, "c": 1}}, {"name": "f", "arguments": {"a": 1, "b": 1}}],
         [{"name": "f", "arguments": {"a": 1, "b": 1}}, {"name": "f", "arguments": {"c": 1}}])  # fmt: skip
def test_pairs_have_one_name_and_the_most_equal_arguments_then_the_nearest_places(calls, gold):
    def value(pairing):
        equal = sum(num_equal(calls[i]["arguments"], gold[j]["arguments"]) for i, j in pairing)
        return equal, len(pairing), -sum(abs(i - j) for i, j in pairing)

    one_name = [
        pairing
        for pairing in all_pairings(len(calls), len(gold))
        if all(calls[i]["name"] == gold[j]["name"] for i, j in pairing)
    ]
    found = pair_calls(calls, gold)
    assert found in one_name and value(found) == max(map(value, one_name))


@given(CALLS, CALLS)
def test_equal_calls_are_counted_as_a_multiset_and_true_is_not_one(calls, gold):
    left = [repr((call["name"], sorted(call["arguments"].items()))) for call in gold]
    count = 0
    for call in calls:
        key = repr((call["name"], sorted(call["arguments"].items())))
        if key in left:
            left.remove(key)
            count += 1
    assert num_equal_calls(calls, gold) == count


def test_nothing_to_pair():
    assert best_pairs([]) == best_pairs([[]]) == best_pairs([[0, 0]]) == pair_calls([], [{}]) == []
    assert pair_calls([3, {"name": "f"}, {"name": "f", "arguments": {}}], [{"name": "f", "arguments": {}}]) == [(2, 0)]


def test_calls_are_paired_by_their_places_in_the_whole_lists():
    f, g = ({"name": name, "arguments": {}} for name in "fg")
    assert pair_calls([g, f, f], [f, g]) == [(0, 1), (1, 0)]


@given(JSON, JSON)
@example(1, True)
@example([1, "1", None], [1.0, "1", None])
@example({"a": [], "b": {}}, {"b": {}, "a": []})
def test_hashable_forms_are_equal_as_json_is(a, b):
    assert (hashable(a) == hashable(b)) == json_equal(a, b) and hashable(a) == hashable(json.loads(json.dumps(a)))
