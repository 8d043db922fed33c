"""evaluate.py's made rows beside the data set's own: without the right tool, and perturbed."""

import json
import shutil

import pytest
from conftest import launch, launch_and_kill

import evaluate
from eval_utils import endpoint
from run_utils.files import read_json

SETS = {"no_call_examples": 3, "perturb": ["rename", "shuffle"]}


@pytest.fixture
def flags(tiny_model, rows_file, tmp_path):
    """The base on 20 of the 84 rows."""
    return {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 0.24, "max_new_tokens": 12,
        "output_dir": tmp_path / "evaluation",
    }  # fmt: skip


def lines(folder, name="predictions.jsonl"):
    """The lines of a file, without seconds, by set."""
    found = {}
    for line in map(json.loads, (folder / name).read_text().splitlines()):
        line.pop("seconds", None)
        found.setdefault(line.get("set", ""), []).append(line)
    return found


def figures(folder, key):
    metrics = read_json(folder / "metrics.json")
    for of_system in metrics["systems"].values():
        del of_system["rows_per_second"]
    return metrics[key]


def test_the_own_rows_figures_and_answers_are_those_without_made_rows(run_here, flags, tmp_path):
    alone, folder = tmp_path / "alone", flags["output_dir"]
    assert run_here(evaluate, flags | {"output_dir": alone, "no_call_examples": 0}).code == 0
    result = run_here(evaluate, flags | SETS)
    assert result.code == 0, result.err
    assert "When not to call" in result.out and "Exact match on perturbed rows" in result.out
    for name in ("predictions.jsonl", "rows.jsonl", "scores.jsonl"):
        assert set(lines(alone, name)) == {""} and lines(folder, name)[""] == lines(alone, name)[""]
        assert set(lines(folder, name)) == {"", "no_call", "rename", "shuffle"}
    for key in ("systems", "pairs", "slices", "near_repeats", "worst_tools", "rows_sha256", "num_examples"):
        assert figures(folder, key) == figures(alone, key)
    assert figures(alone, "made") == {}
    made = figures(folder, "made")
    assert {name: of_set["num_rows"] for name, of_set in made.items()} | {"shuffle": 0} == {
        "no_call": 3, "rename": 20, "shuffle": 0,
    }  # fmt: skip
    shuffled = lines(folder, "rows.jsonl")["shuffle"]
    assert made["shuffle"]["num_rows"] == len(shuffled) == 20 - made["shuffle"]["left_out"]
    assert all(json.loads(row["answers"]) == [] for row in lines(folder, "rows.jsonl")["no_call"])
    for name, of_set in made.items():
        assert len(lines(folder)[name]) == 2 * of_set["num_rows"]  # raw and prompted

    # Scored again without a model: the same files.
    before = {name: (folder / name).read_text() for name in ("scores.jsonl", "metrics.json", "report.html")}
    result = run_here(evaluate, {"rescore": folder})
    assert result.code == 0 and "When not to call" in result.out, result.err
    assert {name: (folder / name).read_text() for name in before} == before

    # A comparison has the made rows that both have.
    comparison = {"compare": [alone, folder], "output_dir": tmp_path / "comparison"}
    assert run_here(evaluate, comparison).code == 0
    assert figures(tmp_path / "comparison", "made") == {}
    fewer = tmp_path / "fewer"
    assert run_here(evaluate, flags | {"output_dir": fewer, "no_call_examples": 2}).code == 0
    result = run_here(evaluate, comparison | {"compare": [folder, fewer]})
    assert result.code == 0 and "When not to call" in result.out, result.err
    assert {name: of_set["num_rows"] for name, of_set in figures(tmp_path / "comparison", "made").items()} == {
        "no_call": 2
    }


