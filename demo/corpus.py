"""The pretraining corpus, made up by seed: documents about tools, requests and values in many
notations.

It shows JSON tool lists, and calls for requests in YAML, XML, Python, prose or JSON under other
keys. An instruction names the notation. The corpus contains neither the format that the demo's
adapter learns nor the unseen tools.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from demo.invention import invent_parameter, invent_world
from demo.language import blend, listing, make_calls, make_value, odd_word, pick, say
from demo.rows import IRRELEVANT_SHARE, Task, make_request, make_task
from demo.world import Tool, seen_tools, unseen_tools

Calls = list[tuple[str, dict]]


class Document(NamedTuple):
    """A text in two parts: a given part, made up at random, and a told part, most of which follows
    from the given part."""

    given: str
    told: str


KEYS = (
    *(("function", "args"), ("tool", "input"), ("action", "params"), ("call", "with"), ("fn", "kwargs")),
    *(("operation", "options"), ("method", "inputs"), ("command", "values"), ("function", "params"), ("tool", "args")),
)


def documents(seed: int | str) -> Iterator[Document]:
    """The endless documents of a seed. None contains anything reserved for the demo's adapter."""
    rng = Random(seed)
    kept = (*(tool.name for tool in unseen_tools()), '"arguments"', "system_prompt>")
    while True:
        document = make_document(rng)
        if not any(text in document.given or text in document.told for text in kept):
            yield document


def make_document(rng: Random) -> Document:
    """One document of a random form."""
    forms = (solved_task, tool_question, tool_manual, conversions, record, copies, lookups)
    return rng.choices(forms, weights=(76, 8, 3, 4, 3, 3, 3))[0](rng)


def some_world(rng: Random) -> Sequence[Tool]:
    return seen_tools() if rng.random() < 0.12 else invent_world(rng)


def some_task(rng: Random) -> Task:
    return make_task(some_world(rng), rng)


def next_task(task: Task, world: Sequence[Tool], rng: Random) -> Task:
    """Another request with the same tools on offer."""
    domains = {tool.domain for tool in task.tools}
    strangers = [tool for tool in world if tool.domain not in domains]
    if strangers and rng.random() < IRRELEVANT_SHARE:
        return Task(make_request(strangers, rng)[0], task.tools, [])
    query, _, calls = make_request(task.tools, rng)
    return Task(query, task.tools, calls)


# --- notations of calls ---


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def plain(value: object) -> str:
    """A value in notations without quotes."""
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return value if isinstance(value, str) else dumps(value)


def as_python(calls: Calls) -> str:
    lines = [f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})" for name, values in calls]
    return "\n".join(lines) or "pass"


