"""evaluate.py through its real `main`: comparisons, output files, and resuming after a kill."""

import hashlib
import json
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, TAGS, launch, launch_and_kill, read_args
from peft import PeftModel
from safetensors.torch import load_file, save_file

import evaluate
import export
import infer
import train
from data_utils.batching import tokenize_rows
from data_utils.prompt import PROMPT_FORMATS, PromptFormat
from data_utils.sources import load_rows
from data_utils.split import find_held_out, split_rows
from demo.rows import generate_rows
from eval_utils import comparison, endpoint
from eval_utils.metrics import METRICS, Metric
from model_utils import generation, systems
from model_utils.adapter_files import read_adapter
from model_utils.adapters import load_adapter
from model_utils.cache_size import FIXED_TOKENS
from model_utils.loading import ModelSource, load_base_model
from run_utils.errors import UserError

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def adapter(tiny_model, rows_file, tmp_path_factory):
    """The adapter of a short real run that held out 20 of the 84 rows."""
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    flags = {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": output_dir, "quantization": "none",
        "eval_fraction": 0.24, "seed": 5, "max_train_steps": 8, "learning_rate": 1e-2, "max_seq_length": 2048,
        "eval_generate_examples": 4, "logging_steps": 1,
    }  # fmt: skip
    result = launch("train.py", flags)
    assert result.code == 0, result.err
    return output_dir / "adapter"


@pytest.fixture
def flags(adapter, tmp_path):
    """No made rows: tests/test_made_rows.py has them."""
    output_dir = tmp_path / "evaluation"
    return {"adapter": adapter, "output_dir": output_dir, "max_new_tokens": NEW_TOKENS, "no_call_examples": 0}


def predictions(output_dir):
    """Predictions by (system, id), without their seconds."""
    lines = (output_dir / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({(record["system"], record["id"]) for record in records}) == len(records)
    return {(r["system"], r["id"]): {key: value for key, value in r.items() if key != "seconds"} for r in records}


def test_three_systems_on_the_rows_that_training_held_out(run_here, flags, rows_file):
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    rows, _ = load_rows(str(rows_file))
    _, held_out, _ = split_rows(rows, 0.24, seed=5)
    found = predictions(flags["output_dir"])
    assert set(found) == {(system, row.id) for system in ("raw", "prompted", "adapter") for row in held_out}
    assert all(json.loads(row.answers) == found["raw", row.id]["gold"] for row in held_out)
    for row in held_out:
        assert found["prompted", row.id]["prompt_sha256"] == found["adapter", row.id]["prompt_sha256"]
        assert found["prompted", row.id]["prompt_sha256"] != found["raw", row.id]["prompt_sha256"]
    texts = [{key[1]: value["text"] for key, value in found.items() if key[0] == s} for s in ("prompted", "adapter")]
    assert texts[0] != texts[1]  # the adapter changes the output

    metrics = json.loads((flags["output_dir"] / "metrics.json").read_text())
    scores = [json.loads(line) for line in (flags["output_dir"] / "scores.jsonl").read_text().splitlines()]
    assert [(score["system"], score["id"]) for score in scores] == [
        (system, row.id) for system in ("raw", "prompted", "adapter") for row in held_out
    ]
    for system, figures in metrics["systems"].items():
        system_scores = [score for score in scores if score["system"] == system]
        for name in ("json_valid", "exact_match", "tools_exist", "lenient_json_valid"):
            figure = figures[name]
            assert (figure["k"], figure["n"]) == (sum(score[name] for score in system_scores), 20)
            assert figure["low"] <= figure["rate"] == figure["k"] / 20 <= figure["high"]
    assert metrics["prompt_format"] == "tags-1" and metrics["adapter_sha256"] and metrics["scoring"]
    assert metrics["decoding"]["max_new_tokens"] == NEW_TOKENS
    # A resume compares the flag; the size depends on the machine.
    assert metrics["decoding"]["batch_tokens"] == "auto" and metrics["cache_tokens"] == FIXED_TOKENS
    assert "report.html" in result.out and (flags["output_dir"] / "report.html").is_file()
    for word in ("raw", "prompted", "adapter", "Wilson"):
        assert word in result.out
    # the published figures are for another model and other rows
    assert "published" not in result.out


def test_published_figures_are_shown_for_their_model_and_data_only(run_here, flags, monkeypatch, tiny_model, rows_file):
    flags |= {"systems": ["raw"], "num_examples": 2, "max_new_tokens": 1}
    for shown in (False, True):
        monkeypatch.setattr(comparison, "PUBLISHED_FOR", (str(tiny_model), str(rows_file) if shown else "other rows"))
        result = run_here(evaluate, flags)
        assert ("80.20" in result.out) == shown, result.err


def test_a_finished_evaluation_is_scored_again_without_a_model(run_here, flags, monkeypatch):
    flags |= {"systems": ["raw", "adapter"], "num_examples": 6}
    assert run_here(evaluate, flags).code == 0
    folder = flags["output_dir"]
    before = {name: (folder / name).read_text() for name in ("scores.jsonl", "metrics.json", "report.html")}
    for name in before:
        (folder / name).unlink()
    monkeypatch.setattr(evaluate, "load_base_model", None)
    monkeypatch.setattr(evaluate, "held_out_rows", None)
    result = run_here(evaluate, {"rescore": folder})
    assert result.code == 0 and "adapter" in result.out, result.err
    assert {name: (folder / name).read_text() for name in before} == before
    result = run_here(evaluate, {"rescore": folder.parent})
    assert result.code == 1 and "holds no evaluation that can be read" in result.err
    assert result.err.endswith(f": did you mean {folder}?\n")
    lines = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[:-1]))
    result = run_here(evaluate, {"rescore": folder})
    assert result.code == 1 and "is not finished: 1 of 6 rows" in result.err


