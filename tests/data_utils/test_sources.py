"""Files and folders of records, as public tools write them."""

import gzip
import hashlib
import json
import os
import shutil
import threading
import unicodedata
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_utils import cache
from data_utils.readers import read_file
from data_utils.rows import valid_rows
from data_utils.sources import load_rows, pack, unpack
from demo.rows import generate_rows
from run_utils.errors import UserError

GOOD = generate_rows(20, seed=3)
LISTS = [{**row, "tools": json.loads(row["tools"]), "answers": json.loads(row["answers"])} for row in GOOD]


def write_jsonl(path, records):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def number_like_rows():
    """Two rows with a text argument that looks like another value, and a third with a list."""
    values = ["007", "12.50", "true", "null", "1e5", "NaN", '{"a": 1}', "Rome", 0.1234567890123456, 1e-11, [1]]
    tools = [{"name": "f", "description": "", "parameters": {"x": {"description": "", "type": "any"}}}]
    return [
        {"id": str(n), "query": "q", "tools": tools, "answers": [{"name": "f", "arguments": {"x": value}}]}
        for n, value in enumerate(values)
    ]


def argument_values(rows):
    return [json.loads(row.answers)[0]["arguments"]["x"] for row in rows]


def test_json_lines_of_a_folder_are_read_unchanged(tmp_path):
    """`datasets` would read 7, 12.5, True and None, and round the floats:
    findings/datasets_json_feature.sh."""
    records = number_like_rows()
    write_jsonl(tmp_path / "hub" / "train.jsonl", records)
    rows, bad = load_rows(str(tmp_path / "hub"))
    assert not bad and argument_values(rows) == [record["answers"][0]["arguments"]["x"] for record in records]
    assert type(argument_values(rows)[0]) is str
    assert rows == load_rows(str(tmp_path / "hub" / "train.jsonl"))[0]


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary", "json"])
def test_columns_with_json_texts_are_read(tmp_path, kind):
    types = {"string_view": pa.string_view(), "large_string": pa.large_string(), "json": pa.json_(pa.string())}
    types["dictionary"] = pa.dictionary(pa.int32(), pa.string())
    columns = {key: pa.array([row[key] for row in GOOD]) for key in GOOD[0]}
    for key in ("tools", "answers") if kind == "json" else columns:
        columns[key] = columns[key].cast(types[kind])
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD))


def test_maps_are_read(tmp_path):
    arguments = [{"a": "1"}, {"b": "2", "c": "3"}]
    tools = json.dumps([{"name": "f", "parameters": {key: {"type": "str, optional"} for key in "abc"}}])
    records = [
        {"id": str(n), "query": "q", "tools": tools, "answers": [{"name": "f", "arguments": values}]}
        for n, values in enumerate(arguments)
    ]
    calls = pa.list_(pa.struct({"name": pa.string(), "arguments": pa.map_(pa.string(), pa.string())}))
    answers = [[{"name": "f", "arguments": list(values.items())}] for values in arguments]
    columns = {key: [record[key] for record in records] for key in ("id", "query", "tools")}
    pq.write_table(pa.table(columns | {"answers": pa.array(answers, calls)}), tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", records))


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("layout", ["xLAM", "messages"])
def test_json_columns_of_datasets_are_read_unchanged(tmp_path, layout, place):
    """TRL's documented form of tools. Null keys of a message have no meaning."""
    json_list = datasets.List(datasets.Json())
    records = [{key: row[key] for key in ("id", "query", "tools", "answers")} for row in LISTS]
    features = {"id": datasets.Value("string"), "query": datasets.Value("string")}
    if layout == "xLAM":
        features |= {"tools": json_list, "answers": json_list}
    else:
        text = datasets.Value("string")
        messages = datasets.List({"role": text, "content": text, "tool_calls": json_list})
        features = {"id": text, "messages": messages, "tools": json_list}
        records = [
            {
                "id": row["id"],
                "tools": row["tools"],
                "messages": [
                    {"role": "user", "content": row["query"]},
                    {"role": "assistant", "tool_calls": [{"type": "function", "function": f} for f in row["answers"]]},
                ],
            }
            for row in LISTS
        ]
    (tmp_path / "hub").mkdir()
    data = datasets.Dataset.from_list(records, features=datasets.Features(features))
    data.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    path = tmp_path / "hub" if place == "folder" else tmp_path / "hub" / "train-00000-of-00001.parquet"
    wanted = load_rows(write_jsonl(tmp_path / "rows.jsonl", records))[0]
    assert load_rows(str(path))[0] == wanted and len(wanted) == 20


def test_a_tool_without_a_description_gets_none_from_other_tools(tmp_path):
    tools = [{"name": "f", "parameters": {"a": {"type": "int"}}}, {"name": "g", "description": "d", "parameters": {}}]
    records = [{"id": str(n), "query": "q", "tools": [tool], "answers": "[]"} for n, tool in enumerate(tools)]
    text = datasets.Value("string")
    tool = {"name": text, "description": text, "parameters": datasets.Json()}
    features = datasets.Features({"id": text, "query": text, "tools": datasets.List(tool), "answers": text})
    datasets.Dataset.from_list(records, features=features).to_parquet(tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", records))


def test_a_parquet_file_with_converted_texts_is_named_each_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path / "cache")
    write_jsonl(tmp_path / "hub" / "train.jsonl", number_like_rows())
    mixed = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "datasets"))
    mixed.to_parquet(tmp_path / "rows.parquet")
    for _ in range(2):  # from the file, then from the cache
        capsys.readouterr()
        rows, _ = load_rows(str(tmp_path / "rows.parquet"))
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "datasets wrote" in line]
        assert "rows.parquet: datasets wrote answers as JSON" in line
        assert 'in x a text that looks like JSON ("12.50") is now that value' in line
    # Only texts that are not JSON are still texts.
    assert argument_values(rows) == ["007", 12.5, True, None, 1e5, "NaN", {"a": 1}, "Rome", 0.123456789, 0.0, [1]]


