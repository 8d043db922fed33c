"""Rows from conversations and from the leaderboard's files, with the functions that training,
evaluation and infer.py use."""

import json

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from data_utils.bad_rows import BadRow
from data_utils.chat import template_text
from data_utils.conversations import as_request
from data_utils.messages import read_messages
from data_utils.prompt import render_messages, render_tags, to_json
from data_utils.sources import load_rows
from data_utils.split import set_apart, split_rows
from run_utils.errors import UserError

CHAT_TEMPLATE = template_text("tags-1")
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
        'assistant: [{"name": "f", "arguments": {"x": 3}}]', "tool: 17", "assistant: It is 17.",
        "user: And of 1 and 2?",
    ]  # fmt: skip
    printed = capsys.readouterr().err
    assert "4 rows of 2 records: 1 in OpenAI's messages layout, 1 in xLAM layout" in printed


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


def turn_by_turn(numbers, **more):
    """Conversations in files with one record per turn, each with all messages up to the turn."""
    return [
        {"messages": conversation(number)[:length], "tools": TOOLS}
        | {key: name(number, length) for key, name in more.items()}
        for number in numbers
        for length in (3, 5, 7)
    ]  # fmt: skip


WAYS_OF_NAMES = {
    "no names": {},
    "ids": {"id": lambda number, length: f"r{number}-{length}"},
    "conversation_id": {
        "conversation_id": lambda number, length: number, "id": lambda number, length: f"r{number}-{length}",
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_OF_NAMES)
def test_a_conversation_in_several_records_stays_on_one_side_of_the_split(tmp_path, way):
    records = turn_by_turn(range(20), **WAYS_OF_NAMES[way])
    if way == "conversation_id":  # records without the first question
        records = [record | {"messages": record["messages"][-6:]} for record in records]
        records[2::3] = [
            record | {"messages": [record["messages"][-2], record["messages"][-1]]} for record in records[2::3]
        ]
    rows, _ = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", records)))
    train, held_out, _ = split_rows(rows, 0.2, seed=1)
    assert len(train) >= 30 and len(held_out) >= 8
    assert not {row.opening for row in train} & {row.opening for row in held_out}


def test_a_request_is_asked_without_its_answer_of_several_messages():
    messages = conversation(3)[:3]
    answer = [{"role": "assistant", "content": "Let me see."}, *messages[2:]]
    request = as_request({"messages": messages[:2] + answer, "tools": TOOLS})
    assert request["query"] == "system: Be brief.\nuser: f of 3?"


@pytest.mark.parametrize("truth", [{}, {"ground_truth": [{"f": {"x": [3]}}]}])
def test_the_leaderboard_s_questions_are_requests_with_and_without_their_answers(truth):
    function = TOOLS[0]["function"]
    record = {"id": "simple_0", "question": [[{"role": "user", "content": "f of 3?"}]], "function": [function], **truth}
    request = as_request(record)
    assert (request["id"], request["query"]) == ("simple_0", "f of 3?") and "answers" in request
    assert request["answers"] == "[]" and json.loads(request["tools"])[0]["name"] == "f"


def test_tools_for_all_are_those_of_a_row_without_any():
    tools = [{"name": "g"}]
    assert json.loads(as_request({"query": "q"}, tools)["tools"]) == tools
    assert json.loads(as_request({"query": "q", "tools": '[{"name": "f"}]'}, tools)["tools"]) == [{"name": "f"}]


def test_a_conversation_of_the_evaluation_file_is_not_trained_on(tmp_path):
    rows, _ = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", turn_by_turn(range(6)))))
    other = [{"id": "other", "messages": conversation(2)[:5], "tools": TOOLS}]
    eval_rows, _ = load_rows(str(write_jsonl(tmp_path / "other.jsonl", other)))
    train, _, neither = set_apart(rows, eval_rows, seed=1)
    assert len(neither) == 3 and all("f of 2?" in row.query for row in neither)
    assert len(train) == 15 and not any("f of 2?" in row.query for row in train)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_nested_parquet_is_read_without_its_nulls(tmp_path, place):
    """Data sets on the hub have every field in every message, null if absent."""
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


def weather(city):
    return {"name": "weather", "arguments": {"city": city}}


WEATHER = {
    "name": "weather", "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip
OPENAI_WEATHER = {"type": "function", "function": WEATHER}
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
QUESTION = {"role": "user", "content": "Weather?"}


def read(tmp_path, record, max_bad_rows=0):
    """The answers and queries of a record's rows, and the reasons of bad rows, after a good row."""
    good = {"id": "good", "query": "q", "tools": [], "answers": []}
    rows, bad = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", [good, record])), max_bad_rows=max_bad_rows)
    return [json.loads(row.answers) for row in rows[1:]], [row.query for row in rows[1:]], list(bad)


def answering(message, **more):
    return {"messages": [QUESTION, message], "tools": [OPENAI_WEATHER], **more}


def saying(text):
    return answering({"role": "assistant", "content": text})


ROME_ALONE = {
    "OpenAI": answering({"role": "assistant", "tool_calls": [{"type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]}),
    "OpenAI, 2023": {"messages": [QUESTION, {"role": "assistant", "content": None,
        "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}}], "functions": [WEATHER]},
    "OpenAI's Responses": {"messages": [QUESTION,
        {"type": "reasoning", "role": "assistant", "content": [{"type": "reasoning", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Rome"}'}],
        "tools": [{"type": "function", **WEATHER}]},
    "langchain": answering({"role": "assistant", "content": "",
                            "tool_calls": [{"name": "weather", "args": {"city": "Rome"}, "id": "1",
                                            "type": "tool_call"}]}),
    "Llama 3": answering({"role": "assistant",
                          "tool_calls": [{"type": "function",
                                          "function": {"name": "weather", "parameters": {"city": "Rome"}}}]}),
    "Cohere": answering({"role": "assistant", "tool_plan": "I look.",
                         "tool_calls": [{"tool_name": "weather", "parameters": {"city": "Rome"}}]}),
    "calls as text": answering({"role": "assistant", "content": "", "tool_calls": f"[{ROME}]"}),
    "one call": answering({"role": "assistant", "content": "", "tool_calls": json.loads(ROME)}),
    "calls as texts": answering({"role": "assistant", "content": "", "tool_calls": [ROME]}),
    "Hermes": saying(f"<tool_call>\n{ROME}\n</tool_call>"),
    "Hermes with Python's quotes": saying(
        "<tool_call>\n{'arguments': {'city': 'Rome'}, 'name': 'weather'}\n</tool_call>"
    ),
    "NVIDIA": saying(f"<TOOLCALL>[{ROME}]</TOOLCALL>"),
    "python_tag": saying('<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}<|eom_id|>'),
    "Mistral": saying(f"[TOOL_CALLS] [{ROME}]</s>"),
    "Mistral, 2025": saying('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}'),
    "Granite": saying(f"<|tool_call|>[{ROME}]"),
    "Llama 3.1": saying('<function=weather>{"city": "Rome"}</function>'),
    "glaive": saying("""<functioncall> {"name": "weather", "arguments": '{"city": "Rome"}'} <|endoftext|>"""),
    "Command R": saying('Action: ```json\n[{"tool_name": "weather", "parameters": {"city": "Rome"}}]\n```'),
    "Command R7B": saying(
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Rome"}}]<|END_ACTION|>'
    ),
    "ToolACE": saying('[weather(city="Rome")]'),
    "a list": saying(f"[{ROME}]"),
    "an object": saying('{"name": "weather", "parameters": {"city": "Rome"}}'),
    "a fence": saying(f"```json\n[{ROME}]\n```"),
    "ms-swift": {"messages": [QUESTION, {"role": "tool_call", "content": ROME}], "tools": json.dumps([OPENAI_WEATHER])},
    "Toucan": {"messages": json.dumps([QUESTION,
        {"role": "tool_call", "content": str(weather("Rome") | {"arguments": '{"city": "Rome"}'})}]),
        "tools": [OPENAI_WEATHER]},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": ROME}], "tools": json.dumps([WEATHER])},
    "LLaMA-Factory v1": answering({"role": "assistant", "content": [{"type": "tool_call", "value": ROME}]}),
    "ShareGPT": {"conversations": [{"from": "human", "value": "Weather?"},
        {"from": "gpt", "value": f"<tool_call>{ROME}</tool_call>"}], "tools": [WEATHER]},
    "tools in Hermes' system text": {"conversations": [{"from": "system",
        "value": f"Signatures are within <tools> </tools>: <tools>[{json.dumps(OPENAI_WEATHER)}]</tools>"},
        {"from": "human", "value": "Weather?"}, {"from": "gpt", "value": f"<tool_call>{ROME}</tool_call>"}]},
    "tools as texts": answering({"role": "assistant", "content": ROME}) | {"tools": [json.dumps(OPENAI_WEATHER)]},
    "Anthropic": {"messages": [QUESTION, {"role": "assistant",
        "content": [{"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}]}],
                    "tools": [{"name": "weather", "description": "d", "input_schema": WEATHER["parameters"]}]},
    "Gemini": {"contents": [{"role": "user", "parts": [{"text": "Weather?"}]},
                            {"role": "model", "parts": [{"functionCall": {"name": "weather",
                                "args": {"city": "Rome"}}}]}], "tools": [{"functionDeclarations": [WEATHER]}]},
    "TRL": {"prompt": [QUESTION], "completion": [{"role": "assistant",
        "tool_calls": [{"type": "function", "function": weather("Rome")}]}], "tools": [OPENAI_WEATHER]},
    "TRL with texts": {"prompt": "Weather?", "completion": f"<tool_call>{ROME}</tool_call>", "tools": [OPENAI_WEATHER]},
}  # fmt: skip


@pytest.mark.parametrize("way", ROME_ALONE)
def test_a_call_is_read_in_every_public_form(tmp_path, way):
    answers, queries, bad = read(tmp_path, ROME_ALONE[way])
    assert (answers, bad) == ([[weather("Rome")]], [])
    system = "system: Signatures are within <tools> </tools>: \nuser: "
    assert queries == [(system if "system" in way else "") + "Weather?"]
    request = as_request(ROME_ALONE[way])
    assert request["query"] == queries[0]


TWO_CALLS = {
    "two messages of one role": {"messages": [QUESTION, {"role": "tool_call", "content": ROME},
        {"role": "tool_call", "content": OSLO}], "tools": [WEATHER]},
    "two tags": saying(f"<tool_call>{ROME}</tool_call>\n<tool_call>{OSLO}</tool_call>"),
    "Mistral": saying('[TOOL_CALLS]weather{"city": "Rome"}[TOOL_CALLS]weather{"city": "Oslo"}'),
    "Python": saying("[weather(city='Rome'), weather(city=\"Oslo\")]"),
    "a message of words between": {"messages": [QUESTION, {"role": "function_call", "content": ROME},
        {"role": "gpt", "content": "And"}, {"role": "function_call", "content": OSLO}], "tools": [WEATHER]},
    "parts": answering({"role": "assistant", "content": [{"type": "tool_use", "name": "weather",
        "input": {"city": city}} for city in ("Rome", "Oslo")]}),
}  # fmt: skip


@pytest.mark.parametrize("way", TWO_CALLS)
def test_calls_in_a_row_are_one_parallel_answer(tmp_path, way):
    assert read(tmp_path, TWO_CALLS[way])[::2] == ([[weather("Rome"), weather("Oslo")]], [])


def test_arguments_of_python_calls_are_read_exactly(tmp_path):
    tool = {"name": "Stock Info", "parameters": {"x": {"type": "any"}}}
    text = """[Stock Info(x={"a": [1, -2.5, True, None, "it's ) (", 'say "hi"']}), Stock Info()]"""
    answers, _, bad = read(tmp_path, saying(text) | {"tools": [tool]})
    arguments = {"x": {"a": [1, -2.5, True, None, "it's ) (", 'say "hi"']}}
    wanted = [{"name": "Stock Info", "arguments": arguments}, {"name": "Stock Info", "arguments": {}}]
    assert (answers, bad) == ([wanted], [])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"tool_calls": [{"name": "weather", "kwargs": {}}]},
         "a call without arguments: it has kwargs, name; known are arguments,"),
        ({"tool_calls": [{"function": "weather", "arguments": {}}]},
         "a call without a name: it has arguments, function"),
        ({"tool_calls": [{"name": "weather", "arguments": {}, "input": {"city": "Rome"}}]},
         "a call with arguments and input"),
        ({"tool_calls": [{"name": "weather", "arguments": '{"city": '}]},
         "broken JSON in the arguments of a call: Expecting value"),
        ({"tool_calls": [json.loads(ROME)], "content": f"<tool_call>{OSLO}</tool_call>"}, "calls in two places"),
        ({"toolCalls": [json.loads(ROME)]}, "an assistant's message with 'toolCalls', which is not read"),
        ({"content": ""}, "a turn of the assistant without words or calls"),
        ({"content": "<tool_call>weather<arg_key>city</arg_key></tool_call>"},
         "broken JSON in a call written in the text, <tool_call>"),
        ({"content": "<tool_call><function=weather><parameter=city>Rome</parameter></function></tool_call>"},
         "broken JSON in a call"),
        ({"content": "<invoke name='weather'>"}, "a call that is not read: <invoke"),
        ({"content": "<\uff5ctool\u2581calls\u2581begin\uff5c>"}, "a call that is not read: <\uff5ctool"),
        ({"content": "Thought: I look.\nAction: weather\nAction Input: Rome"}, "a call that is not read"),
        ({"content": "I call it: " + ROME}, 'a call that is not read: "name": "weather"'),
        ({"content": 'weather(city="Rome")'}, "a call that is not read: weather("),
        ({"content": "[weather(open('x'))]"}, r"a call that is not read: [name(...)]"),
        ({"content": "[weather(city=f())]"}, r"a call that is not read: [name(...)]"),
        ({"content": '```tool_code\nprint(weather("Rome"))\n```'}, "a call that is not read: ```tool_code"),
        ({"content": f"<|python_tag|>{ROME}; {OSLO}"}, "a call written in the text does not end: <|python_tag|>"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
         "a part of a message that is not text: image_url"),
        ({"content": "I look.", "parts": [{"type": "tool-invocation",
            "toolInvocation": {"toolName": "weather", "args": {}}}]},
            "a part of a message that is not text: tool-invocation"),
        ({"content": "I look.", "parts": [{"functionCall": {"name": "weather", "args": {}}}]},
         "a message with two contents: it has content, parts, role"),
        ({"content": "I look.", "output": [{"type": "message"}]},
         "an assistant's message with 'output', which is not read"),
        ({"content": "I look.", "steps": [{"name": "weather", "args": {}}]},
         "an assistant's message with 'steps', which is not read"),
        ({"content": "I look.", "request": {"toolName": "weather", "args": {}}},
         "an assistant's message with 'request', which is not read"),
        ({"content": "<think>I will call <tool_call>" + ROME + "</tool_call> no wait. Clear."},
         "a thought that does not end"),
        ({"content": "<think>a</think><think>I call " + ROME}, "a thought that does not end"),
        ({"content": " get_forecast(city='Rome')\n"}, "a call that is not read: get_forecast(city='Rome')"),
        ({"content": "api.forecast( city = 'Rome', days=[1,\n2])"}, "a call that is not read: api.forecast("),
        ({"content": ROME, "weight": 0.5}, "an assistant's message whose weight is neither 0 nor 1"),
        ({"content": ROME, "train_detail": [[0, 1]]}, "an assistant's message with 'train_detail', which is not read"),
        ({"role": "critic", "content": "x"}, "a message of the role 'critic': known are system, developer, user, "),
        ({"role": "user", "tool_calls": [json.loads(ROME)]}, "a message of the role 'user' with calls"),
    ],
)  # fmt: skip
def test_an_unreadable_message_is_a_bad_row_with_its_reason(tmp_path, message, reason):
    answers, _, (found,) = read(tmp_path, answering({"role": "assistant", **message}), max_bad_rows=1)
    assert answers == [] and reason in found


ELSEWHERE = [
    "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{}<|call|>",
    '{"thought": "", "tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}}]}',
    '{"tool": "weather", "tool_input": {"city": "Rome"}}', '[{"weather": {"city": "Rome"}}]', f"{ROME}\n{OSLO}",
    '>>>weather\n{"city": "Rome"}', "Call: weather(city='Rome')", '<call>weather(city="Rome")</call>',
    "<tool>weather</tool>",
    "<weather><city>Rome</city></weather>", 'weather {"city": "Rome"}', 'await weather({city: "Rome"})',
    "tool: weather\nargs:\n  city: Rome",
    '```python\nprint(weather(city="Rome"))\n```', '<|python_start|>[weather(city="Rome")]<|python_end|>',
    'Sure: [weather(city="Rome")]',
]  # fmt: skip


@pytest.mark.parametrize("text", ELSEWHERE)
def test_a_call_in_an_unknown_form_is_a_bad_row(tmp_path, text):
    answers, _, (reason,) = read(tmp_path, saying(text), max_bad_rows=1)
    assert answers == [] and "a call that is not read" in reason


@pytest.mark.parametrize(
    "text",
    [
        "It is 17 (weather: clear).",
        '{"city": "Rome"}',
        "[1, 2]",
        "<think>I use <tool_call> not.</think>Clear.",
        "Use `f`.",
        "<think>I call it.</think>Clear.",
        "Clear (sky=blue), warm.",
        "[see (1)]x",
    ],
)
def test_words_that_resemble_calls_are_words(tmp_path, text):
    assert read(tmp_path, saying(text)) == ([[]], ["Weather?"], [])


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"training": False}, {"trainable": False},
    {"loss": False}, {"loss_weight": 0.0}, {"loss_mask": 0}])  # fmt: skip
def test_an_untrained_turn_is_only_in_later_queries(tmp_path, capsys, mark):
    messages = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [weather("Roma")]} | mark,
        {"role": "tool", "content": "unknown"},
        {"role": "assistant", "content": "", "tool_calls": [weather("Rome")]} | dict.fromkeys(mark, 1),
    ]
    answers, (query,), _ = read(tmp_path, {"id": "c", "messages": messages, "tools": [WEATHER]})
    assert answers == [[weather("Rome")]] and "Roma" in query
    assert (
        "turns left out, since they are not to be trained on (later turns' queries have them): 1\n"
        in capsys.readouterr().err
    )


def test_words_before_calls_are_left_out_of_the_answer_and_counted(tmp_path, capsys):
    thought = {"role": "assistant", "content": "<think>I look.</think>"}
    messages = [
        QUESTION,
        thought,
        {"role": "assistant", "tool_calls": [weather("Rome")]},
        {"role": "tool", "content": "17"},
    ]
    record = {"messages": [*messages, {"role": "assistant", "content": "Mild."}], "tools": [WEATHER]}
    answers, queries, _ = read(tmp_path, record)
    assert answers == [[weather("Rome")], []]
    assert queries == ["Weather?", f"user: Weather?\nassistant: <think>I look.</think>\n[{ROME}]\ntool: 17"]
    assert (
        "turns with words beside their calls, which only --prompt_format chat trains on: 1\n" in capsys.readouterr().err
    )


def test_a_half_trained_turn_is_a_bad_row(tmp_path):
    calls = [{"role": "assistant", "tool_calls": [weather("Rome")], "weight": weight} for weight in (0, 1)]
    _, _, (reason,) = read(tmp_path, {"messages": [QUESTION, *calls], "tools": [WEATHER]}, max_bad_rows=1)
    assert "of which some are to be trained on and some are not" in reason


def test_a_prompt_s_own_turns_are_not_trained_on(tmp_path):
    prompt = [QUESTION, {"role": "assistant", "content": "Where?"}, {"role": "user", "content": "In Rome."}]
    record = {"prompt": prompt, "completion": [{"role": "assistant", "content": ROME}], "tools": [WEATHER]}
    assert read(tmp_path, record)[0] == [[weather("Rome")]]


def test_metadata_of_an_answer_is_left_out(tmp_path):
    metadata = {
        "annotations": [{"type": "url_citation"}],
        "logprobs": {"content": [{"token": "a"}]},
        "tags": ["a", 1],
        "usage": {"n": 1},
    }
    record = answering(
        {"role": "assistant", "content": "Clear.", "parts": [{"type": "text", "text": "Clear."}], **metadata}
    )
    assert read(tmp_path, record) == ([[]], ["Weather?"], [])


EARLIER_TURNS = {
    "assistant": {"role": "assistant", "tool_calls": [weather("Oslo")]},
    "gpt": {"from": "gpt", "value": f"<tool_call>{OSLO}</tool_call>"},
    "model": {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]},
    "tool_call": {"role": "tool_call", "content": OSLO},
    "function_call": {"from": "function_call", "value": OSLO},
    "Responses": {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Oslo"}'},
}


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("role", EARLIER_TURNS)
def test_calls_in_a_prompt_are_not_trained_on(tmp_path, role, as_text):
    prompt = [
        QUESTION,
        EARLIER_TURNS[role],
        {"role": "tool", "content": "cold"},
        {"role": "user", "content": "In Rome?"},
    ]
    completion = [{"role": "assistant", "content": "", "tool_calls": [weather("Rome")]}]
    if as_text:
        prompt, completion = json.dumps(prompt), json.dumps(completion)
    record = {"prompt": prompt, "completion": completion, "tools": [WEATHER]}
    query = f"user: Weather?\nassistant: [{OSLO}]\ntool: cold\nuser: In Rome?"
    assert read(tmp_path, record) == ([[weather("Rome")]], [query], [])
    assert as_request(record)["query"] == query


@pytest.mark.parametrize("text", ["[]", "[1]", '[{"city": "Rome"}]', '{"role": "user"}'])
def test_a_prompt_of_other_json_text_is_the_query(tmp_path, text):
    record = {"prompt": text, "completion": ROME, "tools": [WEATHER]}
    assert read(tmp_path, record) == ([[weather("Rome")]], [text], [])


RESULTS = {
    "OpenAI": [{"role": "tool", "tool_call_id": "1", "content": "clear"}],
    "OpenAI, 2023": [{"role": "function", "name": "weather", "content": "clear"}],
    "parts": [{"role": "tool", "content": [{"type": "text", "text": "clear"}]}],
    "ms-swift": [{"role": "tool_response", "content": "clear"}],
    "LLaMA-Factory": [{"role": "observation", "content": "clear"}],
    "Responses": [{"type": "function_call_output", "call_id": "1", "output": "clear"}],
    "Anthropic": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "clear"}]}],
    "Anthropic's parts": [{"role": "user", "content": [{"type": "tool_result",
        "content": [{"type": "text", "text": "clear"}]}]}],
    "Bedrock": [{"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"text": "clear"}],
        "status": "success"}}]}],
}  # fmt: skip
OBJECT_RESULTS = {
    "an object": [{"role": "tool", "content": {"sky": "clear"}}],
    "Bedrock": [
        {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"json": {"sky": "clear"}}]}}]}
    ],
    "Gemini": [
        {"role": "function", "parts": [{"functionResponse": {"name": "weather", "response": {"sky": "clear"}}}]}
    ],
}


