import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from data_utils import cache
from data_utils.misfits import fit
from data_utils.sources import load_rows
from data_utils.split import split_rows
from data_utils.tool_schema import call_problems
from demo.rows import generate_rows
from run_utils.errors import UserError
from run_utils.hub import check_hub_access

GOOD = generate_rows(60, seed=3)
EMPTY_SUMMARY = {
    "layouts": {},
    "unreadable": 0,
    "without_calls": 0,
    "misfits": [0, []],
    "repeats": [0, []],
    "notes": {},
}


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_every_format_gives_the_same_rows(tmp_path):
    expected, bad = load_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD))
    assert not bad
    assert [(row.query, json.loads(row.tools)) for row in expected] == [
        (r["query"], json.loads(r["tools"])) for r in GOOD
    ]
    (tmp_path / "rows.json").write_text(json.dumps(GOOD))
    as_lists = [{**row, "tools": json.loads(row["tools"]), "answers": json.loads(row["answers"])} for row in GOOD]
    (tmp_path / "lists.json").write_text(json.dumps(as_lists))
    datasets.Dataset.from_list(GOOD).to_parquet(tmp_path / "rows.parquet")
    hub_folder = tmp_path / "hub"  # in the layout of Salesforce/xlam-function-calling-60k
    hub_folder.mkdir()
    (hub_folder / "xlam_function_calling_60k.json").write_text(json.dumps(GOOD))
    (hub_folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: dataset\n  data_files:\n  - split: train\n"
        "    path: xlam_function_calling_60k.json\n---\n"
    )
    for name in ("rows.json", "lists.json", "rows.parquet", "hub"):
        assert load_rows(str(tmp_path / name))[0] == expected, name


@pytest.mark.parametrize("name", ["rows.jsonl", "hub"])
def test_rows_are_read_from_the_cache_until_their_source_changes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path / "cache")
    source, file = tmp_path / name, tmp_path / name
    if name == "hub":
        source.mkdir()
        file = source / "rows.jsonl"
    records = [*GOOD, {**GOOD[0], "id": "bad \ud800" if name == "rows.jsonl" else "bad", "tools": "no JSON"}]
    write_jsonl(file, records)
    fresh = load_rows(str(source), max_bad_rows=1)
    assert len(fresh[0]) == 60 and list(fresh[1].values()) == [[f"{records[-1]['id']} (column 1)"]]
    printed = capsys.readouterr().err
    assert load_rows(str(source), max_bad_rows=1) == fresh
    assert capsys.readouterr().err == printed and "rows without calls: 3\n" in printed
    (stored,) = (tmp_path / "cache").glob("*/*")
    assert stored.stat().st_mode == file.stat().st_mode  # safetensors writes mode 0600
    save_file(
        load_file(stored) | {"others": np.frombuffer(json.dumps([{}, EMPTY_SUMMARY]).encode(), dtype=np.uint8)}, stored
    )
    assert load_rows(str(source))[1] == {}  # from the cached file
    stored.write_bytes(stored.read_bytes()[:1000])  # like on a full disk
    assert load_rows(str(source), max_bad_rows=1) == fresh
    write_jsonl(file, [*GOOD[1:], *generate_rows(61, seed=4)[60:]])
    assert [row.id for row in load_rows(str(source))[0]] == [*(row["id"] for row in GOOD[1:]), "demo-0000060"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_unread_fields_of_json_may_have_any_type(tmp_path, name):
    """`datasets` would give each column of a folder one type."""
    extras = [{"id": i if i % 2 else f"x{i}", "metadata": {"a": [{"b": i}]} if i % 3 else "text"} for i in range(60)]
    records = [{**row, **extra} for row, extra in zip(GOOD, extras, strict=True)]
    write = write_jsonl if name == "rows.jsonl" else lambda path, records: path.write_text(json.dumps(records))
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / name, records)
    rows, bad = load_rows(str(tmp_path / "hub"))
    assert not bad and [row.id for row in rows] == [str(extra["id"]) for extra in extras]
    assert [row.query for row in rows] == [row["query"] for row in GOOD]


def test_dictionary_encoded_strings_are_strings(tmp_path):
    table = pyarrow.Table.from_pylist(GOOD)
    for column in ("query", "tools", "answers"):
        table = table.set_column(table.column_names.index(column), column, table[column].dictionary_encode())
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD))


