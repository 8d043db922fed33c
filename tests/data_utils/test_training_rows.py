"""train.py's made rows: how many, from which rows, and none of a held-out row."""

import contextlib
import json
import re
from types import SimpleNamespace

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from data_utils.augment import TRANSFORMATIONS
from data_utils.dataset import prepare_data
from data_utils.rows import validate
from demo.agent_rows import make_conversation
from demo.rows import generate_rows
from run_utils.errors import UserError
from train import TrainingArguments

ALONE = SimpleNamespace(num_processes=1, process_index=0, main_process_first=contextlib.nullcontext)
RECORDS = generate_rows(200, seed=5)


@pytest.fixture(scope="module")
def prepare(tiny_model, tmp_path_factory):
    """`prepare(**arguments)`: the Data of train.py's arguments for RECORDS."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))

    def prepare(**arguments):
        arguments = {"dataset_name": str(path), "max_seq_length": 4096, "eval_fraction": 0.2} | arguments
        return prepare_data(TrainingArguments(**arguments), tokenizer, 4096, ALONE)

    prepare.tokenizer = tokenizer
    return prepare


def ids(data):
    return [example.row_id for example in data.train.examples]


def text(data, prepare):
    return {
        example.row_id: prepare.tokenizer.decode(example.input_ids[: example.prompt_length])
        for example in data.train.examples
    }


def source(row_id):
    return row_id.partition("+")[0]


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.4])
def test_the_share_of_added_rows_is_the_fraction_to_half_a_row(prepare, fraction):
    data = prepare(no_call_fraction=fraction, max_train_examples=100)
    made = [row_id for row_id in ids(data) if row_id.endswith("+no_call")]
    assert len(ids(data)) == 100 + len(made) == len(set(ids(data)))
    assert abs(len(made) - fraction * len(ids(data))) <= 0.5
    assert len(made) == round(100 * fraction / (1 - fraction))
    assert any(f"Added {len(made)} row" in line and f"the {len(ids(data))} rows" in line for line in data.summary)


def test_added_rows_are_trained_rows_without_a_call_and_split_json_tells_both(prepare):
    plain, data = prepare(max_train_examples=100), prepare(no_call_fraction=0.2, max_train_examples=100)
    assert ids(data)[:100] == ids(plain)
    added = ids(data)[100:]
    assert {source(row_id) for row_id in added} <= set(ids(plain))
    for example in data.train.examples[100:]:
        completion = prepare.tokenizer.decode(example.input_ids[example.prompt_length : -1])
        assert completion == "[]" and example.input_ids[-1] == prepare.tokenizer.eos_token_id
    assert data.split["trained"] == plain.split["trained"] and data.split["held_out"] == plain.split["held_out"]
    assert data.split["near_repeats"] == plain.split["near_repeats"]
    assert list(data.split["made"]) == added and "made" not in plain.split
    assert not set(data.split["made"].values()) & set(data.split["held_out"].values())
    assert [example.row_id for example in data.eval_examples] == [example.row_id for example in plain.eval_examples]


@pytest.mark.parametrize("arguments", [{"no_call_fraction": 0.3}, {"augment": ["distract"], "augment_fraction": 1.0}])
def test_no_tool_that_only_held_out_rows_have_is_offered(prepare, arguments):
    data = prepare(eval_split="tools", **arguments)
    tools = {record["id"]: validate(record).tool_names() for record in RECORDS}
    trained = set().union(*(tools[row_id] for row_id in data.split["trained"]))
    held_out = set().union(*(tools[row_id] for row_id in data.split["held_out"]))
    assert held_out - trained
    for prompt in text(data, prepare).values():
        assert not any(f'"name": "{name}"' in prompt for name in held_out - trained)


def test_a_larger_fraction_has_the_rows_of_a_smaller_one_and_a_seed_its_own(prepare):
    few, many, again = (prepare(no_call_fraction=fraction) for fraction in (0.05, 0.2, 0.2))
    assert set(ids(few)) < set(ids(many)) and many.train.fingerprints == again.train.fingerprints
    other = prepare(no_call_fraction=0.2, seed=43)
    assert other.split["made"] != many.split["made"]


def test_the_made_rows_do_not_depend_on_the_order_of_the_rows_or_the_processes(prepare, tmp_path):
    path = tmp_path / "reversed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in reversed(RECORDS)))
    arguments = {"no_call_fraction": 0.2, "augment": list(TRANSFORMATIONS)}
    assert prepare(**arguments).split == prepare(dataset_name=str(path), **arguments).split


def test_more_rows_than_can_be_made_is_an_error_with_the_largest_fraction(prepare):
    with pytest.raises(UserError, match=r"--no_call_fraction 0.9 needs 900 .* the 100 training rows") as failure:
        prepare(no_call_fraction=0.9, max_train_examples=100)
    possible = float(str(failure.value).rpartition(" ")[2])
    assert "another tool of its list might answer" in str(failure.value) and 0.3 < possible < 0.5
    prepare(no_call_fraction=possible, max_train_examples=100)


def test_rows_too_long_make_none_and_a_row_that_becomes_too_long_stays(prepare):
    length = sorted(len(example.input_ids) for example in prepare().train.examples)[80]
    data = prepare(augment=["distract"], augment_fraction=0.25, max_seq_length=length)
    assert len(ids(data)) == len(data.split["trained"]) and len(data.split["made"]) == round(0.25 * len(ids(data)))
    assert max(len(example.input_ids) for example in data.train.examples) <= length
    (line,) = [line for line in data.summary if line.startswith("Transformed")]
    assert "longer than --max_seq_length: " in line


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_augment_transforms_a_share_of_the_rows_in_their_places_each_once(prepare, share):
    plain = prepare()
    data = prepare(augment=list(TRANSFORMATIONS), augment_fraction=share)
    assert [source(row_id) for row_id in ids(data)] == ids(plain)
    changed = [row_id for row_id in ids(data) if "+" in row_id]
    assert len(changed) == round(share * len(ids(plain))) and list(data.split["made"]) == changed
    kinds = [row_id.split("+")[1:] for row_id in changed]
    assert all(len(kind) == 1 for kind in kinds) and {kind for (kind,) in kinds} == set(TRANSFORMATIONS)
    assert data.split["trained"] == plain.split["trained"]
    texts = text(data, prepare), text(plain, prepare)
    assert all(texts[0][row_id] != texts[1][source(row_id)] for row_id in changed)
    (line,) = [line for line in data.summary if line.startswith("Transformed")]
    assert line.startswith(f"Transformed {len(changed)} of the {len(ids(plain))} rows: shuffle ")


def test_added_rows_are_transformed_too_and_a_row_that_cannot_be_stays(prepare):
    data = prepare(no_call_fraction=0.2, augment=["shuffle"], augment_fraction=1.0)
    single = {record["id"] for record in RECORDS if len(json.loads(record["tools"])) == 1}
    assert any(row_id.endswith("+no_call+shuffle") for row_id in ids(data))
    assert {source(row_id) for row_id in ids(data) if not row_id.endswith("+shuffle")} == single & {
        source(row_id) for row_id in ids(data)
    }
    assert any("fewer than two tools: " in line for line in data.summary)


def test_without_the_flags_nothing_changes(prepare):
    data = prepare(augment_fraction=0.1, max_train_examples=100)  # which nothing reads then
    assert data.train.fingerprints == prepare(max_train_examples=100).train.fingerprints
    assert not any("Added" in line or "Transformed" in line for line in data.summary)


def test_with_chat_an_added_row_is_an_empty_turn_and_earlier_calls_are_renamed(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (ROOT / "tests" / "hermes.jinja").read_text()
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(make_conversation(number)) + "\n" for number in range(60)))
    arguments = {"no_call_fraction": 0.2, "augment": ["rename"], "prompt_format": "chat", "eval_fraction": 0.2}
    arguments = TrainingArguments(dataset_name=str(path), max_seq_length=4096, augment_fraction=1.0, **arguments)
    data = prepare_data(arguments, tokenizer, 4096, ALONE)
    examples = {example.row_id: example for example in data.train.examples}
    added = [row_id for row_id in examples if "+no_call" in row_id]
    assert len(added) == round(0.2 * len(examples)) and all("+rename" in row_id for row_id in examples)
    for row_id in added:
        completion = tokenizer.decode(examples[row_id].input_ids[examples[row_id].prompt_length :])
        assert "<tool_call>" not in completion and not data.prompt_format.words(completion.partition("<|")[0])
    later = [row_id for row_id in examples if not row_id.partition("+")[0].endswith("/1")]
    for row_id in later:  # the question, the calls, their results, and the assistant's words
        example = examples[row_id]
        prompt = tokenizer.decode(example.input_ids[: example.prompt_length])
        calls = re.findall(r'<tool_call>\s*\{"name": "(\w+)"', prompt)
        assert calls and all(f'"name": "{name}", "description"' in prompt and "tool_" in name for name in calls)
        assert "The result is" in tokenizer.decode(example.input_ids[example.prompt_length :])
