"""From a data set's name to the steps of a run. tests/test_train.py has the training itself."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

import train
from data_utils.dataset import prepare_data
from demo.rows import generate_rows
from train import TrainingArguments

ALONE = SimpleNamespace(num_processes=1, process_index=0, main_process_first=contextlib.nullcontext)


def cities(count, with_capitals):
    tools = [{"name": "weather", "description": "", "parameters": {"city": {"description": "", "type": "str"}}}]
    return [
        {
            "id": f"city {n}",
            "query": f"weather {n}",
            "tools": tools,
            "answers": [{"name": "weather", "arguments": {"city": "Oslo" if n < with_capitals else "oslo"}}],
        }
        for n in range(count)
    ]


@pytest.fixture
def lower(tiny_model, tmp_path):
    """The tiny model with a tokenizer that lowercases and merges blanks."""
    folder = shutil.copytree(tiny_model, tmp_path / "lower")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("  ", " ")]
    )
    tokenizer.save_pretrained(folder)
    return folder


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_answers_that_the_tokenizer_cannot_write_are_named_or_stop_the_run(run_here, flags, lower, tmp_path):
    rows = write(tmp_path / "cities.jsonl", cities(100, with_capitals=2))
    flags |= {"model_name_or_path": lower, "dataset_name": rows, "max_train_steps": 1}
    result = run_here(train, flags)
    assert result.code == 1 and not list((tmp_path / "run").glob("*"))
    (line,) = [line for line in result.err.splitlines() if "answers change in this tokenizer" in line]
    assert "2 of 100 answers" in line and "(city " in line and "More than 1%" in line
    assert '"Oslo"}}]\' becomes' in line and line.count('"oslo"}}]') == 1
    write(rows, cities(100, with_capitals=1))
    result = run_here(train, flags)
    assert result.code == 0, result.err
    assert "Warning: 1 of 100 answers change in this tokenizer (city 0): " in result.out
    assert r"Warning: This tokenizer changes line ends or runs of blanks: 'a\n\nb   c'" in result.out


def test_the_summary_is_complete_and_has_no_warning_for_a_good_tokenizer(tiny_model, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [*generate_rows(199, seed=5), {"id": "bad", "query": "q"}])
    args = TrainingArguments(dataset_name=str(rows), max_seq_length=700, max_train_examples=100)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = prepare_data(args, tokenizer, 2048, ALONE)
    dropped, counts, *too_long = data.summary
    assert dropped == "Dropped 1 of 200 rows: missing field 'tools': 1 row (bad)"
    kept, held_out = len(data.train.examples), len(data.eval_examples)
    assert counts.startswith(f"199 valid rows: {kept} of 189 to train on, {held_out} to evaluate, ")
    assert all("longer than 700 tokens" in line for line in too_long)
    assert data.example.startswith("One example; ") and data.example.count("⟦") == 2
    assert len(data.train.examples) + len(data.eval_examples) + len(data.dropped["longer than 700 tokens"]) == 110
    assert set(data.split["trained"]) == {example.row_id for example in data.train.examples}
    assert set(data.split["held_out"]) == {row.id for row in data.eval_rows} and len(data.eval_rows) == 10
