"""Example rows of your own: 200 requests to train on and 50 to evaluate on, for three tools.

    python -m demo.assistant_rows --output_dir mine

Writes rows.jsonl, eval_rows.jsonl, and tools.json in OpenAI's form. The evaluation's cities, people
and messages are in no row of the training, so a right answer is copied from the query.
"""

import argparse
import json
import random
from pathlib import Path

from data_utils.tool_formats import openai_tools

TOOLS = [
    {
        "name": "set_timer",
        "description": "Start a countdown.",
        "parameters": {"minutes": {"type": "int", "description": "Length of the countdown"}},
    },
    {
        "name": "weather",
        "description": "Look up the weather in a city.",
        "parameters": {
            "city": {"type": "str", "description": "Name of the city"},
            "day": {"type": "str, optional", "description": "Day of the week; today if not given"},
        },
    },
    {
        "name": "send_message",
        "description": "Send a message to a person.",
        "parameters": {
            "to": {"type": "str", "description": "Name of the person"},
            "text": {"type": "str", "description": "The message"},
        },
    },
]
TRAINING = {
    "city": ["Rome", "Lagos", "Oslo", "Lima", "Seoul", "Cairo", "Quito", "Perth", "Delhi", "Boston", "Vienna", "Kyoto"],
    "to": ["Anna", "Tom", "Priya", "Chen", "Maria", "Omar", "Julia", "Ben", "Fatima", "Lukas"],
    "text": [
        "I am late", "dinner is ready", "please call me back", "the meeting has moved", "happy birthday",
        "see you soon", "the train is full", "I found your keys", "bring some bread", "we won the game",
    ],
}  # fmt: skip
EVALUATION = {
    "city": ["Milan", "Nairobi", "Dublin", "Bogota", "Hanoi"],
    "to": ["Sara", "David", "Wei", "Elena"],
    "text": ["lunch is at noon", "the door is open", "I am on the bus", "thank you for the flowers"],
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
REQUESTS = {
    "set_timer": ["Set a timer for {minutes} minutes", "Wake me in {minutes} minutes", "Count {minutes} minutes down"],
    "weather": [
        "Is it raining in {city}", "Look up the weather in {city}", "Will it be sunny in {city} on {day}",
        "Look up the weather in {city} for {day}",
    ],
    "send_message": ["Tell {to}: {text}", "Send {to} a message: {text}", "Write to {to}: {text}"],
}  # fmt: skip


def make_rows(count, values, seed):
    """`count` rows (dicts) with different queries: one call, or two in every third row."""
    rng = random.Random(seed)
    rows = {}
    while len(rows) < count:
        requests, calls = [], []
        for _ in range(2 if rng.random() < 1 / 3 else 1):
            name = rng.choice(sorted(REQUESTS))
            request = rng.choice(REQUESTS[name])
            drawn = {key: rng.choice(values[key]) for key in values} | {
                "minutes": rng.randint(1, 90),
                "day": rng.choice(DAYS),
            }
            arguments = {key: drawn[key] for key in sorted(drawn, key=request.find) if f"{{{key}}}" in request}
            requests.append(request.format(**arguments))
            calls.append({"name": name, "arguments": arguments})
        query = ". ".join(requests) + "."
        rows[query] = {"query": query, "tools": TOOLS, "answers": calls}
    return list(rows.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("mine"))
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {
        "rows.jsonl": make_rows(200, TRAINING, seed=1),
        "eval_rows.jsonl": make_rows(50, EVALUATION, seed=2),
    }.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{folder / name}: {len(rows)} rows")
    (folder / "tools.json").write_text(json.dumps(openai_tools(TOOLS), indent=1) + "\n")
    print(f"{folder / 'tools.json'}: {len(TOOLS)} tools")


if __name__ == "__main__":
    main()
