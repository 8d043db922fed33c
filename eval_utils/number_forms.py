"""Numbers of more than one token: fractions, signs in words, Chinese and Japanese numerals. Pure
functions."""

import re
from fractions import Fraction

from eval_utils.numbers_in_text import EXACT, NUMBER_WORD, SCALES, SMALL, decimal, hundredth, spoken_numbers

_MULTIPLES = {"once": 1, "twice": 2, "couple": 2, "pair": 2, "double": 2, "thrice": 3, "triple": 3}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "eighth": 8, "tenth": 10}
_PARTS |= {f"{word}s": n for word, n in _PARTS.items() if word != "halves"}
_HAN_DIGITS = {c: n for n, characters in enumerate("零〇 一壹 二两兩 三 四 五 六 七 八 九".split()) for c in characters}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_HAN_CHARACTERS = [*_HAN_DIGITS, *_HAN_UNITS]
_HAN = f"[{''.join(_HAN_CHARACTERS)}]"
_HAN_NUMERAL = re.compile(f"{_HAN}{{1,20}}")
_DECIMAL = r"\d{1,15}(?:\.\d{1,15})?(?![\d.]*\d)"
_WHOLE = rf"(?:{NUMBER_WORD})(?:[ _-](?:{NUMBER_WORD})){{0,3}}"
_BELOW = r"(?: degrees?)?(?: (?:[cf]\b|celsius|fahrenheit))? below(?: zero| freezing)\b"
_DIGIT = "|".join(list(SMALL)[:10])
_COUNT = "|".join(["an?", *list(SMALL)[1:20]])
# Signs of a match, and its pattern. Signs are looked up first, since most texts have none.
_FORMS = [
    (signs, re.compile(pattern, re.IGNORECASE))
    for signs, pattern in (
        (
            "/ ⁄",
            r"(?<![\d./,])(?:(?P<whole>\d{1,4})[ -])?(?P<count>\d{1,4}) ?[/⁄] ?(?P<of>\d{1,4})(?!\d|[./,⁄]\d)",
        ),
        (
            " ".join(_PARTS),
            rf"\b(?:(?P<whole>\d{{1,4}}|{_WHOLE}) and )?(?:(?P<count>{_COUNT})[ -])?(?P<part>{'|'.join(_PARTS)})\b"
            rf"(?: (?:of )?(?:an? )?(?P<scale>{'|'.join(SCALES)})\b)?",
        ),
        (
            "point",
            rf"\b(?P<minus>(?:minus|negative) )?(?:(?P<spoken>{_WHOLE}) )?"
            rf"point (?P<digits>(?:{_DIGIT})(?: (?:{_DIGIT})){{0,9}})\b",
        ),
        (" ".join(_MULTIPLES), rf"\b(?P<multiple>{'|'.join(_MULTIPLES)})\b"),
        ("below", rf"(?<![\w.])(?P<negative>{_DECIMAL})(?: ?°[^\W\d_]?)?{_BELOW}"),
        ("below", rf"\b(?P<negative>{NUMBER_WORD}){_BELOW}"),
        # A coordinate in the west or south, with a degree sign or two decimals.
        (
            "w s",
            r"(?<![\w.])(?P<negative>\d{1,3}(?:\.\d{1,15})?(?= ?°)|\d{1,3}\.\d{2,15})"
            r"(?: ?°)? ?(?:(?-i:[WS])|west|south)\b",
        ),
        (
            " ".join(_HAN_CHARACTERS),
            rf"(?:(?P<percent>百分之)|(?P<han_of>{_HAN}{{1,20}})分之)?"
            rf"(?P<han>{_HAN}{{1,20}}(?:点[{''.join(_HAN_DIGITS)}]{{1,20}})?)",
        ),
        (
            " ".join(_HAN_UNITS),
            rf"(?<![\w.])(?P<figures>{_DECIMAL})(?P<han_scale>[{''.join(_HAN_UNITS)}]{{1,3}})",
        ),
    )
]
_FORMS = [(signs.split(), pattern) for signs, pattern in _FORMS]


