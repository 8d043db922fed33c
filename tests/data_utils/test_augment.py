"""Rows made from rows keep what they should, depend on the seed and the row alone, and read as
rows."""

import json
import random

import pytest

from data_utils.answerable import may_answer
from data_utils.augment import TRANSFORMATIONS, NotMade, tool_pool, transform_rows, without_answer
from data_utils.conversations import as_records
from data_utils.misfits import fit
from data_utils.prompt import render_messages
from data_utils.rows import COLUMNS, valid_rows, validate
from demo.agent_rows import make_conversation
from demo.rows import generate_rows

ALL = {"no_call": without_answer} | TRANSFORMATIONS


def tool(name, text="", /, **parameters):
    parameters = {argument: {"type": kind, "description": f"The {argument}."} for argument, kind in parameters.items()}
    return {"name": name, "description": text, "parameters": parameters}


WEATHER = tool("get_weather", "Get the current weather in a city.", city="str", unit="str, optional")
PIZZA = tool("order_pizza", "Order a pizza.", size="str")
STOCK = tool("stock.quote", "The price of a share.", symbol="str")
FIBONACCI = tool("fibonacci", "Compute Fibonacci numbers.", count="int")


def record(query, tools, *calls, **more):
    calls = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {"id": "1", "query": query, "tools": json.dumps(tools), "answers": json.dumps(calls), **more}


# As of the leaderboard, with accepted values and truly required arguments.
BOARD = record(
    "Weather in Riga?",
    [PIZZA, WEATHER],
    ("get_weather", {"city": "Riga"}),
    category="live",
    acceptable='[{"get_weather": {"city": ["Riga", "Riga, Latvia"], "unit": ["", "C"]}}]',
    required='{"get_weather": ["city"], "order_pizza": ["size"]}',
)
RECORDS = [
    *generate_rows(300, seed=0),
    BOARD | {"id": "board"},
    *(make_conversation(number) | {"id": f"talk {number}"} for number in range(60)),
]
ROWS = valid_rows(enumerate(RECORDS))[0]
POOL = tool_pool(ROWS)


def read_back(row):
    columns = {column: getattr(row, column) for column in ("id", *COLUMNS)}
    return validate(columns | {name: getattr(row, name) for name in ("acceptable", "required") if getattr(row, name)})


@pytest.mark.parametrize("name", ALL)
def test_made_rows_are_valid_and_their_calls_fit_their_tools(name):
    made, not_made = transform_rows(ROWS, ALL[name], 0, POOL)
    assert len(made) + sum(map(len, not_made.values())) == len(ROWS) and len(made) > 100
    sources = {row.id: row for row in ROWS}
    for row in made:
        read, source = read_back(row), sources[row.id.rpartition("+")[0]]
        assert row.id == f"{source.id}+{name}"
        assert (read.query, read.tools, read.answers, read.fingerprint) == (
            row.query,
            row.tools,
            row.answers,
            row.fingerprint,
        )
        assert row.fingerprint != source.fingerprint
        assert fit(json.loads(row.answers), json.loads(row.tools)) and fit(
            json.loads(source.answers), json.loads(source.tools)
        )
        assert (row.category, row.conversation, row.opening) == (source.category, source.conversation, source.opening)


@pytest.mark.parametrize("name", ALL)
def test_a_made_row_depends_on_the_seed_the_row_and_the_tools_alone(name):
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    made, not_made = transform_rows(shuffled, ALL[name], 0, tool_pool(shuffled))
    again, not_again = transform_rows(ROWS, ALL[name], 0, POOL)
    assert sorted(made) == sorted(again) and {*map(str, not_made)} == {*not_again}
    if name != "drop_descriptions":
        assert transform_rows(ROWS, ALL[name], 1, POOL)[0] != again


def test_a_row_without_its_answer_has_as_many_tools_and_none_that_it_called():
    for row in transform_rows(ROWS, without_answer, 0, POOL)[0]:
        source = next(source for source in ROWS if source.id == row.id.rpartition("+")[0])
        called = {call["name"] for call in json.loads(source.answers)}
        assert row.answers == "[]" and not row.words and called and not called & row.tool_names()
        assert len(row.tool_names()) == len(source.tool_names())
        kept = [tool for tool in json.loads(source.tools) if tool["name"] not in called]
        assert [tool for tool in json.loads(row.tools) if tool in kept] == kept


def test_a_row_without_its_answer_accepts_no_call():
    row = without_answer(validate(BOARD), 0, [STOCK])
    assert json.loads(row.tools) == [PIZZA, STOCK]
    assert row.acceptable == "[]" and json.loads(row.required) == {"order_pizza": ["size"]} and row.category == "live"


