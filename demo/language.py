"""Makes up values and the English requests that mention them, for both rows and corpus."""

import functools
import re
from collections.abc import Callable
from random import Random

from demo.world import Parameter, Tool, table_lines

NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
QUESTION_WORDS = re.compile(r"(what|what's|which|who|whose|when|where|how|is|are|do|does|will|can)\b")

PLAIN, PLAIN_QUESTION = "{}.", "{}?"
COMMANDS = (
    *[PLAIN] * 6,
    *("Please {}.", "Can you {}?", "Could you please {}?", "I need to {}.", "I'd like to {}.", "I want to {}.", "{}"),
    *("Hey, {}!", "{}, please.", "{}. Thanks!", "Hi there, {}.", "Help me {}.", "Would you {} for me?", "Let's {}."),
    *("It would be great if you could {}.", "My plan is to {}.", "Time to {}."),
)
QUESTIONS = (
    *[PLAIN_QUESTION] * 5,
    *("Tell me, {}?", "Hi, {}?", "I'd like to know, {}?", "{}? Thanks!", "Quick question: {}?", "{}"),
)
ONSETS = (
    *"b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr ph pl pr qu sc sh sk sl sm sn sp".split(),
    *"st str sw th tr tw wh".split(),
)
NUCLEI = "a e i o u a e i o ai ea ee ie oo ou ow y".split()
CODAS = "b ck ct d ft g ke l ll m mp n nce nd ng nt p r rd rk rn rt s se sh ss st t te th ve x".split()
JOINERS = (" and ", ", and ", ", then ", "; also, ", ", and after that ", ", and also ")
SENTENCE_JOINERS = ("Also, ", "Then ", "Next, ", "And ", "After that, ", "Finally, ", "")


# --- values: each maker returns a value, or a value and its text ---


@functools.cache
def vocabulary() -> dict[str, list[str]]:
    """The word lists of `words.txt` and `english.txt`, by name."""
    lists: dict[str, list[str]] = {}
    for line in table_lines("words.txt") + table_lines("english.txt"):
        if line.startswith("["):
            words = lists[line.strip("[]")] = []
        else:
            words += [word.replace("_", " ") for word in line.split()]
    return lists


def pick(name: str, rng: Random) -> str:
    """A random word of one of the lists."""
    return rng.choice(vocabulary()[name])


