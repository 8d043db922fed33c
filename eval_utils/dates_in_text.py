"""Dates and times of day in a text, in figures and in words. Pure functions, no torch.

Month names are Unicode's (babel's data), in the languages of LANGUAGES. dateparser is not used: it
takes 0.2 seconds a query, and reads "me", "to" and "set" as dates.
"""

import functools
import re

from babel import Locale

from eval_utils.number_forms import han_as_figures
from eval_utils.numbers_in_text import MARK, normalize

LANGUAGES = "en de fr es it pt nl sv da nb fi pl cs ro hu tr el ru uk hi ar id".split()
_D = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|o|\.)?(?![^\W_]|[.:]\d)"
_Y = r"(?P<year>\d{4})(?![^\W_])"
_OF = r"(?:of |del? |d['’])?(?:the )?"
# Midnight in a timestamp means that no time was given.
_MIDNIGHT = r"(?:[t ]00:00(?::00(?:\.0+)?)?(?:z|\+00:00)?(?![^\W_]|:\d)|t(?=\d))?"
_FIGURES = (
    rf"(?<![\d./-])(?P<year>\d{{4}})(?P<s>[-/]|\. ?)(?P<b>\d{{1,2}})(?P=s)(?P<c>\d{{1,2}})(?!\d|[./-]\d){_MIDNIGHT}",
    r"(?<![\d./-])(?P<a>\d{1,2})(?P<s>[-/]|\. ?)(?P<b>\d{1,2})(?P=s)(?P<year>\d{4}|\d\d)(?!\d|[./-]\d)",
    r"(?<![^\W_])(?P<year>(?:19|20)\d\d)(?P<b>[01]\d)(?P<c>[0-3]\d)(?![^\W_])",
    r"(?<!\d)(?P<year>\d{4}) ?[年년] ?(?P<b>\d{1,2}) ?[月월](?: ?(?P<c>\d{1,2}) ?[日号號일])?",
)
_HOUR_WORDS = {word: n for n, word in enumerate("one two three four five six seven eight nine ten eleven".split(), 1)}
_HOUR_WORDS["twelve"] = 12
_MINUTE_WORDS = {"half": 30, "quarter": 15, "five": 5, "ten": 10, "fifteen": 15, "twenty": 20, "twenty-five": 25}
_MINUTE_WORDS |= {"thirty": 30, "forty-five": 45}
_HOUR = rf"(?<![\d:.,])(?P<hour>\d{{1,2}}|\b(?:{'|'.join(sorted(_HOUR_WORDS, key=len, reverse=True))}))"
_HALF = r"(?: ?(?P<half>[ap])\.?m\b| (?:in the )?(?P<part>morning|afternoon|evening)\b)"
_BEFORE_NOON = ("a", "morning", "上午", "早上", "午前", "오전")
_TIMES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<![\d:.])(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d)(?:\.0+)?)?(?:z(?![^\W_]))?(?![:\d])"
        rf"{_HALF}?",
        rf"\b(?P<minute>{'|'.join(_MINUTE_WORDS)}|\d{{1,2}})(?: minutes)? (?P<side>past|to) {_HOUR}"
        rf"(?![^\W_]|[:.,]\d){_HALF}?",
        rf"{_HOUR}(?:\.(?P<minute>[0-5]\d)| (?P<minute_word>thirty|fifteen|forty-five))?(?:{_HALF}| ?o['’]?clock\b)",
        r"(?<![\d:.])(?P<hour>\d{1,2})"
        r"(?: ?h ?(?P<minute>[0-5]\d)(?:m|min)?|h|(?:\.(?P<german>[0-5]\d))? uhr(?: (?P<after>[0-5]?\d))?)(?![^\W_])",
        r"(?:(?P<part>上午|早上|下午|晚上|午前|午後|오전|오후) ?)?(?<!\d)(?P<hour>\d{1,2}) ?[点點时時시](?:钟|整)?"
        r"(?: ?(?P<minute>\d{1,2}) ?[分분]?|(?P<half_past>半| ?반))?",
        r"\b(?P<twelve>noon|midnight)\b",
    )
]
_DATE_OR_TIME = re.compile(
    r"\d|noon|midnight|past|o['’]?clock|[ap]\.?m\b|morning|afternoon|evening|"
    r"(?:quarter|five|ten|twenty) (?:minutes )?to\b",
    re.IGNORECASE,
)


_MONTH = rf"(?<![^\W_])(?P<month>(?:[^\W\d_]{MARK}{{0,3}}){{2,12}}+\.?)"
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        *_FIGURES,
        r"(?<!\d)(?P<b>\d{1,2}) ?[月월] ?(?P<c>\d{1,2}) ?[日号號일]",
        r"(?<![\d./-])(?P<year>\d{4})[-/](?P<b>\d\d)(?!\d|[./-]\d)",
        r"(?<![\d./-])(?P<b>\d{1,2})[-/](?P<year>\d{4})(?!\d|[./-]\d)",
        r"(?<![\d./-])(?P<a>\d{1,2})/(?P<b>\d{1,2})(?!\d|[./-]\d)",
        rf"{_MONTH}(?: |-)?(?:the )?{_D}(?:(?:,? (?:of )?|-|,){_Y})?",
        rf"(?<![^\W_]){_D}(?: |-| day of ){_OF}{_MONTH}(?:(?:,? ?(?:of |del? )?|-){_Y}|(?![^\W_]))",
        rf"{_MONTH}(?:,? ?| of | del? |-){_Y}",
        rf"(?<![^\W_]){_Y}\.?[ -]{_MONTH}(?:[ -]{_D}|(?![^\W_]))",
    )
]


