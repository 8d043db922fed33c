"""Which values count as taken from the query or the tools, and which as made up."""

import datetime
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from babel.dates import format_date
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from eval_utils.dates_in_text import LANGUAGES
from eval_utils.grounding import Sources, leaf_values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
# The characters of the rules about figures.
NOTATION = st.text(" 0123456789.,:-–/+%$€kmTxe()[]½²'apth", max_size=30)
PIECES = st.lists(
    st.sampled_from(
        "two hundred and five million may 5th 2024 3pm 1,000 12:30 - % first 3/4 fıve x² minus half past 三 below zero 1.2.3 W".split()
    )
)


@pytest.mark.parametrize(
    ("query", "value", "grounded"),
    [
        # A number is a whole token.
        ("base of 10 and height of 5", 5, True),
        ("base of 10 and height of 5", 5.0, True),
        ("base of 10 and height of 5", 1, False),
        ("15 units", 5, False),
        ("3.14", 3, False),
        ("3.14", 14, False),
        ("3.14", 3.14, True),
        ("It is 3.", 3, True),
        (".5 litres", 0.5, True),
        ("pi is 3.14159265358979323846", 3.141592653589793, True),
        ("account 9007199254740993", 9007199254740993, True),
        ("account 9007199254740993", 9007199254740992, False),
        ("6.02e23 of them", 6.02e23, True),
        ("a diameter of 6mm", 6, True),
        ("the file 5f4dcc3b", 5, False),
        ("the vitamin B12", 12, False),
        ("in 1920x1080", 1080, True),
        ("dataset_5", 5, True),
        ("2x² - 3x + 1", 2, True),
        ("10²", 102, False),
        # Signs.
        ("-5 degrees", -5, True),
        ("-5 degrees", 5, False),
        ("5 degrees", -5, False),
        ("x=−5", -5, True),
        ("from 5-10", -10, False),
        ("from 5-10", 10, True),
        ("2x^2 - 3x", -3, True),
        ("Set it to minus 5 degrees", -5, True),
        ("Set it to minus 5 degrees", 5, False),
        ("Set it to negative five", -5, True),
        ("minus 5%", -0.05, True),
        ("minus 5 million", -5000000, True),
        ("minus five", "-5", True),
        ("-5", "minus five", True),
        ("five", "minus five", False),
        ("10 minus 5", 5, True),
        ("x minus 5", -5, True),
        ("ten minus five", 5, True),
        ("It's 5 degrees below zero", -5, True),
        ("five below zero", -5, True),
        ("3 below average", -3, False),
        ("40.7128° N, 74.0060° W", -74.006, True),
        ("40.7128° N, 74.0060° W", -40.7128, False),
        ("at 33.87 S", "-33.87", True),
        ("a 60 W bulb", -60, False),
        # Separators.
        ("1,000 people", 1000, True),
        ("1 000 people", 1000, True),
        ("1,000 people", 1, False),
        ("1,234,567.5", 1234567.5, True),
        ("1,234,567", 234, False),
        ("1,00,000 rupees", 100000, True),
        ("the values 5,10,15", 10, True),
        ("the values -5,10,15", -5, True),
        ("the values -5,10,15", 5, False),
        ("[100,200]", 200, True),
        ("the point (3,400)", 400, True),
        ("12,450 people", 450, False),
        ("€1.500,50", 1500.5, True),
        ("1 500,50 €", 1500.5, True),
        ("1.500 €", 1500, True),
        ("1.500 litres", 1500, False),
        ("1.500.000 inhabitants", 1500000, True),
        ("1'500 CHF", 1500, True),
        ("3,5 kg", 3.5, True),
        ("3.5 kg", "3,5", True),
        ("0,125", 0.125, True),
        ("1,500", 1.5, False),
        # Fractions and multiples.
        ("1/2 cup", 0.5, True),
        ("½ cup", 0.5, True),
        ("1½ cups", 1.5, True),
        ("1 1/2 cups", 1.5, True),
        ("half a cup", "1/2 cup", True),
        ("three quarters", 0.75, True),
        ("a quarter", 0.25, True),
        ("the third quarter", 0.25, False),
        ("two thirds", 0.67, True),
        ("a fourth", 0.25, True),
        ("a fifth", 0.2, True),
        ("three eighths", 0.375, True),
        ("a tenth", 0.1, True),
        ("2/3", 0.6666666666666666, True),
        ("1/0", 1, True),
        ("two and a half million", 2500000, True),
        ("half a dozen", 6, True),
        ("three point one four", 3.14, True),
        ("minus two point five", -2.5, True),
        ("once", 1, True),
        ("twice", 2, True),
        ("double it", 2, True),
        ("thrice", 3, True),
        ("triple it", 3, True),
        ("a couple of them", 2, True),
        ("a pair", 2, True),
        ("twice", 3, False),
        # Percent, currency, scale.
        ("5%", 5, True),
        ("5%", 0.05, True),
        ("5 percent", 0.05, True),
        ("five percent", 0.05, True),
        ("5 people", 0.05, False),
        ("5 percent", "7 percent", False),
        ("500 Japanese yen", "JPY", True),
        ("500 Japanese yen", "USD", False),
        ("$5", 5, True),
        ("5€", 5, True),
        ("USD 5", 5, True),
        ("USD5", 5, True),
        ("Rs.500", 500, True),
        ("-$5", -5, True),
        ("$1.5 million", 1500000, True),
        ("$1.5M", 1500000, True),
        ("3k", 3000, True),
        ("2 thousand", 2000, True),
        ("3 dozen", 36, True),
        ("2 thousand", 200, False),
        ("5,10 thousand", "5,10000", True),
        # Number words.
        ("twenty-five", 25, True),
        ("twenty-five", 5, False),
        ("two hundred", 200, True),
        ("Two Hundred and Five Thousand", 205000, True),
        ("a hundred", 100, True),
        ("five and ten", 15, False),
        ("five and ten", 10, True),
        ("one two three", 2, True),
        ("nineteen hundred", 1900, True),
        ("two million three hundred thousand", 2300000, True),
        ("the first one", 1, True),
        ("the twenty-first", 21, True),
        ("the 3rd", 3, True),
        ("often", 10, False),
        ("one of them", 1, False),
        ("nineteen eighty-four", 1984, True),
        # Chinese and Japanese numerals.
        ("帮我订三张票", 3, True),
        ("两张票", 2, True),
        ("二十五个", 25, True),
        ("二十五个", 5, False),
        ("三千五百", 3500, True),
        ("一亿两千万", 120000000, True),
        ("上亿人", 100000000, True),
        ("上万人", 10000, True),
        ("3万人", 30000, True),
        ("二〇二四", 2024, True),
        ("百分之五", 5, True),
        ("百分之五", 0.05, True),
        ("三分之一", 0.33, True),
        ("三点五公斤", 3.5, True),
        # Telephone numbers.
        ("call +1 (555) 010-9999", "+15550109999", True),
        ("call +1 (555) 010-9999", 15550109999, True),
        ("call +1 (555) 010-9999", "555-010-9999", True),
        ("call +1 (555) 010-9999", "+15550109998", False),
        ("call 555-0100", "5550100", True),
        ("call 5550100", "555-0100", True),
        ("call 555-0100", "0100-555", False),
        # Units, several of a kind.
        ("30 minutes", "30m", True),
        ("30 minutes", "30min", True),
        ("30 minutes", "30mins", True),
        ("30 pounds", "30lbs", True),
        ("1 minute", "1m", True),
        ("1 pound", "1lb", True),
        ("30 minutes", "31m", False),
        ("30 minutes", "30h", False),
        ("1 hour 30 minutes", "1h30m", True),
        ("5km", "5 kilometers", True),
        ("in Boston", "inches", False),
        ("show me apartments", "apartment", True),
        ("two cities", "city", True),
        ("books on shelves", "shelf", True),
        ("three women", "woman", True),
        ("the news", "new", False),
        ("an SOS", "so", False),
        # An order of numbers that is a name.
        ("version 1.2.3", "1.2.3", True),
        ("version 1.2.3", "1.3.2", False),
        ("version 1.2.3", 2, False),
        ("version 10.1.24", "1.10.24", False),
        ("192.168.1.10, 10.0.0.1", "10.0.0.1", True),
        ("192.168.1.10", "192.168.10.1", False),
        ("http://192.168.1.10:8080/x", "http://192.168.10.1:8080/x", False),
        ("00:1B:44:11:3A:B7", "00:1b:44:11:3a:b7", True),
        ("00:1B:44:11:3A:B7", "00:1B:44:11:B7:3A", False),
        ("2001:db8:0:1::1", "2001:db8:1:0::1", False),
        ("in 16:9", "9:16", False),
        ("in 1920x1080", "1080x1920", False),
        ("40.7128, -74.0060", "40.7128,-74.0060", True),
        ("40.7128, -74.0060", "-74.0060, 40.7128", False),
        ("978-3-16-148410-0", "978-16-3-148410-0", False),
        ("4:3 and 3:4", "3:4", True),
        ("from 2019 to 2023", "2019-2023", True),
        # Numbers in strings.
        ("42 people", "42", True),
        ("forty-two people", "42", True),
        ("142 people", "42", False),
        ("1000 km", "1,000 km", True),
        ("1,500,000", "$1.5 million", True),
        ("1.5 thousand, not a million", "2.5 million", False),
        ("version 2.5.1", "2.5.1", True),
        ("six of clubs", "6 of clubs", True),
        ("3.14", "3", False),
        # Words: in any order, each in full, names in their parts.
        ("the area of New York", "York, new", True),
        ("the area of New York", "New York City", False),
        ("a newish thing", "new", False),
        ("new york", "newYork", True),
        ("new york", "new_york", True),
        ("the newYork office", "New York", True),
        ("HTTPServer", "http server", True),
        ("dataset 1", "dataset1", True),
        ("dataset 2", "dataset1", False),
        ("a multi-band sequence", "multiband", True),
        ("an email", "e-mail", True),
        ("the U.S. economy", "US", True),
        ("Tesla's stock", "tesla", True),
        ("ＮＥＷ　ＹＯＲＫ", "new york", True),
        ("Straße", "STRASSE", True),
        ("请告诉我北京的天气", "北京", True),
        ("请告诉我北京的天气", "南京", False),
        ("我有5个苹果和3个梨", 3, True),
        ("서울에서 만나요", "서울", True),
        ("हिन्दी में", "हिन्दी", True),
        ("हिन्दी में", "हिन", False),
        # Only punctuation.
        ("is it a+b?", "+", True),
        ("is it a+b?", "-", False),
        ("cheers 🎉", "🎉", True),
        # Dates.
        ("on March 5th, 2024", "2024-03-05", True),
        ("on 5 March 2024", "2024-03-05", True),
        ("on the 5th of March, 2024", "03/05/2024", True),
        ("on Mar 5 2024", "20240305", True),
        ("on 5/3/2024", "2024-03-05", True),
        ("on 5/3/2024", "2024-05-03", True),
        ("on 5.3.2024", "May 3, 2024", True),
        ("on 5/3/24", "2024-03-05", True),
        ("on 2024-03-05", "March 5th, 2024", True),
        ("on 2024-03-05", "March 5", True),
        ("on March 5", "03/05", True),
        ("on March 5", "2024-03-05", False),
        ("on March 5; it is 2024", "2024-03-05", True),
        ("on March 5th, 2024", "2024-03-06", False),
        ("on March 5th, 2024", "2023-03-05", False),
        ("2024-03-05 to 2024-04-07", "2024-03-07", False),  # although each of its figures occurs
        ("in March 2024", "2024-03", True),
        ("on March 5th, 2024", "2024-03-05T00:00:00Z", True),
        ("on March 5th, 2024 at 3pm", "2024-03-05T15:00:00", True),
        ("on March 5th, 2024 at 3pm", "2024-03-05 16:00", False),
        ("since 2024-03-05", 2024, True),
        ("on 5.3.2024", 2024, True),
        ("2024年3月5日", "2024-03-05", True),
        ("2024年3月5日", "2024-05-03", False),
        ("二〇二四年三月五日", "2024-03-05", True),
        ("2024년 3월 5일", "2024-03-05", True),
        ("am 5. März 2024", "2024-03-05", True),
        ("am 5. März", "2024-03-05", False),
        ("le 1er avril 2024", "2024-04-01", True),
        ("el 5 de marzo de 2024", "5 March 2024", True),
        ("2 out of 5", "10-02", False),
        # Times.
        ("at 3pm", "15:00", True),
        ("at 3 p.m.", "15:00:00", True),
        ("at 3pm", "03:00", False),
        ("at 15:30", "3:30 PM", True),
        ("at 3:30", "15:30", True),
        ("at 1:30", "13:30", True),
        ("at 12:30", "00:30", True),
        ("at 03:30", "15:30", False),
        ("at 11.30 a.m.", "11:30", True),
        ("at 12am", "00:00", True),
        ("at noon", "12:00", True),
        ("15 items in 30 minutes", "15:30", False),
        ("at 15h30", "15:30", True),
        ("at 15h30", "3:30 pm", True),
        ("um 15 Uhr", "15:00", True),
        ("half past three", "3:30", True),
        ("half past three", "4:30", False),
        ("quarter to five", "4:45", True),
        ("three thirty pm", "15:30", True),
        ("three forty-five pm", "15:45", True),
        ("at 2 in the afternoon", "14:00", True),
        ("at 2 in the afternoon", "02:00", False),
        ("下午三点半", "15:30", True),
        ("오후 3시 30분", "15:30", True),
        # Empty values, and all leaves of nested values.
        ("anything", "", True),
        ("anything", None, True),
        ("anything", True, True),
        ("2 and 3", [2, {"key": 3}], True),
        ("2 and 3", [2, {"key": 4}], False),
        ("inf nan", float("inf"), False),
        ("inf nan", float("nan"), False),
    ],
)
def test_the_rules(query, value, grounded):
    assert Sources(query, []).is_grounded(value) is grounded