def test_finished_evaluations_of_the_same_rows_are_compared(run_here, flags, adapter, tmp_path):
    flags |= {"systems": ["prompted", "adapter"], "num_examples": 6, "max_new_tokens": 4}
    folders = [tmp_path / name / "evaluation" for name in ("first", "second")]
    assert run_here(evaluate, flags | {"output_dir": folders[0]}).code == 0
    assert run_here(evaluate, flags | {"output_dir": folders[1], "max_new_tokens": 9}).code == 0
    result = run_here(evaluate, {"compare": folders, "output_dir": tmp_path / "comparison"})
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "comparison" / "metrics.json").read_text())
    assert set(metrics["systems"]) >= {"first: prompted", "first: adapter", "second: adapter"}
    assert (tmp_path / "comparison" / "report.html").is_file()
    again = {"compare": folders, "output_dir": tmp_path / "comparison", "baseline": "first: prompted"}
    assert run_here(evaluate, again).code == 0  # replaces the comparison
    pair = json.loads((tmp_path / "comparison" / "metrics.json").read_text())["pairs"][0]
    assert (pair["a"], pair["b"]) == ("first: prompted", "second: adapter")
    assert run_here(evaluate, again | {"baseline": folders[1]}).code == 0
    pair = json.loads((tmp_path / "comparison" / "metrics.json").read_text())["pairs"][0]
    assert (pair["a"], pair["b"]) == ("second: adapter", "first: adapter")
    result = run_here(evaluate, again | {"baseline": "third"})
    assert result.code == 2 and "--baseline names first: prompted, first: adapter" in result.err
    assert (
        run_here(evaluate, flags | {"output_dir": folders[1], "num_examples": 5, "overwrite_output_dir": True}).code
        == 0
    )
    for arguments, message in (
        ({"compare": [folders[0], folders[0]]}, "names a folder twice"),
        ({"compare": folders, "output_dir": folders[0]}, "holds an evaluation: name another"),
        ({"compare": folders, "output_dir": folders[0] / "report.html"}, "report.html: File exists"),
    ):
        result = run_here(evaluate, arguments)
        assert result.code in (1, 2) and message in result.err
    result = run_here(evaluate, {"compare": folders, "output_dir": tmp_path / "comparison"})
    assert result.code == 1 and f"{folders[1]} has other rows than {folders[0]}, from row" in result.err


def test_a_comparison_does_not_overwrite_other_folders(run_here, flags, adapter, tmp_path):
    flags |= {"systems": ["raw"], "num_examples": 2, "max_new_tokens": 1}
    folders = [tmp_path / name / "evaluation" for name in ("first", "second")]
    for folder in folders:
        assert run_here(evaluate, flags | {"output_dir": folder}).code == 0
    cases = {
        "page": ({"report.html": "mine"}, "files that no comparison made: report.html"),
        "figures": ({"metrics.json": '{"mine": 1}', "scores.jsonl": ""}, "files that no comparison made"),
        "list": ({"metrics.json": '["evaluations"]'}, "files that no comparison made"),
        "begun": ({"environment.json": "{}"}, "files that no comparison made: environment.json"),
        "process": ({"predictions-0.jsonl": ""}, "holds an evaluation"),
    }
    for name, (files, message) in cases.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        result = run_here(evaluate, {"compare": folders, "output_dir": tmp_path / name})
        assert result.code == 1 and message in result.err and len(result.err.strip().splitlines()) == 1
        assert {path.name: path.read_text() for path in (tmp_path / name).iterdir()} == files
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    result = run_here(evaluate, {"compare": folders, "output_dir": copy})
    assert result.code == 1 and "is a folder of train.py's" in result.err and not (copy / "report.html").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert run_here(evaluate, {"compare": folders, "output_dir": tmp_path / "notes"}).code == 0
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"


