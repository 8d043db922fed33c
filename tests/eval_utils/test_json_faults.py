"""The character at which the strict parser stops in an output."""

import pytest
from conftest import TAGS

from eval_utils.json_faults import find_fault


def fault_of(text):
    with pytest.raises(ValueError) as caught:
        TAGS.parse(text)
    fault = find_fault(text, caught.value)
    return fault["place"], fault["reason"]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('[{"base": 32', "Z}]", "Expecting ',' delimiter"),
        ("\n ", "Sure! []", "Expecting value"),
        ("[] ", "and more", "Extra data"),
        ('[{"a": 1}', "", "Expecting ',' delimiter"),
        ("", "", "Expecting value"),
        ('[{"a": ', '"never closed', "Unterminated string starting at"),
        ('[{"NaN": ', "NaN}]", "NaN is not a finite number"),
        ('[{"a": 1, "b": ', "-1e999}]", "-1e999 is not a finite number"),
        ('[{"a": {"a": 1}, "b": 2, ', '"a": 3}, {"a": 1}]', 'an object has the key "a" twice'),
        ("[" * 64, "[" + "]" * 65, "nested deeper than 64"),
        ('[{"x": 1', '"y": 2}]</answer>[', "Expecting ',' delimiter"),
    ],
)
def test_the_mark_is_at_the_first_character_that_the_strict_parser_refuses(before, after, reason):
    assert fault_of(before + after) == (len(before), reason)


def test_a_place_counts_as_browsers_do():
    """A browser's strings have two units for a letter beyond U+FFFF, and one for half a pair."""
    assert fault_of('["é😀\ud83d", x]')[0] == 9


def test_an_endless_number_is_shown_short():
    place, reason = fault_of("[" + "9" * 5000 + "]")
    assert place == 1 and len(reason) < 60


def test_a_parser_may_name_no_character():
    assert find_fault("<call>[]", ValueError("no closing marker")) == {"place": None, "reason": "no closing marker"}
