"""Conversations of an agent from the demo's rows: a user asks, the assistant calls, the tools
answer, and the assistant ends with words that have the tools' results.

    python -m demo.agent_rows train.jsonl
    python -m demo.agent_rows questions.jsonl --first 4000 --count 20 --num_tools 2

Rows have the columns `messages` and `tools`. train.py makes an example of each turn of the
assistant. Rows from 4,000 on are in none of the demo's data sets. With `--num_tools`, all rows
offer this number of tools, and all have a call."""

import argparse
import itertools
import json
from pathlib import Path
from random import Random

from demo.language import made_word
from demo.rows import make_row

RESULTS = (
    lambda word: json.dumps({"status": "ok", "result": word}),
    lambda word: json.dumps({"reference": word}),
    lambda word: f"Done: {word}",
    lambda word: word,
)
WORDS = "The result is {}.", "Done. The result is {}."
NO_TOOL = "I have no tool for this."


def make_conversation(index: int) -> dict:
    """The row with this index as a conversation: `id`, `messages`, `tools`."""
    row = make_row(index, seed=0, unseen=False)
    calls = json.loads(row["answers"])
    rng = Random(f"agent {index}")
    results = [made_word(rng) for _ in calls]
    messages = [{"role": "user", "content": row["query"]}]
    if calls:
        ids = [f"call_{number}" for number in range(len(calls))]
        tool_calls = [{"id": id, "type": "function", "function": call} for id, call in zip(ids, calls, strict=True)]
        messages.append({"role": "assistant", "content": "", "tool_calls": tool_calls})
        for id, result in zip(ids, results, strict=True):
            messages.append({"role": "tool", "tool_call_id": id, "content": rng.choice(RESULTS)(result)})
    words = rng.choice(WORDS).format(" and ".join(results)) if calls else NO_TOOL
    messages.append({"role": "assistant", "content": words})
    return {"id": row["id"], "messages": messages, "tools": json.loads(row["tools"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--first", type=int, default=0, help="index of the first row")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--num_tools", type=int, help="on offer; default: as the demo's rows")
    args = parser.parse_args()
    rows = map(make_conversation, itertools.count(args.first))
    if args.num_tools:
        rows = (row for row in rows if len(row["tools"]) == args.num_tools and len(row["messages"]) > 2)
    rows = itertools.islice(rows, args.count)
    args.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
