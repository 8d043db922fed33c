"""Damaged, edited or foreign files are refused: one line has the file and the fault."""

import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_utils.comparison import read_folder
from eval_utils.folder import check_comparison_folder, check_folder, read_predictions
from eval_utils.model_card import read_evaluation
from eval_utils.server_answers import describe_messages
from model_utils.answer_file import earlier_answers
from run_utils.checkpoint import read_checkpoint
from run_utils.errors import UserError
from run_utils.files import apply_umask, lock_folder, naming_full_disk, new_folder, read_json, write_json, write_text
from run_utils.journal import append
from run_utils.output_folder import holds_run, make_writable

DAMAGED = {
    "empty": b"",
    "cut": b'{"a": 1',
    "list": b"[]",
    "number": b"5",
    "null": b"null",
    "text": b'"adapter"',
    "no UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"a":' * 300 + b"1" + b"}" * 300,
    "long number": b'{"a": ' + b"9" * 10_000 + b"}",
}
ROW = {"id": "a", "query": "q", "tools": '[{"name": "f"}]', "answers": "[]"}
PREDICTION = {
    "system": "prompted", "id": "a", "text": "[]", "finish": "end", "num_tokens": 1, "num_prompt_tokens": 9, "seconds": 0.1
}  # fmt: skip
ARGS = {"systems": ["prompted"], "prompt_format": "tags-1", "dataset_name": "d", "model_name_or_path": "m"}


@pytest.fixture
def evaluation(tmp_path):
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    for name, value in (
        ("rows.jsonl", ROW),
        ("predictions.jsonl", PREDICTION),
        ("args.yaml", ARGS),
        ("environment.json", {}),
    ):
        (folder / name).write_text(json.dumps(value) + "\n")
    assert len(read_folder(folder).rows) == 1
    return folder


def problem(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "state.json").write_bytes(content)
    assert str(tmp_path / "state.json") in problem(read_json, tmp_path / "state.json")


def test_json_that_is_written_is_read_and_a_value_that_cannot_be_written_leaves_the_old(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1, "text": "北京\ud800"})
    assert read_json(path) == {"step": 1, "text": "北京\ud800"}
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a surrogate pair \ud800")
    assert read_json(path)["step"] == 1 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_neither_a_pipe_nor_a_folder_is_read(tmp_path, make):
    make(tmp_path / "state.json")
    assert "not a file" in problem(read_json, tmp_path / "state.json")


def test_a_missing_file_and_a_missing_key_are_named(tmp_path):
    assert "No such file" in problem(read_json, tmp_path / "state.json")
    (tmp_path / "state.json").write_text("{}")
    assert "no 'step' there" in problem(read_json, tmp_path / "state.json", lambda value: value["step"])


@pytest.mark.parametrize("name", ["rows.jsonl", "environment.json", "args.yaml"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_evaluation_is_refused_in_a_line(evaluation, name, content):
    if (name, content) == ("args.yaml", DAMAGED["long number"]):
        content = b"[]"
    (evaluation / name).write_bytes(content)
    assert name in problem(read_folder, evaluation)


@pytest.mark.parametrize(
    "change",
    [{"query": 5}, {"tools": "no"}, {"tools": "[1]"}, {"answers": "{}"}, {"answers": '[{"name": "f"}]'}, {"id": ["a"]},
     {"acceptable": "["}, {"required": '{"f": 3}'}, {"required": "[]"}, {"category": None}, {"more": 1}],
)  # fmt: skip
def test_a_row_that_cannot_be_scored_is_refused_in_a_line(evaluation, change):
    (evaluation / "rows.jsonl").write_text(json.dumps(ROW | change))
    assert "rows.jsonl" in problem(read_folder, evaluation)


def test_a_row_with_all_of_its_columns_can_be_scored(evaluation):
    more = {"category": "simple", "acceptable": '[{"f": {"x": [1]}}]', "required": '{"f": ["x"]}', "fingerprint": "0f"}
    (evaluation / "rows.jsonl").write_text(json.dumps(ROW | more))
    (row,) = read_folder(evaluation).rows
    assert row._asdict().items() >= (ROW | more).items()


@pytest.mark.parametrize(
    "change", [{"prompt_format": ["tags-1"]}, {"prompt_format": {"a": 1}}, {"systems": "prompted"}]
)
def test_settings_of_other_types_are_refused_in_a_line(evaluation, change):
    (evaluation / "args.yaml").write_text(json.dumps(ARGS | change))
    assert "args.yaml" in problem(read_folder, evaluation)


FIELDS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*PREDICTION, "came_as", "retries", "refusal"]), FIELDS))
def test_a_prediction_of_any_types_is_scored_or_dropped(tmp_path_factory, fields):
    path = tmp_path_factory.getbasetemp() / "predictions-0.jsonl"
    path.write_text(json.dumps(PREDICTION | fields) + "\n" + json.dumps(PREDICTION))
    read = list(read_predictions(path))
    assert 1 <= len(read) <= 2 and read[-1] == PREDICTION
    describe_messages("prompted", read)
    for prediction in read:
        assert isinstance(prediction["text"], str) and 0 * prediction["seconds"] == 0


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_between_predictions_is_none(tmp_path, content):
    path = tmp_path / "predictions-0.jsonl"
    line = json.dumps(PREDICTION).encode()
    path.write_bytes(line + b"\n" + content + b"\n" + line)
    assert list(read_predictions(path)) == [PREDICTION, PREDICTION]


