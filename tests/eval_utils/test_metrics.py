"""The definitions of the metrics, and the figures of many outputs."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, TAGS
from hypothesis import given
from hypothesis import strategies as st

from data_utils.rows import Row
from data_utils.tool_calls import finished
from eval_utils import metrics
from eval_utils.metrics import METRICS, Metric, summarize
from eval_utils.outputs import Output, Task

TOOLS = [{"name": "f"}, {"name": "g"}]
GOLD = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]
MARKED = [{"name": "f", "arguments": {"x": 'a "quoted" </answer> [] \\'}}]


def score(text, gold):
    return metrics.score(Output(Task(Row("x", "q", json.dumps(TOOLS), json.dumps(gold))), text, TAGS))


@pytest.mark.parametrize(
    ("text", "gold", "strict", "lenient"),  # json_valid, exact_match, tools_exist
    [
        (json.dumps(GOLD), GOLD, "111", "111"),
        (f" \n{json.dumps(GOLD)}\n</answer> more", GOLD, "111", "111"),
        (json.dumps(GOLD[::-1]), GOLD, "101", "101"),
        (json.dumps(GOLD[0]), GOLD, "101", "101"),
        (f"```json\n{json.dumps(GOLD)}\n```", GOLD, "000", "111"),
        (f"Sure: {json.dumps(GOLD)}", GOLD, "000", "111"),
        (json.dumps(GOLD) + "]", GOLD, "000", "111"),
        ('[{"name": "h", "arguments": {}}]', GOLD, "100", "100"),
        ('[{"function": "f", "args": {"x": 1}}]', GOLD, "100", "101"),
        ('[{"name": ["f"], "arguments": {}}]', GOLD, "100", "100"),
        ('["f"]', GOLD, "100", "101"),
        ("[]", [], "111", "111"),
        ("[]", GOLD, "100", "100"),
        (json.dumps(GOLD), [], "101", "101"),
        ("{}", GOLD, "100", "101"),
        ("1", GOLD, "000", "000"),
        ("null", GOLD, "000", "000"),
        ("", GOLD, "000", "000"),
        ('[{"name": "f", "arguments": {"x": NaN}}]', GOLD, "000", "000"),
        ('[{"name": "f", "name": "f"}]', GOLD, "000", "000"),
        ("[" * 100_000, GOLD, "000", "000"),
        ("prose with [a note] and then [1]", GOLD, "000", "000"),
        (f"[TOOL_CALLS] {json.dumps(GOLD)}", GOLD, "000", "111"),
        (f"<think>[1] is {{odd}}</think>\n{json.dumps(GOLD)}", GOLD, "000", "111"),
        ("calls = []\nfor x in []: pass", [], "000", "000"),
        ("```json\n[]\n```", [], "000", "111"),
        ("[]</answer>", [], "111", "111"),
        ("[] or so", [], "000", "111"),
        ("```python\nx = []", [], "000", "000"),
        ('[{"name": "f", "arguments": {"x": true}}, {"name": "g", "arguments": {}}]', GOLD, "101", "101"),
        ('[{"name": "f", "arguments": {"x": 1.0}}, {"name": "g", "arguments": {}}]', GOLD, "111", "111"),
        (json.dumps(MARKED), MARKED, "111", "111"),
        (f"{json.dumps(MARKED)}</answer>", MARKED, "111", "111"),
        (f"Sure: {json.dumps(MARKED)}", MARKED, "000", "111"),
        ('[{"name": "f", "arguments": {"x": 1}</answer>', GOLD, "000", "101"),
    ],
)
def test_scores(text, gold, strict, lenient):
    verdicts = score(text, gold)
    names = ("json_valid", "exact_match", "tools_exist")
    assert "".join(str(int(verdicts[name])) for name in names) == strict
    assert "".join(str(int(verdicts[f"lenient_{name}"])) for name in names) == lenient
    for name in names:
        assert verdicts[f"lenient_{name}"] >= verdicts[name]  # an upper bound


FRAGMENTS = st.sampled_from(
    [*' \n"\\[]{},:<>/', "</answer>", "</ans", "[]", "{}", '"a"', '"</answer>"', "true", "1", "NaN", "[TOOL_CALLS]",
     "```json\n", "```", "prose", "<think>", '"a": ', json.dumps(GOLD), json.dumps(MARKED), "\u00a0", "[{", "}]"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=12), st.randoms(use_true_random=False))
def test_text_that_generation_cuts_off_changes_no_score(fragments, random):
    """For every text in any fragments."""
    text, end = "".join(fragments), 0
    while end < len(text) and not finished(text[:end]):
        end += random.randint(1, 9)
    for gold in (GOLD, MARKED, []):
        whole, cut = score(text, gold), score(text[:end], gold)
        for name in ("json_valid", "exact_match", "tools_exist"):
            assert cut[name] == whole[name] <= whole[f"lenient_{name}"] == cut[f"lenient_{name}"]


@pytest.mark.parametrize(
    "text", ["[" * 10_000, '{"a":[' * 350_000, '["' + "[" * 2_000_000, '["' + '\\"' * 10**6 + "\\"]
)
def test_texts_without_end_are_misses(text):
    scores = score(text, GOLD)
    assert not any(scores[name] or scores[f"lenient_{name}"] for name in ("json_valid", "exact_match", "tools_exist"))


def test_a_new_metric_is_one_line_of_the_table(monkeypatch):
    """For each kind: only a rate has an interval, only a metric with an upper bound has a twin."""
    monkeypatch.setitem(METRICS, "words", Metric("words", "mean", lambda output: len(output.text.split())))
    monkeypatch.setitem(METRICS, "brackets", Metric("brackets", "count", lambda output: output.text.count("[")))
    figures = summarize([score("[]", []), score("one two three", [])])
    assert figures["words"] == {"n": 2, "mean": 2.0} and figures["brackets"] == {"n": 2, "count": 1}
    assert (figures["exact_match"]["k"], figures["lenient_exact_match"]["n"]) == (1, 2)
    assert "lenient_words" not in figures


def test_no_torch_is_needed_to_score():
    code = "import sys, eval_utils.table, eval_utils.report, eval_utils.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("spec", "given", "gold", "equal"),
    [
        ({"type": "Optional[int]"}, {"x": "5"}, {"x": 5}, True),
        ({"type": "Optional[int]"}, {"x": "five"}, {"x": 5}, False),
        # The value already has a declared type.
        ({"type": "Union[int, str]"}, {"x": "5"}, {"x": 5}, False),
        ({"type": "Dict[str, int]"}, {"x": {"k": "5"}}, {"x": {"k": 5}}, True),
        ({"type": "str", "default": ""}, {"x": ""}, {}, True),
        ({"type": "int", "default": None}, {}, {"x": None}, True),
        ({"type": "str", "default": "a"}, {"x": "b"}, {}, False),
    ],
)
def test_values_that_a_schema_makes_equal(spec, given, gold, equal):
    tools = [{"name": "f", "parameters": {"x": spec}}]
    text, gold = (json.dumps([{"name": "f", "arguments": arguments}]) for arguments in (given, gold))
    verdicts = metrics.score(Output(Task(Row("x", "q", json.dumps(tools), gold)), text, TAGS))
    assert verdicts["exact_schema_aware"] == equal and not verdicts["exact_match"]


def test_names_of_arguments_in_two_normal_forms_of_unicode_are_equal_by_the_schema():
    tools = [{"name": "f", "parameters": {"\u00e9": {"type": "str"}}}]
    text, gold = (json.dumps([{"name": "f", "arguments": {name: "a"}}]) for name in ("e\u0301", "\u00e9"))
    assert metrics.score(Output(Task(Row("x", "q", json.dumps(tools), gold)), text, TAGS))["exact_schema_aware"]


def test_all_systems_answers_share_one_reading_of_the_tools():
    task = Task(Row("x", "q", json.dumps(TOOLS), "[]"))
    first, second = (Output(task, text, TAGS) for text in ("[]", "no"))
    assert metrics.score(first) and metrics.score(second)
    assert first.schemas is second.schemas and first.sources is second.sources