def prompt_hash(prompt):
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def test_fewshot_is_added_to_a_folder_with_training_rows_before_each_prompt(run_here, flags, rows_file, adapter):
    flags |= {"num_examples": 3, "max_new_tokens": 2}
    folder = flags["output_dir"]
    assert run_here(evaluate, flags | {"systems": ["adapter", "prompted"]}).code == 0
    before = predictions(folder)
    assert "shots" not in json.loads((folder / "environment.json").read_text())  # as in older folders
    result = run_here(evaluate, flags | {"systems": ["adapter", "fewshot", "prompted"]})
    assert result.code == 0 and "2 examples in fewshot" in result.out, result.err
    found = predictions(folder)
    assert {key: found[key] for key in before} == before and len(found) == 9
    assert list(json.loads((folder / "metrics.json").read_text())["systems"]) == ["prompted", "fewshot", "adapter"]

    rows = {row.id: row for row in load_rows(str(rows_file))[0]}
    split = json.loads((adapter / "split.json").read_text())
    shots = json.loads((folder / "environment.json").read_text())["shots"]
    assert shots["count"] == 2 == len(set(shots["ids"]) & split["trained"].keys() - split["held_out"].keys())
    examples = [rows[row_id] for row_id in shots["ids"]]
    start = "".join(f"{TAGS.render(row.query, row.tools)}{row.answers}\n</answer>\n" for row in examples)
    for (system, row_id), prediction in found.items():
        own = TAGS.render(rows[row_id].query, rows[row_id].tools)
        assert prediction["prompt_sha256"] == prompt_hash(start + own if system == "fewshot" else own)

    # A run without the system keeps its examples on record.
    assert run_here(evaluate, flags | {"systems": ["prompted"]}).code == 0
    assert json.loads((folder / "environment.json").read_text())["shots"] == shots
    result = run_here(evaluate, flags | {"systems": ["fewshot"], "shots": 1})
    assert result.code == 1 and "holds an evaluation of another model" in result.err
    assert predictions(folder) == found
    assert run_here(evaluate, flags | {"systems": ["fewshot", "prompted"]}).code == 0
    assert "fewshot" in run_here(evaluate, {"rescore": folder}).out
    # The examples are the same for another number of rows.
    more = {"systems": ["fewshot"], "num_examples": 5, "output_dir": folder.with_name("more")}
    assert run_here(evaluate, flags | more).code == 0
    assert json.loads((folder.with_name("more") / "environment.json").read_text())["shots"] == shots


def test_fewshot_without_training_rows_is_refused_by_name(
    run_here, flags, rows_file, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "load_base_model", None)  # before the model is loaded
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in generate_rows(9, seed=77)))
    base = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": tmp_path / "e"}
    for changes in (
        base | {"eval_fraction": 1},
        flags | {"dataset_name": other, "eval_fraction": 1},
        flags | {"shots": 60},
    ):
        result = run_here(evaluate, changes | {"systems": ["prompted", "fewshot"]})
        assert result.code == 1 and len(result.err.strip().splitlines()) == 1
        wanted = f"'fewshot' needs {changes.get('shots', 2)} short training rows that repeat no held-out row, and "
        assert wanted + str(changes.get("dataset_name", rows_file)) in result.err
        assert not Path(changes["output_dir"]).exists()


def test_examples_of_rows_from_another_file_are_the_data_sets_own(run_here, rows_file, tiny_model, tmp_path):
    """With --eval_dataset_name. One of its rows repeats the data set's: no example."""
    rows = load_rows(str(rows_file))[0]
    other = tmp_path / "folder" / "valid.jsonl"
    other.parent.mkdir()
    other.write_text(rows_file.read_text().splitlines(keepends=True)[0])
    flags = {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_dataset_name": other, "eval_fraction": 1,
        "systems": ["prompted", "fewshot"], "max_new_tokens": 2, "output_dir": tmp_path / "e",
    }  # fmt: skip
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    environment = json.loads((tmp_path / "e" / "environment.json").read_text())
    assert environment["num_examples"] == 1
    assert set(environment["shots"]["ids"]) <= {row.id for row in rows[1:]}
    assert f"{tiny_model.name} on rows of valid.jsonl" in result.out and "held-out" not in result.out