def test_nested_columns_without_json_are_refused(tmp_path):
    by_column = {"tools": LISTS, "answers": [{**row, "tools": json.dumps(row["tools"])} for row in LISTS]}
    for name, records in by_column.items():
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
        with pytest.raises(UserError, match=f"column {name} is .*, but must hold JSON strings: an Arrow object"):
            load_rows(str(tmp_path / "rows.parquet"))


def test_arguments_as_json_text_in_a_nested_column_are_read(tmp_path):
    as_text = [
        {
            **row,
            "answers": [{**call, "arguments": json.dumps(call["arguments"])} for call in json.loads(row["answers"])],
        }
        for row in GOOD
    ]
    pq.write_table(pa.Table.from_pylist(as_text), tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD))


def test_parts_of_a_message_are_read_from_nested_columns(tmp_path):
    parts = [{"type": "text", "text": "Is it raining"}, {"type": "text", "text": " in Rome?"}]
    calls = [{"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [], "tool_calls": calls}]
    records = [
        {"id": "1", "messages": messages, "tools": '[{"name": "weather", "parameters": {"city": {"type": "str"}}}]'}
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", records))


def test_unread_columns_of_parquet_may_have_any_type(tmp_path):
    extras = [
        {"metadata": {"input": {"a": n}}, "embedding": [0.5], "image": {"bytes": b"x", "path": None}} for n in range(20)
    ]
    table = pa.Table.from_pylist([{**row, **extra} for row, extra in zip(GOOD, extras, strict=True)])
    pq.write_table(table, tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD))


def test_a_missing_column_is_named(tmp_path):
    datasets.Dataset.from_list([{"id": 1, "query": "q"}]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="no column tools, answers; it has id, query"):
        load_rows(str(tmp_path / "rows.parquet"))


def test_a_broken_line_gives_the_parser_s_error_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD[0]) + '\n\n{"id": tru}\n[1]\n' + "[" * 200_000 + "\n")
    (first, record), (second, error), (third, none), (fourth, deep) = read_file(path)
    assert (first, second, third, fourth) == ("line 1", "line 3", "line 4", "line 5")
    assert record == GOOD[0] and none is None
    assert isinstance(error, json.JSONDecodeError) and (error.msg, error.colno) == ("Expecting value", 8)
    assert isinstance(deep, ValueError)


