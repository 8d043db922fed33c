"""predictions.jsonl: each system's answer to each row, a line each. Texts without a verdict: scores are made when the file is read,
so that a new metric applies to old answers.

Each process appends to a file of its own, predictions-<process>.jsonl, which `merge` gathers in predictions.jsonl.
"""

import json
import math
from collections import Counter

from data_utils.rows import Row, names_by_tool
from data_utils.tool_calls import check_calls, parse_json
from run_utils.arguments import UserError
from run_utils.files import no_pipe, read_json, write_lines

TRAINING_S = ("adapter_config.json", "split.json", "state.json")  # of these folders too, environment.json is one
TRAINING_FACTS = ("tools_seen", "near_repeat")  # of a row, see write_rows
RESULTS = ("rows.jsonl", "scores.jsonl", "metrics.json", "report.html")  # made once the predictions are there


def check_folder(output_dir, identity):
    """Whether a folder can be continued: it holds nothing of this kind, or predictions of the same evaluation.

    identity: all that the predictions depend on, as JSON values. Raises UserError where the folder holds others.
    """
    check_no_training(output_dir)
    if (output_dir / "environment.json").exists():
        saved = read_json_or_empty(output_dir / "environment.json")
    elif found := [path.name for path in results_in(output_dir)]:
        raise UserError(f"{output_dir} has files that no evaluation here has made: {', '.join(found)}")
    else:
        saved = identity
    if any(saved.get(key) != value for key, value in identity.items()):
        raise UserError(
            f"{output_dir} holds an evaluation of another model, other rows or other settings: "
            "replace it with --overwrite_output_dir, or choose another --output_dir"
        )


def read_json_or_empty(path):
    try:
        return read_json(path)
    except UserError:
        return {}


def check_no_training(output_dir):
    if found := [name for name in TRAINING_S if (output_dir / name).exists()]:
        raise UserError(f"{output_dir} is a folder of train.py's ({', '.join(found)}): choose another --output_dir")


def check_comparison_folder(output_dir):
    """Raises UserError unless a comparison may be written to a folder: it holds no results, or those of a comparison."""
    check_no_training(output_dir)
    if (output_dir / "predictions.jsonl").exists() or parts(output_dir):
        raise UserError(f"{output_dir} holds an evaluation: name another --output_dir for the comparison")
    others = [path.name for path in (*results_in(output_dir), output_dir / "environment.json") if path.exists()]
    is_comparison = "evaluations" in read_json_or_empty(output_dir / "metrics.json")
    if others and not (is_comparison and "environment.json" not in others):
        raise UserError(
            f"{output_dir} has files that no comparison has made: {', '.join(others)}; choose another --output_dir"
        )


def write_rows(output_dir, rows, in_training):
    """rows.jsonl: the rows themselves, so that a finished evaluation is read again without model and data set.

    in_training: facts about the rows and the training rows, each `{row id: bool}`, or None if unknown. "tools_seen": all tools of
    the row were on offer in training; "near_repeat": its query nearly repeats a training query.
    """
    write(
        output_dir / "rows.jsonl",
        (row._asdict() | {fact: known and known[row.id] for fact, known in in_training.items()} for row in rows),
    )


def read_rows(output_dir):
    """The rows of an evaluation and `in_training` as write_rows was given them. Raises UserError if there are none."""
    path = output_dir / "rows.jsonl"
    try:
        with no_pipe(path).open(encoding="utf-8") as file:
            records = list(map(parse_json, file))
        if not records:
            raise ValueError("which is empty")
        in_training = {}
        for fact in TRAINING_FACTS:
            known = {record["id"]: record.pop(fact, None) for record in records}  # older files have no near_repeat
            in_training[fact] = None if None in known.values() else known
        rows = [Row(**record) for record in records]
        for row in rows:
            check_row(row)
        return rows, in_training
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{output_dir} holds no evaluation that can be read: rows.jsonl, {error}") from None