@pytest.mark.parametrize(("layout", "messages"), [*RESULTS.items(), *OBJECT_RESULTS.items()])
def test_a_tool_result_is_a_tool_message_in_every_layout(tmp_path, layout, messages):
    record = answering({"role": "assistant", "tool_calls": [weather("Rome")]})
    record["messages"] += [*messages, {"role": "assistant", "content": "Clear."}]
    wanted = '{"sky": "clear"}' if layout in OBJECT_RESULTS and messages is OBJECT_RESULTS[layout] else "clear"
    answers, queries, bad = read(tmp_path, record)
    assert (answers, bad) == ([[weather("Rome")], []], [])
    assert queries[1] == f"user: Weather?\nassistant: [{ROME}]\ntool: {wanted}"


def test_bedrock_s_system_column_is_a_system_message(tmp_path):
    record = {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"text": "Weather?"}]},
            {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "weather",
                "input": {"city": "Rome"}}}]},
        ],
        "toolConfig": {"tools": [{"toolSpec": {"name": "weather", "description": "d",
            "inputSchema": {"json": WEATHER["parameters"]}}}]},
    }  # fmt: skip
    assert read(tmp_path, record) == ([[weather("Rome")]], ["system: Be brief.\nuser: Weather?"], [])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": conversation(1)}, "messages without tools"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hi"}]},
         "conversations without tools"),
        ({"messages": conversation(1)[:2], "tools": TOOLS}, "a conversation without a turn of the assistant"),
        ({"messages": [{"content": "hi"}], "tools": TOOLS}, "a message without a role: it has content"),
        ({"messages": "[{", "tools": TOOLS}, "broken JSON in field 'messages': Expecting property name"),
        ({"messages": conversation(1), "tools": TOOLS, "functions": TOOLS}, "a row with tools and functions"),
        ({"prompt": "p", "tools": TOOLS}, "prompt without completion: it has prompt, tools; layouts have query, tools, answers; "),
        ({"question": [[{"role": "user", "content": "q"}]]}, "question without function: it has question; layouts have query, "),
        ({"question": [[{"role": "user", "content": "q"}]], "function": [], "id": "simple_1"}, "no ground_truth: "),
        ({"text": "USER: hi", "source": "s"},
         "a row of no known layout: it has source, text; layouts have query, tools, answers; messages;"),
    ],
)  # fmt: skip
def test_an_invalid_record_is_a_bad_row_with_its_place(tmp_path, record, reason):
    good = {"messages": conversation(1), "tools": TOOLS}
    _, bad = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", [good, record])), max_bad_rows=1)
    ((found, names),) = bad.items()
    assert found.startswith(reason) and len(names) == 1
    assert names[0].startswith("line 2: {") or "id" in record


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "text": "Rain?"}, "a message without content: it has role, text"),
        ({"role": "user", "message": "Rain?"}, "a message without content: it has message, role"),
        ({"role": "system", "instruction": "Be brief."}, "a message without content: it has instruction, role"),
        ({"role": "user", "content": None, "text": "Rain?"}, "a message without content: it has role, text"),
        ({"role": "tool", "tool_call_id": "c1", "output": "22"},
         "a message without content: it has output, role, tool_call_id"),
        ({"role": "tool", "content": "", "result": {"sky": "clear"}},
         "a message without content: it has content, result, role"),
        ({"role": "assistant", "text": "Rain."}, "a message without content: it has role, text"),
        ({"role": "user", "content": "Rain?", "value": "Snow?"},
         "a message with two contents: it has content, role, value"),
    ],
)  # fmt: skip
def test_a_text_at_an_unread_key_is_a_bad_row(tmp_path, message, reason):
    messages = [QUESTION, message, {"role": "assistant", "content": "", "tool_calls": [weather("Rome")]}]
    record = {"messages": messages, "tools": [WEATHER]}
    assert read(tmp_path, record, max_bad_rows=1) == ([], [], [reason])
    with pytest.raises(BadRow, match=reason):
        as_request(record)


