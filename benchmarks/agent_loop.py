"""Whether a served export ends an agent's loop: openai-agents runs it on conversations.

    pip install openai-agents==0.24.0
    python -m demo.agent_rows questions.jsonl --first 4000 --count 20 --num_tools 2
    python -m benchmarks.agent_loop questions.jsonl --base_url http://127.0.0.1:8000/v1 --model NAME

The rows have `messages` and `tools`, as demo/agent_rows.py writes them. The agent gets the user's
message and the row's tools. A call is answered with the row's result of this tool, or with an error
if the row has none. The agent starts no server. `--strict` offers the tools with `strict: true`, as
the framework does by default; vLLM refuses it.

The columns of the table: the loop ended with words; with an empty text or list; with a call that
the server could not read; not within `--max_turns` requests; with an error. The first calls are the
row's. All calls of the loop are the row's, without repeats. The words have the last word of each
result."""

import argparse
import asyncio
import itertools
import json
from collections import Counter, defaultdict, deque
from pathlib import Path

import agents
from openai import AsyncOpenAI

from data_utils.tool_formats import openai_tools

NO_RESULT = "error: no result"


def make_tools(row, calls, strict):
    """The row's tools. They append their calls to a list, and give the row's results in order."""
    messages = row["messages"]
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    results = defaultdict(deque)
    for name, message in zip(names, (m for m in messages if m["role"] == "tool"), strict=True):
        results[name].append(message["content"])

    def make_tool(function):
        async def invoke(context, arguments):
            calls.append({"name": function["name"], "arguments": json.loads(arguments)})
            found = results[function["name"]]
            # A repeated call gets the last result again.
            return (found.popleft() if len(found) > 1 else found[0]) if found else NO_RESULT

        name, description, schema = function["name"], function["description"], function["parameters"]
        return agents.FunctionTool(name, description, schema, invoke, strict_json_schema=strict)

    return [make_tool(tool["function"]) for tool in openai_tools(row["tools"])]


async def run_row(row, model, args):
    """The end of a row's loop, its calls, and its last words."""
    calls = []
    agent = agents.Agent(
        name="agent",
        model=model,
        tools=make_tools(row, calls, args.strict),
        model_settings=agents.ModelSettings(temperature=0),
    )
    try:
        result = await agents.Runner.run(
            agent,
            row["messages"][0]["content"],
            max_turns=args.max_turns,
            run_config=agents.RunConfig(tracing_disabled=True),
        )
    except agents.MaxTurnsExceeded:
        return "not ended", calls, ""
    except Exception as error:  # the framework's and the client's errors have no common class
        return "error", calls, f"{type(error).__name__}: {error}"
    words = result.final_output.strip()
    if '"arguments"' in words:
        return "broken call", calls, words
    return "empty" if words in ("", "[]") else "words", calls, words


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--base_url", required=True)
    parser.add_argument("--model", required=True, help="as the server names it")
    parser.add_argument("--num_examples", type=int, default=20)
    parser.add_argument("--max_turns", type=int, default=5, help="requests for a question")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--transcripts", type=int, default=2, help="questions to print in full")
    args = parser.parse_args()
    agents.set_tracing_disabled(True)
    model = agents.OpenAIChatCompletionsModel(
        args.model, AsyncOpenAI(base_url=args.base_url, api_key="none", max_retries=0)
    )
    counts = Counter()
    with args.rows.open(encoding="utf-8") as lines:
        for number, line in enumerate(itertools.islice(lines, args.num_examples)):
            row = json.loads(line)
            end, calls, words = await run_row(row, model, args)
            gold = [call["function"] for message in row["messages"] for call in message.get("tool_calls", ())]
            results = [
                message["content"].split()[-1].strip('"}') for message in row["messages"] if message["role"] == "tool"
            ]
            counts[end] += 1
            counts["first calls right"] += calls[: len(gold)] == gold
            counts["all calls right"] += calls == gold
            counts["results in words"] += end == "words" and all(result in words for result in results)
            if number < args.transcripts:
                print(
                    f"user: {row['messages'][0]['content']}",
                    *map(json.dumps, calls),
                    f"{end}: {words}",
                    sep="\n",
                    end="\n\n",
                )
    columns = (
        "words",
        "empty",
        "broken call",
        "not ended",
        "error",
        "first calls right",
        "all calls right",
        "results in words",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print(f"| {' | '.join(str(counts[column]) for column in columns)} |")


if __name__ == "__main__":
    asyncio.run(main())