def test_one_of_several_configurations_is_chosen_by_name(tmp_path):
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("first", "second"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    write_jsonl(tmp_path / "first.jsonl", GOOD[:20])
    write_jsonl(tmp_path / "second.jsonl", GOOD[20:])
    with pytest.raises(UserError, match="--dataset_config_name chooses one"):
        load_rows(str(tmp_path))
    assert [row.id for row in load_rows(str(tmp_path), config_name="second")[0]] == [row["id"] for row in GOOD[20:]]
    with pytest.raises(UserError, match="--dataset_config_name is for"):
        load_rows(str(tmp_path / "first.jsonl"), config_name="second")


def test_ids_and_unread_fields_do_not_change_fingerprints(tmp_path):
    bare = [{key: value for key, value in row.items() if key != "id"} for row in GOOD]
    more = [{**row, "source": i} for i, row in enumerate(bare)]
    rows = load_rows(write_jsonl(tmp_path / "bare.jsonl", bare))[0]
    assert rows == load_rows(write_jsonl(tmp_path / "more.jsonl", more))[0]
    with_ids = load_rows(write_jsonl(tmp_path / "ids.jsonl", GOOD))[0]
    assert [row.fingerprint for row in rows] == [row.fingerprint for row in with_ids]


def test_nested_parquet_columns_are_refused(tmp_path):
    """`datasets` and Parquet pad nested columns with every other row's keys (trl#5118)."""
    as_lists = [{**row, "tools": json.loads(row["tools"])} for row in GOOD[:2]]
    datasets.Dataset.from_list(as_lists).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="column tools .* must hold JSON strings"):
        load_rows(str(tmp_path / "rows.parquet"))


def test_tools_get_no_null_keys(tmp_path):
    tools = [[{"name": "f", "parameters": {"only_here": {"type": "int"}}}], [{"name": "g", "parameters": {}}]]
    records = [{"id": i, "query": "q", "tools": json.dumps(t), "answers": "[]"} for i, t in enumerate(tools)]
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "rows.parquet")
    rows, _ = load_rows(str(tmp_path / "rows.parquet"))
    assert [json.loads(row.tools) for row in rows] == tools