def test_empty_contents_are_skipped(tmp_path):
    question = {"role": "user", "content": "", "value": "Rain?", "parts": [{"type": "text", "text": "Rain?"}]}
    record = {"messages": [question, {"role": "assistant", "content": ROME}], "tools": [WEATHER]}
    assert read(tmp_path, record) == ([[weather("Rome")]], ["Rain?"], [])


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_empty_query_is_a_bad_row(tmp_path, content):
    for more in ([], [{"role": "system", "content": "Be brief."}]):
        messages = [*more, {"role": "user", "content": content}, {"role": "assistant", "content": ROME}]
        record = {"messages": messages, "tools": [WEATHER]}
        assert read(tmp_path, record, max_bad_rows=1) == ([], [], ["an empty query"])
        with pytest.raises(BadRow, match="an empty query"):
            as_request(record)
    if content is not None:
        record = {"query": content, "tools": [WEATHER], "answers": [weather("Rome")]}
        assert read(tmp_path, record, max_bad_rows=1) == ([], [], ["an empty query"])


def rendered(messages, tools=()):
    (prompt,), _ = render_jinja_template(
        [messages], tools=list(tools), chat_template=CHAT_TEMPLATE, add_generation_prompt=True
    )
    return prompt


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text() | st.sampled_from(['"', "\\", '\\"', "\\u0041", "é😀\x07\x00"]), values, max_size=3),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\n:")]),
    st.sampled_from([None, 0, 2]),
)
def test_training_and_template_write_text_arguments_alike(arguments, ascii_only, separators, indent):
    text = json.dumps(arguments, ensure_ascii=ascii_only, separators=separators, indent=indent)
    asks = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
    messages = [{"role": "user", "content": "q"}, asks, {"role": "tool", "content": "7"}]
    query = render_messages(read_messages(messages, {"f"}))
    assert f'[{{"name": "f", "arguments": {to_json(arguments)}}}]\n' in query
    assert rendered(messages) == render_tags(query, "[]")