def test_made_rows_are_added_to_a_folder_and_left_out_again(run_here, flags):
    """Also to a folder of an older version, which has no word about them."""
    folder = flags["output_dir"]
    assert run_here(evaluate, flags | {"no_call_examples": 0}).code == 0
    assert "made" not in "".join(read_json(folder / "environment.json")) and "+" not in "".join(
        lines(folder, "rows.jsonl")
    )
    first = (folder / "predictions.jsonl").read_text()
    assert run_here(evaluate, flags | {"no_call_examples": 3}).code == 0
    second = (folder / "predictions.jsonl").read_text()
    assert second.startswith(first) and len(second.splitlines()) == len(first.splitlines()) + 6
    assert run_here(evaluate, flags | {"no_call_examples": 0, "perturb": "distract"}).code == 0
    third = (folder / "predictions.jsonl").read_text()
    assert third.startswith(second) and set(figures(folder, "made")) == {"distract"}

    # The answers are still there, and of the same rows.
    result = run_here(evaluate, flags | {"no_call_examples": 4})
    assert result.code == 1 and len(result.err.strip().splitlines()) == 1
    assert (
        "has other rows in the set no_call: ask for the same rows, leave the set out (--no_call_examples 0"
        in result.err
    )
    assert run_here(evaluate, flags | {"no_call_examples": 3, "perturb": "distract"}).code == 0
    assert (folder / "predictions.jsonl").read_text() == third
    assert set(figures(folder, "made")) == {"no_call", "distract"}
    result = run_here(evaluate, flags | {"no_call_examples": 4, "num_examples": 19})
    assert result.code == 1 and "another model, other rows or other settings" in result.err


@pytest.mark.parametrize(("calls", "rate"), [(True, 1), (False, 0)])
def test_a_server_that_always_or_never_calls(run_here, rows_file, tmp_path, monkeypatch, calls, rate):
    call = '[{"name": "f", "arguments": {}}]'

    def complete(url, model, prompts, max_new_tokens):
        for index in range(len(prompts)):
            yield index, {"text": call if calls else "[]", "num_tokens": None, "finish": "end", "seconds": 0.5}

    monkeypatch.setattr(endpoint, "complete", complete)
    flags = {"endpoint": "http://localhost:1/v1", "endpoint_model": "m", "dataset_name": rows_file, "eval_fraction": 1,
             "systems": ["endpoint"], "output_dir": tmp_path / "e"}  # fmt: skip
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    figure = figures(tmp_path / "e", "made")["no_call"]["systems"]["endpoint"]["over_call"]
    assert (figure["k"], figure["n"], figure["rate"]) == (16 * rate, 16, rate)  # a fifth of 84
    assert figures(tmp_path / "e", "systems")["endpoint"]["num_examples"] == 84


def test_wrong_sets_are_refused_in_a_line(run_here, flags):
    for change, message in (
        ({"perturb": ["rename", "reword"]}, "--perturb knows shuffle, distract, rename, drop_descriptions, not reword"),
        ({"no_call_examples": -1}, "--no_call_examples"),
    ):
        result = run_here(evaluate, flags | change)
        assert result.code == 2 and message in result.err and len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize("fault", ["original", "name", "row"])
def test_a_damaged_made_row_is_refused_in_a_line(run_here, flags, tmp_path, fault):
    folder = flags["output_dir"]
    assert run_here(evaluate, flags | {"systems": "raw", "num_examples": 5, "no_call_examples": 2}).code == 0
    shutil.copytree(folder, tmp_path / "damaged")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows[-1] |= {"original": {"id": "gone+no_call"}, "name": {"set": 5}, "row": {"answers": "{}"}}[fault]
    (tmp_path / "damaged" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_here(evaluate, {"rescore": tmp_path / "damaged"})
    assert result.code == 1 and "rows.jsonl, " in result.err and len(result.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_an_evaluation_killed_among_its_made_rows_continues(run_here, flags, tmp_path):
    flags |= SETS | {"systems": ["prompted"], "num_examples": 8}
    assert run_here(evaluate, flags).code == 0
    expected = lines(flags["output_dir"])

    # Row by row, for a kill in the middle. The ninth row is made.
    killed = flags | {"output_dir": tmp_path / "killed", "batch_tokens": 1}
    part = killed["output_dir"] / "predictions-0.jsonl"
    reached = lambda: part.exists() and part.read_text().count("\n") >= 10  # noqa: E731
    assert launch_and_kill("evaluate.py", killed, reached, tmp_path / "log")
    before = part.read_text().splitlines()[:10]
    assert sum('"set": "no_call"' in line for line in before) == 2
    result = launch("evaluate.py", killed, processes=2)
    assert result.code == 0, result.err
    found = lines(killed["output_dir"])
    assert {name: sorted(map(str, of_set)) for name, of_set in found.items()} == {
        name: sorted(map(str, of_set)) for name, of_set in expected.items()
    }
    assert set(before) <= set((killed["output_dir"] / "predictions.jsonl").read_text().splitlines())
