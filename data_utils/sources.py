"""Where rows come from: files, the hub, folders in the hub's layout, and the demo's generator.

To read another kind of file, add a function from its path to a list of `(place, record)` to READERS: `("line 3", {...})`.
"""

import json
import math
from pathlib import Path

import numpy as np

from data_utils import cache
from data_utils.conversations import LAYOUTS
from data_utils.prompt import to_json
from data_utils.rows import COLUMNS, EXTRA_COLUMNS, Row, describe_bad_rows, describe_rows, valid_rows
from data_utils.written_calls import ARGUMENT_KEYS
from demo.rows import generate_rows
from run_utils.arguments import UserError, say
from run_utils.files import write_json
from run_utils.launch import check_hub_access

DEMO_ROWS = 4000


def load_rows(dataset_name, revision=None, max_bad_rows=0.01, config_name=None, report=None):
    """The valid rows of a data set, in its order, and the bad ones as `{reason: [ids]}`.

    `dataset_name` is a file that READERS has a reader for, a folder in the hub's layout, `demo`, `demo_unseen`, or a hub id;
    `config_name` is its configuration where there are several. Large data sets are validated once and then read from the
    cache. More bad rows than `max_bad_rows` (a share of all rows below 1, a count from 1 on) raise UserError, as do no valid
    rows at all; `report` is then a file for the names of all bad rows. Prints how the rows were read.
    """
    source = find_source(dataset_name, revision, config_name)
    try:
        rows, bad, summary = valid_rows(number(source)) if isinstance(source, list) else validate_or_load(source)
    except UserError:
        raise
    except Exception as error:  # whatever a reader raises; a new one need not know of UserError
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read {dataset_name}: {reason}") from None
    num_bad = sum(map(len, bad.values()))
    total = len(rows) + num_bad
    if total == 0:
        raise UserError(f"{dataset_name} has no rows")
    allowed = math.floor(max_bad_rows if max_bad_rows >= 1 else max_bad_rows * total)
    if num_bad > allowed or not rows:
        if report:
            write_json(report, bad)
        raise UserError(
            f"{num_bad} of the {total} rows of {dataset_name} are bad ({describe_bad_rows(bad)}); "
            f"--max_bad_rows allows {allowed}" + (f"; all of them are in {report}" if report else "")
        )
    for line in describe_rows(len(rows), summary):
        say(f"{dataset_name}: {line}")
    return rows, bad


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
        raise UserError(f"{dataset_name}: unsupported file type; what is read is {', '.join(READERS)}")
    if named_as_file:
        if not path.is_file():
            raise UserError(f"{dataset_name}: no such file")
        return path
    kinds = ", ".join(READERS)
    raise UserError(f"{dataset_name} is neither a file ({kinds}) nor a folder, a hub id or 'demo'")


def validate_or_load(source):
    file = cache.file_of("rows", content_of(source))
    if stored := cache.load(file):
        return unpack(stored)
    rows, *others = valid_rows(READERS[source.suffix.lower()](source) if isinstance(source, Path) else number(source))
    if len(rows) >= cache.FROM_ROWS:
        cache.save(file, pack(rows, others))
    return rows, *others


def pack(rows, others):
    """Rows, and what valid_rows gives beside them, as arrays for the cache."""
    texts = [text.encode() for row in rows for text in row]
    return {
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "lengths": np.array([len(text) for text in texts]),
        "others": np.frombuffer(json.dumps(others).encode(), dtype=np.uint8),
    }


