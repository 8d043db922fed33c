"""Rows in the schema of xlam-function-calling-60k, made up by seed: a query, the tools on offer,
and the calls that answer it.

The query and the tools alone decide the answer. A parameter without mention is left out,
arguments are in the order of the tool's parameters, calls in the order of the query. If no tool on
offer fits, the answer is `[]`.
"""

import json
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from demo import world
from demo.language import make_calls, say, variable_parameters
from demo.world import Tool

IRRELEVANT_SHARE = 0.08
NUM_ROWS = 4000  # of each of the demo's data sets


class Task(NamedTuple):
    """A query, the tools on offer, and its calls as pairs of a tool's name and arguments."""

    query: str
    tools: list[Tool]
    calls: list[tuple[str, dict]]


def generate_rows(count: int, seed: int, unseen_tools: bool = False) -> list[dict]:
    """The first `count` rows of a seed, with the training tools or with unseen tools."""
    return [make_row(index, seed, unseen_tools) for index in range(count)]


# Generators by data set, for load_rows. No row of `demo` offers a tool of `demo_unseen`.
GENERATORS = {
    "demo": lambda: generate_rows(NUM_ROWS, seed=0),
    "demo_unseen": lambda: generate_rows(NUM_ROWS, seed=0, unseen_tools=True),
}


def make_row(index: int, seed: int, unseen: bool) -> dict:
    """One row, which depends on its arguments alone: `id`, `query`, and `tools` and `answers` as
    JSON strings."""
    rng = Random(f"{seed} {unseen} {index}")
    task = make_task(world.unseen_tools() if unseen else world.seen_tools(), rng)
    answers = [{"name": name, "arguments": arguments} for name, arguments in task.calls]
    return {
        "id": f"demo-{'unseen-' if unseen else ''}{index:07}",
        "query": task.query,
        "tools": json.dumps([tool.schema() for tool in task.tools], ensure_ascii=False),
        "answers": json.dumps(answers, ensure_ascii=False),
    }


def make_task(available: Sequence[Tool], rng: Random) -> Task:
    """A query for one to four calls of the available tools, among one to six tools on offer. For
    some queries, no tool on offer fits."""
    query, wanted, calls = make_request(available, rng)
    domains = {tool.domain for tool in wanted}
    strangers = [tool for tool in available if tool.domain not in domains]
    relatives = [tool for tool in available if tool.domain in domains and tool not in wanted]
    if rng.random() < IRRELEVANT_SHARE and strangers:
        calls, offered = [], rng.sample(strangers, min(len(strangers), rng.randint(1, 4)))
    else:
        num_others = min(rng.choice((0, 1, 1, 2, 2, 3, 4, 5)), 6 - len(wanted))
        near = min(len(relatives), rng.randint(0, num_others))
        offered = wanted + rng.sample(relatives, near) + rng.sample(strangers, min(len(strangers), num_others - near))
    rng.shuffle(offered)
    return Task(query, offered, calls)


def make_request(tools: Sequence[Tool], rng: Random) -> tuple[str, list[Tool], list[tuple[str, dict]]]:
    """A query for one to four calls of some of the tools, with these tools and the calls."""
    total = min(len(tools), rng.choices((1, 2, 3, 4), weights=(60, 26, 10, 4))[0])
    wanted: list[Tool] = []
    calls, phrases = [], []
    while len(calls) < total:
        tool = rng.choice(tools)
        if tool not in wanted:
            same_tool = rng.randint(1, total - len(calls)) if variable_parameters(tool) else 1
            arguments, phrase = make_calls(tool, same_tool, rng)
            wanted.append(tool)
            calls += [(tool.name, values) for values in arguments]
            phrases.append(phrase)
    return say(phrases, rng), wanted, calls
