"""Whether the values that a call passes stand in the query or the tools, or were made up. Pure functions, no torch.

    sources = Sources(query, tools)
    made_up = [value for value in leaf_values(call["arguments"]) if not sources.is_grounded(value)]

The rules are generous about form (25, "25%", "twenty-five", "25th") and strict about content: a number must stand as a
whole token, since nearly any digit is found inside some longer number. Text and value are read by the same scanner, so
that what is copied is found. Everything is linear in the length of the text.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Context
from typing import NamedTuple

# Scripts without spaces between words (Thai to Khmer, kana, Han), and Korean, whose particles stick to the words.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_ALNUM = rf"[^\W_{_SPACELESS}]"
# Vowel signs and accents: `\w` is letters and digits alone, and would cut a Hindi word at each of them.
_MARK = "[" + "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c) in ("Mn", "Mc")) + "]"
_LONG_MARKS = re.compile(rf"({_MARK}{{30}}){_MARK}+")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹]+")

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_UNITH = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: n for words in (_UNITS, _UNITH) for n, word in enumerate(words.split())}
_SMALL |= {word: 10 * n for n, word in enumerate(_TENS.split(), 2)}
_SMALL |= {word[:-1] + "ieth": n for word, n in _SMALL.items() if n >= 20}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7}
_SCALES |= {"billion": 10**9, "trillion": 10**12}
_LETTER_SCALES = {"k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9, "t": 10**12, "tn": 10**12}
_NUMBER_WORD = "|".join(sorted([*_SMALL, *(f"{scale}(?:s|th)?" for scale in _SCALES)], key=len, reverse=True))

_TOKEN = re.compile(
    rf"""
    # A sign that touches its number and nothing before, or a minus between two terms, as in "x^2 - 3x".
    (?: (?<![^\W_)\]%])(?P<minus>[-−–]) | (?<=[^\W_)\]]\ )(?P<between>[-−–])\  )?
    # Not inside a longer word or number; "1920x1080" is two numbers.
    (?: (?<!{_ALNUM})(?<!\d[.,]) | (?<=\d[xX]) )
    (?: [$€£¥₹]\ ? | (?: usd|eur|gbp|inr|jpy|cny|cad|aud|chf|rs\.?|v )(?=\d) )?
    (?:
        (?P<spaced> \d{{1,3}}(?:\ \d{{3}}){{1,5}}(?:\.\d++)?+(?![.,]?\d) )
        | (?P<chain> (?:\d++|\.\d++)(?:[.,]\d++)*+ (?P<exponent> e[-+]?\d{{1,3}}(?!{_ALNUM}) )? )
    )
    (?![^\W\d_{_SPACELESS}]*+(?<!\d[tx])\d)  # "5f4dcc3b" is a name; a unit ("5kg") may follow, or the T of ISO 8601
    (?P<suffix>
        [\ -]?(?P<percent> %|percent(?!{_ALNUM})|per\ cent(?!{_ALNUM})|pct(?!{_ALNUM}) )
        | [\ -]?(?P<scale> {"|".join(_SCALES)} )s?(?!{_ALNUM})
        | (?P<letter> {"|".join(_LETTER_SCALES)} )(?!{_ALNUM})
    )?
    | (?<!{_ALNUM}) (?P<phrase> (?:{_NUMBER_WORD}) (?: [\ _-](?:and[\ _-])? (?:{_NUMBER_WORD}) )* ) (?!{_ALNUM})
      (?P<phrase_percent> \ ?% | [\ -]per\ ?cent(?!{_ALNUM}) )?
    | (?P<word> (?<=\d)x(?=\d) | (?:{_ALNUM}++{_MARK}*+)++ )
    | (?P<spaceless> (?:[{_SPACELESS}]{_MARK}*+)++ )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(rf"(?:{_ALNUM}++{_MARK}*+)++")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?")  # the groups of two are India's
# "e-mail" is "email" too, "U.S." is "US".
_JOINED = re.compile(r"(?<![^\W\d_])[^\W\d_]++(?:[-'’.][^\W\d_]++)++")
_EXACT = Context(prec=400, traps=[])  # beyond any number that is meant as one; nothing raises, whatever the digits


