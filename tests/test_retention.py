"""evaluate.py --retention: the perplexity of a plain text under the base and under the adapter."""

import json
import math

import pytest
import torch
from conftest import launch
from transformers import AutoModelForCausalLM, AutoTokenizer

import evaluate
from data_utils.plain_text import read_text
from demo.retention import TEXTS
from model_utils.adapter_files import read_adapter
from model_utils.adapters import load_adapter
from run_utils.errors import UserError


@pytest.fixture(scope="module")
def adapter(tiny_model, rows_file, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "output_dir": output_dir}
    flags |= {"quantization": "none", "max_train_steps": 8, "learning_rate": 1e-2, "max_seq_length": 2048}
    result = launch("train.py", flags)
    assert result.code == 0, result.err
    return output_dir / "adapter"


@pytest.fixture
def flags(adapter, tmp_path):
    return {
        "adapter": adapter, "output_dir": tmp_path / "evaluation", "max_new_tokens": 2, "num_examples": 2,
        "systems": ["adapter", "prompted"], "retention": "english",
    }  # fmt: skip


def mean_losses(model, tokenizer):
    """Of each block, by transformers' own labels."""
    losses = []
    for ids, count in read_text("english", TEXTS, tokenizer, 4096).blocks:
        ids = torch.from_numpy(ids).long()[None]
        labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - count, ids, -100)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    return losses


def test_both_models_read_the_same_tokens_whatever_the_order_of_systems(run_here, flags, tiny_model, monkeypatch):
    """Also merged: the base is measured before it is changed. Compared with transformers' loss."""
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = mean_losses(base, tokenizer)
    after = mean_losses(load_adapter(base, read_adapter(flags["adapter"])), tokenizer)
    assert before != after
    metrics = json.loads((flags["output_dir"] / "metrics.json").read_text())
    for system, losses in (("prompted", before), ("adapter", after)):
        figure = metrics["systems"][system]["perplexity"]
        assert figure["mean"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
        assert figure["low"] < figure["mean"] < figure["high"] and figure["n"] == 128 * len(losses)
    (change,) = metrics["retention"]["changes"]
    assert change["ratio"] == pytest.approx(math.exp((sum(after) - sum(before)) / len(before)), rel=1e-4)
    assert change["low"] < change["ratio"] < change["high"]
    line = "adapter: the perplexity of the text english changes by "
    assert line in result.out and "perplexity" in (flags["output_dir"] / "report.html").read_text()

    # The same command, and --rescore without a model, measure nothing again.
    monkeypatch.setattr("model_utils.retention.block_loss", None)
    for again in (flags, {"rescore": flags["output_dir"]}):
        result = run_here(evaluate, again)
        assert result.code == 0 and line in result.out, result.err
    monkeypatch.undo()
    # As after a kill between the two.
    file = flags["output_dir"] / "retention.json"
    whole = json.loads(file.read_text())
    assert set(whole["losses"]) == {"base", "adapter"}
    file.write_text(json.dumps(whole | {"losses": {"base": whole["losses"]["base"]}}))
    assert run_here(evaluate, flags).code == 0 and json.loads(file.read_text()) == whole
    other = flags | {"output_dir": flags["output_dir"].with_name("other"), "retention": "demo"}
    assert run_here(evaluate, other).code == 0
    comparison = flags["output_dir"].with_name("comparison")
    result = run_here(
        evaluate, ["--compare", str(flags["output_dir"]), str(other["output_dir"]), f"--output_dir={comparison}"]
    )
    assert result.code == 0 and "perplexity" not in result.out  # of different texts


def test_an_evaluation_without_a_text_has_no_column(run_here, flags):
    del flags["retention"]
    result = run_here(evaluate, flags)
    assert result.code == 0 and "perplexity" not in result.out
    assert not (flags["output_dir"] / "retention.json").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "has 0 tokens: an interval needs 1025 or more"),
        (b"A few words.", "an interval needs 1025 or more"),
        (b"\xff\xfe\x00 no text", "it is no text in UTF-8"),
    ],
    ids=["missing", "empty", "short", "binary"],
)
def test_a_text_that_cannot_be_measured_is_one_line_before_the_model_loads(
    run_here, flags, tmp_path, monkeypatch, content, problem
):
    monkeypatch.setattr(evaluate, "load_base_model", None)
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    result = run_here(evaluate, flags | {"retention": path})
    assert result.code == 1 and f"--retention {path}" in result.err and problem in result.err
    assert len(result.err.strip().splitlines()) == 1 and not flags["output_dir"].exists()


def test_a_wrong_name_of_a_text_is_answered_with_the_names():
    with pytest.raises(UserError, match="texts that come with the project: english, demo"):
        read_text("englsh", TEXTS, None, 4096)


def test_a_long_text_is_read_in_part_and_a_short_window_holds(tiny_model, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    path = tmp_path / "long.txt"
    path.write_text(TEXTS["english"]() * 30)
    text = read_text(str(path), {}, tokenizer, 4096)
    assert len(text.blocks) == 512 and "the first 65,536 of" in capsys.readouterr().err
    assert {len(ids) for ids, _ in text.blocks[3:]} == {512} and {count for _, count in text.blocks} == {128}
    assert max(len(ids) for ids, _ in read_text("english", TEXTS, tokenizer, 100).blocks) == 100
    with pytest.raises(UserError, match="it is no file|not a file"):
        read_text(str(tmp_path), {}, tokenizer, 4096)
