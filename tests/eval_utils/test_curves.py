"""The figures of texts generated during training."""

from conftest import TAGS

from data_utils.rows import Row
from eval_utils.curves import curve_figures

TOOLS = '[{"name": "f", "description": "", "parameters": {}}]'
CALL = '[{"name": "f", "arguments": {}}]'


def test_curves_are_the_headline_rates_and_over_call_if_a_row_wants_no_call():
    one, none = Row("a", "q", TOOLS, CALL), Row("b", "q", TOOLS, "[]")
    rates = {"json_valid": 1, "exact_match": 1, "tools_exist": 1, "no_hallucination": 1}
    assert curve_figures([one], [(CALL, "end")], TAGS) == rates
    figures = curve_figures([one, none], [("no JSON", "length"), (CALL, "end")], TAGS)
    assert figures.keys() == {*rates, "over_call"}
    assert (figures["json_valid"], figures["exact_match"], figures["over_call"]) == (0.5, 0, 1)
