"""Real rows in the xLAM schema from the Berkeley Function-Calling Leaderboard's public files
(Apache-2.0): its single-turn Python categories, with its checker's accepted values.

    pip download --no-deps bfcl-eval==2026.3.23 -d /tmp/bfcl
    unzip -q /tmp/bfcl/*.whl -d /tmp/bfcl
    python -m demo.leaderboard_rows /tmp/bfcl/bfcl_eval/data rows.jsonl

Each row has an `id`, `query`, `tools` and `answers`, and for the evaluation also `category`,
`acceptable` and `required`. `tools`, `answers`, `acceptable` and `required` are JSON strings. The
answer takes the first accepted value of each argument, and leaves out optional arguments.
Invalid rows are counted.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from data_utils.leaderboard import first_accepted
from data_utils.rows import validate

CATEGORIES = [
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple", "live_parallel",
    "live_parallel_multiple", "live_irrelevance",
]  # fmt: skip
TYPES = {"integer": "int", "string": "str", "float": "float", "number": "float", "boolean": "bool", "dict": "dict",
         "object": "dict", "tuple": "List"}  # fmt: skip


def main(data, output):
    rows, problems = [], Counter()
    for category in CATEGORIES:
        truths = accepted(Path(data) / "possible_answer" / f"BFCL_v4_{category}.json")
        for record in read_lines(Path(data) / f"BFCL_v4_{category}.json"):
            answers = truths.get(record["id"], [])
            messages = [message for turn in record["question"] for message in turn]
            required = {f["name"]: f["parameters"].get("required", []) for f in record["function"]}
            row = {
                "id": record["id"],
                "query": "\n\n".join(message["content"].strip() for message in messages),
                "tools": json.dumps([flat_tool(function) for function in record["function"]], ensure_ascii=False),
                "answers": json.dumps([first_accepted(call, required) for call in answers], ensure_ascii=False),
                "category": category,
                "acceptable": json.dumps(answers, ensure_ascii=False),
                "required": json.dumps(required),
            }
            try:
                validate(row)
                rows.append(row)
            except ValueError as error:
                problems[str(error)] += 1
    Path(output).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {output}; left out: {dict(problems) or 'none'}")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def accepted(path):
    """The accepted calls by id. Empty for a category without calls, which has no such file."""
    return {record["id"]: record["ground_truth"] for record in read_lines(path)} if path.exists() else {}


def flat_tool(function):
    """A tool with JSON Schema's parameters in xLAM's flat form."""
    schema = function["parameters"]
    parameters = {}
    for name, spec in schema.get("properties", {}).items():
        kind = flat_type(spec) + ", optional" * (name not in schema.get("required", []))
        parameters[name] = {"description": with_choices(spec), "type": kind}
        if "default" in spec:
            parameters[name]["default"] = spec["default"]
    return {"name": function["name"], "description": function["description"], "parameters": parameters}


def with_choices(spec):
    """The description, with the choices and the keys of objects, which have no field in the flat
    form."""
    items = spec.get("items", {})
    choices = spec.get("enum") or items.get("enum") or []
    keys = spec.get("properties") or items.get("properties") or {}
    listed = f"One of: {', '.join(json.dumps(choice, ensure_ascii=False) for choice in choices)}." if choices else ""
    named = "; ".join(f"{name} ({flat_type(inner)}): {inner.get('description', '')}" for name, inner in keys.items())
    return " ".join(
        filter(None, [spec.get("description") or items.get("description"), listed, f"Keys: {named}." if named else ""])
    )


def flat_type(spec):
    if spec["type"] in ("array", "tuple"):
        return f"List[{flat_type(spec['items'])}]" if spec.get("items", {}).get("type") else "List[str]"
    return TYPES.get(spec["type"], "str")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
