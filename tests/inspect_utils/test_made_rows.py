"""The inspection shows the rows that training would make."""

import json

import inspect_data

MADE = {"no_call_fraction": 0.2, "augment": ["distract", "rename"], "augment_fraction": 1.0}


def test_made_rows_are_counted_proved_and_shown(run_here, flags):
    base = {name: flags[name] for name in ("model_name_or_path", "dataset_name", "output_dir")}
    result = run_here(inspect_data, base | MADE | {"max_seq_length": 2048})
    assert result.code == 0, result.err
    inspection = json.loads((flags["output_dir"] / "inspection.json").read_text())
    assert len(inspection["made"]) == 2 and all(line in " ".join(result.out.split()) for line in inspection["made"])
    assert inspection["counts"]["train"] == 80 and inspection["training"]["rows"] == 100
    assert inspection["proof"]["exact"] == inspection["proof"]["rows"] == 80 + 4 + 100
    made = [row for row in inspection["rows"] if row["part"] == "made"]
    assert len(made) == 100 and sum("+no_call+" in row["id"] for row in made) == 20
    assert all(row["tokens"] for row in made)
    page = (flags["output_dir"] / "inspection.html").read_text()
    assert "Rows made from training rows" in page and "+no_call+rename" in page


def test_a_share_that_cannot_be_reached_is_the_verdict(run_here, flags):
    base = {name: flags[name] for name in ("model_name_or_path", "dataset_name", "output_dir")}
    result = run_here(inspect_data, base | {"no_call_fraction": 0.8, "max_seq_length": 2048})
    assert result.code == 0, result.err
    last = " ".join(result.out.split()).rpartition("Do not go on")[2]
    assert "--no_call_fraction 0.8 needs 320 rows" in last