@pytest.mark.parametrize(
    ("row", "pool", "reason"),
    [
        (record("Hello", [WEATHER]), [STOCK], "has no calls"),
        (record("Weather in Riga?", [WEATHER], ("get_weather", {"city": "Riga"})), [WEATHER], "no tool of other rows"),
        (
            record(
                "Rain in Riga?",
                [WEATHER, tool("forecast", "The weather of the next days.", place="str")],
                ("get_weather", {"city": "Riga"}),
            ),
            [STOCK],
            "another tool",
        ),
    ],
)
def test_a_row_that_keeps_no_fair_list_is_not_made(row, pool, reason):
    with pytest.raises(NotMade, match=reason):
        without_answer(validate(row), 0, pool)


def test_a_turn_whose_conversation_has_called_the_tool_is_not_made():
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Riga"}}]}
    messages = [{"role": "user", "content": "Riga?"}, call, {"role": "tool", "content": "rain"}]
    messages += [{"role": "user", "content": "And again?"}, call]
    _, records, _ = as_records({"messages": messages, "tools": [WEATHER]})
    first, second = (validate(record) for record in records)
    assert json.loads(without_answer(first, 0, [STOCK]).tools) == [STOCK]
    with pytest.raises(NotMade, match="messages name the right tool"):
        without_answer(second, 0, [STOCK])


def test_a_name_after_a_line_end_is_a_name():
    """In the messages' JSON text, a letter is in front of it."""
    talk = [{"role": "system", "content": "Tools:\nget_weather: rain"}, {"role": "user", "content": "Rain in Riga?"}]
    row = validate(record("Rain in Riga?", [WEATHER], ("get_weather", {"city": "Riga"})))
    assert without_answer(row, 0, [STOCK]).answers == "[]"
    with pytest.raises(NotMade, match="messages name the right tool"):
        without_answer(row._replace(messages=json.dumps(talk)), 0, [STOCK])


@pytest.mark.parametrize(
    ("other", "may"),
    [
        (PIZZA, False),
        (STOCK, False),
        (FIBONACCI, False),
        (tool("find_restaurants", "Find restaurants in a city.", city="str"), False),
        (tool("weather.forecast", "Forecast.", city="str", days="int"), True),  # shares half its name
        (tool("climate", "Current weather and climate of a place.", place="str"), True),  # does it, by its description
        (tool("WeatherAlerts", "Alerts.", region="str"), True),
        (tool("web_search", "Search.", query="str"), True),
        (tool("lookup_facts", "Searches the web.", keyword="str"), True),
        (tool("rain.history", "Rain of a year.", city="str", unit="str"), True),  # both arguments are the right ones
        (tool("rain.history", "Rain of a year.", city="str", year="int"), False),
        (tool("run_code", "Runs it.", code="str"), True),
        (tool("english_llm", "A language model.", q="str"), True),
        (tool("riga", "A guide.", topic="str"), True),  # its whole name is in the query
    ],
)
def test_tools_that_might_answer_are_recognised(other, may):
    assert may_answer(other, "How is the weather in Riga?", [(WEATHER, {"city": "Riga", "unit": "C"})]) is may


def test_without_a_right_tool_one_common_word_is_enough():
    assert may_answer(tool("book_flight_seat", "Seats."), "Cancel my flight", [])
    assert not may_answer(PIZZA, "Cancel my flight", [])


def test_no_tool_that_might_answer_is_added():
    pool = [tool("weather.forecast", "Forecast.", city="str"), tool("web_search", "Search."), WEATHER, STOCK, FIBONACCI]
    names = [
        {tool["name"] for tool in json.loads(transformation(validate(BOARD), seed, pool).tools)}
        for seed in range(20)
        for transformation in (without_answer, TRANSFORMATIONS["distract"])
    ]
    assert set().union(*names) == {"order_pizza", "get_weather", "stock.quote", "fibonacci"}


def test_distract_keeps_the_tools_in_their_order_and_adds_some():
    counts = set()
    for row in transform_rows(ROWS, TRANSFORMATIONS["distract"], 0, POOL)[0]:
        source = next(source for source in ROWS if source.id == row.id.rpartition("+")[0])
        old, new = json.loads(source.tools), json.loads(row.tools)
        assert [tool for tool in new if tool in old] == old and row.answers == source.answers
        counts.add(len(new) - len(old))
    assert counts == {1, 2, 3, 4}


def test_shuffle_changes_the_order_alone():
    for row in transform_rows(ROWS, TRANSFORMATIONS["shuffle"], 0, POOL)[0]:
        source = next(source for source in ROWS if source.id == row.id.rpartition("+")[0])
        old, new = json.loads(source.tools), json.loads(row.tools)
        assert new != old and all(tool in old for tool in new) and len(new) == len(old)
        assert row.answers == source.answers
    with pytest.raises(NotMade, match="fewer than two"):
        TRANSFORMATIONS["shuffle"](validate(record("Hi", [PIZZA])), 0, [])


