"""Whether the values of a call occur in the query or the tools, or were made up. Pure functions, no
torch.

    sources = Sources(query, tools)
    made_up = [value for value in leaf_values(call["arguments"]) if not sources.is_grounded(value)]

The rules are lenient about form (25, "25%", "twenty-five", "25th", 二十五), strict about content.
A number must be a whole token, since nearly any digit occurs inside some longer number. Numbers
that form one thing (a date, a version, an address, a ratio) must keep their order. The time is
linear in the length of the text.
"""

import functools
import re
from typing import NamedTuple

from babel.numbers import get_currency_name, list_currencies
from babel.units import format_unit

from eval_utils.dates_in_text import Dates
from eval_utils.number_forms import number_forms, without_number_forms
from eval_utils.numbers_in_text import SPACELESS, decimal, has_token, normalize, tokens

# "e-mail" is "email" too, "U.S." is "US".
_JOINED = re.compile(r"(?<![^\W\d_])[^\W\d_]++(?:[-'’.][^\W\d_]++)++")
# The borders between the parts of a name: camelCase, HTTPServer, dataset1.
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_SPACELESS_CHARACTER = re.compile(f"[{SPACELESS}]")
# Numbers whose order counts: 1.2.3, and 16:9, 1920x1080, 10-5, 978-3-16, a pair of coordinates.
_DOTTED = re.compile(r"(?<![\d.])\d++(?:\.\d++){2,}+")
_NUMBER = r"\d++(?:\.\d++)?+"
_SERIES = re.compile(rf"(?<![\d.])-?{_NUMBER}(?:(?:[-–:/x×]|, ?(?=-?\d+\.\d\d))-?{_NUMBER})++", re.IGNORECASE)
_PHONE = re.compile(r"(?<!\w)(?:\+ ?)?\(?\d(?:[() ./-]{0,2}\d){6,14}(?![() ./-]{0,2}\d)")
# Keys of xLAM's format. Other keys in tools are names of arguments, or inside a default.
_FORMAT_KEYS = {"name", "description", "parameters", "type", "default", "enum", "required"}
_IRREGULAR = {"man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth"}
_IRREGULAR |= {"goose": "geese", "mouse": "mice"}
_UNITS = (
    "minute hour second day week year millisecond meter kilometer centimeter millimeter mile foot inch yard pound "
    "ounce gram kilogram milligram liter milliliter byte kilobyte megabyte gigabyte terabyte watt kilowatt hertz "
    "megahertz"
)


def leaf_values(arguments):
    """Yields the numbers and strings of a call's arguments, in order and at any depth. Skips keys,
    booleans, null and "", which cannot be looked up."""
    stack = [arguments]
    while stack:  # no recursion: a value may be nested deeper than Python's stack
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(reversed(value.values()))
        elif isinstance(value, list):
            stack.extend(reversed(value))
        elif value != "" and value is not None and not isinstance(value, bool):
            yield value


class Sources:
    """The text of one row's query (str) and tools (the parsed list), in which values are looked
    up."""

    def __init__(self, query, tools):
        self._texts = []  # for values of punctuation alone
        self._words = set()  # casefolded
        self._numbers = set()  # Decimal: exact
        self._dates = Dates()
        self._series = set()  # tuples of numbers (str) in the order of the text
        self._phones = set()  # their digits (str)
        self._found = {}  # whether a value occurs: metrics and systems ask for the same ones
        self._add(_read(query))
        for value in _tool_values(tools):
            if isinstance(value, str):
                self._add(_read_again(value))
            else:
                self._numbers.add(decimal(value))
        # A call's float was rounded by the parser, so the text's numbers are rounded too.
        self._floats = {float(number) for number in self._numbers if number.is_finite()}
        self._sorted_series = {tuple(sorted(series)) for series in self._series}

    def is_grounded(self, value):
        """Whether a value occurs in the query or the tools. Of a list or an object, every leaf must
        occur.

        A number occurs if an equal number is a whole token. A string occurs if each word, number,
        date and time in it does, in any order. A string without any of these must occur literally.
        Values that leaf_values skips always occur. Never raises.
        """
        return all(map(self._has_leaf, leaf_values(value)))

    def _add(self, reading):
        self._texts.append(reading.text)
        self._words |= reading.words
        self._numbers |= reading.numbers
        self._dates.merge(reading.dates)
        self._series |= reading.series
        self._phones |= reading.phones

    def _has_leaf(self, leaf):
        key = type(leaf), leaf  # 1.0 is found among rounded numbers, 1 is not
        if key not in self._found:
            self._found[key] = self._has_text(normalize(leaf)) if isinstance(leaf, str) else self._has_number(leaf)
        return self._found[key]

    def _has_number(self, number):
        return number in (self._floats if isinstance(number, float) else self._numbers) or str(number) in self._phones

    def _has_text(self, text):
        if not has_token(text):
            return any(text.casefold() in source for source in self._texts)
        if self._is_reordered(_DOTTED, text) or (rest := self._dates.without(text, self._numbers)) is None:
            return False
        rest = _PHONE.sub(lambda match: " " if _digits(match) in self._phones else match[0], rest)
        if self._is_reordered(_SERIES, rest):
            return False
        rest = without_number_forms(rest, self._numbers)
        rest = _JOINED.sub(lambda match: " " if _squash(match[0]) in self._words else match[0], rest)
        # Try the whole text too: a removed date may be part of something else ("may 1/2.5").
        return any(all(map(self._has_token, tokens(form))) for form in {rest, text})

    def _is_reordered(self, pattern, text):
        """Whether a series in the value has the numbers of a series in the source, in another
        order."""
        return any(
            series not in self._series and tuple(sorted(series)) in self._sorted_series
            for series in _series(pattern, text)
        )

    def _has_token(self, readings):
        return any(self._numbers.issuperset(numbers) and all(map(self._has_word, words)) for numbers, words in readings)

    def _has_word(self, word):
        """Whether a word occurs: itself, its plural, another name of its unit, or its parts."""
        name = word.casefold()
        if name in self._words or not self._words.isdisjoint(_plurals(name) | _unit_names().get(name, set())):
            return True
        if (currency := _currencies().get(word)) and all(map(self._has_word, currency.split())):
            return True
        parts = _parts(word)
        return len(parts) > 1 and all(
            self._has_word(part) or (part.isdecimal() and decimal(part) in self._numbers) for part in parts
        )