_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name[:n]: month for month, name in enumerate(_MONTHS.split(), 1) for n in (3, len(name))} | {"sept": 9}
_M = rf"(?P<month>{'|'.join(sorted(_MONTH, key=len, reverse=True))})"
_D = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?![^\W_]|[.:]\d)"
_Y = r"(?P<year>\d{4})(?![^\W_])"
# In the format of a moment, midnight says that there was no time to give.
_MIDNIGHT = r"(?:[t ]00:00(?::00(?:\.0+)?)?(?:z|\+00:00)?(?![^\W_]|:\d)|t(?=\d))?"
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![\d./-])(?P<year>\d{{4}})(?P<s>[-/.])(?P<b>\d{{1,2}})(?P=s)(?P<c>\d{{1,2}})(?!\d|[./-]\d){_MIDNIGHT}",
        r"(?<![\d./-])(?P<a>\d{1,2})(?P<s>[-/.])(?P<b>\d{1,2})(?P=s)(?P<year>\d{4}|\d\d)(?!\d|[./-]\d)",
        r"(?<![^\W_])(?P<year>(?:19|20)\d\d)(?P<b>[01]\d)(?P<c>[0-3]\d)(?![^\W_])",
        r"(?<![\d./-])(?P<year>\d{4})[-/](?P<b>\d\d)(?!\d|[./-]\d)",
        r"(?<![\d./-])(?P<b>\d{1,2})[-/](?P<year>\d{4})(?!\d|[./-]\d)",
        r"(?<![\d./-])(?P<a>\d{1,2})/(?P<b>\d{1,2})(?!\d|[./-]\d)",
        rf"(?<![^\W_]){_M}(?:\. ?| |-)?(?:the )?{_D}(?:(?:,? (?:of )?|-|,){_Y})?",
        rf"(?<![^\W_]){_D}(?: |-| of | day of )(?:the )?{_M}(?:(?:[.,]? ?(?:of )?|-){_Y}|(?![^\W_]))",
        rf"(?<![^\W_]){_M}(?:\. ?|, ?| | of |-){_Y}",
        rf"(?<![^\W_]){_Y}[ -]{_M}(?:[ -]{_D}|(?![^\W_]))",
    )
]
_WHOLE = 3  # so many of these have year, month and day, all in figures
_TIME = re.compile(
    r"(?<![\d:.])(?P<hour>\d{1,2})"
    r"(?::(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d)(?:\.0+)?)?(?:z(?![^\W_]))?(?![:\d])(?: ?(?P<half>[ap])\.?m\b)?"
    r"|(?:\.(?P<minutes>[0-5]\d))? ?(?P<half_alone>[ap])\.?m\b| ?o['’]?clock\b)|\b(?P<twelve>noon|midnight)\b",
    re.IGNORECASE,
)
_DATE_OR_TIME = re.compile(r"\d|noon|midnight", re.IGNORECASE)
# Where the parts of a name meet: camelCase, HTTPServer, dataset1.
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_SPACELESS_CHARACTER = re.compile(f"[{_SPACELESS}]")
# Keys of xLAM's format itself. Other keys in tools are names (of arguments, of what a default holds).
_FORMAT_KEYS = {"name", "description", "parameters", "type", "default", "enum", "required"}


