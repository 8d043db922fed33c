"""No content and no conversation is on both sides of the split, and the rows that a training held
out are found again."""

import math

import pytest

from data_utils.rows import Row, content_hash
from data_utils.split import find_held_out, split_rows


def row(row_id, query=None, conversation=""):
    query = query or row_id
    return Row(row_id, query, "[]", "[]", content_hash(query, [], []), conversation=conversation)


def test_a_row_that_repeats_a_held_out_row_is_not_trained_on():
    rows = [row(f"{copy}{number}", f"query {number}") for copy in "ab" for number in range(50)]
    train, held_out, neither = split_rows(rows, 0.2, seed=0)
    contents = {row.fingerprint for row in held_out}
    assert len(held_out) == 20 and len(train) + len(neither) == 80 and neither
    assert not contents & {row.fingerprint for row in train}
    assert {row.fingerprint for row in neither} <= contents


@pytest.mark.parametrize("wanted", range(1, 18))
def test_all_turns_of_the_conversation_at_the_cut_are_held_out(wanted):
    rows = [row(f"{talk}/{turn}", conversation=f"talk {talk}") for talk in range(6) for turn in range(3)]
    train, held_out, neither = split_rows(rows, wanted / 18, seed=0)
    assert len(held_out) == 3 * math.ceil(wanted / 3) and len(train) == 18 - len(held_out) and not neither
    assert not {row.conversation for row in train} & {row.conversation for row in held_out}


@pytest.mark.parametrize("wanted", range(1, 6))
def test_rows_of_no_conversation_do_not_follow_each_other(wanted):
    rows = [row(str(number)) for number in range(6)]
    assert len(split_rows(rows, wanted / 6, seed=0)[1]) == wanted


FIRST, SECOND, OTHER = row("first", "one query"), row("second", "one query"), row("other")


@pytest.mark.parametrize(
    ("rows", "held_out", "found", "gone"),
    [
        ([FIRST, SECOND, OTHER], [SECOND, FIRST], [SECOND, FIRST], []),
        ([FIRST, SECOND, OTHER], [SECOND], [SECOND], []),
        ([FIRST, SECOND], [row("renamed", "one query")], [FIRST], []),
        ([FIRST], [SECOND, FIRST], [FIRST], []),  # its content has been found, and is not gone
        ([FIRST], [OTHER, FIRST], [FIRST], ["other"]),
        ([OTHER], [FIRST, SECOND], [], ["first", "second"]),
    ],
)
def test_held_out_rows_are_found_again_by_their_content_and_among_equals_by_their_id(rows, held_out, found, gone):
    split = {"trained": {}, "held_out": {row.id: row.fingerprint for row in held_out}}
    assert find_held_out(rows, split) == (found, gone)
