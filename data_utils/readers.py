"""Readers of record files by suffix: JSON, JSON lines, Parquet.

A reader takes a path and gives `(place, record)` pairs in the file's order: `("line 3", {...})`. An
unreadable record is a ValueError with the reason. A value that is not an object is None. To read
another type of file, add it to READERS."""

import json
from pathlib import Path

from data_utils.conversations import LAYOUTS
from data_utils.prompt import to_json
from data_utils.rows import COLUMNS, EXTRA_COLUMNS
from data_utils.written_calls import ARGUMENT_KEYS
from run_utils.errors import UserError, say
from run_utils.files import no_pipe
from run_utils.paths import did_you_mean


def read_file(path):
    """All `(place, record)` pairs of a file. Records may lack answers. Raises UserError."""
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: unsupported file type; supported are {', '.join(READERS)}")
    try:
        read = READERS[path.suffix.lower()]
        records = list(read(no_pipe(path), answered=False) if read is read_parquet_file else read(no_pipe(path)))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}{did_you_mean(path)}") from None
    except UserError:
        raise
    except Exception as error:  # whatever a reader raises; a new one need not know of UserError
        raise UserError(f"cannot read {path}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    warn_of_json_columns(path)
    return records


def read_json_file(path):
    text = path.read_text(encoding="utf-8-sig")
    is_leaderboard = accepted_beside(path).is_file() or path.name.startswith("BFCL_")
    if is_leaderboard and not text.lstrip().startswith("["):
        return read_jsonl_file(path)  # even with one line
    try:
        records = json.loads(text, object_pairs_hook=all_pairs)
    except (ValueError, RecursionError) as error:
        # JSON lines in a .json file.
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            return read_jsonl_file(path)
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of rows")
    return ((f"row {number}", as_record(value)) for number, value in enumerate(records, start=1))


def read_jsonl_file(path):
    accepted = accepted_beside(path)
    truths = dict(map(by_id, read_jsonl_file(accepted))) if accepted.is_file() else {}
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = as_record(json.loads(line, object_pairs_hook=all_pairs))
            except ValueError as error:  # a json.JSONDecodeError, with line and column
                record = error
            except RecursionError as error:
                record = ValueError(str(error))
            if isinstance(record, dict):
                record = truths.get(str(record.get("id")), {}) | record
            yield f"line {number}", record


def by_id(placed):
    _, record = placed
    return (str(record.get("id")), record) if isinstance(record, dict) else (None, {})


def accepted_beside(path):
    """The leaderboard's file of accepted answers to a file's questions."""
    return path.parent / "possible_answer" / path.name


class AllPairs(dict):
    """An object with a repeated key, and all its pairs."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.pairs = pairs

    def items(self):  # json.dumps calls this
        return self.pairs


def all_pairs(pairs):
    """An object_pairs_hook for json.loads that loses no key, so that lists and objects are checked
    like JSON strings."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else AllPairs(pairs)


def as_record(value):
    """A parsed object with its lists and objects as the JSON strings of a row; None for any other
    value."""
    if type(value) is not dict:
        return None
    columns = ("tools", "answers", "acceptable", "required", "messages", "question", "function", "ground_truth")
    rendered = {key: to_json(value[key]) for key in columns if isinstance(value.get(key), list | dict)}
    return value | rendered if rendered else value


# Parquet. An Arrow object (a struct) has the keys of all rows, with null for absent keys. This is
# harmless for a layout's keys, such as `role`. In a tool, null and absent arguments would look
# alike, so a tool's keys need JSON, as text or as Arrow's JSON type.
KEYS_OF_TOOLS = {
    *(*ARGUMENT_KEYS, "inputSchema", "input_schema", "properties"),
    *("acceptable", "required", "ground_truth", "response", "output", "json"),
}
TEXTS = {"id", "query", "category", "role", "from", "content", "value", "text", "name", "description"}


def read_parquet_file(path, answered=True):
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            fields = readable_fields(path, file.schema_arrow, answered)
            nested = [field for field in fields if is_nested(field.type) or is_json(field.type)]
            for batch in file.iter_batches(columns=[field.name for field in fields], batch_size=1000):
                for record in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    for field in nested:
                        record[field.name] = parsed(record[field.name], field.type, field.name)
                    yield f"row {number}", as_record(record)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None


def readable_fields(path, schema, answered=True):
    """The fields of an Arrow schema whose values are read back unchanged. Raises UserError if a row
    needs another field or lacks one."""
    layouts = LAYOUTS.values()
    missing = [column for column in COLUMNS[: None if answered else 1] if column not in schema.names]
    if missing and not any(layout.columns[0] in schema.names for layout in layouts):
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(schema.names)}")
    needed = {*COLUMNS, *EXTRA_COLUMNS}.union(*(layout.columns + layout.more for layout in layouts))
    if any(json_columns(schema).keys() & needed):  # warn_of_json_columns reports the loss
        return list(schema)
    fields = []
    for field in schema:
        key = padded_key(field.type, field.name)
        if key is None:
            fields.append(field)
        elif field.name in needed:
            is_row = field.name in (*COLUMNS, *EXTRA_COLUMNS)
            found = f"column {field.name} is {field.type}" if is_row else f"{field.name} have {key} that are objects"
            raise UserError(
                f"{path}: {found}, but must hold JSON strings: an Arrow object has the keys of all rows, so that null "
                "and absent are one. Rows as JSON lines (.jsonl) are read as they are"
            )
    return fields