def check_row(row):
    """Raises ValueError unless the row's columns are what the scores read."""
    if not all(isinstance(value, str) for value in row):
        raise ValueError(f"a column of row {row.id!r} is no text")
    for tool in parse_json(row.tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise ValueError(f"a tool of row {row.id!r} has no name")
        parameters = tool.get("parameters") or {}
        if not isinstance(parameters, dict) or not all(isinstance(spec, dict) for spec in parameters.values()):
            raise ValueError(f"the tool {tool['name']!r} of row {row.id!r} is not in the flat form")
    check_calls(parse_json(row.answers))
    if row.acceptable:
        parse_json(row.acceptable)
    if row.required and not names_by_tool(parse_json(row.required)):
        raise ValueError(f"the column 'required' of row {row.id!r} is not lists of names")


def parts(output_dir):
    """The processes' files, and no other that is called much the same."""
    return sorted(path for path in output_dir.glob("predictions-*.jsonl") if path.stem.split("-", 1)[1].isdecimal())


def results_in(output_dir):
    named = [output_dir / name for name in ("predictions.jsonl", *RESULTS)]
    return [*parts(output_dir), *(path for path in named if path.exists())]


def clear(output_dir):
    """Delete an earlier evaluation, and nothing else that lies in the folder; nothing at all where none of ours is there."""
    path = output_dir / "environment.json"
    try:
        is_evaluation = path.exists() and "rows_sha256" in read_json(path)
    except UserError:  # damaged
        is_evaluation = not any((output_dir / name).exists() for name in TRAINING_S)
    if is_evaluation:
        for path in (*results_in(output_dir), output_dir / "environment.json"):
            path.unlink()


def append(file, predictions):
    """Write predictions (dicts) to an open file as they come, each whole on the disk before the next."""
    for prediction in predictions:
        file.write(json.dumps(prediction) + "\n")
        file.flush()


def read(paths):
    """Every whole prediction in the files; a line cut short by a kill is not one."""
    predictions = []
    for path in paths:
        with no_pipe(path).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    prediction = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(prediction, dict) and all(
                    isinstance(prediction.get(key), str) for key in ("system", "id")
                ):
                    predictions.append(scorable(prediction))
    return predictions


def scorable(prediction):
    """The prediction with a value of its type in each field that the scores read. One whose text is no text, as earlier
    versions wrote of a server's unusual message, is broken: its text is empty, and it came as nothing."""
    text, finish, seconds, num_tokens = (prediction.get(key) for key in ("text", "finish", "seconds", "num_tokens"))
    if not isinstance(prediction.get("came_as", ""), str):
        del prediction["came_as"]
    return {
        **prediction,
        **({} if isinstance(text, str) else {"text": "", "came_as": "nothing", "choice": text}),
        "finish": finish if isinstance(finish, str) else "end",
        "seconds": seconds if isinstance(seconds, int | float) and math.isfinite(seconds) else 0.0,
        "num_tokens": num_tokens if isinstance(num_tokens, int) else None,
    }


def describe_messages(system, predictions):
    """Lines on how a server's texts came: a wrong parser of tool calls shows here. None on a system that has no server.

    predictions: those of one system, in the rows' order.
    """
    found = Counter(prediction["came_as"] for prediction in predictions if "came_as" in prediction)
    lines = []
    if chat := [f"{found[name]} as {name}" for name in ("tool_calls", "content", "function_call") if found[name]]:
        lines.append(f"{system}: of {len(predictions)} answers came {', '.join(chat)}.")
    if found["no calls"]:
        lines.append(
            f"{system}: {found['no calls']} had an empty list of tool_calls and no word: each counts as [], an abstention. "
            "Some servers send the empty list with every message."
        )
    if without := [prediction["id"] for prediction in predictions if prediction.get("came_as") == "nothing"]:
        shown = ", ".join(without[:20]) + ", ..." * (len(without) > 20)
        lines.append(f"{system}: {len(without)} had no text that can be scored, and count as broken: {shown}")
    return lines


def merge(output_dir):
    """Gather the processes' files in predictions.jsonl, each prediction once; returns them."""
    merged = output_dir / "predictions.jsonl"
    predictions = {
        (prediction["system"], prediction["id"]): prediction
        for prediction in read([path for path in (merged, *parts(output_dir)) if path.exists()])
    }
    write(merged, predictions.values())
    for part in parts(output_dir):
        part.unlink()
    return list(predictions.values())


def write(path, records):
    """Write JSON lines."""
    write_lines(path, (json.dumps(record) + "\n" for record in records))
