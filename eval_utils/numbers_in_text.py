"""Words and numbers in a text: figures, English number words, Chinese and Japanese numerals. Pure
functions, no torch.

Text and value go through the same scanner, so a copy is always found. The time is linear in the
length of the text.

Number words of other languages are left out. text2num has six languages but cannot detect the
language of a text: it takes "miles" for Spain's thousand and "due" for Italy's two.
"""

import re
import unicodedata
from decimal import Context
from typing import NamedTuple

# Scripts without spaces between words (Thai to Khmer, kana, Han), and Korean, whose particles stick
# to the words.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_ALNUM = rf"[^\W_{SPACELESS}]"
# Vowel signs and accents. `\w` does not match them, and would split a Hindi word at each sign.
MARK = "[" + "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c) in ("Mn", "Mc")) + "]"
_LONG_MARKS = re.compile(rf"({MARK}{{30}}){MARK}+")
# Direction marks of right-to-left text, next to figures.
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
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
SMALL = {word: n for words in (_UNITS, _UNITH) for n, word in enumerate(words.split())}
SMALL |= {word: 10 * n for n, word in enumerate(_TENS.split(), 2)}
SMALL |= {word[:-1] + "ieth": n for word, n in SMALL.items() if n >= 20}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7}
SCALES |= {"billion": 10**9, "trillion": 10**12}
_LETTER_SCALES = {"k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9, "t": 10**12, "tn": 10**12}
NUMBER_WORD = "|".join([*SMALL, *(f"{scale}(?:s|th)?" for scale in SCALES)])
_PHRASE = rf"(?:{NUMBER_WORD})(?:[\ _-](?:and[\ _-])?(?:{NUMBER_WORD}))*"
# "10 minus 5" and "x minus 5" are terms; "set it to minus 5" is a number. A look-behind has a fixed
# width: one for each word.
_OPERANDS = r"(?<=[\d)]\ )|(?<=\b[a-z]\ )|" + "|".join(rf"(?<=\b{word}\ )" for word in SMALL)

_TOKEN = re.compile(
    rf"""
    # Numbers in an order that form a name: 1.2.3, 00:1B:44:11:3A:B7.
    (?<!{_ALNUM})(?<![:.])
    (?P<hex> (?=[0-9a-f]{{0,4}}:[0-9a-f:]{{0,40}}\d) (?:[0-9a-f]{{0,4}}:){{3,7}}[0-9a-f]{{1,4}} ) (?!:|{_ALNUM})
    |
    # A sign that touches its number and nothing before, or a minus between two terms, as in "x^2 - 3x".
    (?:
        (?<![^\W_)\]%])(?P<minus>[-−–])
        | (?<=[^\W_)\]]\ )(?P<between>[-−–])[ ]
        | (?=minus|negative)(?<!{_ALNUM})(?:(?P<operand>{_OPERANDS})|)(?P<minus_word>minus|negative)[ ]
    )?
    (?:
      # Not inside a longer word or number; "1920x1080" is two numbers.
      (?: (?<!{_ALNUM})(?<!\d[.,]) | (?<=\d[xX]) )
      (?: [$€£¥₹]\ ? | (?: usd|eur|gbp|inr|jpy|cny|cad|aud|chf|rs\.?|v )(?=\d) )?
      (?:
          (?P<spaced> \d{{1,3}}(?:\ \d{{3}}){{1,5}}(?:[.,]\d++)?+(?![.,]?\d) )
          | (?P<quoted> [1-9]\d{{0,2}}(?:['’]\d{{3}}){{1,5}}(?:[.,]\d++)?+(?![.,'’]?\d) )
          | (?P<chain> (?:\d++|\.\d++)(?:[.,]\d++)*+ (?P<exponent> e[-+]?\d{{1,3}}(?!{_ALNUM}) )? )
      )
      (?![^\W\d_{SPACELESS}]*+(?<!\d[tx])\d)  # "5f4dcc3b" is a name; a unit ("5kg") may follow, or the T of ISO 8601
      (?P<suffix>
          [\ -]?(?P<percent> %|percent(?!{_ALNUM})|per\ cent(?!{_ALNUM})|pct(?!{_ALNUM}) )
          | [\ -]?(?P<scale> {"|".join(SCALES)} )s?(?!{_ALNUM})
          | (?P<letter> {"|".join(_LETTER_SCALES)} )(?!{_ALNUM})
      )?
      | (?<!{_ALNUM}) (?!one\ (?:of|or)\b) (?P<phrase> {_PHRASE} ) (?!{_ALNUM})
        (?P<phrase_percent> \ ?% | [\ -]per\ ?cent(?!{_ALNUM}) )?
    )
    | (?P<word> (?<=\d)x(?=\d) | (?:{_ALNUM}++{MARK}*+)++ )
    | (?P<spaceless> (?:[{SPACELESS}]{MARK}*+)++ )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(rf"(?:{_ALNUM}++{MARK}*+)++")
# The groups of two are India's.
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?:\.\d+)?")
# Thousands with points, as in most of Europe.
_POINTS = re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
# More digits than any meant number has. Nothing raises, whatever the digits.
EXACT = Context(prec=400, traps=[])


def normalize(text):
    """NFKC, with each run of whitespace as one space. Case is kept: camelCase is split later."""
    if not text.isascii():
        text = _DIRECTIONS.sub("", text)
        # NFKC sorts a run of accents, in quadratic time.
        text = _LONG_MARKS.sub(r"\1", text)
        text = _SUPERSCRIPT.sub(r"^\g<0>", text)  # x² is x^2, not x2
        text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)  # 1½ is 1 1/2, not 11/2
        text = unicodedata.normalize("NFKC", text)
        # IGNORECASE takes them for an i; casefold does not.
        text = text.replace("ı", "i").replace("İ", "I")
    return " ".join(text.split())


def decimal(number):
    """The exact Decimal of an int, a float (as JSON writes it) or the figures of a text."""
    return EXACT.create_decimal(repr(number) if isinstance(number, float) else number)


class Reading(NamedTuple):
    """One reading of a token: all its numbers (Decimal) and all its words (as written)."""

    numbers: tuple = ()
    words: tuple = ()


def tokens(text):
    """The distinct tokens of a text, each as the list of its readings: "1.5 million" is 1500000, or
    1.5 and a word."""
    # Neighbours can change a reading: `(1,234)`, a number before a minus, a currency after a
    # number.
    distinct = {
        (text[max(match.start() - 1, 0) : match.end() + 1], match["operand"] is None, _before_euro(match)): match
        for match in _TOKEN.finditer(text)
    }
    return map(_readings, distinct.values())


def has_token(text):
    return _TOKEN.search(text) is not None


def _readings(match):
    if match["phrase"]:
        readings = _phrase_readings(match)
    elif match["spaced"] or match["quoted"] or match["chain"]:
        readings = _figure_readings(match)
    else:
        return [Reading(words=(match[0],))]
    negative = [Reading((-numbers[0], *numbers[1:]), words) for numbers, words in readings if numbers]
    if match["between"] or match["operand"] is not None:
        return [*negative, *readings]
    if match["minus_word"]:
        words = [Reading(words=(match["minus_word"], *words)) for numbers, words in readings if not numbers]
        return [*negative, *words, Reading(negative[0].numbers if negative else (), (match["minus_word"],))]
    if match["minus"]:
        return negative or readings
    return readings


def _phrase_readings(match):
    words = re.split("[ _-]", match["phrase"])
    numbers = tuple(map(decimal, spoken_numbers([word.lower() for word in words])))
    percent = [Reading((*numbers[:-1], hundredth(numbers[-1])))] if match["phrase_percent"] else []
    # Nineteen eighty-four.
    is_year = len(numbers) == 2 and all(10 <= number <= 99 for number in numbers)
    year = [Reading((100 * numbers[0] + numbers[1],))] if is_year else []
    return [Reading(numbers), *percent, *year, Reading(words=tuple(words))]


def _figure_readings(match):
    """A number in figures, or several with only commas between: `5,10,15`. A chain with two dots or
    more is a word: 1.2.3."""
    if match["spaced"]:
        parts = match["spaced"].replace(",", ".").split(" ")
        readings = [Reading((decimal("".join(parts)),)), *_apart(parts)]
    elif match["quoted"]:
        readings = [Reading((decimal(re.sub("['’]", "", match["quoted"]).replace(",", ".")),))]
    elif match["exponent"]:
        readings = [_listed(match["chain"].split(","))]
    else:
        readings = _chain_readings(match)
    numbers = readings[0].numbers
    if match["percent"]:
        readings.append(Reading((*numbers[:-1], *map(hundredth, numbers[-1:]))))
    if numbers and (scale := (match["scale"] or match["letter"] or "").lower()):
        factor = SCALES.get(scale) or _LETTER_SCALES[scale]
        scaled = Reading((*numbers[:-1], EXACT.multiply(numbers[-1], factor)))
        return [scaled, *(Reading(reading.numbers, tuple(_WORD.findall(match["suffix"]))) for reading in readings)]
    if words := tuple(_WORD.findall(match["suffix"] or "")):
        readings.append(readings[0]._replace(words=readings[0].words + words))
    return readings


def _chain_readings(match):
    chain = match["chain"]
    items = chain.split(",")
    if _THOUSANDS.fullmatch(chain):
        start, end = match.span("chain")
        in_brackets = match.string[max(start - 1, 0) : start] in tuple("[({") and match.string[end : end + 1] in tuple(
            "])}"
        )
        return [Reading((decimal(chain.replace(",", "")),)), *(_apart(items) if in_brackets else [])]
    readings = [_listed(items)]
    if _POINTS.fullmatch(chain) and (chain.count(".") > 1 or "," in chain or "€" in match[0] or _before_euro(match)):
        readings.append(Reading((decimal(chain.replace(".", "").replace(",", ".")),)))
    elif re.fullmatch(r"\d+,\d+", chain):
        readings.append(Reading((decimal(chain.replace(",", ".")),)))
    return readings


def _before_euro(match):
    return match.string.startswith(("€", " €", " eur", " Eur", " EUR"), match.end())


def _listed(items):
    return Reading(
        tuple(decimal(item) for item in items if item.count(".") < 2),
        tuple(item for item in items if item.count(".") > 1),
    )


def _apart(parts):
    """Each group of digits as a number. No reading if a group begins with 0."""
    return [] if any(part.startswith("0") for part in parts) else [Reading(tuple(map(decimal, parts)))]


def hundredth(number):
    return number.scaleb(-2, EXACT)


def spoken_numbers(words):
    """The numbers in a run of number words: one (`two hundred and five`) or several (`five and
    ten`)."""
    numbers = []
    # Of the current number: the part in thousands, the rest, the last factor of thousands.
    total, group, scale = 0, None, None
    for before, word in zip(["", *words], words, strict=False):
        if word == "and":
            continue
        small, factor = SMALL.get(word), SCALES.get(word) or SCALES.get(re.sub(r"(s|th)$", "", word))
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