class _Reading(NamedTuple):
    """The things in one text, see Sources."""

    text: str
    words: set
    numbers: set
    dates: Dates
    series: set
    phones: set


def _read(text):
    text = normalize(text)
    words, numbers, phones, dates = set(), number_forms(text), set(), Dates()
    for token in tokens(text):
        for of_token, in_words in token:
            numbers.update(of_token)
            for word in in_words:
                words.update(_word_forms(word))
    words.update(_squash(joined) for joined in _JOINED.findall(text))
    numbers.update(map(decimal, dates.add(text)))
    series = {series for pattern in (_DOTTED, _SERIES) for series in _series(pattern, text)}
    for match in _PHONE.finditer(text):
        digits = _digits(match)
        phones |= {digits, *(digits[n:] for n in (1, 2, 3) if match[0].startswith("+") and len(digits) > 9)}
    return _Reading(text.casefold(), words, numbers, dates, series, phones)


# Many rows offer the same tools. A text takes 2 KB. 200,000 rows like xLAM's have 25,000 of them.
_read_again = functools.lru_cache(maxsize=2**16)(_read)


def _tool_values(tools):
    """The strings and numbers in the tools, including keys that are names."""
    stack = [tools]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
            yield from value.keys() - _FORMAT_KEYS
        elif isinstance(value, list):
            stack.extend(value)
        elif value is not None:
            yield str(value) if isinstance(value, bool) else value


def _word_forms(word):
    """The casefolded forms of a word: itself, and the parts of a compound name."""
    if _SPACELESS_CHARACTER.match(word):
        return [*word, *_pairs(word)]
    return {form.casefold() for form in (word, *_parts(word))}


def _parts(word):
    """The parts of `camelCase` or `dataset1`. In scripts without spaces, each two characters: a
    stretch of text is found in linear time."""
    return _pairs(word) if _SPACELESS_CHARACTER.match(word) else _HUMP.split(word)


def _pairs(word):
    return [word[i : i + 2] for i in range(len(word) - 1)]


def _squash(joined):
    return re.sub("[-'’.]", "", joined).casefold()


def _series(pattern, text):
    number = r"\d+" if pattern is _DOTTED else _NUMBER
    return [tuple(re.findall(number, match[0])) for match in pattern.finditer(text)]


def _digits(match):
    return re.sub(r"\D", "", match[0])


def _plurals(noun):
    """The English plurals of a casefolded noun. "news" is no plural of "new"."""
    if noun in _IRREGULAR:
        return {_IRREGULAR[noun]}
    if len(noun) < 3 or not noun.isascii() or not noun.isalpha() or noun == "new":
        return set()
    return {f"{noun}s", f"{noun}es", re.sub("y$", "ies", noun), re.sub("fe?$", "ves", noun)}


@functools.cache
def _unit_names():
    """`{name: other names of its possible units}`, casefolded, from Unicode's data (babel). A
    value's "m" is a minute or a meter of the text. A text's single letters and "in" are ambiguous,
    so they match no unit."""
    names = {}
    for unit in _UNITS.split():
        shown = (format_unit(n, unit, length, locale="en") for n in (1, 2) for length in ("long", "short", "narrow"))
        forms = {text.lstrip("12 ").casefold() for text in shown}
        forms |= {f"{form}s" for form in forms if form in ("min", "hr", "sec", "yr", "lb")}
        for form in filter(str.isalpha, forms):
            names.setdefault(form, set()).update(other for other in forms if len(other) > 1 and other != "in")
    return names


@functools.cache
def _currencies():
    """`{"JPY": "japanese yen"}`, from Unicode's data (babel)."""
    return {code: get_currency_name(code, locale="en").casefold() for code in list_currencies("en")}
