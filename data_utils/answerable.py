"""Whether a tool might answer a row's query: a judgement by words and types. If in doubt, yes."""

import functools
import re

from data_utils.tool_schema import conforms, is_required, parameter_schema

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
_STEM = 6  # letters: calculate, calculation and calculator are one word
# Words of names without a subject. A tool with these words alone, such as requests.get, might
# answer any query.
VERBS = (
    "a add all an and answer api app ask assistant at by calculate calculator call chat check code compute convert "
    "create data delete determine details do estimate evaluate execute fetch find for from function general generate "
    "get http identify in info information is it item list load lookup main make manage measure my new of on one or "
    "perform predict print process provide python query question read remove request requests result retrieve return "
    "run search select set show solve sql text the to tool update url use user using value view with write"
).split()
# A tool with one of these words in its name might answer any query too.
ANYTHING = "browser chatbot chatgpt duckduckgo google gpt internet interpreter llm web wikipedia".split()
# Further words of descriptions without a subject.
STOP_WORDS = (
    "about any are argument as based be both can current default defaults each either false given has have if its "
    "known may number not null only optional optionally other parameter parameters provided required returns specific "
    "specified string such than that their then there these this to true two type used valid values when whether "
    "which will you your"
).split()


def words_of(text):
    """The stems of a text's words: of names in camel case or with marks between words, and of
    prose. A text of a script without blanks is one word."""
    return frozenset(map(stem, _WORD.findall(text)))


@functools.lru_cache(maxsize=2**16)
def stem(word):
    word = word.lower()
    return (word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word)[:_STEM]


_VERBS = frozenset(map(stem, VERBS))
_ANYTHING = frozenset(map(stem, ANYTHING))
_STOP_WORDS = _VERBS | frozenset(map(stem, STOP_WORDS))


@functools.lru_cache(maxsize=2**14)
def subject_of(name):
    """The words of a tool's name without VERBS, and without STOP_WORDS unless there are no
    others."""
    words = words_of(name)
    return words - _STOP_WORDS or words - _VERBS


@functools.lru_cache(maxsize=2**14)
def subjects_in(text):
    return words_of(text) - _STOP_WORDS


def described(tool):
    """The subjects in a tool's name and description, without the names of arguments: many tools
    have a city."""
    arguments = words_of(" ".join(tool.get("parameters") or {}))
    return subject_of(tool["name"]) | (subjects_in(str(tool.get("description") or "")) - arguments)


def may_answer(tool, query, wanted):
    """Whether a tool might answer a query. wanted: pairs of the right tool and its arguments.

    It might if its name has no subject (`run_code`), if it is for anything (`web_search`, "searches
    the web"), or if the query has all words of its subject. It might also if it resembles a right
    tool: by half the words of the shorter name, a subject in the other's description, half the
    words of the descriptions, two or more required arguments, all with names of the right ones, or
    a common subject and required arguments of fitting types. Without a right tool, one common word
    of its subject and the query is enough."""
    subject, asked = subject_of(tool["name"]), subjects_in(query)
    if not subject or subject <= asked or (not wanted and subject & asked):
        return True
    if words_of(f"{tool['name']} {tool.get('description')}") & _ANYTHING:
        return True
    return any(
        resembles(tool, right)
        or same_arguments(tool, arguments)
        or (subject & (asked | described(right)) and fills(arguments, tool))
        for right, arguments in wanted
    )


def resembles(tool, right):
    subjects, descriptions = (subject_of(tool["name"]), subject_of(right["name"])), (described(tool), described(right))
    if any(subject and subject <= words for subject, words in zip(subjects, descriptions[::-1], strict=True)):
        return True
    return any(
        pair[0] & pair[1] and 2 * len(pair[0] & pair[1]) >= min(map(len, pair)) for pair in (subjects, descriptions)
    )


def required_of(tool):
    return {name: spec for name, spec in (tool.get("parameters") or {}).items() if is_required(spec)}


def same_arguments(tool, arguments):
    required = required_of(tool)
    return len(required) >= 2 and required.keys() <= arguments.keys()


def fills(arguments, tool):
    """Whether a tool has required arguments, and each could take a different one of the values."""
    required, left = required_of(tool), list(arguments.values())
    for spec in required.values():
        schema = parameter_schema(spec)
        place = next((place for place, value in enumerate(left) if conforms(value, schema)), None)
        if place is None:
            return False
        left.pop(place)
    return bool(required)
