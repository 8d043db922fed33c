"""Rows in the xLAM schema: load them from anywhere, validate each one, and split them by hash.

A row is a `query`, the `tools` on offer and the `answers` (the calls to make), the last two as JSON strings. They stay
strings all the way to the prompt: parsed into columns, `datasets` would add every row's keys to every other row as
nulls (trl#5118).
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_utils import cache
from data_utils.prompt import to_json
from data_utils.tool_calls import check_calls, check_tools, parse_json
from demo.rows import generate_rows
from script_utils import UserError, check_hub_access

COLUMNS = ("query", "tools", "answers")
DEMO_ROWS = 4000


class Row(NamedTuple):
    id: str
    query: str
    tools: str  # JSON text as `to_json` renders it
    answers: str  # likewise
    # What the row is known by whatever its id, its other columns and the order of keys: see content_hash.
    fingerprint: str = ""

    def tool_names(self):
        return {tool["name"] for tool in json.loads(self.tools)}


def content_hash(query, tools, answers):
    """A hash of a row's content, tools and answers as parsed values: as with JSON's equality, keys have no order."""
    return hashlib.sha256(json.dumps([query, tools, answers], sort_keys=True).encode()).hexdigest()[:16]


def load_rows(dataset_name, revision=None, max_bad_rows=0.01, config_name=None):
    """The valid rows of a data set, in its order, and the bad ones as `{reason: [ids]}`.

    `dataset_name` is a .json, .jsonl or .parquet file, a folder in the hub's layout, `demo`, `demo_unseen`, or a hub id, whose
    configuration is `config_name` where there are several. Large data sets are validated once and then read from the cache. More bad rows than `max_bad_rows` (a share of all rows below
    1, a count from 1 on) raise UserError, as do no valid rows at all.
    """
    source = find_source(dataset_name, revision, config_name)
    try:
        rows, bad = valid_rows(source) if isinstance(source, list) else validate_or_load(source)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {dataset_name}: {getattr(error, 'strerror', None) or error}") from None
    num_bad = sum(map(len, bad.values()))
    total = len(rows) + num_bad
    if total == 0:
        raise UserError(f"{dataset_name} has no rows")
    allowed = max_bad_rows if max_bad_rows >= 1 else max_bad_rows * total
    if num_bad > allowed or not rows:
        raise UserError(
            f"{num_bad} of the {total} rows of {dataset_name} are bad ({describe_bad_rows(bad)}); "
            f"--max_bad_rows allows {allowed:g}"
        )
    return rows, bad


def valid_rows(records):
    rows, bad, seen = [], defaultdict(list), set()
    for record in records:
        try:
            row = validate(record)
            if row.id in seen:
                raise ValueError("repeated id")
        except ValueError as error:
            bad[str(error)].append(bad_row_id(record))
        else:
            rows.append(row)
            seen.add(row.id)
    return rows, dict(bad)


def validate_or_load(source):
    file = cache.file_of("rows", content_of(source))
    if stored := cache.load(file):
        return unpack(stored)
    rows, bad = valid_rows(READERS[source.suffix.lower()](source) if isinstance(source, Path) else source)
    if len(rows) >= cache.FROM_ROWS:
        cache.save(file, pack(rows, bad))
    return rows, bad


def pack(rows, bad):
    """Rows and bad rows as arrays for the cache."""
    texts = [text.encode() for row in rows for text in row]
    return {
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "lengths": np.array([len(text) for text in texts]),
        "bad": np.frombuffer(json.dumps(bad).encode(), dtype=np.uint8),
    }


def unpack(stored):
    texts, ends = stored["texts"].tobytes(), np.cumsum(stored["lengths"]).tolist()
    fields = [texts[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    return [Row(*fields[i : i + 5]) for i in range(0, len(fields), 5)], json.loads(stored["bad"].tobytes())


def describe_bad_rows(bad):
    """`unknown tool: 2 rows (17, 29); missing field 'tools': 1 row (4)`, at most five ids a reason."""
    return "; ".join(
        f"{reason}: {len(ids)} row{'s' * (len(ids) > 1)} ({', '.join(ids[:5])}{', ...' * (len(ids) > 5)})"
        for reason, ids in sorted(bad.items(), key=lambda item: -len(item[1]))
    )


def validate(record):
    """The record as a Row with canonical JSON; raises ValueError with the reason, the same text for the same kind."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    values = {}
    for column in COLUMNS:
        if record.get(column) is None:
            raise ValueError(f"missing field '{column}'")
        if not isinstance(record[column], str):
            raise ValueError(f"field '{column}' is not a string")
        try:
            record[column].encode()
            values[column] = record[column] if column == "query" else parse_json(record[column])
        except ValueError:  # UnicodeEncodeError, of half a surrogate pair, is one too
            raise ValueError(f"broken {'text' if column == 'query' else 'JSON'} in field '{column}'") from None
    try:
        check_tools(values["tools"])
        check_calls(values["answers"])
        tools, answers = to_json(values["tools"]), to_json(values["answers"])
        # "\ud800" is an escape in the text and half a surrogate pair in the value.
        (str(record.get("id")) + tools + answers).encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair in a string") from None
    if not {call["name"] for call in values["answers"]} <= {tool["name"] for tool in values["tools"]}:
        raise ValueError("a call to a tool that is not in its list")
    fingerprint = content_hash(**values)
    row_id = fingerprint if record.get("id") is None else str(record["id"])
    return Row(row_id, values["query"], tools, answers, fingerprint)


