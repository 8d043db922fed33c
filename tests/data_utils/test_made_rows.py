"""The rows that an evaluation makes from its own."""

import json
from types import SimpleNamespace

import pytest

from data_utils.made_rows import MOST_NO_CALL, make_sets, original_id, sets_identity
from data_utils.rows import validate
from demo.rows import generate_rows

ROWS = [validate(record) for record in generate_rows(60, seed=5)]


def sets(rows=ROWS, held_out=ROWS, **args):
    args = {"no_call_examples": None, "perturb": None, "seed": 3, "split_seed": None} | args
    return make_sets(SimpleNamespace(**args), rows, held_out)


@pytest.mark.parametrize(("rows", "asked", "made"), [(60, None, 12), (4, None, 0), (60, 0, 0), (60, 7, 7)])
def test_a_fifth_of_the_rows_or_as_many_as_asked_are_made(rows, asked, made):
    found, _ = sets(ROWS[:rows], no_call_examples=asked)
    assert len(found.get("no_call", [])) == made and set(found) <= {"no_call"}
    assert all(json.loads(row.answers) == [] for row in found.get("no_call", []))


def test_no_more_than_200_are_made_by_default():
    rows = [ROWS[0]._replace(id=str(number)) for number in range(1200)]
    assert len(sets(rows, ROWS)[0]["no_call"]) == MOST_NO_CALL == 200


def test_other_numbers_of_rows_and_sets_change_no_row():
    every, _ = sets(no_call_examples=60, perturb=["rename", "shuffle", "distract", "drop_descriptions"])
    fewer, _ = sets(ROWS[:20], no_call_examples=5, perturb=["distract", "rename"])
    assert list(fewer) == ["no_call", "distract", "rename"]
    for name, rows in fewer.items():
        assert rows == every[name][: len(rows)]
        originals = {row.id: row for row in ROWS}
        for row in rows:
            original = originals[original_id(row.id, name)]
            assert row != original and row.query == original.query
            assert row.tools != original.tools
    assert sets(seed=4)[0] != sets()[0]


def test_a_made_row_with_the_id_of_an_own_row_is_left_out():
    """A data set may hold rows that another run made."""
    taken = ROWS[0]._replace(id=f"{ROWS[1].id}+rename")
    found, _ = sets([taken, *ROWS[1:4]], perturb=["rename"])
    assert [row.id for row in found["rename"]] == [f"{row.id}+rename" for row in (taken, *ROWS[2:4])]


def test_rows_that_cannot_be_made_are_named():
    tool = json.dumps([{"name": "f", "parameters": {}}])
    alone = validate({"id": "alone", "query": "q", "tools": tool, "answers": '[{"name": "f", "arguments": {}}]'})
    found, lines = sets([alone, *ROWS[:3]], perturb=["shuffle"], no_call_examples=0)
    assert "alone+shuffle" not in {row.id for row in found["shuffle"]}
    (line,) = lines
    assert line.startswith(f"shuffle: {len(found['shuffle'])} rows; not made: ") and "alone" in line
    found, lines = sets([alone], perturb=["shuffle"])
    assert found == {} and lines == ["shuffle: 0 rows; not made: fewer than two tools: 1 row (alone)"]


def test_an_identity_without_sets_is_an_older_folders():
    assert sets_identity({}) == {}
    (one,), (two,) = (sets_identity({"no_call": ROWS[:n]}).values() for n in (1, 2))
    assert one != two