def test_the_base_alone_has_examples_that_are_not_held_out(run_here, rows_file, tiny_model, tmp_path):
    flags = {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 0.5, "num_examples": 1,
        "systems": ["fewshot"], "shots": 5, "max_new_tokens": 2, "output_dir": tmp_path / "e",
    }  # fmt: skip
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    training, _, _ = split_rows(load_rows(str(rows_file))[0], 0.5, seed=42)
    ids = json.loads((tmp_path / "e" / "environment.json").read_text())["shots"]["ids"]
    assert len(ids) == 5 and set(ids) <= {row.id for row in training}


def test_adapters_of_one_split_seed_share_rows_examples_and_base_answers(
    run_here, train_here, tiny_model, rows_file, tmp_path
):
    """Their --seed differs. Another --seed of evaluate.py is another split."""
    run = {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "quantization": "none", "eval_fraction": 0.24,
        "max_train_steps": 1, "max_seq_length": 2048, "max_train_examples": 20, "split_seed": 5,
    }  # fmt: skip
    runs = [train_here(run | {"seed": seed, "output_dir": tmp_path / str(seed)}) for seed in (1, 2)]
    splits = [json.loads((folder / "split.json").read_text()) for folder in runs]
    assert [set(split["trained"]) for split in splits] == 2 * [set(splits[0]["trained"])]
    assert list(splits[0]["held_out"]) == list(splits[1]["held_out"])
    _, held_out, _ = split_rows(load_rows(str(rows_file))[0], 0.24, seed=5)
    assert list(splits[0]["held_out"]) == [row.id for row in held_out]
    states = [json.loads((folder / "checkpoint-1" / "state.json").read_text()) for folder in runs]
    assert states[0]["order_fingerprint"] != states[1]["order_fingerprint"]
    base = {"systems": ["fewshot"], "num_examples": 2, "max_new_tokens": 2}
    found = []
    for folder in runs:
        result = run_here(evaluate, base | {"adapter": folder / "adapter"})
        assert result.code == 0, result.err
        found.append(predictions(folder / "evaluation"))
    assert found[0] == found[1] and {row_id for _, row_id in found[0]} == {row.id for row in held_out[:2]}
    flags = base | {"adapter": runs[0] / "adapter", "seed": 6, "output_dir": tmp_path / "e"}
    result = run_here(evaluate, flags)
    assert result.code == 1 and "--seed and --split_seed to evaluate the held-out rows" in result.err


