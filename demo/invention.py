"""Invents tools at random for the pretraining corpus, so that the base model learns to read any
tool instead of particular tools."""

import re
from random import Random

from demo.language import blend, made_word, make_value, odd_word, pick
from demo.world import Parameter, Tool, camel_case, known_parameters, unseen_tools

KINDS = (
    *(
        "made",
        "made",
        "made",
        "item",
        "topic",
        "word",
        "title",
        "sentence",
        "id",
        "person",
        "place",
        "path",
        "slug",
        "time",
    ),
    *("int 2 99", "int 10 900", "float 1 90", "float 0 900", "date 2019 2032", "bool", "bool", "choice", "choice"),
    *("list word", "list item", "list made", "list person", "list int 1 90", "list float 0 50", "points"),
)


# Requests that name only the action or only the thing: {0} is the verb, {1} the thing, {2} a value,
# {6} "inspected", {7} "inspecting", {8} a verb without meaning.
ACTION_OF = ("{0} {2}", "have {2} {6}", "{2} has to be {6}", "do some {7} for {2}", "{0} {2} for me", "do a {0} of {2}")
THING_OF = (
    "take care of the {1} {2}",
    "do the {1} {2}",
    "something with {1} {2}",
    "take {2} to the {1}",
    "{8} the {1} {2}",
)
ACTION = ("do the {7}", "have it {6}", "do some {7}", "start to {0}", "{0} something", "get to the {7}")
THING = ("see to the {1}", "take care of my {1}", "put the {1} to use", "have a {1} sent", "{8} the {1}", "{8} my {1}")
PARTICIPLES = dict(
    pair.split(":")
    for pair in "get:got make:made send:sent buy:bought sell:sold find:found seek:sought give:given show:shown begin:begun "
    "run:run hold:held keep:kept take:taken draw:drawn sow:sown cut:cut shut:shut split:split feed:fed "
    "read:read tell:told teach:taught lend:lent let:let put:put bid:bid set:set leave:left bring:brought "
    "build:built catch:caught choose:chosen drive:driven eat:eaten hide:hidden know:known lead:led ride:ridden "
    "say:said see:seen sing:sung speak:spoken spend:spent steal:stolen sweep:swept think:thought throw:thrown "
    "wear:worn win:won write:written".split()
)


def invent_world(rng: Random) -> list[Tool]:
    """A few families of tools, each around one thing or one action, so that near misses must be
    told apart."""
    world = []
    for family in range(5):
        action, thing = invent_action(rng), invent_thing(rng)
        shares_thing = rng.random() < 0.6
        for _ in range(3):
            tool = invent_tool(str(family), action, thing, "action" if shares_thing else "thing", rng)
            if tool.name not in {other.name for other in world} | {other.name for other in unseen_tools()}:
                world.append(tool)
            action, thing = (invent_action(rng), thing) if shares_thing else (action, invent_thing(rng))
    return world


def invent_word(rng: Random) -> str:
    """A noun: mostly English, from a short list, which is learnt, and a long list, whose words are
    rare."""
    source = rng.choices(("things", "english_nouns", "blend", "odd", "made"), weights=(45, 35, 10, 6, 4))[0]
    made = {"blend": blend, "odd": odd_word, "made": made_word}
    return made[source](rng) if source in made else pick(source, rng)


def invent_action(rng: Random) -> str:
    """Verbs of one meaning, or one verb, which may be in no dictionary."""
    source = rng.choices(("actions", "english_verbs", "made up"), weights=(75, 18, 7))[0]
    return rng.choice((blend, odd_word))(rng) if source == "made up" else pick(source, rng)


def invent_thing(rng: Random) -> str:
    thing = invent_word(rng)
    if rng.random() < 0.7:
        return thing
    return f"{pick('english_adjectives', rng) if rng.random() < 0.2 else invent_word(rng)} {thing}"