def test_bad_rows_are_counted_and_named(tmp_path):
    call = [{"name": "f", "arguments": {}}]
    good = {"id": "fine", "query": "q", "tools": '[{"name": "f"}]', "answers": json.dumps(call)}
    records = [
        good,
        {**good, "id": "unknown", "answers": '[{"name": "g", "arguments": {}}]'},
        {**good, "id": "broken", "answers": "[{"},
        {**good, "id": "nan", "answers": '[{"name": "f", "arguments": {"x": NaN}}]'},
        {**good, "id": "scalar", "answers": "1"},
        {key: value for key, value in good.items() if key != "tools"} | {"id": 17},
        {**good, "id": "surrogate", "answers": '[{"name": "f", "arguments": {"x": "\\ud800"}}]'},
        {**good, "id": "number", "query": 3},
        {**good, "id": "shape", "required": '["x"]'},
        {**good, "query": "other"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"id": \n\n[1]\n')
    rows, bad = load_rows(str(path), max_bad_rows=11)
    assert [row.id for row in rows] == ["fine"]
    assert bad == {
        "a call to a tool that is not in its list": ["unknown (g)"],
        "broken JSON in field 'answers': Expecting property name enclosed in double quotes": ["broken (column 3)"],
        "broken JSON in field 'answers': NaN is not JSON": ["nan"],
        "not a list of calls": ["scalar"],
        "missing field 'tools'": ["17"],
        "half a surrogate pair in a string": ["surrogate (answers)"],
        "field 'query' is not a string": ["number"],
        "field 'required' is not an object with a list of names for each tool": ["shape"],
        "the id of another row, with other content": ["fine (line 10)"],
        "broken JSON in a line, which must be a whole row: Expecting value": ['line 11: {"id": (column 7)'],
        "not a JSON object": ["line 13"],
    }
    report = tmp_path / "bad.json"
    with pytest.raises(UserError, match=rf"11 of the 12 rows .*; 6 more reasons.*--max_bad_rows allows 9; .*{report}"):
        load_rows(str(path), max_bad_rows=9, report=report)
    assert json.loads(report.read_text()) == bad
    with pytest.raises(UserError, match="--max_bad_rows allows 6$"):
        load_rows(str(path), max_bad_rows=0.55)


@pytest.mark.parametrize("ids", ["without ids", "the same ids", "other ids"])
def test_a_repeated_row_is_left_out_and_counted_but_not_bad(tmp_path, capsys, ids):
    rows = [row | {"id": i} for i, row in enumerate(GOOD)]
    repeats = [row | {"id": f"again {i}"} if ids == "other ids" else row for i, row in enumerate(rows[:7])]
    records = [{k: row[k] for k in row if k != "id" or ids != "without ids"} for row in rows + repeats]
    found, bad = load_rows(write_jsonl(tmp_path / "rows.jsonl", records), max_bad_rows=0)
    assert len(found) == 60 and bad == {}
    assert "rows left out, since they repeat another: 7 (" in capsys.readouterr().err


def test_a_row_with_its_keys_in_another_order_repeats_it(tmp_path, capsys):
    answers = [{"name": "f", "arguments": {"x": 1, "y": {"a": 1, "b": 2}}}]
    turned = [{"arguments": {"y": {"b": 2, "a": 1}, "x": 1}, "name": "f"}]
    tools, other = '[{"name": "f", "description": "d"}]', '[{"description": "d", "name": "f"}]'
    records = [
        {"id": "first", "query": "q", "tools": tools, "answers": json.dumps(answers)},
        {"id": "second", "query": "q", "tools": other, "answers": json.dumps(turned)},
    ]
    rows, bad = load_rows(write_jsonl(tmp_path / "rows.jsonl", records))
    assert [row.id for row in rows] == ["first"] and bad == {}
    assert "since they repeat another: 1 (second)" in capsys.readouterr().err


def test_what_reading_the_tools_had_to_cut_is_counted_by_its_reason(tmp_path, capsys):
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    tools = json.dumps([{"name": "f", "inputSchema": tree}])
    records = [{"id": str(n), "query": f"q{n}", "tools": tools, "answers": "[]"} for n in range(3)]
    load_rows(write_jsonl(tmp_path / "rows.jsonl", records))
    assert "tool f, children: contains itself, cut at its bare type: 3" in capsys.readouterr().err


def test_misfit_answers_are_counted_with_two_ids_and_a_reason(tmp_path, capsys):
    tools = '[{"name": "f", "parameters": {"x": {"type": "int"}}}]'
    answers = [{"x": 1}, {"x": "1"}, {}, {"y": 1}]
    records = [
        {"id": f"r{i}", "query": "q", "tools": tools, "answers": json.dumps([{"name": "f", "arguments": arguments}])}
        for i, arguments in enumerate(answers)
    ]
    load_rows(write_jsonl(tmp_path / "rows.jsonl", records))
    assert "fit their own tools: 3 (r1, r2): f.x: '1' is not of type 'integer'" in capsys.readouterr().err


KINDS = ["int", "float", "str", "bool", "list", "dict", "List[int]", "List[List[str]]", "Dict[str, int]",
         "Union[int, None]", "Tuple[int, str]", "thing"]  # fmt: skip
VALUES = [0, 1.0, True, "a", "1", None, [], [1], [True], [["a"]], [[1]], {}, {"a": 1}, {"a": "b"}, [1, "a"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"default": None}, {"enum": ["a", "b"]}, {"enum": [1, "a", True]}])
def test_the_quick_check_agrees_with_jsonschema(kind, more):
    tools = [{"name": "f", "parameters": {"x": {"type": kind} | more}}]
    for arguments in [{}, {"y": 1}, {"x": 1, "y": 1}, *({"x": value} for value in VALUES)]:
        calls = [{"name": "f", "arguments": arguments}]
        assert fit(calls, tools) == (not call_problems(calls, tools)), arguments


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "no such file"),
        ("empty.jsonl", "", "has no rows"),
        ("empty.json", "[]", "has no rows"),
        ("broken.json", "[{", "is not valid JSON"),
        ("object.json", "{}", "must hold a list"),
        ("broken.parquet", "PAR1 or not", "not a readable Parquet file"),
        ("rows.csv", "a,b", "rows.csv: unsupported file type"),
        ("latin.jsonl", b"\xff\xfe\xff", "cannot read"),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        load_rows(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("real", [False, True])
def test_strings_and_lists_are_checked_alike(tmp_path, name, real):
    """A repeated key, invalid JSON, and too deep a value: in a list as in its text."""
    answers = [
        '[{"name": "f", "arguments": {"a": 1, "a": 2}}]', '[{"name": "f", "arguments": {"a": NaN}}]',
        '[{"name": "f", "arguments": {"a": 1e999}}]', f'[{{"name": "f", "arguments": {{"a": {"[" * 70}{"]" * 70}}}}}]',
        '[{"name": "f", "arguments": {"a": 1}}]',
    ]  # fmt: skip
    tools = ['[{"name": "f", "name": "g"}]', '[{"name": "f", "parameters": {"a": {}, "a": {}}}]', '[{"name": "f"}]']
    cells = [(text, tools[-1]) for text in answers] + [(answers[-1], text) for text in tools]
    lines = [
        f'{{"id": {i}, "query": "q{i}", "answers": {a if real else json.dumps(a)}, '
        f'"tools": {t if real else json.dumps(t)}}}'
        for i, (a, t) in enumerate(cells)
    ]
    twice = '{"id": 8, "query": "q", "query": "p", "answers": [], "tools": []}'
    text = "\n".join([*lines, twice]) if name == "rows.jsonl" else f"[{', '.join([*lines, twice])}]"
    (tmp_path / name).write_text("\ufeff" + text)
    rows, bad = load_rows(str(tmp_path / name), max_bad_rows=100)
    assert [row.id for row in rows] == ["4", "7"]
    ids = {
        column: [ids[0] for reason, ids in bad.items() if f"'{column}'" in reason] for column in ("answers", "tools")
    }
    assert ids == {"answers": ['0 ("a")', "1", "2", "3"], "tools": ['5 ("name")']}
    assert [ids for reason, ids in bad.items() if "'tools'" in reason] == [['5 ("name")', '6 ("a")']]


@pytest.mark.parametrize(
    ("num_rows", "fraction", "held_out"), [(94, 0.05, 5), (95, 0.05, 5), (87, 0.05, 4), (7, 0.5, 4)]
)
def test_the_size_of_the_split_is_rounded(rows, num_rows, fraction, held_out):
    assert len(split_rows(rows[:num_rows], fraction, seed=42)[1]) == held_out


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return load_rows(write_jsonl(tmp_path_factory.mktemp("split") / "rows.jsonl", generate_rows(1010, seed=4)))[0]


def test_the_random_split_depends_on_seed_and_id_only(rows):
    training, evaluation, neither = split_rows(rows, 0.05, seed=42)
    assert (len(training), len(evaluation), neither) == (960, 50, [])  # round(50.5) is 50
    assert {row.id for row in training + evaluation} == {row.id for row in rows}
    shuffled = random.Random(0).sample(rows, len(rows))
    assert split_rows(shuffled, 0.05, seed=42) == (training, evaluation, [])
    assert set(split_rows(rows, 0.05, seed=43)[1]) != set(evaluation)
    # A row's side does not depend on other rows: half of the rows keep their held-out rows.
    half = [row for i, row in enumerate(rows) if i % 2]
    assert set(split_rows(half, 0.05, seed=42)[1]) >= {row for row in half if row in evaluation[:20]}


def test_the_tools_split_shares_no_tool(rows):
    training, evaluation, neither = split_rows(rows, 0.03, seed=42, by="tools")
    assert len(evaluation) == round(0.03 * len(rows))
    names = [set().union(*(row.tool_names() for row in part)) for part in (training, evaluation)]
    assert training and not names[0] & names[1]
    assert len(training) + len(evaluation) + len(neither) == len(rows)
    assert split_rows(list(reversed(rows)), 0.03, seed=42, by="tools") == (training, evaluation, neither)


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that answers every request with `hub.status` and `hub.error_code`."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.status)
            self.send_header("X-Error-Code", server.error_code)
            self.send_header("X-Error-Message", "as the test wishes")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", r"is gated: accept its conditions at http.*/datasets/some/rows.*\(GatedRepoError\)"),
        (401, "GatedRepo", "is gated"),
        (404, "RepoNotFound", r"no dataset some/rows.*\(RepositoryNotFoundError\)"),
        (404, "RevisionNotFound", r"no dataset some/rows at revision v9.*\(RevisionNotFoundError\)"),
        (500, "", "cannot reach"),
    ],
)
def test_an_error_of_the_hub_is_explained(hub, status, code, message):
    hub.status, hub.error_code = status, code
    with pytest.raises(UserError, match=message):
        check_hub_access("some/rows", "dataset", "v9")


def test_an_unreachable_hub_is_explained(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="cannot reach .*HF_HUB_OFFLINE=1$"):
        load_rows("some/rows")


@pytest.mark.parametrize("row_id", [float("nan"), float("-inf"), None, ""])
def test_a_missing_id_is_none_however_it_is_written(tmp_path, row_id):
    rows, bad = load_rows(write_jsonl(tmp_path / "rows.jsonl", [row | {"id": row_id} for row in GOOD]))
    assert not bad and [row.id for row in rows] == [row.fingerprint for row in rows]


def test_a_row_s_own_x_conversation_is_not_ours(tmp_path):
    named = [row | {"x-conversation": [number], "x-opening": {}} for number, row in enumerate(GOOD)]
    assert load_rows(write_jsonl(tmp_path / "a.jsonl", named)) == load_rows(write_jsonl(tmp_path / "b.jsonl", GOOD))
