"""The findings of inspect_data.py in rows; its rows and tokens are the training's."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from planted import planted_rows
from tokenizers import normalizers
from transformers import AutoTokenizer

import inspect_data
import train
from data_utils import cache
from data_utils.dataset import prepare_data
from demo.rows import generate_rows
from inspect_utils.findings import KINDS

ALONE = SimpleNamespace(num_processes=1, process_index=0, main_process_first=contextlib.nullcontext)


@pytest.fixture
def inspect(run_here, flags, tmp_path):
    """`inspect(records, **flags)`: the result of the script, and its inspection."""

    def run(records, **others):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))
        options = flags | {"dataset_name": path, "output_dir": tmp_path / "out"} | others
        result = run_here(inspect_data, options)
        assert result.code == 0, result.err
        return result, json.loads((options["output_dir"] / "inspection.json").read_text())

    return run


def finding(inspection, name):
    return next((found for found in inspection["findings"] if found["name"] == name), None)


def ids(inspection, name):
    return [item["id"] for item in finding(inspection, name)["items"]]


def test_each_planted_fault_is_found_by_its_id_and_value(inspect):
    records, planted = planted_rows()
    result, inspection = inspect([*records, '{"id": "half", "query": "x'], max_seq_length=1024)
    shown = " ".join(result.out.replace("│", " ").split())
    for name, faults in planted.items():
        for row_id, text in faults:
            items = [f"{item['id']}: {item['detail']}" for item in finding(inspection, name)["items"]]
            assert any(item.startswith(row_id or "") and text in item for item in items), (name, row_id, items)
        assert name in shown
    counts = inspection["counts"]  # each record has one row here
    assert counts["records"] == counts["valid"] + counts["bad"] + counts["repeats"] == len(records) + 1
    # Nothing else is found among the right rows, except for near-repeats.
    assert {found["name"] for found in inspection["findings"]} <= planted.keys() | {
        "near_repeat",
        "evaluation_near_repeat",
    }
    for name in planted.keys() - {"no_id"}:
        known = {row_id for row_id, _ in planted[name]}
        others = {item["id"].split(" (")[0] for item in finding(inspection, name)["items"]} - known
        assert not any(row_id.startswith("demo-") for row_id in others), (name, others)
    assert inspection["counts"]["bad"] == 14 and not inspection["verdict"]["go_on"]
    last = result.out.splitlines()[-1]
    assert last.startswith("Do not go on yet: 14 of the ") and "--max_bad_rows allows 3" in last


def test_the_terminal_names_five_ids_and_the_result_a_hundred(inspect):
    records = [row | {"query": f"TODO {row['query']}"} for row in generate_rows(150, seed=3)]
    result, inspection = inspect(records)
    found = finding(inspection, "placeholder")
    assert found["count"] == 150 and len(found["items"]) == 100
    assert sum(item["id"] in result.out for item in found["items"]) >= 5
    table = result.out[result.out.index("warning placeholder") :].split("├")[0]
    assert sum(item["id"] in table for item in found["items"]) == 5


def test_the_rows_and_tokens_are_those_of_the_training(inspect, flags, tiny_model, tmp_path):
    records = generate_rows(120, seed=4)
    options = {"max_seq_length": 500, "max_train_examples": 60, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    _, inspection = inspect(records, **options)
    args = train.TrainingArguments(
        **{name: value for name, value in flags.items() if name != "gradient_checkpointing"}
        | {"dataset_name": str(tmp_path / "records.jsonl"), "lora_r": 4, "learning_rate": 0.01}
        | options
    )
    data = prepare_data(args, AutoTokenizer.from_pretrained(tiny_model), 2048, ALONE)
    training, counts, lengths = inspection["training"], inspection["counts"], inspection["lengths"]
    assert training["rows"] == len(data.train.examples)
    assert (
        training["steps_per_epoch"] == data.train.steps_per_epoch
        and training["steps"] == 3 * data.train.steps_per_epoch
    )
    assert training["tokens_per_epoch"] == sum(
        data.train[step].num_tokens for step in range(data.train.steps_per_epoch)
    )
    assert training["supervised_per_epoch"] == sum(example.num_supervised for example in data.train.examples)
    (too_long,) = [names for reason, names in data.dropped.items() if reason.startswith("longer than")]
    (set_limit,) = [limit for limit in lengths["limits"] if limit["is_set"]]
    assert counts["too_long"] == len(too_long) == set_limit["lost"] == finding(inspection, "too_long")["count"] > 0
    assert sorted(ids(inspection, "too_long")) == sorted(too_long)
    assert sum(lengths["histogram"]["train"]) == counts["train"] == 60
    parts = {row["id"]: row["part"] for row in inspection["rows"]}
    assert {row_id for row_id, part in parts.items() if part == "eval"} == {row.id for row in data.eval_rows}
    assert inspection["proof"] == inspection["proof"] | {"rows": 66, "exact": 66, "changed": 0}
    example = inspection["examples"][0]
    supervised = "".join(text for text, weight in example["tokens"] if weight)
    row = next(row for row in records if row["id"] == example["id"])
    assert supervised == json.dumps(json.loads(row["answers"]), ensure_ascii=False) + inspection["proof"]["end_token"]


def test_answers_that_the_tokenizer_changes_are_counted_and_named(inspect, tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path / "lower")
    (tmp_path / "lower" / "config.json").write_text((tiny_model / "config.json").read_text())
    tools = [{"name": "find", "description": "Find.", "parameters": {"x": {"description": "X.", "type": "str"}}}]
    values = ["oslo", "Rome", "bern", "Kyiv"]
    records = [
        {
            "id": value,
            "query": f"find {value}",
            "tools": tools,
            "answers": [{"name": "find", "arguments": {"x": value}}],
        }
        for value in values
    ]
    result, inspection = inspect(records, model_name_or_path=tmp_path / "lower", eval_fraction=0)
    assert inspection["proof"]["exact"] == 2 and sorted(inspection["proof"]["ids"]) == ["Kyiv", "Rome"]
    assert sorted(ids(inspection, "answer_changed")) == ["Kyiv", "Rome"]
    assert "2 of 4 rows; not: " in result.out and not inspection["verdict"]["go_on"]


def test_rows_without_calls_and_tools_without_choice_are_missed(inspect):
    tools = [{"name": f"find_{n}", "description": "Find.", "parameters": {}} for n in range(2)]
    calls = [{"name": "find_0", "arguments": {}}]
    records = [{"id": f"row {n}", "query": f"find {n} times", "tools": tools, "answers": calls} for n in range(40)]
    _, inspection = inspect(records)
    assert finding(inspection, "few_rows_without_calls")["count"] == 0
    assert finding(inspection, "first_tool_right")["count"] == 38 and not finding(inspection, "one_tool_each")
    _, inspection = inspect([record | {"tools": tools[:1]} for record in records])
    assert finding(inspection, "one_tool_each")["count"] == 38
    _, inspection = inspect(
        [*records, records[0] | {"id": "silent", "query": "Hello!", "answers": []}], eval_fraction=0
    )
    assert not finding(inspection, "few_rows_without_calls")


def test_the_overlap_counts_evaluation_rows_of_another_file(inspect, tmp_path):
    records = generate_rows(40, seed=5)
    fresh = generate_rows(10, seed=5, unseen_tools=True)
    others = [row | {"id": str(place)} for place, row in enumerate([*fresh, records[0] | {"answers": "[]", "id": "x"}])]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    named = [row | {"id": str(place)} for place, row in enumerate(records)]  # the ids of both files are the same
    _, inspection = inspect(named, eval_dataset_name=tmp_path / "others.jsonl")
    overlap = inspection["overlap"]
    assert overlap["eval_rows"] == 11 and overlap["same_query"] == 1 and overlap["tools_none_seen"] == 10
    assert inspection["counts"]["train"] == 40 and inspection["counts"]["valid"] == 51
    assert [row["part"] for row in inspection["rows"]] == ["train"] * 40 + ["eval"] * 11


def test_without_its_tokenizer_the_rows_are_inspected(inspect, run_here, flags):
    result, inspection = inspect(generate_rows(30, seed=6), model_name_or_path="Somebody/model")
    assert result.err.count("Going on without lengths") == 1 and inspection["lengths"] is None
    assert "lengths are unknown without the tokenizer" in inspection["verdict"]["line"]
    chat = run_here(inspect_data, flags | {"model_name_or_path": "Somebody/model", "prompt_format": "chat"})
    assert chat.code == 1 and chat.err.count("\n") == 1


@pytest.mark.parametrize("content", [None, "", "[1, 2"])
def test_rows_that_cannot_be_read_are_one_line_and_exit_code_1(content, run_here, flags, tmp_path):
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    result = run_here(inspect_data, flags | {"dataset_name": path, "output_dir": tmp_path / "out"})
    assert result.code == 1 and result.err.count("\n") == 1 and "rows.json" in result.err
    assert not (tmp_path / "out").exists()


def test_bad_rows_alone_are_named(inspect):
    result, inspection = inspect([{"id": "a", "query": "x"}, {"id": "b"}, "{\n"])
    assert inspection["counts"] == inspection["counts"] | {"valid": 0, "bad": 3, "train": 0}
    assert ids(inspection, "missing_field") == ["a", "b"] and "no training row is left" in result.out


def test_the_cache_has_the_same_findings(inspect, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path / "cache")
    records, _ = planted_rows()
    first, again = (inspect(records) for _ in range(2))
    assert first[1] == again[1] and first[0].out == again[0].out
    kept = list((tmp_path / "cache" / "tool_call_cache").glob("faults-*"))
    assert len(kept) == 1


def test_a_training_starts_beside_its_inspection(train_here, inspect, flags, tmp_path, rows_file):
    inspect(generate_rows(30, seed=8), output_dir=flags["output_dir"])
    train_here(flags | {"max_train_steps": 1})
    assert (flags["output_dir"] / "inspection.json").is_file()


def test_each_kind_has_a_severity_and_advice():
    assert all(kind.severity in ("error", "warning", "note") and kind.advice.endswith(".") for kind in KINDS.values())


def test_rows_that_training_makes_are_inspected(inspect):
    records = [row for row in generate_rows(80, seed=9) if row["answers"] != "[]"]
    options = {"no_call_fraction": 0.2, "augment": ["shuffle"], "augment_fraction": 0.5, "loss_mask": "names_only"}
    _, plain = inspect(records)
    result, made = inspect(records, **options)
    assert [line.split()[0] for line in made["made"]] == ["Added", "Transformed"] and not plain["made"]
    assert all(line in result.out for line in made["made"])
    added = round(0.25 * plain["counts"]["train"])
    assert made["counts"]["train"] == plain["counts"]["train"] + added and made["counts"]["without_calls"] == added
    assert made["training"]["rows"] == made["counts"]["train"] and made["proof"]["exact"] == made["proof"]["rows"]
    assert made["training"]["supervised_per_epoch"] < plain["training"]["supervised_per_epoch"]
    parts = {row["id"]: row["part"] for row in made["rows"]}
    assert sum("+" in row_id for row_id in parts) == made["counts"]["made"] > added
    assert all(part == "made" for row_id, part in parts.items() if "+" in row_id)
    assert set(parts.values()) == {"train", "eval", "made"} and not finding(made, "conflicting_answers")
    _, refused = inspect(records, no_call_fraction=0.9)
    assert "--no_call_fraction 0.9 needs" in refused["verdict"]["line"] and not refused["verdict"]["go_on"]


def test_tools_are_judged_as_they_are_in_the_file(inspect):
    """Names and dropped descriptions of --augment are no faults of the rows."""
    records = [row for row in generate_rows(80, seed=9) if row["answers"] != "[]"]
    kinds = ("several_schemas", "no_description", "argument_without_description", "wrong_default", "unknown_type")
    _, plain = inspect(records)
    _, changed = inspect(records, augment=["rename", "drop_descriptions"], augment_fraction=1.0)
    assert changed["counts"]["made"] == changed["counts"]["train"]
    found, wanted = (
        {name: finding(one, name) and finding(one, name)["count"] for name in kinds} for one in (changed, plain)
    )
    assert found == wanted


def test_several_data_sets_are_counted_as_training_counts_them(inspect, train_here, flags, tmp_path):
    rows = generate_rows(120, seed=4)
    options = {"dataset_name": [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "dataset_shares": [0.75, 0.25]}
    for path, part in zip(options["dataset_name"], (rows[:60], [rows[0], *rows[50:]]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    result, inspection = inspect([], **options, max_seq_length=600)
    counts = inspection["counts"]
    assert (counts["records"], counts["valid"], counts["repeats"]) == (131, 120, 11)
    items = finding(inspection, "repeated_row")["items"]
    assert (
        items[0] == {"id": f"b.jsonl: {rows[0]['id']}", "detail": f"repeats a.jsonl: {rows[0]['id']}"}
        and len(items) == 11
    )
    run = train_here(flags | options | {"max_seq_length": 600, "max_train_steps": 1})
    trained = json.loads((run / "split.json").read_text())["trained"]
    of_b = {row["id"] for row in rows[60:]} & trained.keys()
    values = next(table["values"] for table in inspection["distributions"] if table["name"] == "data_sets")
    assert values == [["a.jsonl", len(trained) - len(of_b)], ["b.jsonl", len(of_b)]]
    assert f"Rows to train on by data set: a.jsonl: {values[0][1]}" in result.out
