"""Rows made from rows: without their answer, or with their tools shuffled, joined by others,
renamed or without descriptions. Pure functions of the row, the seed and the pool of tools alone."""

import json
import random
import re
from collections import defaultdict

from data_utils.answerable import may_answer
from data_utils.prompt import render_messages, to_json
from data_utils.rows import content_hash
from data_utils.tool_schema import UNIONS, specs_at
from run_utils.errors import require

MADE_BY = "+"  # between a row's id and the name of its transformation
MOST_ADDED = 4  # tools, by distract
MOST_TRIED = 64  # tools of the pool tried for each place
RENAMED_KEYS = {"name", "description", "parameters", "additionalProperties"}  # of a tool, known to rename

_IDENTIFIER = re.compile(r"\w+(?:\.\w+)*")


class NotMade(ValueError):
    """A transformation cannot be done for a row. The message is the reason, without the row's own
    texts: rows are counted by it."""


def tool_pool(rows):
    """The tools of the rows for without_answer and distract: parsed, one of each name, in the order
    of their names whatever the order of the rows."""
    tools = {}
    for text in {row.tools for row in rows}:
        for tool in json.loads(text):
            tools[tool["name"]] = min(tool, tools.get(tool["name"], tool), key=to_json)
    return [tools[name] for name in sorted(tools)]


# Transformations: a Row of a Row, a seed and a pool. They raise NotMade.


def without_answer(row, seed, pool):
    """The row without its called tools, and with no calls as its answer.

    A tool of the pool takes the place of each, so that short lists do not give the answer away; a
    list stays shorter if no tool of the pool is fit. NotMade if another tool of the row might
    answer, or if messages before the turn name a called tool."""
    tools, calls = json.loads(row.tools), json.loads(row.answers)
    wanted = right_calls(tools, calls)
    if not calls:
        raise NotMade("the row has no calls")
    called = {call["name"] for call in calls}
    if any(names_in(texts_of(json.loads(row.messages or "[]")), name) for name in called):
        raise NotMade("its messages name the right tool")
    others = [tool for tool in tools if tool["name"] not in called]
    if any(may_answer(tool, question_of(row), wanted) for tool in others):
        raise NotMade("another tool of its list might answer")
    rng = generator("no_call", seed, row)
    strangers = iter(choose_strangers(row, tools, wanted, pool, rng, most=len(called)))
    filled = [tool if tool["name"] not in called else next(strangers, None) for tool in tools]
    filled = [tool for tool in filled if tool]
    if not filled:
        raise NotMade("no tool of other rows is fit")
    names = {tool["name"] for tool in filled}
    required = {name: keys for name, keys in json.loads(row.required or "{}").items() if name in names}
    return made(row, "no_call", tools=filled, calls=[], required=required, acceptable=[], words="")


def shuffle(row, seed, pool):
    """The row with its tools in another order. NotMade for a single tool."""
    tools = json.loads(row.tools)
    if len(tools) < 2:
        raise NotMade("fewer than two tools")
    shuffled, rng = tools, generator("shuffle", seed, row)
    while shuffled == tools:
        shuffled = rng.sample(tools, len(tools))
    return made(row, "shuffle", tools=shuffled)


def distract(row, seed, pool):
    """The row with one to MOST_ADDED tools of the pool more, at any places. NotMade if none is
    fit."""
    tools, calls = json.loads(row.tools), json.loads(row.answers)
    rng = generator("distract", seed, row)
    most = rng.randint(1, MOST_ADDED)
    strangers = choose_strangers(row, tools, right_calls(tools, calls), pool, rng, most=most)
    if not strangers:
        raise NotMade("no tool of other rows is fit")
    for tool in strangers:
        tools.insert(rng.randint(0, len(tools)), tool)
    return made(row, "distract", tools=tools)


def rename(row, seed, pool):
    """The row with `tool_47` and `arg_83` as names of its tools and their arguments, in tools,
    answers, earlier calls, `acceptable` and `required`. Numbers are drawn, and none repeats.

    Names without a meaning: the model has to read types and descriptions. Numbered words, since
    random letters would test copying. Texts, values and keys inside values stay; a description with
    a name as an identifier (get_user, userId) gets the new one. NotMade if the query, a message or
    the turn's words have a tool's name as an identifier, for a keyword with names in it, and for an
    earlier call to a tool not on offer."""
    tools, calls, messages = json.loads(row.tools), json.loads(row.answers), json.loads(row.messages or "[]")
    if any(tool.keys() - RENAMED_KEYS for tool in tools):
        raise NotMade("a tool with keywords that hold names of arguments")
    names = [tool["name"] for tool in tools]
    texts = "\n".join([row.words, *(message["content"] for message in messages or [{"content": row.query}])])
    if any(is_identifier(name) and names_in(texts, name) for name in names):
        raise NotMade("its query, messages or words name a tool")
    earlier = [call for message in messages for call in message.get("tool_calls", [])]
    if not {call["name"] for call in earlier} <= set(names):
        raise NotMade("its messages call a tool that is not offered")
    arguments = list(dict.fromkeys(name for tool in tools for name in tool.get("parameters") or {}))
    rng = generator("rename", seed, row)
    new_tools = new_names(names, "tool", row, rng)
    new_arguments = new_names(arguments, "arg", row, rng)
    identifiers = {old: new for old, new in (new_arguments | new_tools).items() if is_identifier(old)}

    def renamed(values):
        return {new_arguments.get(name, name): value for name, value in values.items()}

    def renamed_call(call):
        return {"name": new_tools[call["name"]], "arguments": renamed(call["arguments"])}

    def renamed_tool(tool):
        tool = with_texts(tool, lambda text: replace_names(text, identifiers)) | {"name": new_tools[tool["name"]]}
        return tool | ({"parameters": renamed(tool["parameters"])} if tool.get("parameters") else {})

    columns = {}
    if row.required:
        required = json.loads(row.required).items()
        columns["required"] = {
            new_tools[tool]: [new_arguments.get(name, name) for name in keys]
            for tool, keys in required
            if tool in new_tools
        }
    if row.acceptable:
        acceptable = json.loads(row.acceptable)
        if not all(isinstance(call, dict) and call.keys() <= new_tools.keys() for call in acceptable):
            raise NotMade("its accepted values are of another tool")
        columns["acceptable"] = [
            {new_tools[tool]: renamed(values) for tool, values in call.items()} for call in acceptable
        ]
    if earlier:
        columns["messages"] = [
            message
            | ({"tool_calls": list(map(renamed_call, message["tool_calls"]))} if "tool_calls" in message else {})
            for message in messages
        ]
    return made(row, "rename", tools=list(map(renamed_tool, tools)), calls=list(map(renamed_call, calls)), **columns)


