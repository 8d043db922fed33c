"""Several data sets: ids, repeats, shares, and the split over all of them."""

import json

import pytest
from conftest import command_line, read_args

import evaluate
import train
from data_utils.held_out import read_split
from data_utils.mixture import load_data_sets, take_shares
from data_utils.sources import load_rows
from demo.rows import generate_rows
from eval_utils.folder import read_rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sets(tmp_path):
    """Files a and b of 60 and 45 rows with the ids 0, 1, ...; the first five rows of b are a's."""
    rows = generate_rows(100, seed=3)
    parts = {"a.jsonl": rows[:60], "b.jsonl": [*rows[:5], *rows[60:]]}
    return [
        write(tmp_path / name, [row | {"id": str(place)} for place, row in enumerate(part)])
        for name, part in parts.items()
    ]


@pytest.fixture
def mixed(flags, sets):
    return flags | {"dataset_name": sets, "max_train_steps": 1, "eval_fraction": 0.2}


def parsed(monkeypatch, flags):
    monkeypatch.setattr("sys.argv", ["train.py", *command_line(flags)])
    return train.parse()


def test_rows_of_several_sets_have_ids_of_their_own_and_occur_once(monkeypatch, mixed, sets, capsys):
    rows, bad, sources = load_data_sets(parsed(monkeypatch, mixed), load_rows)
    assert len(rows) == len({row.id for row in rows}) == len({row.fingerprint for row in rows}) == 100 and not bad
    # b has the ids below 45, and 0 to 4 are rows of a.
    assert [row.id for row in (*rows[4:6], *rows[44:46])] == ["4", "a.jsonl:5", "a.jsonl:44", "45"]
    assert [row.id for row in rows[59:61]] == ["59", "b.jsonl:5"]
    assert {sources[row.id] for row in rows[:60]} == {"a.jsonl"} and sources[rows[60].id] == "b.jsonl"
    assert "b.jsonl: left out, since an earlier data set has the same: 5 rows" in capsys.readouterr().err


def test_one_name_is_no_list(monkeypatch, flags, sets):
    args = parsed(monkeypatch, flags | {"dataset_name": sets[:1]})
    assert args.dataset_name == str(sets[0])
    assert load_data_sets(args, load_rows) == (*load_rows(str(sets[0])), None)


def test_shares_take_as_many_rows_as_there_are(sets):
    rows, sources = list(load_rows(str(sets[0]))[0]), {}
    sources = {row.id: "a" if place < 10 else "b" for place, row in enumerate(rows)}
    kept = take_shares(rows, sources, {"a": 0.29, "b": 0.71})
    assert [sources[row.id] for row in kept].count("a") == 10 and len(kept) == 10 + int(10 / 0.29 * 0.71)
    assert kept == [row for row in rows if row in kept]
    few = take_shares(rows, sources, {"a": 0.5, "b": 0.5}, most=7)
    assert [sources[row.id] for row in few] == ["a"] * 3 + ["b"] * 3
    assert len(take_shares(rows, sources, {"a": 0.29, "b": 0.71}, most=100)) == len(kept)


def test_training_and_evaluation_on_two_sets(run_here, mixed, sets):
    result = run_here(train, mixed | {"dataset_shares": [0.75, 0.25]})
    assert result.code == 0, result.err
    run = mixed["output_dir"]
    assert read_args(run)["dataset_name"] == list(map(str, sets)) and read_args(run)["dataset_shares"] == [0.75, 0.25]
    split = read_split(run / "adapter")
    of_a = {row.fingerprint for row in load_rows(str(sets[0]))[0]}
    trained, held_out = (set(split[side].values()) for side in ("trained", "held_out"))
    assert len(held_out) == 20 and not trained & held_out
    assert (len(trained & of_a), len(trained - of_a)) == (49, 16)  # of 49 + 31
    assert "Rows to train on by data set: a.jsonl 49 (75%) and 11 held out; b.jsonl 16 (25%) and 9" in result.out
    assert "| a.jsonl, b.jsonl |" in (run / "adapter" / "README.md").read_text()
    result = run_here(evaluate, ["--adapter", str(run / "adapter"), "--systems", "adapter", "--max_new_tokens", "4"])
    assert result.code == 0, result.err
    rows, facts, _ = read_rows(run / "evaluation")
    assert {row.fingerprint for row in rows} == held_out
    assert all((facts["data_set"][row.id] == "a.jsonl") == (row.fingerprint in of_a) for row in rows)
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    (found,) = [found for found in metrics["slices"] if found["title"] == "data set"]
    assert sum(value["n"] for value in found["values"]) == 20


def test_all_rows_without_shares_and_a_resume_of_the_same_sets(run_here, mixed, sets):
    result = run_here(train, mixed | {"stop_after_steps": 1, "max_train_steps": 2})
    assert result.code == 0 and "100 valid rows: 80 to train on, 20 to evaluate" in result.out, result.err
    again = mixed | {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    other = run_here(train, again | {"dataset_name": sets[::-1]})
    assert other.code == 1 and "--dataset_name is " in other.err
    assert run_here(train, again).code == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset_shares": [0.5, 0.6]}, "must be above 0 and add up to 1, not 0.5 + 0.6"),
        ({"dataset_shares": [1.5, -0.5]}, "must be above 0 and add up to 1"),
        ({"dataset_shares": [1.0]}, "--dataset_shares needs one share a data set, 2, not 1"),
        ({"dataset_name": ["demo", "demo"]}, "names a data set twice"),
        ({"dataset_revision": "main"}, "--dataset_revision is for one --dataset_name"),
        ({"dataset_config_name": "x"}, "--dataset_config_name is for one --dataset_name"),
        ({"dataset_name": "demo", "dataset_shares": [1.0]}, "--dataset_shares needs several --dataset_name"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(run_here, mixed, change, named):
    result = run_here(train, mixed | change)
    (line,) = result.err.strip().splitlines()
    assert result.code == 2 and named in line and not mixed["output_dir"].exists()
