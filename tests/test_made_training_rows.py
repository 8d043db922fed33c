"""train.py with --no_call_fraction and --augment, from the flags to the adapter's folder."""

import json

import pytest

import evaluate
import train

MADE = {"no_call_fraction": 0.2, "augment": ["shuffle", "distract", "rename", "drop_descriptions"]}


def test_a_run_with_made_rows_resumes_exactly_and_with_no_other_fraction(train_here, run_here, flags, tmp_path):
    flags |= MADE | {"max_train_steps": 4}
    straight = train_here(flags | {"output_dir": tmp_path / "straight"})
    run = train_here(flags | {"stop_after_steps": 2})
    resume = flags | {"resume_from_checkpoint": "latest"}
    for other, told in (
        ({"no_call_fraction": 0.1}, "--no_call_fraction is 0.1 but"),
        ({"augment": ["shuffle"]}, "--augment is shuffle but"),
        ({"augment_fraction": 0.4}, "--augment_fraction is 0.4 but"),
    ):
        result = run_here(train, resume | other)
        assert result.code == 1 and told in result.err, result.err
    train_here(resume)
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (straight / weights).read_bytes()

    split = json.loads((run / "adapter" / "split.json").read_text())
    assert len(split["trained"]) == 80 and len(split["held_out"]) == 4
    added = [row_id for row_id in split["made"] if "+no_call" in row_id]
    assert len(added) == 20 and len(split["made"]) > 50
    assert not set(split["made"].values()) & set(split["held_out"].values())
    # The rows that training held out are found, and no made row is looked for.
    result = run_here(evaluate, {"adapter": run / "adapter", "max_new_tokens": 4, "systems": "adapter"})
    assert result.code == 0, result.err
    predictions = (run / "evaluation" / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in predictions} == set(split["held_out"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"augment": ["shuffle", "renames"]}, "not renames"),
        ({"augment": ["rename", "rename"]}, "names a transformation twice"),
        ({"augment_fraction": 0.2}, "--augment_fraction needs --augment"),
        ({"no_call_fraction": 1}, "--no_call_fraction"),
    ],
)
def test_wrong_values_are_refused_before_anything_loads(run_here, flags, wrong, told):
    result = run_here(train, flags | wrong | {"dataset_name": "nowhere.jsonl"})
    assert result.code == 2 and told in result.err and not flags["output_dir"].exists()


def test_more_rows_than_can_be_made_stop_the_run_before_the_model_loads(run_here, flags):
    result = run_here(train, flags | {"no_call_fraction": 0.8})
    assert (
        result.code == 1 and "--no_call_fraction 0.8 needs 320 rows" in result.err and "lower it to 0.4" in result.err
    )
    assert not flags["output_dir"].exists() or not list(flags["output_dir"].glob("*"))