def leaf_values(arguments):
    """Yields the numbers and strings of a call's arguments, in order, however deep inside. Keys of objects are no
    values; booleans, null and "" say nothing that could be looked up."""
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
    """What the values of one row's calls may come from: all the text of its query (str) and tools (the parsed list)."""

    def __init__(self, query, tools):
        self._texts = []  # for values that are nothing but punctuation
        self._words = set()  # casefolded
        self._numbers = set()  # Decimal: exact
        self._dates = set()  # (year, month, day); year or day may be None
        self._times = set()  # (hour, minute, second)
        for value in (query, *_tool_values(tools)):
            if isinstance(value, str):
                self._read(_normalize(value))
            else:
                self._numbers.add(_decimal(value))
        # A call's float was rounded when it was parsed: it is compared with what the text's numbers round to.
        self._floats = {float(number) for number in self._numbers if number.is_finite()}
        # A value may leave out the year or the day that the text has.
        self._less_than_dates = {(None, month, day) for _, month, day in self._dates}
        self._less_than_dates |= {(year, month, None) for year, month, _ in self._dates}

    def is_grounded(self, value):
        """Whether a value (of a list or an object: every leaf) stands in the query or the tools.

        A number does where an equal one is a whole token; a string where each word, number, date and time in it does,
        in any order; one that has none of them where it occurs as it is. True of what leaf_values skips. Never raises.
        """
        return all(
            self._has_text(_normalize(leaf)) if isinstance(leaf, str) else self._has_number(leaf)
            for leaf in leaf_values(value)
        )

    def _read(self, text):
        self._texts.append(text.casefold())
        for token in _tokens(text):
            self._numbers.update(token.also, *token.numbers)
            for word in token.words:
                self._words.update(_word_forms(word))
        self._words.update(_squash(joined) for joined in _JOINED.findall(text))
        if _DATE_OR_TIME.search(text):
            self._dates.update(*(_dates(match) for pattern in _DATES for match in pattern.finditer(text)))
            self._times.update(*map(_times, _TIME.finditer(text)))

    def _has_number(self, number):
        return number in (self._floats if isinstance(number, float) else self._numbers)

    def _has_text(self, text):
        if not _TOKEN.search(text):
            return any(text.casefold() in source for source in self._texts)
        rest = text
        if _DATE_OR_TIME.search(text):
            # Of a whole date or time in figures, the figures one by one prove nothing: other dates have them too.
            if not all(self._has_date(match) for pattern in _DATES[:_WHOLE] for match in pattern.finditer(text)):
                return False
            for pattern in _DATES:
                rest = pattern.sub(lambda match: " " if self._has_date(match) else match[0], rest)
            if not all(self._has_time(match) for match in _TIME.finditer(rest) if match["minute"]):
                return False
            rest = _TIME.sub(lambda match: " " if self._has_time(match) else match[0], rest)
        rest = _JOINED.sub(lambda match: " " if _squash(match[0]) in self._words else match[0], rest)
        # As it is, too: what is taken out as a date may have been part of something else ("may 1/2.5").
        return any(all(map(self._has_token, _tokens(each))) for each in {rest, text})

    def _has_date(self, match):
        """A date without a year is that of any year; one that the text's date lacks must stand elsewhere in it."""
        return any(
            date in self._dates
            or date in self._less_than_dates
            or (date[0] in self._numbers and (None, *date[1:]) in self._dates)
            for date in _dates(match)
        )

    def _has_time(self, match):
        return not self._times.isdisjoint(_times(match))

    def _has_token(self, token):
        if token.numbers and not any(readings.isdisjoint(self._numbers) for readings in token.numbers):
            return True
        return bool(token.words) and token.also <= self._numbers and all(map(self._has_word, token.words))

    def _has_word(self, word):
        if word.casefold() in self._words:
            return True
        parts = _parts(word)
        return len(parts) > 1 and all(
            part.casefold() in self._words or (part.isdecimal() and _decimal(part) in self._numbers) for part in parts
        )


def _tool_values(tools):
    """The strings and numbers in the tools, names that are keys among them."""
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


def _normalize(text):
    """NFKC, each run of whitespace one space. Case is left: camelCase is still to be split."""
    if not text.isascii():
        text = _LONG_MARKS.sub(r"\1", text)  # sorting a run of accents, as NFKC does, takes the square of its length
        text = _SUPERSCRIPT.sub(r"^\g<0>", text)  # x² is x^2, not x2
        text = unicodedata.normalize("NFKC", text)
        text = text.replace("ı", "i").replace("İ", "I")  # which IGNORECASE takes for an i, and casefold does not
    return " ".join(text.split())


class _Token(NamedTuple):
    """A number or a word in a text."""

    words: list[str]  # as written; of a number, the words that are part of it
    numbers: Sequence[set] = ()  # the readings of each: one number as a rule, more where it is `5,10,15`
    also: frozenset = frozenset()  # numbers that stand there too: the 1.5 of "1.5 million", the 1 and 234 of "[1,234]"


def _tokens(text):
    """The tokens of `text`, each once. What is beside one can change how it is read: `(1,234)`."""
    distinct = {text[max(match.start() - 1, 0) : match.end() + 1]: match for match in _TOKEN.finditer(text)}
    return map(_token, distinct.values())


def _token(match):
    if match["phrase"]:
        words = re.split("[ _-]", match["phrase"])
        numbers = [{_decimal(number)} for number in _spoken_numbers([word.lower() for word in words])]
        if match["phrase_percent"]:
            numbers[-1] |= set(map(_hundredth, numbers[-1]))
        return _Token(words, numbers)
    if match["spaced"] or match["chain"]:
        return _number_token(match)
    return _Token([match[0]])