def bad_row_id(record):
    """The record's `id`, or a hash of what it holds where it has none."""
    if not isinstance(record, dict):
        return str(record)
    if record.get("id") is not None:
        return str(record["id"])
    return content_hash(*(str(record.get(column)) for column in COLUMNS))


def find_source(dataset_name, revision=None, config_name=None):
    """What holds the rows: a file's path, a `datasets.Dataset`, or the demo's records themselves."""
    path = Path(dataset_name)
    on_hub = dataset_name.count("/") == 1 and not dataset_name.startswith((".", "/"))
    named_as_file = path.suffix.lower() in READERS
    is_demo = dataset_name in ("demo", "demo_unseen")  # the latter: tools that no row of the former offers
    if not is_demo and (path.is_dir() or (on_hub and not path.is_file() and not named_as_file)):
        return read_hub_dataset(dataset_name, revision, config_name)
    if config_name:
        raise UserError(f"--dataset_config_name is for a data set on the hub or a folder, not for {dataset_name}")
    if is_demo:
        return generate_rows(DEMO_ROWS, seed=0, unseen_tools=dataset_name == "demo_unseen")
    if path.is_file() and not named_as_file:
        raise UserError(f"{dataset_name}: unsupported file type; what is read is .json, .jsonl and .parquet")
    if named_as_file:
        if not path.is_file():
            raise UserError(f"{dataset_name}: no such file")
        return path
    raise UserError(f"{dataset_name} is neither a .json, .jsonl or .parquet file, nor a folder, a hub id or 'demo'")


def content_of(source):
    """All that the rows of a file or a Dataset follow from, in pieces of bytes."""
    if isinstance(source, Path):
        yield source.suffix.lower().encode()
        yield source.read_bytes()
    else:
        for name, column in zip(source.column_names, source.data.itercolumns(), strict=True):
            for chunk in column.chunks:
                yield repr((name, chunk.offset, len(chunk))).encode()
                yield from filter(None, chunk.buffers())


def read_json_file(path):
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        hint = "; JSON lines are read from a file named .jsonl" if str(error).startswith("Extra data") else ""
        raise UserError(f"{path} is not valid JSON: {error}{hint}") from None
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of rows")
    return [as_json_strings(record) if isinstance(record, dict) else record for record in records]


def read_jsonl_file(path):
    records = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                records.append(as_json_strings(record) if isinstance(record, dict) else f"line {number}")
    return records


def as_json_strings(record):
    """Tools and answers that a file holds as real lists, rendered as the JSON strings that a row has."""
    rendered = {key: to_json(record[key]) for key in ("tools", "answers") if isinstance(record.get(key), list)}
    return {**record, **rendered}


def read_parquet_file(path):
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    check_columns(path, table.schema)
    return table.select([name for name in ("id", *COLUMNS) if name in table.column_names]).to_pylist()


READERS = {".json": read_json_file, ".jsonl": read_jsonl_file, ".parquet": read_parquet_file}