@pytest.mark.parametrize("name", ["metrics.json", "environment.json", "args.yaml"])
@pytest.mark.parametrize("content", [*DAMAGED.values(), b"{}", b'{"systems": 5}', b'{"systems": {"a": 5}}'])
def test_a_damaged_evaluation_beside_an_adapter_is_left_out_of_its_card(evaluation, name, content):
    (evaluation / "metrics.json").write_text('{"systems": {}}')
    (evaluation / name).write_bytes(content)
    adapter = evaluation.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    assert read_evaluation(adapter, {"dataset_name": "d"}) is None


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_runs_and_results_are_not_recognised(tmp_path, content):
    for name in ("args.yaml", "environment.json", "metrics.json"):
        (tmp_path / name).write_bytes(content)
    assert not holds_run(tmp_path)
    assert "another model" in problem(check_folder, tmp_path, {"rows": 1})
    assert "no comparison made" in problem(check_comparison_folder, tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "state.json").write_bytes(content)
    assert "state.json" in problem(read_checkpoint, tmp_path / "checkpoint-3")


@pytest.mark.parametrize("name", ["rows.jsonl", "predictions.jsonl", "args.yaml", "environment.json"])
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(evaluation, name):
    (evaluation / name).unlink()
    os.mkfifo(evaluation / name)
    assert problem(read_folder, evaluation) == f"{evaluation / name} cannot be read: not a file"
    assert not holds_run(evaluation)


def test_a_pipe_in_the_place_of_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run")
    assert problem(make_writable, tmp_path / "run") == f"--output_dir {tmp_path / 'run'} is a file"


@pytest.mark.parametrize(
    "line", ["5", "null", "[0]", "[0, 5]", "[[0], {}]", "[true, {}]", "[7, {}]", "[-1, {}]", "[" * 100_000, '[0, {"id"']
)
def test_a_line_that_is_not_an_answer_is_generated_again(tmp_path, line):
    partial = tmp_path / "calls.jsonl.partial"
    partial.write_text('{"input": "x"}\n[1, {"id": "b"}]\n' + line)
    assert earlier_answers(partial, {"input": "x"}, 3) == {1: {"id": "b"}}
    append(partial, [[2, {"id": "c"}]])
    assert earlier_answers(partial, {"input": "x"}, 3) == {1: {"id": "b"}, 2: {"id": "c"}}


@pytest.mark.parametrize("first", ["5", "[]", "[" * 100_000, '{"input": "y"}'])
def test_answers_of_unknown_origin_are_not_continued(tmp_path, first):
    partial = tmp_path / "calls.jsonl.partial"
    partial.write_text(first + "\n")
    assert "remove it" in problem(earlier_answers, partial, {"input": "x"}, 3)


def test_the_next_export_deletes_a_killed_exports_folder_and_no_other(tmp_path):
    incomplete = tmp_path / "incomplete-export"
    killed = new_folder(tmp_path / "export")
    (killed.__enter__() / "model.safetensors").write_bytes(b"half")
    with new_folder(tmp_path / "export") as folder:
        assert [path.name for path in folder.iterdir()] == [".unfinished_export"]
        (folder / "config.json").touch()
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["config.json"] and not incomplete.exists()
    incomplete.mkdir()
    (incomplete / "notes.txt").write_text("of somebody")
    assert "no export has left it" in problem(new_folder(tmp_path / "export").__enter__)
    assert (incomplete / "notes.txt").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: no space (os error 28)")])
def test_a_full_disk_is_named_with_its_need_and_the_remedy(tmp_path, error):
    def write():
        with naming_full_disk(tmp_path / "export", 5 * 2**20, "make room, and the same command exports it"):
            raise error

    line = problem(write)
    assert line.startswith(f"{tmp_path / 'export'} could not be written: it needs about 5.0 MiB and the disk has ")
    assert line.endswith("MiB free; make room, and the same command exports it")


def test_a_folder_is_locked_for_others_and_not_for_its_own_process(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    for name in ("free", "taken"):
        (tmp_path / name).mkdir()
    others = {name: os.open(tmp_path / name, os.O_RDONLY) for name in ("free", "taken")}
    fcntl.flock(others["taken"], fcntl.LOCK_EX)
    assert "another process is working in" in problem(lock_folder, tmp_path / "taken")
    for _ in range(2):
        lock_folder(tmp_path / "free")
    with pytest.raises(BlockingIOError):
        fcntl.flock(others["free"], fcntl.LOCK_EX | fcntl.LOCK_NB)
    for handle in others.values():
        os.close(handle)


def test_private_files_become_readable_and_folders_beside_them_stay_open(tmp_path):
    # transformers saves a tokenizer's second chat template in a folder.
    weights, templates = tmp_path / "model.safetensors", tmp_path / "additional_chat_templates"
    weights.touch(mode=0o600)
    templates.mkdir()
    before = templates.stat().st_mode
    (tmp_path / "new").touch()
    apply_umask(*tmp_path.iterdir())
    assert weights.stat().st_mode == (tmp_path / "new").stat().st_mode and templates.stat().st_mode == before