def invent_tool(family: str, action: str, thing: str, clue: str, rng: Random) -> Tool:
    """A tool for an action (verbs of one meaning, joined by |) on a thing. The clue, "action"
    or "thing", distinguishes it within its family."""
    verbs = action.split("|")
    verb, noun = rng.choice([verb for verb in verbs if " " not in verb]), thing.replace(" ", "_")
    name = rng.choice(("{0}_{1}", "{0}_{1}", "{1}.{0}", "{1}_{0}", "{0}_{1}", "{0}.{1}")).format(verb, noun)
    # A meaningless name: it must be copied from the tool with the matching description.
    if rng.random() < 0.25:
        name = rng.choice("_.").join(invent_word(rng) for _ in range(rng.randint(1, 2)))
    rename = camel_case if rng.random() < 0.2 and "." not in name else str
    parameters = [invent_named(thing, rng)] if rng.random() < 0.4 else []
    used: set[str] = {clause for parameter in parameters for clause in parameter.clauses}
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4))):
        parameter = invent_parameter(rng, required=not parameters or rng.random() < 0.6)
        clauses = {*parameter.clauses, *parameter.false_clauses}
        if parameter.name not in {other.name for other in parameters} and not used & clauses:
            used |= clauses
            parameters.append(parameter)
    parameters = [Parameter(**vars(p) | {"name": rename(p.name)}) for p in parameters]
    rng.shuffle(parameters)
    purpose = f"{rng.choice(verbs).capitalize()} {rng.choice(('a', 'the', 'the', 'one'))} {thing}"
    if rng.random() < 0.3:
        purpose += f" {rng.choice(('by', 'with', 'for', 'of', 'from'))} {label_of(rng.choice(parameters))}"
    requests = invent_requests(verbs, thing, clue, parameters, rng)
    return Tool(rename(name), f"{purpose}.", tuple(parameters), requests, family)


def invent_named(thing: str, rng: Random) -> Parameter:
    """The parameter for the thing's name, named after the thing: the pet of `feed_pet`."""
    kind = rng.choice(("made", "made", "made", "item", "title", "id", "person", "word"))
    description = rng.choice(("The {}.", "Name of the {}.", "Which {}.", "The {} it is about.")).format(thing)
    clauses = invent_clauses(thing, kind, rng)
    return Parameter(name=thing.split()[-1], kind=kind, description=description, **clauses)


def invent_requests(
    verbs: list[str], thing: str, clue: str, parameters: list[Parameter], rng: Random
) -> tuple[str, ...]:
    """Ways to ask for a tool, which may name the values of one or two parameters. Some contain only
    the clue."""
    asks = verbs[0] in ("get", "check", "compute", "find", "predict", "list", "compare", "measure")
    named = [p for p in parameters if p.required and p.kind != "bool"]
    rng.shuffle(named)
    of_thing = [p for p in named if p.name == thing.split()[-1] and rng.random() < 0.9]
    named = of_thing + [p for p in named if p not in of_thing]
    slots = [f'"{{{p.name}}}"' if p.kind in ("title", "sentence") else f"{{{p.name}}}" for p in named]
    draw = rng.random()
    if len(named) > 1 and draw < 0.3:
        # Two values, distinguished by a label, or else by their kinds.
        patterns = ["{0} {2} in {4} {3}", "{0} the {1} {2} with {4} {3}", "{0} {2} for the {4} {3}"]
        patterns += ["{0} the {5} {2} with {3}", "{0} {5} {2} after {3}", "give {5} {2} the {4} {3}"]
        if named[0].type != named[1].type or of_thing:
            patterns += ["{0} {2} with {3}", "{0} the {1} {2} to {3}", "{0} {3} for {1} {2}", "have {2} {6} with {3}"]
            patterns += ["put a {0} of {3} on {1} {2}", "give the {1} {2} a {0} of {3}", "{0} {3} to the {1} {2}"]
    elif named and draw < 0.7:
        patterns = ["{0} the {1} {2}", "{0} {2} {1}", "{0} {2} for the {1}", "{0} the {1} of {2}", "{0} the {2} {1}"]
        patterns += ["take {1} {2} and {0} it", "run a {0} on {1} {2}", "{0} how {1} {2} is", "{0} the {1} in {5} {2}"]
        patterns += ["have the {1} {2} {6}", "have {2} {6}", "have the {1} of {2} {6}", "let the {1} {2} be {6}"]
        patterns += ["do a {0} of {1} {2}", "see to the {7} of the {1} {2}", "put a {0} on {1} {2}", "{1} {7} for {2}"]
        patterns += {"action": ACTION_OF, "thing": THING_OF}[clue] if rng.random() < 0.5 else ()
        if asks:
            patterns += ["what is the {1} of {2}", "how is {1} {2}", "which {1} is on {2}", "tell me about the {1} {2}"]
            patterns += [
                "how far is the {1} {2}",
                "where is the {1} {2}",
                "who has the {1} {2}",
                "when can {1} {2} be {6}",
            ]
    else:
        patterns = ["{0} a {1}", "{0} the {1}", "{0} the {1}", "{0} my {1}", "{0} this {1}", "have the {1} to {0}"]
        patterns += [
            "have the {1} {6}",
            "have some {1} {6}",
            "set up a {0} of the {1}",
            "do the {1} {7}",
            "get a {1} {6}",
        ]
        patterns += {"action": ACTION, "thing": THING}[clue] if rng.random() < 0.5 else ()
        if asks:
            patterns += ["what is the {1}", "is there a {1}", "how is the {1}", "which {1} is there", "when is the {1}"]
            patterns += ["how much {1} is there", "how strong is the {1}", "where can {1} be {6}", "are there any {1}s"]
    first, second, *_ = [*slots, "", ""]
    labels = [*map(label_of, named), "", ""]
    chosen = rng.sample(patterns, 2)
    return tuple(
        p.format(
            verb,
            thing,
            first,
            second,
            labels[1],
            labels[0],
            inflected(verb, "ed"),
            inflected(verb, "ing"),
            pick("english_verbs", rng),
        )
        for p, verb in zip(chosen, rng.choices(verbs, k=2), strict=True)
    )