def number_forms(text):
    """The numbers in such forms: `1/2`, "three quarters", "5 below zero", 74.0060° W, 百分之五. All
    possible numbers: 5 and 0.05."""
    return {
        number for pattern in _patterns(text) for match in pattern.finditer(text) for number in _form_numbers(match)
    }


def without_number_forms(text, known):
    """The text without the known numbers (a set of Decimals) in such forms."""
    for pattern in _patterns(text):
        text = pattern.sub(lambda match: match[0] if known.isdisjoint(_form_numbers(match)) else " ", text)
    return text


def _patterns(text):
    folded = text.casefold()
    return [pattern for signs, pattern in _FORMS if any(sign in folded for sign in signs)]


def _form_numbers(match):
    found = {"whole": None, "scale": None} | match.groupdict()
    if multiple := found.get("multiple"):
        return {decimal(_MULTIPLES[multiple.lower()])}
    if negative := found.get("negative"):
        return {-(decimal(spoken_numbers([negative.lower()])[0] if negative.isalpha() else negative))}
    if found.get("digits"):
        whole = spoken_numbers(re.split("[ _-]", (found["spoken"] or "zero").lower()))[-1]
        places = "".join(str(SMALL[word]) for word in found["digits"].lower().split())
        return {decimal(f"{'-' * bool(found['minus'])}{whole}.{places}")}
    if found.get("figures"):
        return {EXACT.multiply(decimal(found["figures"]), _han_number(f"一{found['han_scale']}"))}
    if found.get("han"):
        whole, _, digits = found["han"].partition("点")
        if found["han_of"]:
            return _quotients(0, _han_number(whole), _han_number(found["han_of"]))
        number = decimal(f"{_han_number(whole)}.{''.join(str(_HAN_DIGITS[c]) for c in digits) or 0}")
        return {number, hundredth(number)} if found["percent"] else {number}
    if found.get("part"):
        count, of = (found["count"] or "").lower(), _PARTS[found["part"].lower()]
        if not count and of != 2:  # "the third", "the second quarter"
            return set()
        count = SMALL.get(count, 1)
    else:
        count, of = int(found["count"]), int(found["of"])
    whole = found["whole"] or "0"
    whole = int(whole) if whole.isdecimal() else spoken_numbers(re.split("[ _-]", whole.lower()))[-1]
    return _quotients(whole, count, of, SCALES.get((found["scale"] or "").lower(), 1))


def _quotients(whole, count, of, scale=1):
    """(whole + count / of) * scale: exact, and rounded to two to four places in double
    precision."""
    if of == 0:
        return set()
    value = (whole + Fraction(int(count), int(of))) * scale
    exact = EXACT.divide(decimal(value.numerator), decimal(value.denominator))
    return {
        exact,
        *(decimal(round(float(value), places)) for places in (2, 3, 4) if value.denominator not in (1, 2, 4)),
    }


def han_as_figures(text):
    """The text with Chinese numerals in figures (三月五日 as 3月5日), for dates and times."""
    return _HAN_NUMERAL.sub(lambda match: str(_han_number(match[0])), text)


def _han_number(numeral):
    """二十五 is 25, 三千五百 is 3500. Without units, digits are read in turn: 二〇二四 is 2024."""
    if not any(character in _HAN_UNITS for character in numeral):
        return decimal("".join(str(_HAN_DIGITS[character]) for character in numeral))
    total, section, digit = 0, 0, 0
    for character in numeral:
        unit = _HAN_UNITS.get(character)
        if unit is None:
            digit = _HAN_DIGITS[character]
        elif unit < 10**4:
            section, digit = section + (digit or 1) * unit, 0
        elif unit == 10**4:
            total, section, digit = total + (section + digit or 1) * unit, 0, 0
        else:
            total, section, digit = (total + section + digit or 1) * unit, 0, 0
    return total + section + digit