def test_json_lines_may_have_the_suffix_json(tmp_path):
    """Many data sets on the hub use this suffix."""
    path = tmp_path / "rows.json"
    wanted = load_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD))
    write_jsonl(path, GOOD)
    assert load_rows(str(path)) == wanted
    path.write_text(json.dumps(GOOD) + "x")
    with pytest.raises(UserError, match="is not valid JSON: Extra data"):
        load_rows(str(path))


def test_files_of_a_split_are_read_in_order_and_bad_rows_name_their_file(tmp_path):
    write_jsonl(tmp_path / "hub" / "train-00000-of-00002.jsonl", [*GOOD[:10], {"query": 3}])
    write_jsonl(tmp_path / "hub" / "train-00001-of-00002.jsonl", [*GOOD[10:], {"query": 3}])
    write_jsonl(tmp_path / "hub" / "test.jsonl", generate_rows(5, seed=4))
    rows, bad = load_rows(str(tmp_path / "hub"), max_bad_rows=2)
    assert [row.id for row in rows] == [row["id"] for row in GOOD]
    (names,) = bad.values()
    assert [name[:34] for name in names] == [f"train-0000{n}-of-00002.jsonl line 11" for n in (0, 1)]


def test_an_edited_compressed_file_is_read_again(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    for records in (GOOD[:10], GOOD[10:]):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "hub" / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        assert [row.id for row in load_rows(str(tmp_path / "hub"))[0]] == [record["id"] for record in records]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.csv", "train.csv has an unsupported type; supported are .json"),
        ("test.jsonl", "no split train among test; --dataset_name also takes one file"),
    ],
)
def test_folders_without_training_rows_are_refused(tmp_path, name, message):
    (tmp_path / name).write_text("query,tools,answers\n" if name == "train.csv" else json.dumps(GOOD[0]))
    with pytest.raises(UserError, match=message) as error:
        load_rows(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("place", "name"), [(".", "."), ("inner", ".."), (".", "inner/.."), ("inner", "../.")])
def test_a_folder_may_be_named_from_inside_it(tmp_path, monkeypatch, place, name):
    (tmp_path / "inner").mkdir()
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD[0]))
    monkeypatch.chdir(tmp_path / place)
    assert len(load_rows(name)[0]) == 1