def made_word(rng: Random) -> str:
    """A made-up word: values have to be copied and cannot be memorised."""
    syllables = rng.choice("bdfghjklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "s"))
    for _ in range(rng.choice((1, 1, 2))):
        syllables += rng.choice("bdfghklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "", "n", "r", "x"))
    return syllables


def odd_word(rng: Random) -> str:
    """A word of English sounds, for names outside the word lists."""
    return "".join(
        (rng.choice(ONSETS) if rng.random() < 0.85 else "")
        + rng.choice(NUCLEI)
        + (rng.choice(CODAS) if rng.random() < 0.5 else "")
        for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )


def blend(rng: Random) -> str:
    """The beginning of one English word with the end of another: names contain all pieces of
    words."""
    first, last = pick("english_nouns", rng), pick("english_nouns", rng)
    return first[: rng.randint(2, len(first))] + last[rng.randint(0, len(last) - 2) :]


def made_name(rng: Random) -> str:
    return made_word(rng).capitalize()


def place(rng: Random) -> str:
    if rng.random() < 0.4:
        return pick("cities", rng)
    return rng.choice(("{}", "{}", "{}", "Port {}", "New {}", "San {}", "{}ville", "{} City")).format(made_name(rng))


def person(rng: Random) -> str:
    first = pick("first_names", rng) if rng.random() < 0.7 else made_name(rng)
    return f"{first} {made_name(rng)}"


def item(rng: Random) -> str:
    noun = pick("nouns", rng) if rng.random() < 0.8 else made_word(rng)
    return f"{pick('adjectives', rng)} {noun}" if rng.random() < 0.6 else noun


def title(rng: Random) -> str:
    words = [made_word(rng)] + [
        pick(rng.choice(("adjectives", "nouns", "verbs")), rng) for _ in range(rng.randint(1, 3))
    ]
    rng.shuffle(words)
    return " ".join(words).title() if rng.random() < 0.7 else " ".join(words).capitalize()


def sentence(rng: Random) -> str:
    if rng.random() < 0.2:
        return f"{pick('verbs', rng)} the {item(rng)}"
    who = rng.choice((made_name(rng), f"the {item(rng)}", "we", "I", "you", pick("first_names", rng)))
    end = rng.choice(
        ("", "", " today", " tomorrow", f" with {made_name(rng)}", f" in {place(rng)}", " at home", " later")
    )
    return f"{who} will {pick('verbs', rng)} the {item(rng)}{end}"


def identifier(rng: Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHKLMNPQRSTVWXYZ", k=rng.randint(1, 3)))
    digits = "".join(rng.choices("0123456789", k=rng.randint(2, 5)))
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", digits + letters))


def slug(rng: Random) -> str:
    return rng.choice("_-").join((pick("nouns", rng), made_word(rng))) if rng.random() < 0.7 else made_word(rng)


def path(rng: Random) -> str:
    folders = "".join(f"{slug(rng)}/" for _ in range(rng.randint(0, 2)))
    return f"{folders}{slug(rng)}.{pick('extensions', rng)}"


def email(rng: Random) -> str:
    user = rng.choice((made_word(rng), f"{made_word(rng)}.{made_word(rng)}", f"{made_word(rng)}{rng.randint(1, 99)}"))
    return f"{user}@{made_word(rng)}.{rng.choice(('com', 'org', 'net', 'de'))}"


def url(rng: Random) -> str:
    domain = f"{rng.choice(('www.', '', 'https://'))}{made_word(rng)}.{rng.choice(('com', 'org', 'net', 'io'))}"
    return domain + rng.choice(("", f"/{slug(rng)}", f"/{made_word(rng)}/{rng.randint(1, 999)}"))


def date(rng: Random, first_year: int, last_year: int) -> tuple[str, str]:
    year, month, day = rng.randint(first_year, last_year), rng.randint(1, 12), rng.randint(1, 28)
    iso = f"{year}-{month:02}-{day:02}"
    name = vocabulary()["months"][month - 1]
    return iso, rng.choice((iso, iso, iso, f"{name} {day}, {year}", f"{day} {name} {year}"))


def integer(rng: Random, low: int, high: int) -> tuple[int, str]:
    value = rng.randint(low, high)
    return value, NUMBER_WORDS[value - 2] if 2 <= value <= 12 and rng.random() < 0.15 else str(value)


def number(rng: Random, low: int, high: int) -> tuple[float, str]:
    value = round(rng.uniform(low, high), rng.choice((1, 1, 2)))
    return value, str(value)


def points(rng: Random) -> tuple[list, str]:
    value = [[rng.randint(0, 30), rng.randint(0, 30)] for _ in range(rng.randint(2, 4))]
    return value, listing([f"({x}, {y})" for x, y in value])


STRINGS: dict[str, Callable[[Random], str]] = {
    "place": place,
    "person": person,
    "item": item,
    "title": title,
    "sentence": sentence,
    "id": identifier,
    "slug": slug,
    "path": path,
    "email": email,
    "url": url,
    "made": made_name,
    "word": lambda rng: made_word(rng) if rng.random() < 0.5 else pick(rng.choice(("nouns", "adjectives")), rng),
    "topic": lambda rng: f"{pick('adjectives', rng)} {pick('nouns', rng)}" if rng.random() < 0.6 else made_word(rng),
    "country": lambda rng: pick("countries", rng),
    "company": lambda rng: made_name(rng) + rng.choice(("", "", " Labs", " Group", " Foods")),
    "address": lambda rng: f"{rng.randint(1, 200)} {made_name(rng)} {pick('streets', rng)}",
    "phone": lambda rng: f"{rng.randint(100, 999)}-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
    "handle": lambda rng: made_word(rng) + rng.choice(("", "_" + made_word(rng), str(rng.randint(1, 999)))),
    "flight": lambda rng: "".join(rng.choices("ABDKLQSU", k=2)) + str(rng.randint(10, 9999)),
    "symbol": lambda rng: "".join(rng.choices("ABCDEFGHIKLMNOPRSTVWXZ", k=rng.randint(3, 4))),
    "currency": lambda rng: pick("currencies", rng),
    "sport": lambda rng: pick("sports", rng),
    "version": lambda rng: f"{rng.randint(0, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}",
    "time": lambda rng: f"{rng.randint(0, 23):02}:{rng.choice(('00', '15', '30', '45', '10', '05', '50'))}",
}


def make_value(kind: str, rng: Random) -> tuple[object, str]:
    """A random value of a kind and its text: `("2026-05-03", "May 3, 2026")`, `([4, 7], "4 and
    7")`."""
    head, _, rest = kind.partition(" ")
    if head in STRINGS or head == "choice":
        value = STRINGS[head](rng) if head in STRINGS else rng.choice(rest.split(","))
        return value, value
    if head in ("list", "paths"):
        pairs = [make_value(rest or "path", rng) for _ in range(rng.choice((2, 2, 3, 3, 4)))]
        return [value for value, _ in pairs], listing([text for _, text in pairs])
    if head == "bool":
        return rng.random() < 0.6, ""
    if head == "points":
        return points(rng)
    return {"int": integer, "float": number, "date": date}[head](rng, *map(int, rest.split()))


def listing(texts: list[str]) -> str:
    """`a, b and c`, or nothing for no texts."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


# --- requests ---


def make_calls(tool: Tool, count: int, rng: Random) -> tuple[list[dict], str]:
    """`count` calls of one tool, as lists of arguments, and one phrase for all of them.

    Several calls differ in one argument, which the phrase names several times: "the weather in
    Paris and Rome". An optional parameter is either mentioned and given, or neither.
    """
    request = rng.choice(tool.requests)
    parameters = [p for p in tool.parameters if p.required or rng.random() < 0.4]
    pairs: dict[str, list[tuple[object, str]]] = {}
    varied = rng.choice(variable_parameters(tool)) if count > 1 else None
    for parameter in parameters:
        # No two values alike: "from EUR to EUR" asks for nothing.
        taken = [value for made in pairs.values() for value, _ in made]
        made: list[tuple[object, str]] = []
        while len(made) < (count if parameter is varied else 1):
            pair = make_value(parameter.kind, rng)
            if isinstance(pair[0], bool) or pair[0] not in taken:
                made.append(pair)
                taken.append(pair[0])
        pairs[parameter.name] = made
    arguments = [{name: made[min(index, len(made) - 1)][0] for name, made in pairs.items()} for index in range(count)]
    texts = {name: [text for _, text in made] for name, made in pairs.items()}
    return arguments, phrase(request, parameters, texts, arguments[0], rng)


def phrase(request: str, parameters: list[Parameter], texts: dict, arguments: dict, rng: Random) -> str:
    """The request with its slots filled, and clauses in random order for the parameters without a
    slot."""
    clauses = []
    for parameter in parameters:
        slot = f"{{{parameter.name}}}"
        if slot in request:
            request = fill(request, slot, texts[parameter.name])
        else:
            meant = parameter.false_clauses if arguments[parameter.name] is False else parameter.clauses
            clauses.append(fill(rng.choice(meant), "{}", texts[parameter.name]))
    rng.shuffle(clauses)
    return " ".join([request, *clauses])


def fill(template: str, slot: str, texts: list[str]) -> str:
    """Put texts into a slot of a template. Quotes around the slot surround each text."""
    quoted = f'"{slot}"'
    if quoted in template:
        return template.replace(quoted, listing([f'"{text}"' for text in texts]))
    return template.replace(slot, listing(texts))


def variable_parameters(tool: Tool) -> list[Parameter]:
    """The parameters with room for several values in one request, without ambiguity."""
    kinds = [parameter.kind.split()[-1] for parameter in tool.parameters]
    return [
        parameter
        for parameter in tool.parameters
        if parameter.required
        and parameter.kind.split()[0] not in ("list", "paths", "points", "bool", "choice")
        and kinds.count(parameter.kind.split()[-1]) == 1
    ]


def say(phrases: list[str], rng: Random) -> str:
    """One or more requests as a person would write them: polite or not, in one or several
    sentences."""
    sentences = []
    if len(phrases) > 1 and rng.random() < 0.5 and not any(map(is_question, phrases)):
        joined = phrases[0]
        for other in phrases[1:]:
            joined += rng.choice(JOINERS) + other
        phrases = [joined]
    for index, request in enumerate(phrases):
        frame = rng.choice(QUESTIONS if is_question(request) else COMMANDS)
        if index and rng.random() < 0.6:
            frame = rng.choice(SENTENCE_JOINERS) + ("{}?" if is_question(request) else "{}.")
        sentences.append(capitalised(frame.format(request)))
    text = " ".join(
        sentence if sentence[-1] in ".?!" or len(sentences) == 1 else f"{sentence}." for sentence in sentences
    )
    style = rng.random()
    if style < 0.08:
        return text.rstrip(".?!")
    return text.replace('"', "'") if style > 0.7 and "'" not in text else text


def is_question(request: str) -> bool:
    return QUESTION_WORDS.match(request) is not None


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