def _number_token(match):
    """A number in figures, or several that only commas or dots part: `5,10,15`, `192.168.1.1`."""
    also = set()
    if match["spaced"]:
        parts = match["spaced"].split(" ")
        numbers, also = ["".join(parts)], _apart(parts)
    elif match["exponent"]:
        numbers = match["chain"].split(",")
    elif _THOUSANDS.fullmatch(match["chain"]):
        numbers = [match["chain"].replace(",", "")]
        start, end = match.span("chain")
        if match.string[max(start - 1, 0) : start] in tuple("[({") and match.string[end : end + 1] in tuple("])}"):
            also = _apart(match["chain"].split(","))
    else:
        numbers = [part for item in match["chain"].split(",") for part in _decimals(item)]
    numbers = list(map(_decimal, numbers))
    if match["minus"]:
        numbers[0] = -numbers[0]
    readings = [{number} for number in numbers]
    if match["between"]:
        readings[0].add(-numbers[0])
    scale = (match["scale"] or match["letter"] or "").lower()
    if scale:
        readings[-1] = {_EXACT.multiply(numbers[-1], _SCALES.get(scale) or _LETTER_SCALES[scale])}
        also.add(numbers[-1])
    if match["percent"]:
        readings[-1].add(_hundredth(numbers[-1]))
    return _Token(_WORD.findall(match["suffix"] or ""), readings, frozenset(also))


def _apart(parts):
    """The numbers that groups of digits are if they are not one number together; none where a group begins with 0."""
    return set() if any(part.startswith("0") for part in parts) else set(map(_decimal, parts))


def _decimals(text):
    """`3.14` is one number, `192.168.1.1` four."""
    return [text] if text.count(".") < 2 else list(filter(None, text.split(".")))


def _decimal(number):
    return _EXACT.create_decimal(repr(number) if isinstance(number, float) else number)


def _hundredth(number):
    return number.scaleb(-2, _EXACT)


def _spoken_numbers(words):
    """The numbers that a run of number words says: one (`two hundred and five`) or several (`five and ten`)."""
    numbers = []
    total, group, scale = 0, None, None  # of the number so far: the part in thousands, the rest, its last thousands
    for before, word in zip(["", *words], words, strict=False):
        if word == "and":
            continue
        small, factor = _SMALL.get(word), _SCALES.get(word) or _SCALES.get(re.sub(r"(s|th)$", "", word))
        if small is None and factor < 1000:
            goes_on = group is not None and 0 < group < 100 and before != "and"
        elif small is None:
            goes_on = bool(group) and (scale is None or factor < scale) and before != "and"
        elif group is None or (before == "and" and group % 100):
            goes_on = False
        elif group % 100 == 0:
            goes_on = (group > 0 or total > 0) and small > 0
        else:
            goes_on = group % 10 == 0 and group % 100 >= 20 and 0 < small < 10
        if not goes_on:
            if group is not None:
                numbers.append(total + group)
            total, group, scale = 0, int(small is None), None
        if small is not None:
            group += small
        elif factor < 1000:
            group *= factor
        else:
            total, group, scale = total + group * factor, 0, factor
    return [*numbers, total + group]


def _word_forms(word):
    """What a word of the text is found as, casefolded: itself, and the parts of a name written in one."""
    if _SPACELESS_CHARACTER.match(word):
        return [*word, *_pairs(word)]
    return {form.casefold() for form in (word, *_parts(word))}


def _parts(word):
    """The parts of `camelCase` or `dataset1`. Where no space tells the words apart, each two characters: a stretch of
    text is found, in time that does not grow with the text."""
    return _pairs(word) if _SPACELESS_CHARACTER.match(word) else _HUMP.split(word)


def _pairs(word):
    return [word[i : i + 2] for i in range(len(word) - 1)]


def _squash(joined):
    return re.sub("[-'’.]", "", joined).casefold()


def _dates(match):
    """The dates (year, month, day) that a match of _DATES may mean, None for what it lacks; of `5/3/2024` both."""
    found = {"year": None, "day": None, "c": None} | match.groupdict()
    years = [None if found["year"] is None else int(found["year"])]
    if found["year"] and len(found["year"]) == 2:
        years = [1900 + years[0], 2000 + years[0]]
    if "month" in found:
        month_days = [(_MONTH[found["month"].lower()], found["day"])]
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
    """The times (hour, minute, second) that a match of _TIME may mean: `3:00` is 15:00 as well, `03:00` is not."""
    if match["twelve"]:
        return {(12 if match["twelve"].lower() == "noon" else 0, 0, 0)}
    hour, minute, second = (
        int(part or 0) for part in (match["hour"], match["minute"] or match["minutes"], match["second"])
    )
    if half := match["half"] or match["half_alone"]:
        hours = {hour % 12 + 12 * (half.lower() == "p")} if 1 <= hour <= 12 else {hour}
    elif 1 <= hour <= 12 and not match["hour"].startswith("0"):
        hours = {hour % 12, hour % 12 + 12}
    else:
        hours = {hour}
    return {(hour, minute, second) for hour in hours if hour < 24}