def test_units_have_their_english_names_whatever_the_user_s_language():
    script = "from eval_utils.grounding import Sources; print(Sources('30 minutes, 2 days', []).is_grounded('30m 2d'))"
    environment = os.environ | dict.fromkeys(("LANGUAGE", "LC_ALL", "LC_CTYPE", "LANG"), "fi_FI.UTF-8")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("value", "grounded"),
    [
        ("metric", True),
        (20, True),
        (0.5, True),
        ("get_weather", True),
        ("max results", True),
        ("2020-01-31", True),
        ("celsius", True),
        ("parameters", False),
        (2, False),
        ("kelvin", False),
    ],
)
def test_all_texts_of_the_tools_count(value, grounded):
    parameters = {
        "max_results": {"description": "At most, e.g. 20", "type": "int", "default": 0.5},
        "unit": {"description": "the unit", "type": "str", "enum": ["metric", "imperial"]},
        "since": {"type": "str", "examples": ["January 31st, 2020"], "default": {"celsius": True}},
    }
    tools = [{"name": "get_weather", "description": "The weather.", "parameters": parameters}]
    assert Sources("", tools).is_grounded(value) is grounded


def test_leaves_are_values_that_can_be_looked_up():
    arguments = {"a": [1, [2.5, {"key": "x"}]], "b": True, "c": None, "d": "", "e": {"f": {"g": 0}}, "h": [], "i": " "}
    assert list(leaf_values(arguments)) == [1, 2.5, "x", 0, " "]


