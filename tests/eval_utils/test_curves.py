"""The figures and samples of texts generated during training."""

import html
import re

import pytest
from conftest import TAGS
from tensorboard.plugin_util import markdown_to_safe_html

from data_utils.rows import Row
from eval_utils.curves import curve_figures, samples_table

TOOLS = '[{"name": "f", "description": "", "parameters": {}}]'
CALL = '[{"name": "f", "arguments": {}}]'


def test_curves_are_the_headline_rates_and_over_call_if_a_row_wants_no_call():
    one, none = Row("a", "q", TOOLS, CALL), Row("b", "q", TOOLS, "[]")
    rates = {"json_valid": 1, "exact_match": 1, "tools_exist": 1, "no_hallucination": 1}
    assert curve_figures([one], [(CALL, "end")], TAGS) == rates
    figures = curve_figures([one, none], [("no JSON", "length"), (CALL, "end")], TAGS)
    assert figures.keys() == {*rates, "over_call"}
    assert (figures["json_valid"], figures["exact_match"], figures["over_call"]) == (0.5, 0, 1)


def cells(table):
    """The rows of the table that TensorBoard shows, as lists of cells' HTML."""
    rows = re.findall(r"<tr>(.*?)</tr>", markdown_to_safe_html(table), re.DOTALL)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_samples_are_wrong_rows_first_and_bold_from_the_first_difference():
    rows = [Row(name, f"query {name}", TOOLS, CALL) for name in "abcd"]
    wrong, cut = CALL.replace("f", "g"), CALL[:-1]
    answers = [(f" {CALL}", "end"), (wrong, "end"), (cut, "length"), (CALL, "end")]
    head, *lines = cells(samples_table(rows, answers, TAGS, count=3))
    assert head == ["", "query", "output", "gold"]
    assert [line[:2] for line in lines] == [["✗", "query b"], ["✗", "query c"], ["✓", "query a"]]
    start = CALL.index("f")
    for line, output in zip(lines, (wrong, cut, CALL), strict=False):
        shown = [html.unescape(text) for text in line[2:]]
        if output == CALL:
            assert shown == [CALL, CALL]
        else:
            at = start if output == wrong else len(cut)
            assert shown == [f"{text[:at]}<strong>▸{text[at:]}</strong>" for text in (output, CALL)]


@pytest.mark.parametrize(
    "text",
    [
        "a|b || c",
        "<script>alert(1)</script><b>x</b> &lt; &amp;",
        "**bold** _it_ *it* `code` ~~s~~ \\| [a](http://b) ![i](j)",
        "# not a heading\n\n- one\n| two |\r\nthree\x0bfour\u2028five",
        "",
    ],
)
def test_no_text_breaks_the_table_of_samples(text):
    _, line, last = cells(samples_table([Row("a", text, TOOLS, CALL)] * 2, [(text, "end"), (CALL, "end")], TAGS))
    shown = "↵".join(text.splitlines())
    mark, query, output, _ = line
    assert (mark, html.unescape(query)) == ("✗", shown)
    assert html.unescape(output).replace("<strong>▸", "").replace("</strong>", "") == shown.strip()
    assert "<script" not in output and last[0] == "✓" and len(last) == 4
