"""Rows from conversations and from the leaderboard's files, by the functions that training, evaluation and infer.py read with."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_utils.sources import load_rows
from data_utils.split import split_rows
from run_utils.arguments import UserError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "d",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        },
    }
]


def call(x, as_text=True):
    arguments = {"x": x}
    return {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps(arguments) if as_text else arguments},
    }


def conversation(number, as_text=True):
    """Three turns of the assistant: it calls, it answers with the result, it calls twice."""
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"f of {number}?"},
        {"role": "assistant", "content": None, "tool_calls": [call(number, as_text)]},
        {"role": "tool", "tool_call_id": "c1", "content": "17"},
        {"role": "assistant", "content": "It is 17."},
        {"role": "user", "content": "And of 1 and 2?"},
        {"role": "assistant", "tool_calls": [call(1, as_text), call(2, as_text)]},
    ]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("as_text", [True, False])
def test_each_turn_of_the_assistant_is_a_row(tmp_path, capsys, as_text):
    record = {"id": "talk", "messages": conversation(3, as_text), "tools": TOOLS}
    xlam = {"id": 7, "query": "q", "tools": TOOLS, "answers": []}
    rows, bad = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", [record, xlam])))
    assert bad == {}
    assert [row.id for row in rows] == ["talk/2", "talk/4", "talk/6", "7"]
    assert [json.loads(row.answers) for row in rows[:3]] == [
        [{"name": "f", "arguments": {"x": 3}}],
        [],
        [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 2}}],
    ]
    assert rows[0].query == "system: Be brief.\nuser: f of 3?"
    assert rows[2].query.splitlines()[2:] == [
        'assistant: [{"name": "f", "arguments": {"x": 3}}]', "tool: 17", "assistant: It is 17.", "user: And of 1 and 2?",
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "4 rows of 2 records: 1 in OpenAI's messages layout, 1 in xLAM layout" in said


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("by", ["random", "tools"])
def test_a_conversation_stays_on_one_side_of_the_split(tmp_path, named, by):
    records = []
    for number in range(20):
        tools = json.loads(json.dumps(TOOLS).replace('"f"', f'"f{number % 10}"'))
        messages = json.loads(json.dumps(conversation(number)).replace('"f"', f'"f{number % 10}"'))
        records.append({"messages": messages, "tools": tools} | ({"id": f"t{number}"} if named else {}))
    rows, _ = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", records)))
    assert len(rows) == 60 and len({row.id for row in rows}) == 60
    train, held_out, _ = split_rows(rows, 0.2, seed=1, by=by)
    assert len(train) >= 30 and 12 <= len(held_out) <= 15
    assert not {row.conversation for row in train} & {row.conversation for row in held_out}


@pytest.mark.parametrize("place", ["file", "folder"])
def test_nested_parquet_without_its_nulls(tmp_path, place):
    """As data sets on the hub have conversations: every message has every field, null where it has none."""
    records = [{"id": str(n), "messages": conversation(n), "tools": json.dumps(TOOLS)} for n in range(3)]
    wanted, _ = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", records)))
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "hub" / "train-00000-of-00001.parquet")
    path = tmp_path / "hub" if place == "folder" else tmp_path / "hub" / "train-00000-of-00001.parquet"
    assert load_rows(str(path)) == (wanted, {})


def test_nested_arguments_in_parquet_are_refused(tmp_path):
    records = [{"messages": conversation(n, as_text=False), "tools": json.dumps(TOOLS)} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    with pytest.raises(
        UserError, match="messages have arguments that are objects, but must hold JSON strings.*JSON lines"
    ):
        load_rows(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": conversation(1)}, "messages without tools"),
        ({"messages": conversation(1)[:2], "tools": TOOLS}, "a conversation without a turn of the assistant"),
        ({"messages": [{"content": "hi"}], "tools": TOOLS}, "a message without a role"),
        ({"messages": "[{", "tools": TOOLS}, "broken JSON in field 'messages'"),
        ({"question": [[{"role": "user", "content": "q"}]]}, "question without function"),
        ({"question": [[{"role": "user", "content": "q"}]], "function": [], "id": "simple_1"}, "no ground_truth: "),
    ],
)
def test_what_is_no_row_is_named(tmp_path, record, reason):
    good = {"messages": conversation(1), "tools": TOOLS}
    _, bad = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", [good, record])), max_bad_rows=1)
    ((found, ids),) = bad.items()
    assert found.startswith(reason) and len(ids) == 1


def test_the_leaderboard_s_files_are_rows_with_what_they_accept(tmp_path):
    function = {
        "name": "math.area", "description": "d",
        "parameters": {"type": "dict", "properties": {"base": {"type": "float"}, "unit": {"type": "string"}}, "required": ["base"]},
    }  # fmt: skip
    question = {"id": "simple_0", "question": [[{"role": "user", "content": "area?"}]], "function": [function]}
    truth = {"id": "simple_0", "ground_truth": [{"math.area": {"base": [10, 10.0], "unit": ["units", ""]}}]}
    (tmp_path / "possible_answer").mkdir()
    write_jsonl(tmp_path / "BFCL_v3_simple.json", [question])  # JSON lines in spite of its name
    write_jsonl(tmp_path / "possible_answer" / "BFCL_v3_simple.json", [truth])
    ((row,), bad) = load_rows(str(tmp_path / "BFCL_v3_simple.json"))
    assert bad == {} and (row.id, row.query, row.category) == ("simple_0", "area?", "simple")
    assert json.loads(row.answers) == [{"name": "math.area", "arguments": {"base": 10}}]
    assert json.loads(row.acceptable) == truth["ground_truth"]
    assert json.loads(row.tools)[0]["parameters"] == {"base": {"type": "float"}, "unit": {"type": "str, optional"}}
