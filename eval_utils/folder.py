"""An evaluation's folder: the rows, each system's answer to each row, and their origin.

rows.jsonl              the rows: a finished evaluation is read without model and data set. A made
                        row (data_utils/made_rows.py) has its set's name in `set`
predictions.jsonl       one line per system and row: texts without scores. They are scored when
                        read, so a new metric applies to old answers
predictions-0.jsonl     the answers of one process, until all processes are done
retention.json          the losses on a plain text, see retention.py
args.yaml, environment.json    the arguments, and everything that the answers depend on
scores.jsonl, metrics.json, report.html    see comparison.py
"""

import functools
import hashlib
import itertools
import math
from pathlib import Path

from data_utils.made_rows import HASH_OF_SET, original_id
from data_utils.rows import Row, names_by_tool
from data_utils.tool_calls import check_calls, parse_json
from run_utils import journal
from run_utils.arguments import as_yaml
from run_utils.errors import UserError
from run_utils.files import lock_folder, no_pipe, read_json, write_json, write_json_lines, write_text
from run_utils.paths import did_you_mean

# Files of train.py's folders. Evaluations have an environment.json too.
TRAINING_FILES = ("adapter_config.json", "split.json", "state.json")
TRAINING_FACTS = ("tools_seen", "near_repeat", "data_set")  # of a row, see write_rows
# An evaluation's files beside its predictions.
RESULTS = ("rows.jsonl", "retention.json", "scores.jsonl", "metrics.json", "report.html")


class EvaluationFolder:
    """The folder of a running evaluation. Each process appends to its own file.

    identity: everything behind the answers, as JSON values. process: an Accelerator.
    """

    def __init__(self, path, identity, process):
        self.path, self.identity, self.process = Path(path), identity, process

    def prepare(self, args, data, record):
        """On the main process: lock the folder and write the evaluation's inputs. data: a HeldOut.
        record: the content of environment.json, including the identity. Raises UserError if the
        folder holds anything but the same evaluation."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock_folder(self.path)
            if args.overwrite_output_dir:
                clear(self.path)
            saved = check_folder(self.path, self.identity)
            # A run without `fewshot` or a made set keeps the folder's answers of it.
            record |= {key: value for key, value in saved.items() if can_be_added(key)}
            # Written first: it identifies the folder's other files.
            write_json(self.path / "environment.json", record)
            write_text(self.path / "args.yaml", as_yaml(args))
            write_rows(self.path, data.rows, data.in_training, data.made)
            merge(self.path)
        except OSError as error:
            raise UserError(f"--output_dir {self.path} cannot be written: {error.strerror}") from None

    @functools.cached_property
    def answered(self):
        """(system, row id) of the answers at the start, from the merged file alone: another process
        may already append to its part."""
        return {(p["system"], p["id"]) for p in read_predictions(self.path / "predictions.jsonl")}

    def rows_to_answer(self, system, rows):
        """This process's share of the unanswered rows, and the number of processes with a share."""
        unanswered = [row for row in rows if (system, row.id) not in self.answered]
        # Sorted by length: the processes share the long rows evenly.
        unanswered = sorted(unanswered, key=lambda row: -len(row.query) - len(row.tools))
        share = unanswered[self.process.process_index :: self.process.num_processes]
        return share, min(self.process.num_processes, len(unanswered))

    def append(self, predictions):
        """Append predictions (dicts) to this process's file."""
        journal.append(self.path / f"predictions-{self.process.process_index}.jsonl", predictions)

    def close(self, record):
        """On the main process, after all processes: gather their answers. record: as in
        `prepare`."""
        merge(self.path)
        write_json(self.path / "environment.json", record)


def check_folder(output_dir, identity):
    """Check that a folder is free of results or holds the same evaluation. Raises UserError
    otherwise. Returns the folder's identity.

    identity: as in EvaluationFolder. Its keys that can be added are compared only if the folder has
    them: systems and made sets can be added.
    """
    check_no_training(output_dir)
    if (output_dir / "environment.json").exists():
        saved = read_json_or_empty(output_dir / "environment.json")
    elif found := [path.name for path in results_in(output_dir)]:
        raise UserError(f"{output_dir} has files that no evaluation made: {', '.join(found)}")
    else:
        saved = identity
    changed = {key for key, value in identity.items() if saved.get(key, value if can_be_added(key) else None) != value}
    sets = sorted(key.removeprefix(HASH_OF_SET) for key in changed if key.startswith(HASH_OF_SET))
    if sets and len(sets) == len(changed):
        raise UserError(
            f"{output_dir} has other rows in the set {', '.join(sets)}: ask for the same rows, leave the set out "
            "(--no_call_examples 0, or not in --perturb), or replace all with --overwrite_output_dir"
        )
    if changed:
        raise UserError(
            f"{output_dir} holds an evaluation of another model, other rows or other settings: "
            "replace it with --overwrite_output_dir, or choose another --output_dir"
        )
    return saved


def can_be_added(key):
    """Whether a key of the identity may be new to an evaluation."""
    return key == "shots" or key.startswith(HASH_OF_SET)


def read_json_or_empty(path):
    try:
        return read_json(path)
    except UserError:
        return {}


def check_no_training(output_dir):
    if found := [name for name in TRAINING_FILES if (output_dir / name).exists()]:
        raise UserError(f"{output_dir} is a folder of train.py's ({', '.join(found)}): choose another --output_dir")