def unpack(stored):
    texts, ends = stored["texts"].tobytes(), np.cumsum(stored["lengths"]).tolist()
    fields = [texts[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    width = len(Row._fields)
    rows = [Row(*fields[i : i + width]) for i in range(0, len(fields), width)]
    return rows, *json.loads(stored["others"].tobytes())


def content_of(source):
    """All that the rows of a file or a Dataset follow from, in pieces of bytes."""
    if isinstance(source, Path):
        yield source.suffix.lower().encode()
        yield from (path.read_bytes() for path in (source, accepted_beside(source)) if path.is_file())
    else:
        for name, column in zip(source.column_names, source.data.itercolumns(), strict=True):
            for chunk in column.chunks:
                yield repr((name, chunk.offset, len(chunk))).encode()
                yield from filter(None, chunk.buffers())


def number(records):
    return [(f"row {place}", record) for place, record in enumerate(records, start=1)]


def read_json_file(path):
    text = path.read_text(encoding="utf-8-sig")
    leaderboards = accepted_beside(path).is_file() or path.name.startswith("BFCL_")
    if leaderboards and not text.lstrip().startswith("["):  # its .json files are JSON lines
        return read_jsonl_file(path)
    try:
        records = json.loads(text, object_pairs_hook=all_pairs)
    except (ValueError, RecursionError) as error:
        hint = "; JSON lines are read from a file named .jsonl" if str(error).startswith("Extra data") else ""
        raise UserError(f"{path} is not valid JSON: {error}{hint}") from None
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of rows")
    return number(as_json_strings(record) if type(record) is dict else None for record in records)


def read_jsonl_file(path):
    records = []
    with path.open(encoding="utf-8-sig") as lines:
        for place, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line, object_pairs_hook=all_pairs)
                    record = as_json_strings(record) if type(record) is dict else None
                except ValueError as error:  # stands for the record: as_records names the reason
                    record = error
                except RecursionError:
                    record = None
                records.append((f"line {place}", record))
    if accepted_beside(path).is_file():
        truths = {
            str(record.get("id")): record
            for _, record in read_jsonl_file(accepted_beside(path))
            if type(record) is dict
        }
        records = [
            (place, {**truths.get(str(record.get("id")), {}), **record} if type(record) is dict else record)
            for place, record in records
        ]
    return records


def accepted_beside(path):
    """Where the leaderboard keeps what it accepts as answers to the questions of a file."""
    return path.parent / "possible_answer" / path.name


class AllPairs(dict):
    """An object that has a key twice, with both."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.pairs = pairs

    def items(self):  # what json.dumps asks for
        return self.pairs


def all_pairs(pairs):
    """For json.loads: no key is lost, so that lists and objects are judged as the strings are that say the same."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else AllPairs(pairs)


def as_json_strings(record):
    """What a file holds as real lists and objects, rendered as the JSON strings that a row has."""
    columns = ("tools", "answers", "acceptable", "required", "messages", "question", "function", "ground_truth")
    rendered = {key: to_json(record[key]) for key in columns if isinstance(record.get(key), list | dict)}
    return {**record, **rendered}


def read_parquet_file(path, answered=True):
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    return number(table.select(columns_to_read(path, table.schema, answered)).to_pylist())


def read_file(path):
    """`(place, record)` of a file's records as they are, None for what is none. Raises UserError."""
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: unsupported file type; what is read is {', '.join(READERS)}")
    try:
        return (
            read_parquet_file(path, answered=False)
            if path.suffix.lower() == ".parquet"
            else READERS[path.suffix.lower()](path)
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


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
    return dataset.select_columns(columns_to_read(name, dataset.features.arrow_schema))


def columns_to_read(name, schema, answered=True):
    """The names of the columns that rows are made of, without answers and perhaps without tools if these are asked for. Typed columns must hold strings: nested ones have already been padded with
    null keys. Raises UserError where one is missing; of the columns that a row may have, others than strings are left out."""
    layouts = [COLUMNS, *(layout.columns for layout in LAYOUTS.values())]
    needed = len(COLUMNS) if answered else 1  # the first of a layout's columns is what is asked
    chosen = next((columns for columns in layouts if set(columns[:needed]) <= set(schema.names)), None)
    if not chosen:
        missing = [column for column in COLUMNS if column not in schema.names]
        raise UserError(f"{name} has no column {', '.join(missing)}; it has {', '.join(schema.names)}")
    more = next((layout.more for layout in LAYOUTS.values() if layout.columns == chosen), ())
    chosen = [column for column in (*chosen, *more) if column in schema.names]
    for column in chosen:
        kind = schema.field(column).type
        conversation = column in ("messages", "conversations", "contents", "prompt", "completion")
        if not holds_strings(kind) and (not conversation or has_nested_arguments(kind)):
            what = f"{column} have arguments that are objects" if conversation else f"column {column} is {kind}"
            raise UserError(
                f"{name}: {what}, but must hold JSON strings: a nested column gives every row the keys of all rows. "
                "Rows as JSON lines (.jsonl) are read as they are"
            )
    extras = [column for column in EXTRA_COLUMNS if column in schema.names and holds_strings(schema.field(column).type)]
    return [*(["id"] if "id" in schema.names else []), *chosen, *extras]


def holds_strings(kind):
    import pyarrow.types

    content = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return pyarrow.types.is_string(content) or pyarrow.types.is_large_string(content)


def has_nested_arguments(kind):
    """Whether calls somewhere in an Arrow type have their arguments as objects."""
    import pyarrow.types

    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return has_nested_arguments(kind.value_type)
    if not pyarrow.types.is_struct(kind):
        return False
    return any(
        (field.name in (*ARGUMENT_KEYS, "response", "json", "output") and not holds_strings(field.type))
        or (field.name == "content" and pyarrow.types.is_struct(field.type))
        or has_nested_arguments(field.type)
        for field in kind
    )
