"""Invents tools at random for the pretraining corpus, so that the base model learns to read any tool and not certain ones."""

import re
from random import Random

from demo.language import made_word, make_value, odd_word, pick
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


def invent_world(rng: Random) -> list[Tool]:
    """A few families of tools, each around one thing or one action, so that there are near misses to tell apart."""
    world = []
    for _ in range(5):
        action, thing = pick("actions", rng), invent_thing(rng)
        shares_thing = rng.random() < 0.6
        for _ in range(3):
            tool = invent_tool(action, thing, rng)
            if tool.name not in {other.name for other in world} | {other.name for other in unseen_tools()}:
                world.append(tool)
            action, thing = (pick("actions", rng), thing) if shares_thing else (action, invent_thing(rng))
    return world


def invent_thing(rng: Random) -> str:
    thing = pick("things", rng) if rng.random() < 0.7 else rng.choice((made_word, odd_word, odd_word))(rng)
    return f"{pick('qualities' if rng.random() < 0.3 else 'things', rng)} {thing}" if rng.random() < 0.3 else thing


def invent_tool(action: str, thing: str, rng: Random) -> Tool:
    """A tool that does an action (verbs of one meaning, joined by |) to a thing."""
    verbs = action.split("|")
    verb, noun = rng.choice([verb for verb in verbs if " " not in verb]), thing.replace(" ", "_")
    name = rng.choice(("{0}_{1}", "{0}_{1}", "{1}.{0}", "{1}_{0}", "{0}_{1}", "{0}.{1}")).format(verb, noun)
    rename = camel_case if rng.random() < 0.2 and "." not in name else str
    parameters: list[Parameter] = []
    said: set[str] = set()
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5))):
        parameter = invent_parameter(rng, required=not parameters or rng.random() < 0.6)
        clauses = {*parameter.clauses, *parameter.false_clauses}
        if parameter.name not in {other.name for other in parameters} and not said & clauses:
            said |= clauses
            parameters.append(parameter)
    parameters = [Parameter(**vars(p) | {"name": rename(p.name)}) for p in parameters]
    rng.shuffle(parameters)
    purpose = f"{rng.choice(verbs).capitalize()} {rng.choice(('a', 'the', 'the', 'one'))} {thing}"
    if rng.random() < 0.3:
        purpose += f" {rng.choice(('by', 'with', 'for', 'of', 'from'))} {label_of(rng.choice(parameters))}"
    return Tool(rename(name), f"{purpose}.", tuple(parameters), invent_requests(verbs, thing, parameters, rng), thing)


def invent_requests(verbs: list[str], thing: str, parameters: list[Parameter], rng: Random) -> tuple[str, ...]:
    """Ways to ask for a tool, which may name the values of one or two parameters."""
    asks = verbs[0] in ("get", "check", "compute", "find", "predict", "list", "compare", "measure")
    named = [p for p in parameters if p.required and p.kind != "bool"]
    rng.shuffle(named)
    slots = [f'"{{{p.name}}}"' if p.kind in ("title", "sentence") else f"{{{p.name}}}" for p in named]
    draw = rng.random()
    if len(named) > 1 and draw < 0.3:
        # two values: told apart by a label, or else by their kinds
        patterns = ["{0} {2} in {4} {3}", "{0} the {1} {2} with {4} {3}", "{0} {2} for the {4} {3}"]
        if named[0].type != named[1].type:
            patterns += ["{0} {2} with {3}", "{0} the {1} {2} to {3}", "{0} {3} for {1} {2}"]
    elif named and draw < 0.7:
        patterns = ["{0} the {1} {2}", "{0} {2} {1}", "{0} {2} for the {1}", "{0} the {1} of {2}", "{0} the {2} {1}"]
        patterns += ["take {1} {2} and {0} it", "run a {0} on {1} {2}", "{0} how {1} {2} is", "{0} the {1} in {5} {2}"]
        if asks:
            patterns += ["what is the {1} of {2}", "how is {1} {2}", "which {1} is on {2}", "tell me about the {1} {2}"]
    else:
        patterns = ["{0} a {1}", "{0} the {1}", "{0} the {1}", "{0} my {1}", "{0} this {1}", "have the {1} to {0}"]
        if asks:
            patterns += ["what is the {1}", "is there a {1}", "how is the {1}", "which {1} is there", "when is the {1}"]
    first, second, *_ = [*slots, "", ""]
    labels = [*map(label_of, named), "", ""]
    chosen = rng.sample(patterns, 2)
    return tuple(p.format(rng.choice(verbs), thing, first, second, labels[1], labels[0]) for p in chosen)


def invent_parameter(rng: Random, required: bool) -> Parameter:
    """One of the known parameters, perhaps under another name, or a new one."""
    known = rng.choice(list(known_parameters().values()))
    fresh = rng.random() < 0.5
    label = " ".join([pick("qualities", rng)] if rng.random() < 0.6 else [pick("things", rng), pick("qualities", rng)])
    label = rng.choice((made_word, odd_word, odd_word))(rng) if rng.random() < 0.2 else label
    name = label.replace(" ", "_")
    if fresh:
        kind = rng.choice(KINDS)
        if kind == "choice":
            kind = "choice " + ",".join(make_value("word", rng)[0] for _ in range(rng.randint(2, 4)))
        fields = {"kind": kind, "name": name, **invent_clauses(label, kind, rng)}
    else:
        # renamed or described anew, but not both: one of the two has to tell what it is
        fields = vars(known) | ({"name": name} if rng.random() < 0.25 else {})
    if fresh or (fields["name"] == known.name and rng.random() < 0.2):
        fields["description"] = rng.choice(("The {}.", "The {}.", "Name of the {}.", "Which {}.", "{} to use.")).format(
            label
        )
        fields["description"] = fields["description"][0].upper() + fields["description"][1:]
    default = make_value(fields["kind"], rng)[0] if not required and rng.random() < 0.3 else None
    return Parameter(**fields | {"required": required, "default": default if isinstance(default, str | int) else None})


def invent_clauses(label: str, kind: str, rng: Random) -> dict:
    """Clauses for a new parameter: some name it, and some leave it to the value and the other clauses to tell."""
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
        "{}: {}",
        "{} = {}",
    )
    return {"clauses": tuple(pattern.format(label, quoted) for pattern in rng.sample(patterns, 2))}


def label_of(parameter: Parameter) -> str:
    """The words of a parameter's name, `start date` for startDate."""
    return re.sub(r"(?<=[a-z])[A-Z]", lambda match: f" {match[0].lower()}", parameter.name).replace("_", " ")