def test_an_evaluation_beside_its_adapter_is_in_the_adapters_card(run_here, flags, adapter, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    sha256, card = read_adapter(run / "adapter").sha256, run / "adapter" / "README.md"
    assert "Not evaluated on the rows that training held out" in card.read_text()
    flags = {"adapter": run / "adapter", "num_examples": 2, "max_new_tokens": 2, "systems": ["prompted", "adapter"]}
    result = run_here(evaluate, flags)
    assert result.code == 0 and f"The adapter's card has the figures: {card}" in result.out, result.err
    text = card.read_text()
    assert "| adapter, 2 rows |" in text and "held-out rows of rows.jsonl" in text and "Not evaluated" not in text
    assert read_adapter(run / "adapter").sha256 == sha256
    card.write_text(text.replace("| adapter, 2 rows |", "| adapter, ? rows |"))
    assert run_here(evaluate, {"rescore": run / "evaluation"}).code == 0
    assert card.read_text() == text
    assert run_here(evaluate, flags).code == 0  # the adapter is the same


def test_near_repeats_are_counted_at_load_and_evaluated_apart(run_here, train_here, tiny_model, rows_file, tmp_path):
    """Half of the held-out rows are training rows in capitals, with another number at the end."""
    records = [json.loads(line) for line in rows_file.read_text().splitlines()][:12]
    repeats = [{**r, "id": f"near {i}", "query": r["query"].upper() + f"  {i}"} for i, r in enumerate(records[:3])]
    training, held_out = (tmp_path / name for name in ("training.jsonl", "held_out.jsonl"))
    numbered = [{**record, "query": f"{record['query']} 77"} for record in records[:6]]
    for path, rows in ((training, numbered), (held_out, [*repeats, *records[9:]])):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "model_name_or_path": tiny_model, "dataset_name": training, "eval_dataset_name": held_out,
        "quantization": "none", "max_train_steps": 1, "max_seq_length": 2048, "output_dir": tmp_path / "run",
    }  # fmt: skip
    result = run_here(train, flags)
    assert result.code == 0 and "3 of the 6 held-out queries equal a training query" in result.out, result.err
    adapter = tmp_path / "run" / "adapter"
    assert set(json.loads((adapter / "split.json").read_text())["near_repeats"]) == {"near 0", "near 1", "near 2"}
    flags = {"adapter": adapter, "systems": ["raw"], "max_new_tokens": 1, "no_call_examples": 0}
    result = run_here(evaluate, flags)
    assert result.code == 0 and "3 of 6 queries equal a training query" in result.out, result.err
    found = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["near_repeats"]
    assert [part["n"] for part in found["slice"]["values"]] == [6, 3, 3]

    # If two evaluations differ in their near repeats (other training rows), none are shown.
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "run" / "evaluation", other)
    rows = [json.loads(line) for line in (other / "rows.jsonl").read_text().splitlines()]
    for compared, shown in ((rows, True), ([{**row, "near_repeat": False} for row in rows], False)):
        (other / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in compared))
        flags = {"compare": [tmp_path / "run" / "evaluation", other], "output_dir": tmp_path / "comparison"}
        result = run_here(evaluate, flags)
        assert result.code == 0 and ("equal a training query" in result.out) == shown, result.err

    split = json.loads((adapter / "split.json").read_text())
    del split["near_repeats"]  # as in an older adapter
    (adapter / "split.json").write_text(json.dumps(split))
    result = run_here(
        evaluate, {"adapter": adapter, "systems": ["raw"], "max_new_tokens": 1, "overwrite_output_dir": True}
    )
    assert result.code == 0 and "equal a training query" not in result.out, result.err


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_with_the_same_names_are_left_alone(run_here, flags, tmp_path, overwrite):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("rows.jsonl", "predictions-best.jsonl"):
        (folder / name).write_text("mine")
    result = run_here(evaluate, flags | {"output_dir": folder, "overwrite_output_dir": overwrite})
    assert result.code == 1 and "has files that no evaluation made" in result.err
    assert {path.read_text() for path in folder.iterdir()} == {"mine"}


def test_backups_of_predictions_and_training_folders_are_left_alone(run_here, flags, adapter, tmp_path):
    flags |= {"systems": ["raw"], "num_examples": 2, "max_new_tokens": 1}
    assert run_here(evaluate, flags).code == 0
    folder = flags["output_dir"]
    before = predictions(folder)
    for name in ("predictions_old.jsonl", "predictions-before.jsonl"):
        (folder / name).write_text(
            (folder / "predictions.jsonl").read_text().replace('"finish": "', '"finish": "other ')
        )
    assert run_here(evaluate, flags).code == 0
    assert predictions(folder) == before and len(list(folder.glob("predictions*"))) == 3
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    files = {path.name: path.read_bytes() for path in copy.iterdir()}
    result = run_here(evaluate, flags | {"adapter": copy, "output_dir": copy, "overwrite_output_dir": True})
    assert result.code == 1 and "is a folder of train.py's" in result.err
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files


def test_an_adapter_is_merged_once_for_all_systems_that_use_it(run_here, flags, monkeypatch):
    loads = []
    monkeypatch.setattr(systems, "load_adapter", lambda *args, **kw: loads.append(args) or load_adapter(*args, **kw))
    monkeypatch.setattr(evaluate, "import_xgrammar", lambda: None)
    monkeypatch.setattr(systems, "accepts", lambda *args: False)
    monkeypatch.setattr(generation, "compiling", lambda *args: nullcontext(lambda tools: None))
    flags |= {"systems": ["adapter", "constrained_adapter"], "num_examples": 6}
    result = run_here(evaluate, flags)
    assert result.code == 0 and len(loads) == 1
    assert result.out.count("its grammar excludes 6 of 6 golds") == 1
    found = predictions(flags["output_dir"])
    texts = [{key[1]: value["text"] for key, value in found.items() if key[0] == s} for s in flags["systems"]]
    assert texts[0] == texts[1]


def test_a_servers_answers_are_evaluated_without_a_local_model(run_here, rows_file, tmp_path, monkeypatch):
    """tests/eval_utils/test_endpoint.py tests the openai client against a real server."""
    answers = {TAGS.render(row.query, row.tools): row.answers for row in load_rows(str(rows_file))[0]}

    def complete(url, model, prompts, max_new_tokens):
        for index, prompt in enumerate(prompts):
            yield index, {"text": answers[prompt], "num_tokens": None, "finish": "end", "seconds": 0.5}

    monkeypatch.setattr(endpoint, "complete", complete)
    flags = {"endpoint": "http://localhost:1/v1", "endpoint_model": "m", "dataset_name": rows_file, "eval_fraction": 1,
             "systems": ["endpoint"], "no_call_examples": 0, "output_dir": tmp_path / "e"}  # fmt: skip
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    figures = json.loads((tmp_path / "e" / "metrics.json").read_text())["systems"]["endpoint"]
    assert figures["exact_match"]["rate"] == 1 and figures["num_examples"] == 84
    result = run_here(evaluate, flags | {"systems": ["endpoint", "raw"]})
    assert result.code == 2 and "both --model_name_or_path and --dataset_name" in result.err


