"""The rows of infer.py --input, answered into a file of JSON lines."""

import hashlib
import json
from pathlib import Path

from data_utils.prompt import to_json
from data_utils.tool_formats import openai_calls
from model_utils.replies import replies
from run_utils.errors import UserError, say
from run_utils.files import describe_free, encodes, is_full_disk, write_text
from run_utils.journal import append, open_journal
from run_utils.signals import Stopped
from run_utils.terminal import progress


def answer_file(args, system, requests, identity):
    """Answer the rows of --input in order: one line of --output per row. A kill loses no answer:
    the same command continues.

    system: a System. requests: a Request for each row. identity: a dict of all other inputs of the
    answers. A line of --output names the row's left-out tools."""
    output, partial = Path(args.output), Path(f"{args.output}.partial")
    settings = ("system", "constrained", "format", "max_new_tokens", "quantization")
    identity = identity | {name: getattr(args, name) for name in settings}
    identity["input"] = hashlib.sha256(repr(requests).encode()).hexdigest()
    if output.exists():
        raise UserError(f"--output {output} is there already: remove it, or choose another")
    results = {index: {"id": row.id, "error": row.error} for index, row in enumerate(requests) if not row.row}
    if earlier := earlier_answers(partial, identity, len(requests)):
        say(f"{len(earlier)} of {len(requests)} rows are answered in {partial}: continuing after them")
    results |= earlier
    todo = [index for index in range(len(requests)) if index not in results]

    def answers():
        for place, reply in replies(system, [requests[index].row for index in todo]):
            index = todo[place]
            left_out = {"left_out": requests[index].left_out} if requests[index].left_out else {}
            results[index] = {"id": requests[index].id} | as_result(reply, args.format) | left_out
            yield index, results[index]

    try:
        append(partial, progress(answers(), "Answering", len(todo)))
        write_text(output, "".join(as_line(results[index]) for index in sorted(results)))
    except Stopped as stopped:
        raise Stopped(
            stopped.number, f"{len(results)} of {len(requests)} rows are answered: the same command goes on"
        ) from None
    except OSError as error:
        if not is_full_disk(error):
            raise
        characters = sum(len(as_line(result)) for result in results.values()) / max(1, len(results))
        # Both files exist for a moment.
        free = describe_free(output.parent, 2 * len(requests) * characters)
        raise UserError(
            f"--output {output} could not be written: it needs {free}; {len(results)} of {len(requests)} rows are "
            "answered: make room, and the same command goes on"
        ) from None
    partial.unlink()
    errors = sum("error" in result for result in results.values())
    misfits = sum("misfits" in result for result in results.values())
    say(
        f"{len(results)} rows in {output}: {len(results) - errors} with calls, {misfits} of which do not fit their "
        f"tools; {errors} errors"
    )
    faulty = sum(bool({"error", "misfits", "left_out"} & result.keys()) for result in results.values())
    if args.strict and faulty:
        raise UserError(
            f"{faulty} of the {len(results)} rows have errors, calls that do not fit or tools left out, and --strict "
            "is set"
        )


def earlier_answers(partial, identity, num_rows):
    """`{index: result}` of an interrupted run."""
    answers = {}
    for record in open_journal(partial, identity):
        match record:
            case [index, dict(result)] if type(index) is int and 0 <= index < num_rows:
                answers[index] = result
    return answers


def as_result(reply, form):
    if reply.calls is None:
        return {"error": reply.problem, "text": reply.text}
    calls = {"tool_calls": openai_calls(reply.calls)} if form == "openai" else {"calls": reply.calls}
    others = {"words": reply.words, "misfits": reply.misfits}
    return calls | {name: value for name, value in others.items() if value}


def as_line(result):
    """A line of --output: in UTF-8, or with escapes if it has half a surrogate pair."""
    text = to_json(result)
    return (text if encodes(text) else json.dumps(result)) + "\n"
