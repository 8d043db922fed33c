"""The assistant's turn of a chat as calls and words: the reading of answers in the format `chat`.
Pure functions, no tokenizer.

A turn without a call's markers is words: an abstention, whatever the words are. A call that is not
strict JSON, a call that does not end, and words that look like a call make the turn broken."""

import re
from typing import NamedTuple

from data_utils.tool_calls import lenient_value, value_at
from data_utils.written_calls import ARGUMENT_KEYS, MARKS, NAME_KEYS, PYTHON_ALONE, PYTHON_LIST

PARSER = "1"  # count up if a turn is read differently: the format's hash has it
BLANKS = re.compile(r"\s*")
THOUGHT = "<think>", "</think>"
# An object with the keys of a call, whole or cut, anywhere in the words.
KEYS_OF_A_CALL = [re.compile(rf'"(?:{"|".join(keys)})"\s*:') for keys in ((*NAME_KEYS, "function"), ARGUMENT_KEYS)]


# Of gold and of an answer: calls, words, or words that ask the user back.
KINDS = ("called", "answered", "asked")
# At the end of a sentence: the question marks of Latin, Greek, CJK, Arabic, Ethiopic, Vai, Bamum
# and Chakma; a Greek question's semicolon; a Japanese question's last syllable. Armenian's mark is
# inside the sentence. Scripts without a question mark (Thai, Lao) have no others.
QUESTION_MARKS = r"?\u037e\uff1f\ufe16\ufe56\u061f\u2e2e\u203d\u2047-\u2049\u1367\ua60f\ua6f7\U00011143"
QUESTION = re.compile(
    rf"[{QUESTION_MARKS}]\Z"
    r"|[\u0370-\u03ff\u1f00-\u1fff]\W*;\Z|\u304b[\u3002\uff0e]?\Z|\u055e[^\u0589]*\u0589?\Z"
)
# After a sentence: blanks, quotes, brackets, emphasis, symbols such as emojis.
AFTER_SENTENCE = re.compile(rf"[^\w{QUESTION_MARKS}!.;:\u0589\u055e\u3002\uff0e]*\Z")


def kind_of_turn(calls, words):
    """One of KINDS, or None for a turn without calls and words."""
    if calls:
        return "called"
    return ("asked" if asks(words) else "answered") if words.strip() else None


def asks(words):
    """Whether the last sentence ends with a question mark, perhaps in quotes or before an emoji. A
    question before other sentences, or without its mark, is none."""
    return bool(QUESTION.search(AFTER_SENTENCE.sub("", words[-1000:])))


class Markers(NamedTuple):
    """The form of the calls in a template's turns, found by chat_format.py, and the reading of
    answers, with the names of prompt.PromptFormat."""

    start: str  # before a call or a list of calls; empty if a turn is a bare call
    end: str  # after it; may be empty
    is_list: bool  # one pair of markers around a JSON list of calls
    arguments: str  # a call's key of its arguments: "arguments" or "parameters"
    end_token: str  # of the turn

    def parse(self, text):
        return read_turn(text, self).calls

    def words(self, text):
        """The words of a turn, without thoughts. Raises ValueError if the turn is broken."""
        return read_turn(text, self).words

    def read(self, text, finish):
        if finish != "end":
            raise ValueError("the turn does not end")
        return self.parse(text)

    def lenient(self, text):
        """The calls for a forgiving parser, or None: the first object or list of objects in a
        broken turn."""
        try:
            return self.parse(text)
        except ValueError:
            value = lenient_value(text)
        values = value if isinstance(value, list) else [value]
        return None if value is None else [standard_call(element, self) for element in values]


class Turn(NamedTuple):
    calls: list  # in order; an empty list if the turn is only words
    words: str  # without thoughts


def read_turn(text, markers):
    """The Turn of a text without its end token. Raises ValueError with the reason if it is broken.

    A call that is strict JSON, but not an object with a name and arguments, stays as it is."""
    text = after_thought(text)
    if not markers.start:
        return read_bare_turn(text, markers)
    values, words, place = [], [], 0
    while (start := text.find(markers.start, place)) >= 0:
        words.append(text[place:start])
        value, place = value_after(text, start + len(markers.start), markers)
        values += value if markers.is_list else [value]
    words = "".join([*words, text[place:]]).strip()
    if markers.end and markers.end in words:
        raise ValueError(f"{markers.end} without {markers.start}")
    return Turn([standard_call(value, markers) for value in values], checked(words))


def read_bare_turn(text, markers):
    if not text.lstrip().startswith("{"):
        return Turn([], checked(text.strip()))
    value, end = value_after(text, 0, markers)
    if text[end:].strip():
        raise ValueError("text after the call")
    return Turn([standard_call(value, markers)], "")


def after_thought(text):
    """The text after the thought at its start, if there is one. Raises ValueError if the thought
    does not end."""
    start, end = THOUGHT
    if not text.lstrip().startswith(start):
        return text
    _, tag, rest = text.partition(end)
    if not tag:
        raise ValueError(f"a thought that does not end: {start} without {end}")
    return rest


def value_after(text, start, markers):
    """The JSON value of a call, or of a list of calls, and the place after its end marker. Raises
    ValueError."""
    start = BLANKS.match(text, start).end()
    try:
        value, end = value_at(text, start)
    except RecursionError:
        raise ValueError("a call is nested too deeply") from None
    wanted = list if markers.is_list else dict
    if not isinstance(value, wanted):
        raise ValueError(f"a call must be a JSON {'list' if markers.is_list else 'object'}")
    end = BLANKS.match(text, end).end()
    if not text.startswith(markers.end, end):
        raise ValueError(f"a call that does not end with {markers.end}")
    return value, end + len(markers.end)


def standard_call(value, markers):
    if isinstance(value, dict) and set(value) == {"name", markers.arguments}:
        return {"name": value["name"], "arguments": value[markers.arguments]}
    return value


def checked(words):
    """The words. Raises ValueError if they look like a call."""
    if mark := MARKS.search(words) or PYTHON_ALONE.fullmatch(words) or PYTHON_LIST.fullmatch(words):
        raise ValueError(f"words that look like a call: {mark[0].strip()[:40]!r}")
    if all(key.search(words) for key in KEYS_OF_A_CALL):
        raise ValueError("words that look like a call: JSON with a name and arguments")
    return words