def test_a_new_metric_is_computed_for_a_finished_evaluation(run_here, flags, monkeypatch):
    """The stored texts are scored; nothing is generated again."""
    flags |= {"systems": ["prompted"], "num_examples": 3}
    assert run_here(evaluate, flags).code == 0
    before = (flags["output_dir"] / "predictions.jsonl").read_bytes()
    monkeypatch.setitem(METRICS, "length", Metric("letters", "mean", lambda output: len(output.text)))
    result = run_here(evaluate, flags)
    assert result.code == 0 and "letters" in result.out, result.err
    assert (flags["output_dir"] / "predictions.jsonl").read_bytes() == before
    texts = [json.loads(line)["text"] for line in before.decode().splitlines()]
    figures = json.loads((flags["output_dir"] / "metrics.json").read_text())["systems"]["prompted"]
    assert figures["length"] == {"n": 3, "mean": sum(map(len, texts)) / 3}


def test_an_adapter_is_evaluated_in_its_training_format(
    run_here, train_here, tiny_model, rows_file, tmp_path, monkeypatch
):
    """One checkout has two formats. A removed or edited format is refused."""
    short = PromptFormat(lambda query, tools: f"{tools}\n{query}\n", completion=lambda answers: f" {answers}")
    monkeypatch.setitem(PROMPT_FORMATS, "short", short)
    # The choices of --prompt_format were read from the table at import.
    for arguments in (train.TrainingArguments, evaluate.EvaluationArguments):
        monkeypatch.setattr(arguments.__dataclass_fields__["prompt_format"], "type", str)
    flags = {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": tmp_path / "run",
        "quantization": "none", "gradient_checkpointing": False, "max_train_steps": 1, "max_seq_length": 2048,
        "prompt_format": "short",
    }  # fmt: skip
    adapter = train_here(flags) / "adapter"
    evaluation = {"adapter": adapter, "max_new_tokens": 2, "num_examples": 2}
    result = run_here(evaluate, evaluation)
    assert result.code == 0, result.err
    rows = {row.id: row for row in load_rows(str(rows_file))[0]}
    for (system, row_id), prediction in predictions(adapter.parent / "evaluation").items():
        prompt_format = PROMPT_FORMATS["raw"] if system == "raw" else short
        prompt = prompt_format.render(rows[row_id].query, rows[row_id].tools)
        assert prediction["prompt_sha256"] == prompt_hash(prompt)
    assert run_here(evaluate, ["--config", str(adapter.parent / "evaluation" / "args.yaml")]).code == 0
    result = run_here(evaluate, evaluation | {"prompt_format": "tags-1"})
    assert result.code == 2 and "was trained with --prompt_format short" in result.err

    monkeypatch.setitem(PROMPT_FORMATS, "short", short._replace(render=lambda query, tools: f"{tools}\n{query}!\n"))
    result = run_here(evaluate, evaluation)
    assert result.code == 1 and "has been edited since" in result.err
    monkeypatch.delitem(PROMPT_FORMATS, "short")
    result = run_here(evaluate, evaluation)
    assert result.code == 1 and "prompt format short; data_utils/prompt.py has tags-1, raw" in result.err


@pytest.mark.slow
def test_two_processes_and_a_killed_run_equal_an_uninterrupted_run(run_here, flags, tmp_path):
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    expected = predictions(flags["output_dir"])

    two = flags | {"output_dir": tmp_path / "two"}
    result = launch("evaluate.py", two, processes=2)
    assert result.code == 0, result.err
    assert predictions(two["output_dir"]) == expected

    # Row by row, for a kill in the middle.
    killed = flags | {"output_dir": tmp_path / "killed", "batch_tokens": 1}
    part = killed["output_dir"] / "predictions-0.jsonl"
    reached = lambda: part.exists() and part.read_text().count("\n") >= 25  # noqa: E731
    assert launch_and_kill("evaluate.py", killed, reached, tmp_path / "log")
    before = part.read_text().splitlines()[:25]
    with part.open("a") as file:
        file.write('{"system": "prompted", "id": "cut sh')
    result = run_here(evaluate, killed)
    assert result.code == 0, result.err
    assert predictions(killed["output_dir"]) == expected
    # Earlier predictions are kept.
    assert set(before) <= set((killed["output_dir"] / "predictions.jsonl").read_text().splitlines())
    assert not list(killed["output_dir"].glob("predictions-*"))