def drop_descriptions(row, seed, pool):
    """The row without descriptions of its tools, their arguments and specs inside. NotMade if there
    are none."""
    tools = json.loads(row.tools)
    bare = [with_texts(tool, lambda text: None) for tool in tools]
    if bare == tools:
        raise NotMade("no descriptions")
    return made(row, "drop_descriptions", tools=bare)


# By the names of --augment and --perturb. Each keeps the row's meaning, and so its right calls.
TRANSFORMATIONS = {
    "shuffle": shuffle, "distract": distract, "rename": rename, "drop_descriptions": drop_descriptions,
}  # fmt: skip


def check_names(flag, names):
    """Raise UsageError if a flag's list (None: not set) has unknown names, or one twice."""
    unknown = [name for name in names or () if name not in TRANSFORMATIONS]
    require(not unknown, f"{flag} knows {', '.join(TRANSFORMATIONS)}, not {', '.join(unknown)}")
    require(len(set(names or ())) == len(names or ()), f"{flag} names a transformation twice")


def transform_rows(rows, transformation, seed, pool):
    """The transformed rows, in order, and the others as `{reason: [ids]}`. transformation: a
    function of this module."""
    done, not_made = [], defaultdict(list)
    for row in rows:
        try:
            done.append(transformation(row, seed, pool))
        except NotMade as error:
            not_made[str(error)].append(row.id)
    return done, dict(not_made)


# Parts


def generator(name, seed, row):
    """Random numbers of a row's transformation."""
    return random.Random(f"{seed}:{name}:{row.id}")


def made(row, name, *, tools, calls=None, **columns):
    """A row with other tools and perhaps other columns, as parsed values. The row's empty columns
    stay empty."""
    calls = json.loads(row.answers) if calls is None else calls
    texts = {
        column: value if column == "words" else to_json(value)
        for column, value in columns.items()
        if getattr(row, column)
    }
    query = render_messages(columns["messages"]) if "messages" in columns else row.query
    return row._replace(
        id=f"{row.id}{MADE_BY}{name}",
        query=query,
        tools=to_json(tools),
        answers=to_json(calls),
        fingerprint=content_hash(query, tools, calls),
        **texts,
    )


def right_calls(tools, calls):
    by_name = {tool["name"]: tool for tool in tools}
    return [(by_name[call["name"]], call["arguments"]) for call in calls]


def question_of(row):
    """The last text of the user."""
    texts = [message["content"] for message in json.loads(row.messages or "[]") if message["role"] == "user"]
    return texts[-1] if texts else row.query


def texts_of(value):
    """All strings of a JSON value, keys left out, as one text: in JSON, a line end before a name
    would be a letter."""
    if isinstance(value, str):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return "\n".join(map(texts_of, inner))


def choose_strangers(row, tools, wanted, pool, rng, *, most):
    """At most `most` tools of the pool, not in the row and unable to answer it."""
    chosen, names = [], {tool["name"] for tool in tools}
    question = question_of(row)
    for tool in rng.sample(pool, min(len(pool), most * MOST_TRIED)):
        if len(chosen) == most:
            break
        if tool["name"] not in names and not may_answer(tool, question, wanted):
            chosen.append(tool)
    return chosen


def names_in(text, name):
    """Whether a text has a name as a whole identifier."""
    return bool(text) and re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text) is not None


def is_identifier(name):
    """Whether a name is surely no ordinary word."""
    return bool(re.search(r"[_.\d]|[a-z][A-Z]", name))


def replace_names(text, names):
    """The text with new names in place of the old ones, as whole identifiers."""
    return _IDENTIFIER.sub(lambda found: names.get(found[0], found[0]), text) if names else text


def new_names(names, word, row, rng):
    """`{old name: word_number}`, with numbers new to the row's texts."""
    taken = set(re.findall(rf"{word}_(\d+)", row.tools + row.answers + row.messages))
    free = [number for number in range(10, 100 + len(names) + len(taken)) if str(number) not in taken]
    return {name: f"{word}_{number}" for name, number in zip(names, rng.sample(free, len(names)), strict=True)}


def with_texts(spec, change):
    """A tool or spec with changed descriptions, in specs inside too. change: a function of the
    text; None leaves the description out."""
    changed = {}
    for key, value in spec.items():
        if key == "description" and isinstance(value, str):
            value = change(value)
        elif key in ("parameters", "properties") and isinstance(value, dict):
            value = {
                name: with_texts(inner, change) if isinstance(inner, dict) else inner for name, inner in value.items()
            }
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            value = with_texts(value, change)
        elif key in ("prefixItems", *UNIONS) and specs_at(spec, key):
            value = [with_texts(inner, change) for inner in value]
        if value is not None or spec[key] is None:
            changed[key] = value
    return changed
