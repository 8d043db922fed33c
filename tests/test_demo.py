"""The embedded demo: valid, repeatable rows, and a small run in which LoRA beats prompting."""

import json

import pytest
from conftest import ROOT

import evaluate
from data_utils.sources import load_rows
from demo.corpus import documents
from demo.rows import GENERATORS, generate_rows
from demo.world import unseen_tools


def test_rows_are_a_function_of_the_seed():
    assert generate_rows(5, seed=1) == generate_rows(10, seed=1)[:5] != generate_rows(5, seed=2)


@pytest.mark.parametrize("name", ["demo", "demo_unseen"])
def test_rows_are_valid_varied_and_answerable(name):
    rows, bad = load_rows(name, generators=GENERATORS)
    assert not bad and len(rows) == 4000
    calls = [json.loads(row.answers) for row in rows]
    assert {len(answer) for answer in calls} == {0, 1, 2, 3, 4}
    assert 0.05 < sum(not answer for answer in calls) / len(calls) < 0.12  # rows without calls
    assert max(len(row.tool_names()) for row in rows) == 6
    types = {type(value) for answer in calls for call in answer for value in call["arguments"].values()}
    assert types == {str, int, float, bool, list}


def test_unseen_tools_are_unseen():
    names = set().union(*(row.tool_names() for row in load_rows("demo", generators=GENERATORS)[0]))
    unseen = {tool.name for tool in unseen_tools()}
    assert unseen and not names & unseen
    corpus = documents("a test")
    for _ in range(2000):
        text = "".join(next(corpus))
        assert '"arguments"' not in text and "system_prompt>" not in text and not any(name in text for name in unseen)


@pytest.mark.slow
def test_lora_learns_the_format_and_prompting_does_not(demo_adapter, run_here, tmp_path):
    """A shorter `make demo`: exact match rises from 0 to above 0.7."""
    flags = {
        "config": ROOT / "recipes" / "demo_evaluate.yaml",
        "adapter": demo_adapter,
        "num_examples": 24,
        "output_dir": tmp_path / "evaluation",
    }
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    figures = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["systems"]
    rates = {
        system: {name: value["rate"] for name, value in metrics.items() if isinstance(value, dict) and "rate" in value}
        for system, metrics in figures.items()
    }
    assert all(rates[system]["exact_match"] == 0 for system in ("raw", "prompted", "fewshot"))
    assert rates["raw"]["json_valid"] + 0.3 < rates["prompted"]["json_valid"]
    assert rates["adapter"]["json_valid"] > 0.9 and rates["adapter"]["exact_match"] > 0.7
    assert "length" not in figures["adapter"]["finish"]  # generations stop by themselves