def test_systems_can_be_named_and_added(run_here, flags):
    assert run_here(evaluate, flags | {"systems": ["raw"], "num_examples": 3}).code == 0
    assert len(predictions(flags["output_dir"])) == 3
    result = run_here(evaluate, flags | {"systems": ["adapter", "raw"], "num_examples": 3})
    assert result.code == 0 and len(predictions(flags["output_dir"])) == 6
    result = run_here(evaluate, flags | {"systems": ["adapter"], "num_examples": 4})
    assert result.code == 1 and "holds an evaluation of another model, other rows" in result.err
    assert run_here(evaluate, flags | {"num_examples": 4, "systems": ["raw"], "overwrite_output_dir": True}).code == 0


def test_the_base_alone_needs_no_adapter(run_here, flags, tiny_model, rows_file):
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 1, "num_examples": 5,
             "output_dir": flags["output_dir"], "max_new_tokens": 4}  # fmt: skip
    assert run_here(evaluate, flags).code == 0
    assert {system for system, _ in predictions(flags["output_dir"])} == {"raw", "prompted"}


def test_rows_too_long_to_train_on_are_still_evaluated(adapter, rows_file, tiny_model):
    from transformers import AutoTokenizer

    _, held_out, _ = split_rows(load_rows(str(rows_file))[0], 0.24, seed=5)
    too_long = tokenize_rows(AutoTokenizer.from_pretrained(tiny_model), TAGS, held_out, 300).too_long
    # The first test found all held-out rows among the predictions, of any length.
    assert too_long


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"adapter": "absent"}, 1, "no adapter in absent"),
        ({"adapter": "tests"}, 1, "not an adapter saved by train.py"),
        ({"systems": ["rwa"]}, 2, "rwa"),
        ({"systems": ["raw", "raw"]}, 2, "twice"),
        ({"max_new_tokens": 0}, 2, "--max_new_tokens must be above 0"),
        ({"batch_tokens": 0}, 2, "--batch_tokens must be above 0"),
        ({"batch_tokens": "all"}, 2, "--batch_tokens must be auto or a whole number, not 'all'"),
        ({"eval_fraction": 0}, 2, "--eval_fraction"),
        ({"output_dir": "README.md"}, 1, "cannot be written"),
        ({"output_dir": "/proc/evaluation"}, 1, "cannot be written"),
        ({"dataset_name": "absent.jsonl"}, 1, "no such file"),
    ],
)
def test_wrong_use_is_one_line(run_here, monkeypatch, flags, change, code, message):
    monkeypatch.chdir(ROOT)
    result = run_here(evaluate, flags | change)
    lines = result.err.strip().splitlines()
    assert result.code == code and len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("script", [evaluate, export, infer])
def test_the_folder_of_a_run_leads_to_its_adapter(run_here, adapter, tmp_path, script):
    flags = {"adapter": adapter.parent, "output_dir": tmp_path / "new"}
    if script is infer:
        flags = {"adapter": adapter.parent, "query": "hi", "tools": ROOT / "demo" / "math_tools.json"}
    result = run_here(script, flags)
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and line.endswith(f"no adapter_config.json there: did you mean {adapter}?")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("subfolder", ["", "adapter"])
def test_an_adapter_is_no_model(run_here, adapter, subfolder):
    flags = {"model_name_or_path": adapter.parent / subfolder, "query": "hi", "tools": ROOT / "demo/math_tools.json"}
    result = run_here(infer, flags)
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and line.endswith(f"there is no config.json; {adapter} is an adapter, for --adapter")


def test_an_adapter_of_another_base_is_refused(run_here, flags, tmp_path, tiny_model):
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", tiny_model, other], check=True)
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] + 0.1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    result = run_here(evaluate, flags | {"model_name_or_path": other, "systems": ["adapter"]})
    assert result.code == 1 and "was trained on another base model" in result.err


def test_training_scores_its_generations(adapter):
    from conftest import values

    for name in ("json_valid", "exact_match", "tools_exist"):
        (rate,) = values(adapter.parent, f"eval/{name}")
        assert 4 * rate in range(5)