@functools.cache
def _months():
    """Two dicts `{casefolded name: month}`. First, whole names and abbreviations with a full stop,
    in English also three letters. Second, other abbreviations, which count only between a day and a
    year: "out" is October in Portuguese."""
    names, abbreviations = {"sept": 9}, {}
    for language in LANGUAGES:
        for forms in Locale(language).months.values():
            for width in ("wide", "abbreviated"):
                for month, name in forms[width].items():
                    is_name = width == "wide" or name.endswith(".") or language == "en"
                    (names if is_name else abbreviations)[normalize(name).casefold()] = month
    return names, abbreviations


class Dates:
    """The dates and times of day of all texts given to `add`."""

    def __init__(self):
        self.dates = set()  # (year, month, day); year or day may be None
        self.shortened = set()  # dates without the year or the day, which a value may leave out
        self.times = set()  # (hour, minute, second)

    def add(self, text):
        """Read a text. Returns the figures (str) in its dates, such as the 2024 of 5.3.2024."""
        figures = set()
        if _DATE_OR_TIME.search(text := han_as_figures(text)):
            for match in (match for pattern in _DATES for match in pattern.finditer(text)):
                found = _dates(match)
                self.dates |= found
                self.shortened |= {(None, *date[1:]) for date in found} | {(*date[:2], None) for date in found}
                figures.update(re.findall(r"\d+", match[0]) if found else ())
            self.times.update(*(_times(match) for pattern in _TIMES for match in pattern.finditer(text)))
        return figures

    def merge(self, other):
        self.dates |= other.dates
        self.shortened |= other.shortened
        self.times |= other.times

    def without(self, text, numbers):
        """A value's text without its known dates and times, or None if a whole date or time in
        figures is unknown. The figures of an unknown date prove nothing one by one: other dates
        have them too.

        numbers: the source's numbers. A year may be among them that the source's date lacks.
        """
        if not _DATE_OR_TIME.search(text := han_as_figures(text)):
            return text

        def is_known(match):
            return any(
                date in self.dates or date in self.shortened or (date[0] in numbers and (None, *date[1:]) in self.dates)
                for date in _dates(match)
            )

        for pattern in _DATES[: len(_FIGURES)]:
            if any(_dates(match) and not is_known(match) for match in pattern.finditer(text)):
                return None
        for pattern in _DATES:
            text = pattern.sub(lambda match: " " if is_known(match) else match[0], text)
        if any(self.times.isdisjoint(_times(match)) for match in _TIMES[0].finditer(text)):
            return None
        for pattern in _TIMES:
            text = pattern.sub(lambda match: match[0] if self.times.isdisjoint(_times(match)) else " ", text)
        return text


def _dates(match):
    """The dates (year, month, day) that a match may mean, with None for a missing part. `5/3/2024`
    has two."""
    found = {"year": None, "day": None, "c": None} | match.groupdict()
    years = [None if found["year"] is None else int(found["year"])]
    if found["year"] and len(found["year"]) == 2:
        years = [1900 + years[0], 2000 + years[0]]
    if "month" in found:
        name = found["month"].casefold()
        names, abbreviations = _months()
        month = names.get(name) or names.get(name.rstrip("."), 0)
        if found["day"] and found["year"]:
            month = month or abbreviations.get(name, 0)
        month_days = [(month, found["day"])]
    elif "a" in found:
        month_days = [(found["a"], found["b"]), (found["b"], found["a"])]
    else:
        month_days = [(found["b"], found["c"])]
    month_days = [(int(month), None if day is None else int(day)) for month, day in month_days]
    return {
        (year, month, day)
        for year in years
        for month, day in month_days
        if 1 <= month <= 12 and (day is None or 1 <= day <= 31)
    }


def _times(match):
    """The times (hour, minute, second) that a match may mean: `3:00` may be 15:00, `03:00` may
    not."""
    found = {key: value.lower() for key, value in match.groupdict().items() if value}
    if "twelve" in found:
        return {(12 if found["twelve"] == "noon" else 0, 0, 0)}
    hour = _HOUR_WORDS.get(found["hour"]) or int(found["hour"])
    minute = next((found[name] for name in ("minute", "minute_word", "german", "after") if name in found), "0")
    minute = 30 if "half_past" in found else _MINUTE_WORDS.get(minute) or int(minute)
    if found.get("side") == "to":
        hour, minute = hour - 1 or 12, 60 - minute
    if half := found.get("half") or found.get("part"):
        hours = {hour % 12 + 12 * (half not in _BEFORE_NOON)} if 1 <= hour <= 12 else {hour}
    elif 1 <= hour <= 12 and not found["hour"].startswith("0"):
        hours = {hour % 12, hour % 12 + 12}
    else:
        hours = {hour}
    return {(hour, minute, int(found.get("second", 0))) for hour in hours if hour < 24 and minute < 60}