CONVERSATIONS = {
    "words and calls": [{"role": "assistant", "content": "Wait.", "tool_calls": [call(1)]}],
    "messages in a row": [{"role": "assistant", "content": "Wait."}, {"role": "assistant", "tool_calls": [call(1)]},
                          {"role": "assistant", "content": "", "tool_calls": [call(2, False)]}],
    "developer": [{"role": "developer", "content": "Be brief."}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "a result of parts": [{"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "a result that is an object": [{"role": "tool", "content": {"é": 1.0}}],
    "a result that is a list": [{"role": "tool", "content": [{"text": "a", "score": 1}]}],
    "an empty result": [{"role": "tool", "content": []}],
    "no content": [{"role": "user", "content": None}, {"role": "tool", "content": None}],
    "function_call": [{"role": "assistant", "content": None, "function_call": call(1)["function"]},
                      {"role": "function", "content": "7"}],
    "no arguments": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": None},
        {"name": "f", "arguments": ""}]}],
    "numbers": [{"role": "assistant", "tool_calls": [{"name": "f",
        "arguments": '{"a":[1e5,-0,1.50,1E-7,12345678901234567890],"b":"\\ud83d\\ude00\\/"}'}]}],
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_one_transcript_in_training_and_in_the_chat_template(name):
    for more in ([], [{"role": "user", "content": "And now?\n"}]):
        messages = [{"role": "user", "content": " q "}, *CONVERSATIONS[name], *more]
        assert rendered(messages) == render_tags(render_messages(read_messages(messages, {"f"})), "[]")
        if CONVERSATIONS[name][0]["role"] == "user":
            alone = CONVERSATIONS[name][:1]
            assert rendered(alone) == render_tags(render_messages(read_messages(alone, {"f"})), "[]")


def test_a_transcript_has_a_role_before_each_message():
    messages = [
        QUESTION,
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert render_messages(read_messages(messages, ())) == "user: Weather?\nsystem: a\nb"
    assert render_messages(read_messages([{"role": "user", "content": " q "}], ())) == " q "


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "critic", "content": "x"}, "critic"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "not text"),
        ({"role": "user", "content": {"a": 1}}, "not text"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "kwargs": {}}]}, "without arguments"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "not a JSON object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": nope}'}]}, "not JSON: nope"),
    ],
)
def test_the_template_refuses_the_messages_that_training_refuses(message, reason):
    with pytest.raises(BadRow):
        read_messages([QUESTION, message], {"f"})
    with pytest.raises(TemplateError, match=reason):
        rendered([QUESTION, message])