def rows_with(tmp_path, rows_file, change):
    records = [json.loads(line) for line in rows_file.read_text().splitlines()]
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in change(records)))
    return path


def test_held_out_rows_are_recognised_by_content(run_here, flags, rows_file, tmp_path, adapter):
    """Other ids and a new column change nothing. A missing or trained row is refused by name."""
    split = json.loads((adapter / "split.json").read_text())
    changed = rows_with(tmp_path, rows_file, lambda rs: [{**r, "id": f"new {i}", "more": i} for i, r in enumerate(rs)])
    flags |= {"systems": ["raw"], "max_new_tokens": 1, "overwrite_output_dir": True}
    assert run_here(evaluate, flags | {"dataset_name": changed}).code == 0
    ids = [record["id"] for record in map(json.loads, rows_file.read_text().splitlines())]
    wanted = {f"new {ids.index(row_id)}" for row_id in split["held_out"]}
    assert {row_id for _, row_id in predictions(flags["output_dir"])} == wanted

    lost = next(iter(split["held_out"]))
    incomplete = rows_with(tmp_path, rows_file, lambda rs: [r for r in rs if r["id"] != lost])
    result = run_here(evaluate, flags | {"dataset_name": incomplete})
    assert (
        result.code == 1 and f"1 of the 20 rows that {adapter} held out are not in" in result.err and lost in result.err
    )
    result = run_here(evaluate, flags | {"eval_fraction": 0.5})
    assert result.code == 1 and "was trained on: demo-" in result.err


def test_key_order_and_removed_copies_do_not_change_the_content(run_here, flags, rows_file, tmp_path, adapter):
    """Another program wrote the rows again, with sorted keys and without repeats."""

    def rewritten(records):
        for record in records:
            tools = json.dumps(json.loads(record["tools"]), sort_keys=True)
            yield {"id": f"new {record['id']}", "query": record["query"], "tools": tools, "answers": record["answers"]}

    changed = rows_with(tmp_path, rows_file, rewritten)
    result = run_here(evaluate, flags | {"systems": ["raw"], "max_new_tokens": 1, "dataset_name": changed})
    assert result.code == 0, result.err
    held_out = json.loads((adapter / "split.json").read_text())["held_out"]
    assert {row_id for _, row_id in predictions(flags["output_dir"])} == {f"new {row_id}" for row_id in held_out}
    rows, _ = load_rows(str(rows_file))
    first = rows[0].fingerprint
    assert find_held_out(rows, {"held_out": {"a": first, "b": first, "c": "gone"}}) == ([rows[0]], ["c"])


def test_a_moved_data_set_is_named_with_its_adapter(run_here, flags, tmp_path, adapter):
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    text = (copy / "args.yaml").read_text()
    (copy / "args.yaml").write_text(text.replace("rows.jsonl", "moved.jsonl"))
    result = run_here(evaluate, flags | {"adapter": copy})
    assert result.code == 1 and "no such file" in result.err
    assert f"{copy / 'args.yaml'}, --dataset_name replaces it" in result.err


def test_an_adapter_on_a_tied_head_is_not_merged(run_here, train_here, tiny_model, rows_file, tmp_path):
    flags = {
        "model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": tmp_path / "run",
        "quantization": "none", "gradient_checkpointing": False, "max_train_steps": 6, "warmup_ratio": 0,
        "learning_rate": 1e-2, "max_seq_length": 2048, "lora_target_modules": ["lm_head", "q_proj"],
        "eval_generate_examples": 4,
    }  # fmt: skip
    adapter = train_here(flags) / "adapter"
    model = load_adapter(
        load_base_model(ModelSource(tiny_model), Accelerator(cpu=True)),
        read_adapter(adapter),
        merge_checked_on=[np.arange(30, dtype=np.int32)],
    )
    assert isinstance(model, PeftModel)


def test_a_merge_that_changes_the_output_is_refused(tiny_model, adapter, tmp_path):
    """The adapter cancels a large output projection: the merge leaves only rounding errors."""
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    weights = load_file(copy / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"
    a, b = (torch.randn(weights[name.format(part)].shape) for part in "AB")
    base = load_base_model(ModelSource(tiny_model), Accelerator(cpu=True))
    scaling = read_args(copy)["lora_alpha"] / read_args(copy)["lora_r"]
    base.model.layers[0].self_attn.o_proj.weight.copy_(1e6 * scaling * b @ a)
    save_file(weights | {name.format("A"): a, name.format("B"): -1e6 * b}, copy / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"moves logits by .*--merge_adapter false"):
        load_adapter(base, read_adapter(copy), merge_checked_on=[np.arange(30, dtype=np.int32)])
