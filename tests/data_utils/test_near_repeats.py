"""Held-out queries that equal a training query except for case, whitespace, numbers or names."""

import json

import numpy as np
import pytest

from data_utils import cache
from data_utils.rows import Row
from data_utils.split import near_repeats


def row(query, *values, row_id="x"):
    arguments = {f"argument {place}": value for place, value in enumerate(values)}
    return Row(row_id, query, "[]", json.dumps([{"name": "f", "arguments": arguments}] if values else []))


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        (row("Book a table"), row("Book a table")),
        # Calls do not matter.
        (row("delete the release rl50", "rl50"), row("delete the release rl50", 50)),
        (row("Book a table"), row("  BOOK a\ttable \n")),
        (row("a table , please"), row("A table, please")),
        (row("ﬁnd 5 km"), row("find 5\u00a0km")),  # Unicode's compatibility forms
        (row("Add 5 and -3.25"), row("Add 1,000 and 7")),
        (row("Who won in 1998?"), row("who won in 2002?")),
        (row("On 2024-01-05 at 10:30"), row("On 2023-12-31 at 9:05")),
        (row("for twenty-five days"), row("for 7 days")),
        (row("for two hundred days"), row("for seven days")),
        (row("Twenty-One days at \u22125 degrees"), row("3 days at 12 degrees")),
        (row("ticket A17, seat B4"), row("ticket A3, seat B21")),
        (row("weather in rome", "rome"), row("weather in new york", "New York")),
        (
            row("weather in new york city", "new york", "new york city"),
            row("weather in oslo", "Oslo"),
        ),  # the longest first
        (row("Weather in Paris, please", "Paris, France"), row("Weather in Rome, please", "Rome")),
        (row("mail eve@x.org now", ["eve@x.org"]), row("mail bob.b@y.com now", ["bob.b@y.com"])),
        (row("play 'Let It Be' again", {"song": "Let It Be"}), row("play 'Yesterday' again", {"song": "Yesterday"})),
        (row("Please tell Bob about it"), row("please tell Alice Smith about it")),
        (row("ROME: what is the weather?", "Rome"), row("Oslo: what is the weather?", "Oslo")),
    ],
)
def test_a_near_repeat_is_found_in_either_direction(training, held_out):
    assert near_repeats([training], [held_out]) == near_repeats([held_out], [training]) == ["x"]


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        (row("Add the numbers"), row("Multiply the numbers")),
        (row("weather in rome", "rome"), row("humidity in rome", "rome")),
        # Capitals in a title are not names.
        (row("What Is The Weather In Rome"), row("What Is The Speed Of Light")),
        (row("What is the Speed Of Light In Water"), row("What is the Weather In Rome Right Now")),
        (row("Rome", "Rome"), row("Oslo", "Oslo")),  # only a name
        (row("Translate the first long text of all", "the first long text of all"),
         row("Translate something quite other than that one", "something quite other than that one")),
        (row("go to the romance section", "Rome"), row("go to the Rome section", "Rome")),
        (row("How much is 5 + 3"), row("How much is 5 - 3 * 2")),
    ],
)  # fmt: skip
def test_other_queries_are_not_near_repeats(training, held_out):
    assert near_repeats([training], [held_out]) == []


def test_the_ids_are_in_the_order_of_the_held_out_rows():
    held_out = [row(f"item {place}" if place % 2 else "something else", row_id=str(place)) for place in range(6)]
    assert near_repeats([row("Item 99")], held_out) == ["1", "3", "5"]
    assert near_repeats([], held_out) == near_repeats(held_out, []) == []


def test_the_result_for_many_rows_is_kept_by_their_texts_and_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "HF_HOME", tmp_path)
    training, held_out = [row("Item 9")] * cache.FROM_ROWS, [row("item 1", row_id="1"), row("else", row_id="2")]
    assert near_repeats(training, held_out) == near_repeats(training, held_out) == ["1"]
    (kept,) = (tmp_path / "tool_call_cache").iterdir()
    other_ids = [held_out[0]._replace(id="3"), held_out[1]]
    assert near_repeats(training, other_ids) == ["3"] and list(kept.parent.iterdir()) == [kept]
    assert near_repeats([*training, held_out[0]], held_out[1:]) == []
    assert near_repeats([row("Other 9")] * cache.FROM_ROWS, held_out) == []
    named = [row("go to Rome", "Rome")] * cache.FROM_ROWS, [row("go to oslo", "oslo", row_id="1")]
    assert near_repeats(*named) == ["1"] and near_repeats(named[0], [row("go to oslo", row_id="1")]) == []
    cache.save(kept, {"is_repeat": np.array([False, True])})
    assert near_repeats(training, held_out) == ["2"]  # it was read
    kept.write_bytes(b"broken")
    assert near_repeats(training, held_out) == ["1"]


def test_a_cache_in_no_folder_costs_only_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache, "HF_HOME", tmp_path / "file")
    assert near_repeats([row("Item 9")] * cache.FROM_ROWS, [row("item 1")]) == ["x"]