def read_hub_dataset(name, revision, config_name):
    """The train split of a data set on the Hugging Face hub, or of a local folder in the hub's layout."""
    import datasets

    local = Path(name).is_dir()
    if not local:
        check_hub_access(name, "dataset", revision)
    datasets.disable_progress_bars()
    try:
        # The cache knows a local folder by its name and not by its content: it would answer with the rows of long ago.
        again = "force_redownload" if local else None
        dataset = datasets.load_dataset(name, config_name, split="train", revision=revision, download_mode=again)
    except Exception as error:  # load_dataset raises whatever its builder does
        reason = " ".join(str(error.__cause__ or error).split())
        hint = "; --dataset_config_name chooses one" if "onfig name is missing" in reason else ""
        raise UserError(f"cannot load the data set {name}: {type(error).__name__}: {reason}{hint}") from None
    check_columns(name, dataset.features.arrow_schema)
    return dataset.select_columns([column for column in ("id", *COLUMNS) if column in dataset.column_names])


def check_columns(name, schema):
    """Typed columns must be there and hold strings: nested ones have already been padded with null keys."""
    import pyarrow.types

    missing = [column for column in COLUMNS if column not in schema.names]
    if missing:
        raise UserError(f"{name} has no column {', '.join(missing)}; it has {', '.join(schema.names)}")
    for column in COLUMNS:
        kind = schema.field(column).type
        content = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not (pyarrow.types.is_string(content) or pyarrow.types.is_large_string(content)):
            raise UserError(
                f"{name}: column {column} is {kind}, but must hold JSON strings: "
                "a nested column gives every row the keys of all rows"
            )


def split_rows(rows, eval_fraction, seed, by="random"):
    """Training rows, evaluation rows, and rows in neither. A function of the seed and the rows alone, not their order.

    A row that repeats a held-out row's query, tools and answers under another id is in neither.
    `random`: the `round(eval_fraction * n)` rows whose hash of (seed, id) is smallest. `tools`: no tool of an
    evaluation row occurs in a training row. Tools are held out in the order of their hash until enough rows use held-out
    tools alone; rows that use both kinds are left out.
    """

    def order(name):
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    ordered = sorted(rows, key=lambda row: order(row.id))
    wanted = round(eval_fraction * len(rows))
    if by == "random":
        return without_repeats(ordered, ordered[wanted:], ordered[:wanted])

    tools = {row.id: row.tool_names() for row in ordered}
    open_tools = {row.id: len(tools[row.id]) for row in ordered}  # how many of a row's tools are not held out
    users = defaultdict(list)
    for row in ordered:
        for tool in tools[row.id]:
            users[tool].append(row.id)
    held_out, inside = set(), 0
    for tool in sorted(users, key=order):
        if inside >= wanted:
            break
        held_out.add(tool)
        for user in users[tool]:
            open_tools[user] -= 1
            inside += open_tools[user] == 0
    eval_rows = [row for row in ordered if tools[row.id] and open_tools[row.id] == 0][:wanted]
    train_rows = [row for row in ordered if not tools[row.id] & held_out]
    return without_repeats(ordered, train_rows, eval_rows)


def without_repeats(ordered, train_rows, eval_rows):
    held_out = {row.fingerprint for row in eval_rows}
    train_rows = [row for row in train_rows if row.fingerprint not in held_out]
    kept = {row.id for row in eval_rows} | {row.id for row in train_rows}
    return train_rows, eval_rows, [row for row in ordered if row.id not in kept]


def find_held_out(rows, split):
    """The rows that a training held out, by content, in the order in which it did, and the ids of those that are gone.

    split: what train.py saves as split.json, `{"trained": {id: fingerprint}, "held_out": {id: fingerprint}}`.
    """
    by_content = defaultdict(list)
    for row in rows:
        by_content[row.fingerprint].append(row)
    contents = set(by_content)
    found, gone = [], []
    for row_id, fingerprint in split["held_out"].items():
        same = by_content[fingerprint]
        if same:  # of several, the one of the same id where there is one
            found.append(same.pop(next((i for i, row in enumerate(same) if row.id == row_id), 0)))
        elif fingerprint not in contents:  # else it was there several times, and is now fewer times
            gone.append(row_id)
    return found, gone