def test_the_leaderboard_s_questions_are_rows_with_accepted_answers(tmp_path):
    function = {
        "name": "math.area", "description": "d",
        "parameters": {"type": "dict", "properties": {"base": {"type": "float"}, "unit": {"type": "string"}},
                       "required": ["base"]},
    }  # fmt: skip
    question = {"id": "simple_0", "question": [[{"role": "user", "content": "area?"}]], "function": [function]}
    truth = {"id": "simple_0", "ground_truth": [{"math.area": {"base": [10, 10.0], "unit": ["units", ""]}}]}
    (tmp_path / "possible_answer").mkdir()
    write_jsonl(tmp_path / "BFCL_v3_simple.json", [question])  # JSON lines, despite the name
    write_jsonl(tmp_path / "possible_answer" / "BFCL_v3_simple.json", [truth])
    ((row,), bad) = load_rows(str(tmp_path / "BFCL_v3_simple.json"))
    assert bad == {} and (row.id, row.query, row.category) == ("simple_0", "area?", "simple")
    assert json.loads(row.answers) == [{"name": "math.area", "arguments": {"base": 10}}]
    assert json.loads(row.acceptable) == truth["ground_truth"]
    assert json.loads(row.tools)[0]["parameters"] == {"base": {"type": "float"}, "unit": {"type": "str, optional"}}


def test_a_sharegpt_parquet_file_is_read_unless_its_arguments_are_padded(tmp_path):
    records = [ROME_ALONE["ShareGPT"] | {"tools": json.dumps([WEATHER]), "system": "Be brief."}] * 2
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(records), path)
    ((row,), bad) = load_rows(str(path))
    assert (row.query, json.loads(row.answers), bad) == ("system: Be brief.\nuser: Weather?", [weather("Rome")], {})
    pq.write_table(pa.Table.from_pylist([ROME_ALONE["langchain"] | {"tools": json.dumps([WEATHER])}]), path)
    with pytest.raises(UserError, match="must hold JSON strings"):
        load_rows(str(path))