def padded_key(arrow_type, key):
    """The first key in an Arrow type whose objects have a tool's keys as columns, or None. A list
    at `content` has parts."""
    if (key in KEYS_OF_TOOLS and has_struct(arrow_type)) or (
        key == "content" and has_struct(arrow_type) and not is_list(arrow_type)
    ):
        return key
    return next(filter(None, (padded_key(inner, name) for name, inner in inner_types(arrow_type))), None)


def inner_types(arrow_type):
    """`(key, type)` of the parts of an Arrow type. The key is None for a list's elements and a
    map's values."""
    import pyarrow.types

    if pyarrow.types.is_struct(arrow_type):
        return [(field.name, field.type) for field in arrow_type]
    if pyarrow.types.is_map(arrow_type):
        return [(None, arrow_type.item_type)]
    return [(None, arrow_type.value_type)] if is_list(arrow_type) else []


def json_keys(arrow_type, key):
    """The keys of JSON texts in an Arrow type."""
    if is_json(arrow_type):
        yield key
    for name, inner in inner_types(arrow_type):
        yield from json_keys(inner, name or key)


def has_struct(arrow_type):
    import pyarrow.types

    return pyarrow.types.is_struct(arrow_type) or any(has_struct(inner) for _, inner in inner_types(arrow_type))


def is_nested(arrow_type):
    return bool(inner_types(arrow_type))


def is_list(arrow_type):
    import pyarrow.types as types

    checks = types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view
    return any(check(arrow_type) for check in checks)


def is_json(arrow_type):
    return getattr(arrow_type, "extension_name", None) == "arrow.json"


def parsed(value, arrow_type, key):
    """A value of an Arrow type, with JSON texts parsed and null keys of objects removed."""
    if value is None:
        return None
    if is_json(arrow_type):
        return json_value(value, key)
    if isinstance(value, list):
        return [parsed(element, arrow_type.value_type, key) for element in value]
    if isinstance(value, dict):
        inner = (
            dict.fromkeys(value, arrow_type.item_type)
            if hasattr(arrow_type, "item_type")
            else dict(inner_types(arrow_type))
        )
        return {name: parsed(value[name], inner[name], name) for name in value if value[name] is not None}
    return value


def json_value(text, key):
    """The value of a JSON text. A text that is not JSON (`datasets` keeps it), or at a key of
    TEXTS, stays text."""
    try:
        value = json.loads(text, object_pairs_hook=all_pairs, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return text
    is_parts = isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value)
    return text if key in TEXTS and not isinstance(value, str) and not is_parts else value


def no_constant(name):
    raise ValueError(f"{name} is not JSON")


def json_columns(schema):
    """The columns of an Arrow schema with JSON texts, and the keys of these texts."""
    keys = {field.name: sorted(set(json_keys(field.type, field.name))) for field in schema}
    return {column: inner for column, inner in keys.items() if inner}


def warn_of_json_columns(path):
    """Name a Parquet file's columns that `datasets` wrote with its Json feature: see
    findings/README.md."""
    import pyarrow.parquet

    if path.suffix.lower() != ".parquet":
        return
    schema = pyarrow.parquet.read_schema(path)
    columns = json_columns(schema)
    if columns and b"huggingface" in (schema.metadata or {}):
        objects = {*KEYS_OF_TOOLS, *TEXTS, *columns, "tool_calls", "function"}
        single = sorted({key for keys in columns.values() for key in keys} - objects)
        texts = f'; in {", ".join(single)} a text that looks like JSON ("12.50") is now that value, and null is absent'
        say(
            f"{path}: datasets wrote {', '.join(columns)} as JSON: numbers are rounded to 10 decimals"
            f"{texts * bool(single)}. Rows as JSON lines (.jsonl) are read as they are"
        )


READERS = {".json": read_json_file, ".jsonl": read_jsonl_file, ".parquet": read_parquet_file}
