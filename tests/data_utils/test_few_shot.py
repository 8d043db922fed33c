"""The examples of the system `fewshot`: which rows they are, and the prompt that they make."""

import json

import pytest
from conftest import TAGS

from data_utils.few_shot import choose_shots, shots_identity, with_shots
from data_utils.prompt import PROMPT_FORMATS
from data_utils.rows import Row
from data_utils.split import query_keys
from data_utils.tool_calls import json_equal

CALL = '[{"name": "weather", "arguments": {}}]'
QUERIES = "is it raining", "will it snow", "how warm is the sea", "when does the sun rise", "how high are the waves"


def make_row(name, query, answers=CALL, tools='[{"name": "weather"}]'):
    return Row(name, query, tools, answers, fingerprint=name)


ROWS = [make_row(f"row {place}", query) for place, query in enumerate(QUERIES)]


def test_examples_depend_on_the_seed_and_not_on_the_order_of_the_rows():
    chosen = {seed: choose_shots(ROWS, [], 2, seed) for seed in range(20)}
    assert all(choose_shots(ROWS[::-1], [], 2, seed) == shots for seed, shots in chosen.items())
    assert len({shots[0].id for shots in chosen.values()}) > 1


def test_no_example_is_a_near_repeat_of_a_held_out_row_or_of_another_example():
    held_out = [make_row("held out", "IS IT  raining")]
    repeats = [make_row(f"again {place}", f"Will it snow {place}") for place in range(9)]
    for seed in range(20):
        shots = choose_shots([*ROWS, *repeats], held_out, 5, seed)
        keys = [query_keys(row) for row in shots]
        assert "row 0" not in {row.id for row in shots}
        assert all(a.isdisjoint(b) for place, a in enumerate(keys) for b in keys[:place])


def test_no_example_is_of_a_held_out_rows_conversation():
    held_out = [make_row("held out", "and tomorrow")._replace(opening="a")]
    rows = [ROWS[0]._replace(opening="a"), ROWS[1]._replace(opening="b"), *ROWS[2:]]
    names = {row.id for row in choose_shots(rows, held_out, 5, 42)}
    without = {row.id for row in choose_shots(rows, [held_out[0]._replace(opening="")], 5, 42)}
    assert "row 0" in without and "row 1" in names and names == without - {"row 0"}


def test_the_first_example_has_calls_and_none_is_longer_than_the_median_row():
    empty = [make_row(f"empty {query}", query, "[]") for query in ("sing a song", "tell a joke", "paint a picture")]
    long = [make_row(f"long {place}", f"{place} " + "very long " * 50) for place in range(3)]
    for seed in range(20):
        shots = choose_shots([*ROWS, *empty, *long], [], 3, seed)
        assert json.loads(shots[0].answers) and not any(row.id.startswith("long") for row in shots)
    assert choose_shots(empty, [], 1, 42) == []
    assert choose_shots([], [], 2, 42) == []


def test_fewer_suitable_rows_are_fewer_examples():
    assert len(choose_shots([make_row("a", "x y z"), make_row("b", "X y z")], [], 2, 42)) == 1


def test_the_prompt_is_each_examples_prompt_and_completion_and_then_the_rows_own_prompt():
    prompt = with_shots(TAGS, ROWS[:2]).render("is it hot", "[]")
    head = (
        "<system_prompt>\nOnly use the tools provided and get the args from the query.\n"
        "And only output a valid json which shows the function call and the args.\n</system_prompt>\n"
    )
    examples = [
        f'{head}<tools>\n[{{"name": "weather"}}]\n</tools>\n<query>\n{query}\n</query>\n<answer>\n{CALL}\n</answer>\n'
        for query in QUERIES[:2]
    ]
    assert prompt == "".join(examples) + f"{head}<tools>\n[]\n</tools>\n<query>\nis it hot\n</query>\n<answer>\n"
    assert with_shots(TAGS, []).render("q", "[]") == TAGS.render("q", "[]")


@pytest.mark.parametrize("name", ["tags-1", "raw"])
def test_an_answer_that_continues_like_an_example_is_finished_and_read(name):
    """A base that repeats the pattern of the examples goes on with the next prompt."""
    prompt_format = with_shots(PROMPT_FORMATS[name], ROWS[:2])
    answer = prompt_format.completion(CALL)
    text = answer + prompt_format.example_end
    assert prompt_format.finished(text)
    assert json_equal(prompt_format.parse(text), json.loads(CALL))


def test_the_identity_has_the_ids_the_count_and_the_text():
    identity = shots_identity(TAGS, ROWS[:2])["shots"]
    assert (identity["ids"], identity["count"]) == (["row 0", "row 1"], 2)
    edited = [ROWS[0], ROWS[1]._replace(answers="[]")]
    others = [shots_identity(TAGS, edited), shots_identity(TAGS._replace(example_end="\n"), ROWS[:2])]
    assert all(other["shots"]["prompt_sha256"] != identity["prompt_sha256"] for other in others)
    assert shots_identity(TAGS, []) == {}