def test_nesting_has_no_limit():
    value = 7
    for _ in range(100_000):
        value = [value]
    assert Sources("seven", value).is_grounded(value)
    while isinstance(value, list):  # step by step: freeing the value at once is deep too
        value = value[0]


def spoken(n):
    """English for 0 <= n < 1,000,000."""
    ones = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
    )
    ones += "seventeen eighteen nineteen".split()
    if n < 20:
        return ones[n]
    if n < 100:
        tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()[n // 10 - 2]
        return f"{tens}-{ones[n % 10]}" if n % 10 else tens
    unit, name, link = (100, "hundred", " and ") if n < 1000 else (1000, "thousand", " ")
    rest = f"{link}{spoken(n % unit)}" if n % unit else ""
    return f"{spoken(n // unit)} {name}{rest}"


FORMATS = [
    "{}",
    "{:,}",
    "${}",
    "{}€",
    "USD {:,}",
    "{}%",
    "{} percent",
    "{}kg",
    "({})",
    "x={},",
    "{}th",
    "{}.",
    "{}.0",
    "{:,}",
]
FORMATS += ["'{}'", "+{}", "{}-fold", "{}°C", "[1, {}]", "{:e}"]


@given(
    st.integers(0, 999_999),
    st.sampled_from([*(form.format for form in FORMATS), spoken, lambda n: f"{n:,}".replace(",", " ")]),
)
def test_a_number_is_found_in_each_format(n, render):
    sources = Sources(f"take {render(n)} of them", [])
    assert sources.is_grounded(n)
    assert sources.is_grounded(float(n))
    assert sources.is_grounded(str(n))
    assert sources.is_grounded(f"{spoken(n)} of them")


@given(
    st.integers(1, 10**6),
    st.sampled_from([("thousand", 3), ("k", 3), ("million", 6), ("M", 6), ("billion", 9), ("%", -2)]),
)
def test_a_scale_multiplies(n, scale):
    word, exponent = scale
    number = json.loads(f"{n}e{exponent}")
    sources = Sources(f"about {n}{' ' if len(word) > 1 else ''}{word} in all", [])
    assert sources.is_grounded(number)
    assert sources.is_grounded(number * 10) == (number * 10 == n)


@given(st.integers(0, 999), st.text("123456789", min_size=1, max_size=4), st.text("123456789", max_size=4))
def test_a_number_inside_a_longer_one_is_not_found(n, before, after):
    for form in ("{}", "{:,}", "{:,}.5", "0.{}", "${:,}", "{}kg", "{}%", "-{}"):
        sources = Sources("take " + form.format(int(f"{before}{n}{after}")), [])
        assert not sources.is_grounded(n)
        assert not sources.is_grounded(str(n))


@given(
    st.dates(datetime.date(1970, 1, 1), datetime.date(2099, 12, 31)),
    st.sampled_from(
        [
            "%Y-%m-%d",
            "%d/%m/%Y",
            "%m/%d/%Y",
            "%d.%m.%Y",
            "%B %d, %Y",
            "%d %b %Y",
            "%Y%m%d",
            "%b %dth, %Y",
            "%A, %d of %B %Y",
        ]
    ),
    st.sampled_from(
        ["%Y-%m-%d", "%d/%m/%Y", "%m-%d-%Y", "%Y/%m/%d", "%B %d, %Y", "%d %B %Y", "%Y%m%d", "%Y-%m-%dT00:00:00"]
    ),
)
def test_a_date_is_found_in_each_format(date, written, asked):
    sources = Sources(f"Is it free on {date.strftime(written)}?", [])
    assert sources.is_grounded(date.strftime(asked))
    another = date.replace(year=date.year + 1, day=1)
    assert not sources.is_grounded(another.strftime(asked))


@given(JSON | NOTATION, JSON | NOTATION, JSON | NOTATION)
def test_nothing_raises(query, tools, value):
    sources = Sources(query if isinstance(query, str) else json.dumps(query), tools)
    assert sources.is_grounded(value) in (True, False)
    assert all(map(sources.is_grounded, leaf_values(True)))


@given(st.text(st.characters(), max_size=40) | NOTATION | PIECES.map(" ".join))
def test_a_copy_of_the_query_is_grounded(query):
    assert Sources(query, []).is_grounded(query)
    assert Sources("", [{"name": "f", "description": query}]).is_grounded(query)


@given(PIECES, PIECES, st.sampled_from([str.upper, str.title, str.lower]), st.sampled_from(["  ", "\n", " \t "]))
def test_case_and_whitespace_do_not_matter(query, value, recase, blank):
    query, value = " ".join(query), " ".join(value)
    expected = Sources(query, []).is_grounded(value)
    changed = [re.sub(" ", blank, recase(text)) for text in (query, value)]
    assert Sources(query, []).is_grounded(changed[1]) is expected
    assert Sources(changed[0], []).is_grounded(value) is expected


@given(
    st.dates(datetime.date(1970, 1, 1), datetime.date(2099, 12, 31)), st.sampled_from([*LANGUAGES, "ja", "zh", "ko"])
)
def test_a_date_is_found_as_each_language_writes_it(date, language):
    sources = Sources(format_date(date, "long", locale=language), [])
    assert sources.is_grounded(date.isoformat())
    assert not sources.is_grounded(date.replace(month=date.month % 12 + 1, day=1).isoformat())


def in_chinese(n):
    """Numerals for 0 <= n < 10,000, as taught in schools."""
    digits, text = "零一二三四五六七八九", ""
    for power, unit in ((3, "千"), (2, "百"), (1, "十"), (0, "")):
        digit = n // 10**power % 10
        text += digits[digit] + unit if digit else "零" * (bool(text) and not text.endswith("零") and n % 10**power > 0)
    return text.removeprefix("一") if 10 <= n < 20 else text or digits[0]


@given(st.integers(0, 9_999), st.integers(1, 9_999))
def test_a_chinese_numeral_is_found(n, thousands):
    assert Sources(f"我要{in_chinese(n)}个", []).is_grounded(n)
    assert Sources(f"我要{in_chinese(thousands)}万个", []).is_grounded(thousands * 10**4)


@given(st.lists(st.integers(0, 255), min_size=3, max_size=4), st.sampled_from(".x"))
def test_the_same_numbers_in_another_order_are_another_name(numbers, separator):
    written = separator.join(map(str, numbers))
    sources = Sources(f"take {written} please", [])
    for other in itertools.permutations(numbers):
        assert sources.is_grounded(separator.join(map(str, other))) is (list(other) == numbers)