def inflected(verb: str, ending: str) -> str:
    """`inspect` as `inspected` or `inspecting`, `look for` as `looked for`."""
    first, *rest = verb.split()
    if ending == "ed" and first in PARTICIPLES:
        first = PARTICIPLES[first]
    elif first.endswith("e") and not first.endswith("ee"):
        first = first[:-1] + ending
    elif ending == "ed" and re.search("[^aeiou]y$", first):
        first = first[:-1] + "ied"
    elif re.fullmatch("[^aeiou]*[aeiou][bdgmnprt]", first):
        first += first[-1] + ending
    else:
        first += ending
    return " ".join([first, *rest])


def invent_parameter(rng: Random, required: bool) -> Parameter:
    """A known parameter, perhaps under another name, or a new parameter."""
    known = rng.choice(list(known_parameters().values()))
    fresh = rng.random() < 0.5
    label = " ".join([pick("qualities", rng)] if rng.random() < 0.6 else [pick("things", rng), pick("qualities", rng)])
    label = invent_word(rng) if rng.random() < 0.35 else label
    name = label.replace(" ", "_")
    if fresh:
        kind = rng.choice(KINDS)
        if kind == "choice":
            kind = "choice " + ",".join(make_value("word", rng)[0] for _ in range(rng.randint(2, 4)))
        fields = {"kind": kind, "name": name, **invent_clauses(label, kind, rng)}
    else:
        # A new name or a new description, but not both: one of the two must identify the parameter.
        fields = vars(known) | ({"name": name} if rng.random() < 0.35 else {})
    if fresh or (fields["name"] == known.name and rng.random() < 0.2):
        fields["description"] = rng.choice(("The {}.", "The {}.", "Name of the {}.", "Which {}.", "{} to use.")).format(
            label
        )
        fields["description"] = fields["description"][0].upper() + fields["description"][1:]
    default = make_value(fields["kind"], rng)[0] if not required and rng.random() < 0.3 else None
    return Parameter(**fields | {"required": required, "default": default if isinstance(default, str | int) else None})


def invent_clauses(label: str, kind: str, rng: Random) -> dict:
    """Clauses for a new parameter. Some name it; some leave it to the value and the other
    clauses."""
    if kind == "bool":
        yes = rng.choice(
            ((f"with {label}", f"including {label}"), (f"and {label} it",), (f"in {label}", f"using {label}"))
        )
        return {"clauses": yes, "false_clauses": (f"without {label}", f"no {label}", f"not {yes[0]}")}
    quoted = '"{}"' if kind in ("title", "sentence") else "{}"
    if kind.startswith(("int", "float")) and rng.random() < 0.6:
        choices = ("with {} {}", "{} {}", "using {} {}", "for {} {}", "of {} {}")
        return {"clauses": tuple(pattern.format("{}", label) for pattern in rng.sample(choices, 2))}
    if kind == "made" and rng.random() < 0.3:
        return {
            "clauses": tuple(rng.sample((f"at {label} {{}}", "called {}", "named {}", "in {}", "at {}", "for {}"), 2))
        }
    patterns = (
        "with {} {}",
        "{} {}",
        "with a {} of {}",
        "using the {} {}",
        "at {} {}",
        "for the {} {}",
        *("of {} {}", "of the {} {}", "in {} {}", "in the {} {}", "from {} {}", "on {} {}", "by {} {}"),
        *("{}: {}", "{} = {}", "{} being {}"),
    )
    return {"clauses": tuple(pattern.format(label, quoted) for pattern in rng.sample(patterns, 2))}


def label_of(parameter: Parameter) -> str:
    """The words of a parameter's name, `start date` for startDate."""
    return re.sub(r"(?<=[a-z])[A-Z]", lambda match: f" {match[0].lower()}", parameter.name).replace("_", " ")