def renamed(row, seed=0):
    return TRANSFORMATIONS["rename"](row, seed, [])


def test_rename_gives_each_name_one_new_name_everywhere():
    row = renamed(validate(BOARD))
    pizza, weather = json.loads(row.tools)
    (size,), (city, unit) = pizza["parameters"], weather["parameters"]
    assert len({pizza["name"], weather["name"]}) == 2 and len({size, city, unit}) == 3
    assert all(name.startswith("tool_") for name in (pizza["name"], weather["name"]))
    assert json.loads(row.answers) == [{"name": weather["name"], "arguments": {city: "Riga"}}]
    assert json.loads(row.acceptable) == [{weather["name"]: {city: ["Riga", "Riga, Latvia"], unit: ["", "C"]}}]
    assert json.loads(row.required) == {weather["name"]: [city], pizza["name"]: [size]}
    assert weather["parameters"][city] == WEATHER["parameters"]["city"] and row.query == BOARD["query"]
    assert weather["description"] == WEATHER["description"]
    assert renamed(validate(BOARD), seed=1).tools != row.tools


def test_rename_goes_back_to_the_row():
    for row in ROWS:
        new = renamed(row)
        old_tools, new_tools = json.loads(row.tools), json.loads(new.tools)
        names = {new["name"]: old["name"] for new, old in zip(new_tools, old_tools, strict=True)}
        for new_tool, old_tool in zip(new_tools, old_tools, strict=True):
            names |= dict(zip(new_tool["parameters"], old_tool["parameters"], strict=True))
        assert len(names) == len(set(names.values()))  # one to one, in all tools

        def back(text, names=names):
            for name, old in names.items():
                text = text.replace(f'"{name}"', f'"{old}"')
            return text

        assert (back(new.tools), back(new.answers), back(new.messages)) == (row.tools, row.answers, row.messages)


def test_rename_changes_the_calls_of_a_transcript():
    row = next(row for row in ROWS if '"tool_calls"' in row.messages)
    new = renamed(row)
    assert new.query == render_messages(json.loads(new.messages)) != row.query
    called = {call["name"] for message in json.loads(new.messages) for call in message.get("tool_calls", [])}
    assert called and called <= new.tool_names()


def test_rename_changes_identifiers_in_descriptions_and_no_words():
    first = tool("get_user", "Get a user by userId; userIds are numbers.", userId="int", unit="str")
    second = tool("rename", "Rename a user after get_user, not get_user_name. The unit is kept.", userId="int")
    row = renamed(validate(record("Who is 5?", [first, second], ("get_user", {"userId": 5}))))
    (new_first, new_second) = json.loads(row.tools)
    user_id = next(iter(new_first["parameters"]))
    assert new_first["description"] == f"Get a user by {user_id}; userIds are numbers."
    assert new_second["description"] == (
        f"Rename a user after {new_first['name']}, not get_user_name. The unit is kept."
    )
    assert new_second["parameters"].keys() == {user_id}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (record("Use get_weather for Riga", [WEATHER], ("get_weather", {"city": "Riga"})), "name a tool"),
        (record("Hi", [PIZZA | {"dependentRequired": {"size": ["size"]}}]), "keywords"),
        (record("Hi", [PIZZA], acceptable='[{"other": {}}]'), "accepted values"),
    ],
)
def test_rename_refuses_rows_that_would_lose_a_name(row, reason):
    with pytest.raises(NotMade, match=reason):
        renamed(validate(row))


def test_rename_refuses_a_turn_whose_words_name_its_tool():
    row = validate(record("Rain in Riga?", [WEATHER], ("get_weather", {"city": "Riga"})))
    assert "get_weather" not in "".join(renamed(row._replace(words="I look at the weather.")))
    with pytest.raises(NotMade, match="words name a tool"):
        renamed(row._replace(words="I call get_weather."))


def test_drop_descriptions_leaves_types_names_and_an_argument_called_description():
    inner = {"type": "dict", "description": "x", "properties": {"a": {"type": "int", "description": "y"}}}
    issue = tool("create_issue", "Create an issue.", description="str")
    issue["parameters"] |= {"options": inner, "tags": {"type": "list", "items": {"type": "str", "description": "z"}}}
    row = TRANSFORMATIONS["drop_descriptions"](
        validate(record("Hi", [issue], ("create_issue", {"description": "d", "options": {"a": 1}, "tags": []}))), 0, []
    )
    assert json.loads(row.tools) == [
        {
            "name": "create_issue",
            "parameters": {
                "description": {"type": "str"},
                "options": {"type": "dict", "properties": {"a": {"type": "int"}}},
                "tags": {"type": "list", "items": {"type": "str"}},
            },
        }
    ]
    with pytest.raises(NotMade, match="no descriptions"):
        TRANSFORMATIONS["drop_descriptions"](row, 0, [])
