"""The assistant's turn of a chat, read as calls or words."""

import pytest

from data_utils.chat_turns import Markers, kind_of_turn

HERMES = Markers("<tool_call>", "</tool_call>", False, "arguments", "<|im_end|>")
BARE = Markers("", "", False, "parameters", "<|eot_id|>")
LISTED = Markers("[TOOL_CALLS]", "", True, "arguments", "</s>")
F, G = {"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}
F_TEXT, G_TEXT = '{"name": "f", "arguments": {"a": 1}}', '{"arguments": {}, "name": "g"}'
CALL = f"<tool_call>\n{F_TEXT}\n</tool_call>"


@pytest.mark.parametrize(
    ("markers", "text", "calls"),
    [
        (HERMES, CALL, [F]),
        (HERMES, f"{CALL}\n<tool_call>{G_TEXT}</tool_call>\n", [F, G]),
        (HERMES, f"<think>\nuse <tool_call>\n</think>\n\nLet me see.\n{CALL} Done.", [F]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
         [{"name": "f", "arguments": {"a": "</tool_call>"}}]),
        (HERMES, "", []),
        (HERMES, "It is 20 °C in Rome (see {weather}).", []),
        (HERMES, "[]", []),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', [{"name": "f"}]),  # JSON, but no call
        (HERMES, '<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>',
         [{"name": "f", "arguments": {}, "id": 1}]),
        (BARE, ' {"name": "f", "parameters": {"a": 1}}\n', [F]),
        (BARE, "Which city?", []),
        (LISTED, f"[TOOL_CALLS] [{F_TEXT}, {G_TEXT}]", [F, G]),
    ],
)  # fmt: skip
def test_a_turn_is_its_calls_in_order(markers, text, calls):
    assert markers.parse(text) == calls == markers.lenient(text)


@pytest.mark.parametrize(
    ("markers", "text"),
    [
        (HERMES, f"<tool_call>\n{F_TEXT}"),  # not closed
        (HERMES, f"{CALL}<tool_call>"),
        (HERMES, f"<tool_call>{F_TEXT}, {G_TEXT}</tool_call>"),
        (HERMES, f"<tool_call>[{F_TEXT}]</tool_call>"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "name": "f", "arguments": {}}</tool_call>'),
        (HERMES, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>"),
        (HERMES, "<tool_call>" * 3000),
        (HERMES, "<tool_call>" + '{"a":' * 100_000),
        (HERMES, f"{F_TEXT}\n</tool_call>"),  # a call without its first marker
        (HERMES, F_TEXT),  # and without both
        (HERMES, f"{CALL}\n{F_TEXT}"),
        (HERMES, f"I call {F_TEXT[:-3]}"),
        (HERMES, '[{"name": "f", "parameters": {}}]'),
        (HERMES, "f(a=1)"),
        (HERMES, "[f(a=1), g()]"),
        (HERMES, "<function=f>{}</function>"),
        (HERMES, "[TOOL_CALLS] f"),
        (HERMES, f"<think>{CALL}"),  # a thought that does not end
        (BARE, F_TEXT + "; " + F_TEXT),
        (BARE, F_TEXT[:-1]),
        (BARE, f"Sure: {F_TEXT}"),
        (LISTED, f"[TOOL_CALLS] {F_TEXT}"),
        (LISTED, f"[TOOL_CALLS] [{F_TEXT}"),
    ],
)  # fmt: skip
def test_a_turn_with_a_broken_or_unmarked_call_is_broken(markers, text):
    with pytest.raises(ValueError, match=r"\w"):
        markers.parse(text)


def test_a_turn_without_its_end_token_is_broken():
    assert HERMES.read(CALL, "end") == [F]
    for finish in ("length", "too_long", "content_filter"):
        with pytest.raises(ValueError, match="does not end"):
            HERMES.read(CALL, finish)
    assert HERMES.lenient(f"<tool_call>{F_TEXT}") == [F] and HERMES.lenient("<tool_call>?") is None


@pytest.mark.parametrize(
    "words",
    ["Which city?", "Which city? 😊\n", "“Which city?”", "**Which city?**", "(Where?)", "I found two. Which one?", "¿Qué ciudad?",
     "どの都市ですか？", "どの都市ですか。", "ما المدينة؟", "Ποια πόλη;", "Ո՞ր քաղաքը։", "የት ነው፧"],
)  # fmt: skip
def test_words_ask_if_their_last_sentence_has_a_question_mark(words):
    assert kind_of_turn([], words) == "asked" and kind_of_turn([F], words) == "called"


@pytest.mark.parametrize(
    "words",
    ["It is 20 °C.", "Which city? Thanks!", "ok; done;", "Which city?\n- Rome\n- Paris", "อากาศเป็นอย่างไร", "🙂"],
)
def test_other_words_answer(words):
    assert kind_of_turn([], words) == "answered" and kind_of_turn([], " \n") is None