def check_comparison_folder(output_dir):
    """Raises UserError unless the folder holds no results, or a comparison's."""
    check_no_training(output_dir)
    if (output_dir / "predictions.jsonl").exists() or parts(output_dir):
        raise UserError(f"{output_dir} holds an evaluation: name another --output_dir for the comparison")
    existing = [path.name for path in (*results_in(output_dir), output_dir / "environment.json") if path.exists()]
    is_comparison = "evaluations" in read_json_or_empty(output_dir / "metrics.json")
    if existing and not (is_comparison and "environment.json" not in existing):
        raise UserError(
            f"{output_dir} has files that no comparison made: {', '.join(existing)}; choose another --output_dir"
        )


def hash_rows(rows, is_chat):
    """The rows in an evaluation's identity. Only chats read messages and words: without them the
    hash is an older folder's, which the same command continues."""
    if is_chat:
        return hashlib.sha256(repr(rows).encode()).hexdigest()
    text = repr([row._replace(messages="", words="") for row in rows])
    return hashlib.sha256(text.replace(", messages='', words=''", "").encode()).hexdigest()


def write_rows(output_dir, rows, in_training, made):
    """Write rows.jsonl, so that a finished evaluation is read without model and data set.

    in_training: `{fact: {row id: bool}}`, or None for an unknown fact. "tools_seen": all tools of
    the row were on offer in training. "near_repeat": the query nearly repeats a training query.
    "data_set": the name of the row's, if there are several.
    made: `{set: [Row]}`, of which these facts are not known.
    """
    own = [row._asdict() | {fact: known and known[row.id] for fact, known in in_training.items()} for row in rows]
    others = [row._asdict() | {"set": name} for name, of_set in made.items() for row in of_set]
    write_json_lines(output_dir / "rows.jsonl", own + others)


def read_rows(output_dir):
    """The rows of an evaluation, and in_training and made as in write_rows. Raises UserError if the
    folder has no readable rows."""
    path = output_dir / "rows.jsonl"
    try:
        with no_pipe(path).open(encoding="utf-8") as file:
            records = list(map(parse_json, file))
        made, others = {}, [record for record in records if "set" in record]
        records = [record for record in records if "set" not in record]
        if not records:
            raise ValueError("which is empty")
        for record in others:
            made.setdefault(record.pop("set"), []).append(Row(**record))
        in_training = {}
        for fact in TRAINING_FACTS:
            # Older files have no near_repeat.
            known = {record["id"]: record.pop(fact, None) for record in records}
            in_training[fact] = None if None in known.values() else known
        rows = [Row(**record) for record in records]
        for row in itertools.chain(rows, *made.values()):
            check_row(row)
        check_made(made, {row.id for row in rows})
        return rows, in_training, made
    except (OSError, ValueError, KeyError, TypeError) as error:
        near, reason = did_you_mean(output_dir, "rows.jsonl"), getattr(error, "strerror", None) or error
        raise UserError(f"{output_dir} holds no evaluation that can be read: rows.jsonl, {reason}{near}") from None


def check_made(made, ids):
    """Raises ValueError unless each made row has its original among the rows of `ids`."""
    for name, rows in made.items():
        if not isinstance(name, str):
            raise ValueError(f"a set's name is {name!r}, no text")
        if gone := [row.id for row in rows if original_id(row.id, name) not in ids]:
            raise ValueError(f"row {gone[0]!r} of the set {name!r} is made from a row that is not there")


def check_row(row):
    """Raises ValueError unless the scores can read the row's columns."""
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
    """The processes' files, and no files with similar names."""
    return sorted(path for path in output_dir.glob("predictions-*.jsonl") if path.stem.split("-", 1)[1].isdecimal())


def results_in(output_dir):
    named = [output_dir / name for name in ("predictions.jsonl", *RESULTS)]
    return [*parts(output_dir), *(path for path in named if path.exists())]


def clear(output_dir):
    """Delete the files of an earlier evaluation and no other files. Without one, delete nothing."""
    path = output_dir / "environment.json"
    try:
        is_evaluation = path.exists() and "rows_sha256" in read_json(path)
    except UserError:  # damaged
        is_evaluation = not any((output_dir / name).exists() for name in TRAINING_FILES)
    if is_evaluation:
        for path in (*results_in(output_dir), output_dir / "environment.json"):
            path.unlink()


def read_predictions(path):
    """Yields every whole prediction of a file, or none if the file is missing."""
    if not path.exists():
        return
    for record in journal.read(no_pipe(path)):
        if isinstance(record, dict) and all(isinstance(record.get(key), str) for key in ("system", "id")):
            yield scorable(record)


def scorable(prediction):
    """The prediction with a valid value in each field that the scores read. Earlier versions stored
    a server's unusual message as the text: such a text becomes "", and came_as "nothing"."""
    text, finish, seconds = (prediction.get(key) for key in ("text", "finish", "seconds"))
    counts = {key: prediction.get(key) for key in ("num_tokens", "num_prompt_tokens")}
    for name, type_ in {"came_as": str, "refusal": str, "retries": int}.items():
        if name in prediction and not isinstance(prediction[name], type_):
            del prediction[name]
    return {
        **prediction,
        **({} if isinstance(text, str) else {"text": "", "came_as": "nothing", "choice": text}),
        "finish": finish if isinstance(finish, str) else "end",
        "seconds": seconds if isinstance(seconds, int | float) and math.isfinite(seconds) else 0.0,
        # Older files have no num_prompt_tokens.
        **{key: count if isinstance(count, int) else None for key, count in counts.items()},
    }


def merge(output_dir):
    """Gather the processes' files in predictions.jsonl, with each prediction once."""
    merged = output_dir / "predictions.jsonl"
    predictions = {
        (prediction["system"], prediction["id"]): prediction
        for path in (merged, *parts(output_dir))
        for prediction in read_predictions(path)
    }
    write_json_lines(merged, predictions.values())
    for part in parts(output_dir):
        part.unlink()