def test_no_name_is_no_folder():
    with pytest.raises(UserError, match="an empty name is neither a file"):
        load_rows("")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with one data set, some/rows, whose files are `hub.files`."""
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, _ = self.path.partition("?")
            server.requests.append(path)
            siblings = [{"rfilename": name} for name in server.files]
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in server.files.items()
            ]
            name = path.split(f"/resolve/{commit}/")[-1] if f"/{commit}/" in path else path.split("/resolve/main/")[-1]
            if path.startswith("/api/datasets/some/rows/tree"):
                self.send(json.dumps(entries).encode())
            elif path.startswith("/api/datasets/some/rows/auth-check"):
                self.send(b"{}")
            elif path.startswith("/api/datasets/some/rows"):
                self.send(json.dumps({"id": "some/rows", "sha": commit, "siblings": siblings}).encode())
            elif path.startswith("/datasets/some/rows/resolve/") and name in server.files:
                self.send(server.files[name])
            else:
                self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_POST = do_GET

        def send(self, body, status=200, headers=()):
            self.send_response(status)
            own = {"Content-Length": len(body), "X-Repo-Commit": commit, "ETag": hashlib.sha1(body).hexdigest()}
            for header, value in (own | dict(headers)).items():
                self.send_header(header, str(value))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.files, server.requests = {}, []
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    for name, value in {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": False, "USE_PARQUET_EXPORT": False}.items():
        monkeypatch.setattr(f"datasets.config.{name}", value)
    yield server
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub_is_downloaded_and_then_read_offline(hub, monkeypatch, tmp_path):
    records = number_like_rows()
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("first", "second"))
    hub.files = {"README.md": f"---\nconfigs:\n{configs}---\n".encode(), "first.jsonl": b"", "second.jsonl": text}
    rows, bad = load_rows("some/rows", config_name="second")
    assert not bad and argument_values(rows) == [record["answers"][0]["arguments"]["x"] for record in records]
    assert not any("resolve" in path and "first.jsonl" in path for path in hub.requests)
    with pytest.raises(UserError, match="--dataset_config_name chooses one"):
        load_rows("some/rows")
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert load_rows("some/rows", config_name="second")[0] == rows and not hub.requests
    with pytest.raises(UserError, match="cannot load the data set other/rows"):
        load_rows("other/rows")


def test_rows_are_of_the_revision_that_was_asked_for(hub):
    hub.files = {"train.jsonl": (json.dumps(GOOD[0]) + "\n").encode()}
    assert len(load_rows("some/rows", revision="v1")[0]) == 1
    assert not any("/resolve/main/" in path for path in hub.requests)


def test_the_cache_restores_rows_and_their_summary():
    """All results of valid_rows, with repeats, bad rows and several layouts."""
    city = unicodedata.normalize("NFD", "Köln 北京 😀")
    messages = [{"role": "user", "content": city}, {"role": "assistant", "tool_calls": LISTS[0]["answers"]}]
    bare = {key: value for key, value in GOOD[3].items() if key != "id"}
    records = [
        *GOOD, GOOD[2], bare, bare, {"messages": json.dumps(messages), "tools": GOOD[0]["tools"], "id": 7},
        {**GOOD[4], "id": "half \ud800"}, {**GOOD[5], "id": 9, "required": "[", "acceptable": "[]"},
        {**GOOD[5], "id": 10, "required": "{}", "acceptable": "[]", "category": "x"}, None,
    ]  # fmt: skip
    rows, *others = valid_rows([(f"line {n}", record) for n, record in enumerate(records)])
    assert unpack(pack(rows, others)) == (rows, *others)


@pytest.mark.parametrize("change", ["possible_answer", "name", "code", "second file"])
def test_a_change_of_any_source_of_rows_misses_the_cache(change, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path / "cache")
    code = tmp_path / "data_utils"
    shutil.copytree(Path(cache.__file__).parent, code)
    monkeypatch.setattr(cache, "__file__", str(code / "cache.py"))
    questions = [
        {"id": f"simple_{n}", "question": [[{"role": "user", "content": str(n)}]], "function": [FUNCTION]}
        for n in range(3)
    ]
    truths = [{"id": f"simple_{n}", "ground_truth": [{"f": {"x": [n]}}]} for n in range(3)]
    folder, accepted = tmp_path / "hub", tmp_path / "hub" / "possible_answer"
    source = folder
    if change == "second file":
        for shard in range(2):
            write_jsonl(folder / f"train-{shard}.jsonl", GOOD[shard::2])
    else:
        source = Path(write_jsonl(folder / "BFCL_v3_simple.json", questions))
        write_jsonl(accepted / "BFCL_v3_simple.json", truths)

    def load():
        return load_rows(str(source)), len(list((tmp_path / "cache").glob("*/*")))

    before, files = load()
    assert load() == (before, 1) and files == 1
    if change == "possible_answer":
        write_jsonl(accepted / "BFCL_v3_simple.json", [truths[0], truths[2] | {"id": "simple_1"}, truths[2]])
    elif change == "name":
        for part in (folder, accepted):
            (part / "BFCL_v3_simple.json").rename(part / "simple.json")
        source = folder / "simple.json"
    elif change == "code":
        (code / "rows.py").write_text((code / "rows.py").read_text() + "\n# other rules\n")
    else:
        write_jsonl(folder / "train-1.jsonl", GOOD[3::2])
    after, files = load()
    assert files == 2 and (after == before) == (change in ("name", "code"))


FUNCTION = {
    "name": "f", "description": "d", "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}},
        "required": ["x"]},
}  # fmt: skip


def test_a_file_on_which_a_reader_fails_is_refused_in_a_line(tmp_path):
    twice = pa.array([[("a", "b"), ("a", "c")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"query": twice, "tools": ["[]"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="cannot read .*rows.parquet: KeyError: .*duplicate key") as error:
        read_file(tmp_path / "rows.parquet")
    assert "\n" not in str(error.value)


def test_a_pipe_that_is_named_as_rows_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="rows.jsonl cannot be read: not a file"):
        read_file(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="rows.jsonl: no such file"):
        load_rows(str(tmp_path / "rows.jsonl"))
