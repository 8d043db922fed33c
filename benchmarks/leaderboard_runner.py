"""The Berkeley leaderboard's own runner on a served export, beside evaluate.py on the same rows.

    pip install bfcl-eval==2026.3.23 soundfile
    export BFCL_PROJECT_ROOT=FOLDER OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=none
    python -m benchmarks.leaderboard_runner ids EVALUATION
    python -m benchmarks.leaderboard_runner EXPORT generate --model export --run-ids --temperature 0
    python -m benchmarks.leaderboard_runner EXPORT evaluate --model export --partial-eval
    python -m benchmarks.leaderboard_runner compare EVALUATION

EVALUATION is a folder of evaluate.py, for rows of the leaderboard's own files. Its last system
counts. `ids` writes its rows into the runner's list. With the served model's name in front, the
arguments are the runner's. The model is in its list as `export`, with OpenAI's chat completions.
`compare` counts the rows that are right for evaluate.py, for evaluate.py's AST match on the
runner's answers, and for the runner. It prints each row with different verdicts.
"""

import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

from data_utils.tool_calls import parse_json
from eval_utils.ast_match import ast_match


def run(model, arguments):
    from bfcl_eval.__main__ import cli
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

    # The runner sends `_` instead of `.` in names, and does the same to the accepted names.
    MODEL_CONFIG_MAPPING["export"] = ModelConfig(
        model_name=model, display_name="export", url="", org="", license="",
        model_handler=OpenAICompletionsHandler, underscore_to_dot=True,
    )  # fmt: skip
    cli(arguments)


def write_ids(evaluation):
    """Write the ids of an evaluation's rows, by category."""
    ids = defaultdict(list)
    for row_id in read_predictions(evaluation):
        ids[row_id.rpartition("_")[0]].append(row_id)
    path = project_root() / "test_case_ids_to_generate.json"
    path.write_text(json.dumps(ids, indent=2), encoding="utf-8")
    print(f"{sum(map(len, ids.values()))} ids in {path}")


def read_predictions(evaluation):
    """The predictions of the evaluation's last system, by row id."""
    return of_last_system(read_lines(Path(evaluation) / "predictions.jsonl"))


def of_last_system(entries):
    own = [entry for entry in entries if "set" not in entry]  # the leaderboard has no made rows
    return {entry["id"]: entry for entry in own if entry["system"] == own[-1]["system"]}


def compare(evaluation):
    """Print the verdicts of evaluate.py and of the runner, and each row on which they differ."""
    predictions = read_predictions(evaluation)
    scores = of_last_system(read_lines(Path(evaluation) / "scores.jsonl"))
    rows = {row["id"]: row for row in read_lines(Path(evaluation) / "rows.jsonl")}
    results = {entry["id"]: entry["result"] for entry in read_folder("result", "*_result.json")}
    failed = {entry["id"]: entry for entry in read_folder("score", "*_score.json") if "id" in entry}
    counts = Counter()
    for row_id, prediction in predictions.items():
        row = rows[row_id]
        tools = json.loads(row["tools"])
        calls = read_result(results[row_id], {tool["name"].replace(".", "_"): tool["name"] for tool in tools})
        on_both = ast_match(calls, json.loads(row["acceptable"]), tools)
        verdict = scores[row_id]["acceptable_match"], on_both, row_id not in failed
        same = calls == read_text(prediction["text"])
        counts[(*verdict, same)] += 1
        if len(set(verdict)) > 1:
            error = failed.get(row_id, {}).get("error", "")
            print(f"{row_id}: {verdict}, {'same' if same else 'other'} calls {str(error)[:200]}")
            print(f"  evaluate.py: {prediction['text'][:300]}\n  runner:      {str(results[row_id])[:300]}")
    print(
        "| evaluate.py | its AST match on the runner's answers | the runner | the same calls | rows |\n|---|---|---|---|---|"
    )
    for key, count in counts.most_common():
        print(f"| {' | '.join('right' if value else 'wrong' for value in key[:3])} | {key[3]} | {count} |")
    totals = [sum(count for key, count in counts.items() if key[place]) for place in range(3)]
    print(f"right: evaluate.py {totals[0]}, its AST match on the runner's answers {totals[1]}, the runner {totals[2]}")


def read_result(result, names):
    """The calls of the runner's answer, a list of `{name: arguments as JSON text}` or a text; None
    if it is broken. names: `{name with _: name}`."""
    if isinstance(result, str):
        return read_text(result)
    try:
        return [
            {"name": names.get(name, name), "arguments": parse_json(arguments)}
            for call in result
            for name, arguments in call.items()
        ]
    except ValueError:
        return None


def read_text(text):
    try:
        return parse_json(text)
    except ValueError:
        return None


def read_folder(name, pattern):
    return [entry for path in (project_root() / name / "export").rglob(pattern) for entry in read_lines(path)]


def read_lines(path):
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def project_root():
    return Path(os.environ["BFCL_PROJECT_ROOT"])


if __name__ == "__main__":
    actions = {"ids": write_ids, "compare": compare}
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1] in actions:
        actions[sys.argv[1]](sys.argv[2])
    else:
        run(sys.argv[1], sys.argv[2:])