def as_yaml(calls: Calls) -> str:
    lines = []
    for name, values in calls:
        lines += [f"- {name}:", *(f"    {key}: {dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) or "- none"


def as_fields(calls: Calls) -> str:
    blocks = [
        "\n".join([f"use: {name}", *(f"{key}: {plain(value)}" for key, value in values.items())])
        for name, values in calls
    ]
    return "\n\n".join(blocks) or "use: nothing"


def as_xml(calls: Calls) -> str:
    blocks = []
    for name, values in calls:
        fields = "".join(f"<{key}>{plain(value)}</{key}>" for key, value in values.items())
        blocks.append(f"<{name}>{fields}</{name}>")
    return "\n".join(blocks) or "<nothing/>"


def as_shell(calls: Calls) -> str:
    return (
        "\n".join(
            " ".join([name, *(f"--{key} {dumps(value)}" for key, value in values.items())]) for name, values in calls
        )
        or "true"
    )


def as_prose(calls: Calls) -> str:
    sentences = []
    for name, values in calls:
        arguments = listing([f"{key} {plain(value)}" for key, value in values.items()]) if values else "no arguments"
        sentences.append(f"{'Then use' if sentences else 'Use'} {name} with {arguments}.")
    return " ".join(sentences) or "None of the tools can do that."


def as_json(calls: Calls, keys: tuple[str, str], always_list: bool) -> str:
    """Calls in JSON, under keys other than the demo rows' keys."""
    objects = [{keys[0]: name, keys[1]: values} for name, values in calls] or [{keys[0]: None}]
    return dumps(objects if always_list or len(objects) > 1 else objects[0])


NOTATIONS: tuple[tuple[Callable[[Calls], str], tuple[str, ...]], ...] = (
    (
        as_python,
        (
            "Write the calls in Python.",
            "Answer with Python code.",
            "Python, please.",
            "Show the function calls as code.",
        ),
    ),
    (as_yaml, ("Write the calls in YAML.", "Answer as a YAML list.", "Only output YAML.", "YAML, please.")),
    (as_fields, ("Write one field per line.", "Answer line by line.", "Only output the fields.", "List what to use.")),
    (as_xml, ("Write the calls in XML.", "Answer in XML.", "Only output XML elements.", "XML, please.")),
    (as_shell, ("Write shell commands.", "Answer as a command line.", "Only output the commands.", "Use the shell.")),
    (as_prose, ("Say it in words.", "Explain what to do.", "Which tools help, and with what?", "Describe the calls.")),
)
JSON_INSTRUCTIONS = (
    *(
        "Write json with {0} and {1}.",
        "Only output valid json which shows the {0} and the {1}.",
        "Answer in JSON: {0} and {1}.",
    ),
    *(
        "Output a valid json with the {0} and the {1}.",
        "JSON, please, with the keys {0} and {1}.",
        "Give the {0} and its {1} as json.",
    ),
)
JSON_LIST_INSTRUCTIONS = (
    *("Write a json list with {0} and {1}.", "Only output a list in json, which shows each {0} and its {1}."),
    *("Answer with a JSON list of {0} and {1}.", "List the {0} and the {1} in valid json."),
)
REMARKS = (
    *(
        "Use the tools below.",
        "Only use the provided tools.",
        "Take the args from the query.",
        "Get every value from the request.",
    ),
    *(
        "You can call functions.",
        "Do what the user asks.",
        "Leave out what is not said.",
        "Pick the right tools.",
        "No other text.",
    ),
)

SEVERAL = ("Answer each request.", "There are several requests.", "Answer one after another.", "More requests follow.")


def notation(rng: Random) -> tuple[str, Callable[[Calls], str]]:
    """An instruction and its notation."""
    if rng.random() < 0.55:
        keys, always_list = rng.choice(KEYS), rng.random() < 0.5
        instruction = rng.choice(JSON_LIST_INSTRUCTIONS if always_list else JSON_INSTRUCTIONS).format(*keys)
        return instruction, lambda calls: as_json(calls, keys, always_list)
    render, instructions = rng.choice(NOTATIONS)
    return rng.choice(instructions), render


# --- documents ---


def solved_task(rng: Random) -> Document:
    """Tools, a request and its calls in the notation of an instruction. If the instruction asks for
    it, several requests."""
    world = some_world(rng)
    tasks = [make_task(world, rng)]
    if rng.random() < 0.3:
        tasks += [next_task(tasks[0], world, rng) for _ in range(rng.randint(1, 3))]
    instruction, render = notation(rng)
    remarks = rng.sample(REMARKS, rng.choice((0, 0, 1, 1, 2)))
    if len(tasks) > 1:
        remarks.append(rng.choice(SEVERAL))
    names = ("instructions", "system", "prompt", "task", "rules"), ("tools", "tools", "functions", "available")
    instruct, offer = map(rng.choice, names)
    ask = rng.choice(("query", "query", "request", "user", "question"))
    answer = rng.choice(("answer", "answer", "calls", "output", "reply"))
    parts = [
        (instruct, rng.choice((" ", "\n")).join([*remarks, instruction])),
        (offer, dumps([tool.schema() for tool in tasks[0].tools])),
    ]
    if len(tasks) == 1:
        parts.append((ask, tasks[0].query))
    if rng.random() < 0.25:
        rng.shuffle(parts)
    pairs = [((ask, task.query), (answer, render(task.calls))) for task in tasks]
    told = [part for pair in pairs for part in pair] if len(tasks) > 1 else [pairs[0][1]]
    if rng.random() < 0.5:
        opening, closing = "<{}>\n", "\n</{}>\n"
    else:
        opening, closing = rng.choice(("{}: ", "# {}\n", "{}:\n", "[{}] ")), "\n"
        parts, told = ([(name.capitalize(), body) for name, body in sections] for sections in (parts, told))
    if len(tasks) > 1:
        parts.append(told.pop(0))
    given = "".join(opening.format(name) + body + closing.format(name) for name, body in parts)
    text = "".join(opening.format(name) + body + closing.format(name) for name, body in told)
    text = text.removesuffix("\n")
    if len(tasks) == 1 and rng.random() < 0.7:
        text = text.removesuffix(f"\n</{answer}>")
    start = opening.format(told[0][0])
    return Document(given + start, text.removeprefix(start))


def tool_question(rng: Random) -> Document:
    """Questions about a list of tools, with answers."""
    task = some_task(rng)
    lines = []
    for _ in range(rng.randint(2, 6)):
        tool = rng.choice(task.tools)
        parameter = rng.choice(tool.parameters)
        question = rng.randrange(7)
        if question == 0:
            lines.append(f"Which tool can: {tool.description} {tool.name}")
        elif question == 1:
            lines.append(
                f"What does {tool.name} need? {listing([p.name for p in tool.parameters if p.required]) or 'nothing'}"
            )
        elif question == 2:
            lines.append(f"Is {parameter.name} of {tool.name} optional? {'no' if parameter.required else 'yes'}")
        elif question == 3:
            lines.append(f"Which type has {parameter.name} of {tool.name}? {parameter.type}")
        elif question == 4:
            lines.append(f"Which tools are there? {listing([other.name for other in task.tools])}")
        elif question == 5:
            names = listing(list(dict.fromkeys(name for name, _ in task.calls))) or "none"
            lines.append(f"Which tools does this need: {task.query} -> {names}")
        else:
            lines.append(f"What are the arguments of {tool.name}? {listing([p.name for p in tool.parameters])}")
    return Document(dumps([tool.schema() for tool in task.tools]) + "\n", "\n".join(lines))


def tool_manual(rng: Random) -> Document:
    """One tool described to people, with an example."""
    task = some_task(rng)
    tool = rng.choice(task.tools)
    lines = [f"{tool.name}: {tool.description}"]
    for parameter in tool.parameters:
        default = "" if parameter.default is None else f", default {plain(parameter.default)}"
        lines.append(f"- {parameter.name} ({parameter.type}{default}): {parameter.description}")
    (arguments,), request = make_calls(tool, 1, rng)
    render = rng.choice(NOTATIONS)[0]
    lines.append(f"Example: {say([request], rng)}\n")
    return Document("\n".join(lines), render([(tool.name, arguments)]))


def conversions(rng: Random) -> Document:
    """Values in people's words and in programs' notation."""
    kinds = (
        "date 2019 2032",
        "date 2019 2032",
        "int 2 12",
        "list word",
        "list item",
        "list person",
        "list int 1 99",
        "points",
        "float -90 90",
    )
    pairs = [make_value(rng.choice(kinds), rng) for _ in range(rng.randint(3, 10))]
    arrow = rng.choice((" -> ", " = ", ": ", " => "))
    return Document("", "\n".join(f"{text}{arrow}{dumps(value)}" for value, text in pairs))


def record(rng: Random) -> Document:
    """The same record twice, in two notations."""
    parameters = {p.name: p for p in (invent_parameter(rng, required=True) for _ in range(rng.randint(2, 7)))}
    values = {name: make_value(parameter.kind, rng)[0] for name, parameter in parameters.items()}
    calls = [(pick("things", rng), values)]
    renders = [render for render, _ in NOTATIONS]
    first, second = rng.sample(renders, 2)
    return Document(f"{first(calls)}\n\n", second(calls) if rng.random() < 0.7 else dumps(values))


def copies(rng: Random) -> Document:
    """Texts repeated, bare and in quotes."""
    lines = []
    for _ in range(rng.randint(2, 6)):
        kind = rng.choice(
            (
                "person",
                "place",
                "title",
                "sentence",
                "id",
                "email",
                "url",
                "path",
                "address",
                "handle",
                "item",
                "made",
                "float 0 900",
                "odd",
            )
        )
        odd = "".join(rng.choice((blend, odd_word))(rng) + rng.choice(" _.-") for _ in range(rng.randint(2, 6)))[:-1]
        text = odd if kind == "odd" else make_value(kind, rng)[1]
        again = rng.choice(
            ("repeat {0}: {0}", 'quote {0}: "{0}"', '"{0}" means {0}', "{0}, {0}", '{{"copy": "{0}"}} {0}')
        )
        lines.append(again.format(text))
    return Document("", "\n".join(lines))


def lookups(rng: Random) -> Document:
    """A table of names and values, then some of the names again, with their values."""
    kinds = ("word", "made", "item", "id", "int 2 900", "float 0 90", "person", "time")
    table = {}
    for _ in range(rng.randint(3, 10)):
        parts = [rng.choice((blend, odd_word, lambda rng: pick("things", rng)))(rng) for _ in range(rng.randint(1, 3))]
        table[rng.choice(("_", ".", "-", " ")).join(parts)] = make_value(rng.choice(kinds), rng)[1]
    between, arrow = rng.choice((": ", " = ", " | ")), rng.choice((" -> ", " => ", "? "))
    lines = "".join(f"{name}{between}{value}\n" for name, value in table.items())
    asked = rng.choices(list(table), k=rng.randint(3, 10))
    return Document(lines, "\n".join(f"{name}{arrow}{table[name]}" for name in asked))
