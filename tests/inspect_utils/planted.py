"""Rows with planted faults, written by code: `{kind of finding: [(row id, text that names it)]}`."""

import json

from demo.rows import generate_rows

WEATHER = {
    "name": "forecast_of",
    "description": "Get the forecast of a city.",
    "parameters": {
        "city": {"description": "Name of the city.", "type": "str"},
        "days": {"description": "Number of days.", "type": "int, optional"},
        "unit": {"description": "The unit.", "type": "str, optional", "enum": ["celsius", "fahrenheit"]},
    },
}
CITIES = iter(
    "Oslo Rome Bern Kyiv Lima Cairo Quito Hanoi Paris Tokyo Delhi Seoul Accra Dakar Minsk Sofia Riga".split() * 9
)


def row(row_id, arguments=None, *, query=None, tools=None, answers=None, **others):
    """A right row about a city of its own, except for the values given. `{city}` is its city."""
    city = next(CITIES)
    query = "What is the forecast for {city} on row {row}?" if query is None else query
    arguments = (
        {"city": city}
        if arguments is None
        else {key: city if value == "{city}" else value for key, value in arguments.items()}
    )
    calls = [{"name": "forecast_of", "arguments": arguments}] if answers is None else answers
    return {
        "id": row_id,
        "query": query.replace("{city}", city).replace("{row}", row_id),
        "tools": tools if isinstance(tools, str) else json.dumps([WEATHER] if tools is None else tools),
        "answers": calls if isinstance(calls, str) else json.dumps(calls),
        **others,
    }


def tool(name="forecast_of", **changes):
    return {**WEATHER, "name": name, **changes}


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


def planted_rows():
    """`(rows, planted)`: rows of the demo with faulty rows among them, and the faults."""
    twin = row("twin-1", query="How warm will {city} be?")
    answer = '[{"name": "forecast_of", "arguments": {"city": '
    faulty = {
        "broken_json": [
            (row("cut", answers=answer + '"Oslo"'), "field 'answers'"),
            (row("nan", answers=answer + '"Oslo", "days": NaN}}]'), "NaN"),
            (row("twice", answers=answer + '"Oslo", "city": "Rome"}}]'), '"city"'),
            (row("in-words", answers="I would call forecast_of for Oslo."), "field 'answers'"),
        ],
        "missing_field": [
            (without(row("no-answers"), "answers"), "answers"),
            (without(row("no-tools"), "tools"), "tools"),
        ],
        "wrong_form": [
            (row("tools-as-text", tools='"forecast_of"'), "text"),
            (row("one-call", answers='"forecast_of"'), "list of calls"),
        ],
        "empty_query": [(row("blank", query="  "), "empty query")],
        "unknown_tool": [(row("unknown", answers=[{"name": "forecast_for", "arguments": {}}]), "forecast_for")],
        "repeated_tool_name": [(row("same-names", tools=[tool(), tool()]), "forecast_of")],
        "broken_text": [(row("surrogate", {"city": "\ud800"}), "answers")],
        "repeated_row": [(twin | {"id": "twin-2"}, "twin-1")],
        "repeated_id": [(row("twin-1"), "other content")],
        "conflicting_answers": [(twin | {"id": "twin-3", "answers": answer + '"Rome"}}]'}, 'forecast_of.city: "Rome"')],
        "missing_argument": [(row("no-city", {"unit": "celsius"}, query="In celsius, row {row}: {city}"), "city")],
        "wrong_type": [
            (row("five", {"city": "{city}", "days": "five"}, query="{city} for five days, row {row}"), "days: 'five'")
        ],
        "not_in_enum": [
            (row("kelvin", {"city": "{city}", "unit": "kelvin"}, query="{city} in kelvin, row {row}"), "kelvin")
        ],
        "undeclared_argument": [(row("wind", {"city": "{city}", "wind": True}), "wind")],
        "null_argument": [(row("null", {"city": "{city}", "days": None}), "forecast_of.days: null")],
        "empty_argument": [(row("nothing", {"city": ""}), 'forecast_of.city: ""')],
        "made_up_value": [(row("made-up", {"city": "Atlantis"}), '"Atlantis"')],
        "placeholder": [
            (row("todo", {"city": "TODO"}), '"TODO"'),
            (row("blank-name", query="Forecast for {city}, row {row}, for [INSERT NAME]"), "[INSERT NAME]"),
        ],
        "blanks_around": [(row("blanks", {"city": " Rome"}, query="Rome, row {row}"), '" Rome"')],
        "no_id": [(without(row("nameless", query="Forecast for {city} in the nameless row"), "id"), "nameless")],
        "repeated_call": [
            (row("again", answers=answer + '"Rome"}}, ' + answer[1:] + '"Rome"}}]', query="Rome, row {row}"), '"Rome"')
        ],
        "prompt_marks": [(row("tag", query="Forecast for {city}, row {row}</answer>"), "</answer>")],
        "odd_characters": [(row("mojibake", query="Forecast for {city} near ZÃ¼rich, row {row}"), "ZÃ¼rich")],
        "html": [(row("markup", query="Forecast for <b>{city}</b>, row {row}"), "<b>")],
        "query_without_words": [(row("dots", query="???"), "???")],
        "answer_in_query": [(row("leak", {"city": "Nuuk"}, query="Row {row}: " + answer + '"Nuuk"}}]'), "Nuuk")],
        "several_schemas": [
            (
                row(
                    "other-schema",
                    tools=[tool(parameters={"city": {"description": "Its name.", "type": "int"}})],
                    answers="[]",
                ),
                "city is int",
            ),
        ],
        "unknown_type": [
            (
                row(
                    "type",
                    tools=[tool("f_1", parameters={"x": {"description": "A value.", "type": "strng"}})],
                    answers="[]",
                ),
                "f_1.x: strng",
            ),
        ],
        "wrong_default": [
            (
                row(
                    "default",
                    tools=[
                        tool("f_2", parameters={"x": {"description": "A value.", "type": "int", "default": "many"}})
                    ],
                    answers="[]",
                ),
                'f_2.x: "many"',
            ),
        ],
        "no_description": [(row("silent", tools=[{"name": "f_3", "parameters": {}}], answers="[]"), "f_3")],
        "argument_without_description": [
            (row("mute", tools=[tool("f_4", parameters={"x": {"type": "int"}})], answers="[]"), "f_4: x")
        ],
        "too_long": [(row("long", query="Forecast for {city}, row {row}. " + "And the wind? " * 400), "tokens")],
    }
    rows = [twin, *generate_rows(300, seed=7)]
    rows += [record for records in faulty.values() for record, _ in records]
    planted = {kind: [(record.get("id"), text) for record, text in records] for kind, records in faulty.items()}
    return rows, planted
