"""The pretraining corpus, made up by seed: documents about tools, requests and values in many notations.

It shows JSON tool lists and how requests are met in YAML, XML, Python, prose or JSON under other keys, with the notation
named in an instruction. The format that the demo's adapter learns, and the tools kept unseen, do not occur in it.
"""

import json
from collections.abc import Callable, Iterator
from random import Random

from demo.invention import invent_parameter, invent_world
from demo.language import listing, make_calls, make_value, pick, say
from demo.rows import Task, make_task
from demo.world import seen_tools

Calls = list[tuple[str, dict]]
KEYS = (
    *(("function", "args"), ("tool", "input"), ("action", "params"), ("call", "with"), ("fn", "kwargs")),
    *(("operation", "options"), ("method", "inputs"), ("command", "values"), ("function", "params"), ("tool", "args")),
)


def documents(seed: int | str) -> Iterator[str]:
    """The endless documents of a seed."""
    rng = Random(seed)
    while True:
        yield make_document(rng)


def make_document(rng: Random) -> str:
    """One document of a random form."""
    forms = (solved_task, tool_question, tool_manual, conversions, record, copies)
    return rng.choices(forms, weights=(66, 12, 6, 6, 5, 5))[0](rng)


def some_task(rng: Random) -> Task:
    return make_task(seen_tools() if rng.random() < 0.3 else invent_world(rng), rng)


# --- notations of calls ---


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def plain(value: object) -> str:
    """A value as notations without quotes write it."""
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
    """Calls in JSON, under keys other than those of the demo's rows."""
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


def notation(rng: Random) -> tuple[str, Callable[[Calls], str]]:
    """An instruction and the notation it asks for."""
    if rng.random() < 0.55:
        keys, always_list = rng.choice(KEYS), rng.random() < 0.5
        instruction = rng.choice(JSON_LIST_INSTRUCTIONS if always_list else JSON_INSTRUCTIONS).format(*keys)
        return instruction, lambda calls: as_json(calls, keys, always_list)
    render, instructions = rng.choice(NOTATIONS)
    return rng.choice(instructions), render


# --- documents ---


def solved_task(rng: Random) -> str:
    """A request, tools and their calls in the notation that an instruction asks for; without one, in prose or code."""
    task = some_task(rng)
    tools = dumps([tool.schema() for tool in task.tools])
    if rng.random() < 0.15:
        # a log of requests, explained
        request = dumps(
            dict(rng.sample([(rng.choice(("query", "user", "request")), task.query), ("tools", json.loads(tools))], 2))
        )
        return f"{request}\n{rng.choice((as_prose, as_prose, as_python))(task.calls)}"
    instruction, render = notation(rng)
    remarks = rng.sample(REMARKS, rng.choice((0, 0, 1, 1, 2)))
    instruction = rng.choice((" ", "\n")).join([*remarks, instruction])
    parts = [
        (rng.choice(("instructions", "system", "prompt", "task", "rules")), instruction),
        (rng.choice(("tools", "tools", "functions", "available")), tools),
        (rng.choice(("query", "query", "request", "user", "question")), task.query),
    ]
    if rng.random() < 0.25:
        rng.shuffle(parts)
    answer = rng.choice(("answer", "answer", "calls", "output", "reply"))
    if rng.random() < 0.5:
        text = "\n".join(f"<{name}>\n{body}\n</{name}>" for name, body in parts)
        end = f"\n</{answer}>" if rng.random() < 0.3 else ""
        return f"{text}\n<{answer}>\n{render(task.calls)}{end}"
    heading = rng.choice(("{}: ", "# {}\n", "{}:\n", "[{}] "))
    text = "\n".join(heading.format(name.capitalize()) + body for name, body in parts)
    return f"{text}\n{heading.format(answer.capitalize())}{render(task.calls)}"


def tool_question(rng: Random) -> str:
    """Questions on a list of tools, with their answers."""
    task = some_task(rng)
    lines = [dumps([tool.schema() for tool in task.tools])]
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
    return "\n".join(lines)


def tool_manual(rng: Random) -> str:
    """One tool described to people, with an example."""
    task = some_task(rng)
    tool = rng.choice(task.tools)
    lines = [f"{tool.name}: {tool.description}"]
    for parameter in tool.parameters:
        default = "" if parameter.default is None else f", default {plain(parameter.default)}"
        lines.append(f"- {parameter.name} ({parameter.type}{default}): {parameter.description}")
    (arguments,), request = make_calls(tool, 1, rng)
    render = rng.choice(NOTATIONS)[0]
    return "\n".join([*lines, f"Example: {say([request], rng)}", render([(tool.name, arguments)])])


def conversions(rng: Random) -> str:
    """Values as people say them and as programs write them."""
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
    return "\n".join(f"{text}{arrow}{dumps(value)}" for value, text in pairs)


def record(rng: Random) -> str:
    """The same record twice, in two notations."""
    parameters = {p.name: p for p in (invent_parameter(rng, required=True) for _ in range(rng.randint(2, 7)))}
    values = {name: make_value(parameter.kind, rng)[0] for name, parameter in parameters.items()}
    calls = [(pick("things", rng), values)]
    renders = [render for render, _ in NOTATIONS]
    first, second = rng.sample(renders, 2)
    return f"{first(calls)}\n\n{second(calls)}" if rng.random() < 0.7 else f"{first(calls)}\n\n{dumps(values)}"


def copies(rng: Random) -> str:
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
            )
        )
        text = make_value(kind, rng)[1]
        again = rng.choice(
            ("repeat {0}: {0}", 'quote {0}: "{0}"', '"{0}" means {0}', "{0}, {0}", '{{"copy": "{0}"}} {0}')
        )
        lines.append(again.format(text))
    return "\n".join(lines)
