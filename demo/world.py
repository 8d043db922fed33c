"""The tools of the demo and the ways people ask for them, read from the text tables beside this
file.

`parameters.txt` describes each parameter once: the kind of its values, and the clauses that mention
it in a request. `seen_tools.txt` holds the tools for training, `unseen_tools.txt` tools of other
domains, to measure generalisation.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
KIND_TYPES = {"int": "int", "float": "float", "bool": "bool", "points": "List[List[int]]", "paths": "List[str]"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool. `kind` names the maker of its values in `language.py`, such as
    `place` or `int 2 30`."""

    name: str
    kind: str
    description: str
    clauses: tuple[str, ...]  # "in {}"; for a bool the clauses that mean true
    false_clauses: tuple[str, ...] = ()
    required: bool = True
    default: str | int | None = None

    @property
    def type(self) -> str:
        """The parameter's type in xLAM's notation, such as `str` or `List[float]`."""
        head, _, element = self.kind.partition(" ")
        if head == "list":
            return f"List[{KIND_TYPES.get(element.split()[0], 'str')}]"
        return KIND_TYPES.get(head, "str")

    def schema(self) -> dict:
        """The parameter in the form of xLAM's tool lists."""
        schema = {"description": self.description, "type": self.type if self.required else f"{self.type}, optional"}
        return schema if self.default is None else schema | {"default": self.default}


@dataclass(frozen=True)
class Tool:
    """A tool with its parameters and `requests`: ways to ask for it, with `{name}` for a
    parameter's value."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    domain: str

    def schema(self) -> dict:
        """The tool in the form of xLAM's tool lists."""
        parameters = {parameter.name: parameter.schema() for parameter in self.parameters}
        return {"name": self.name, "description": self.description, "parameters": parameters}


@functools.cache
def seen_tools() -> tuple[Tool, ...]:
    """The tools whose rows train the adapter."""
    return read_tools("seen_tools.txt", known_parameters())


@functools.cache
def unseen_tools() -> tuple[Tool, ...]:
    """Tools of other domains, which neither pretraining nor the adapter's rows contain."""
    return read_tools("unseen_tools.txt", known_parameters() | read_parameters("unseen_parameters.txt"))


@functools.cache
def known_parameters() -> dict[str, Parameter]:
    """The parameters of the seen tools, by name."""
    return read_parameters("parameters.txt")


def read_parameters(file: str) -> dict[str, Parameter]:
    """Reads a table of `name | kind | description | clauses [// clauses that mean false]`."""
    parameters = {}
    for line in table_lines(file):
        name, kind, description, clauses = line.split(" | ")
        true, _, false = clauses.partition(" // ")
        false_clauses = tuple(false.split(" / ")) if false else ()
        parameters[name] = Parameter(name, kind, description, tuple(true.split(" / ")), false_clauses)
    return parameters


def read_tools(file: str, known: dict[str, Parameter]) -> tuple[Tool, ...]:
    """Reads a table of tools: a line for name, parameters and description, and an indented line for
    the requests."""
    tools, domain = [], ""
    lines = iter(table_lines(file))
    for line in lines:
        if line.startswith("["):
            domain = line.strip("[]")
            continue
        name, signature, description = re.fullmatch(r"([\w.]+)\((.*)\): (.*)", line).groups()
        requests = next(lines).strip().split(" / ")
        parameters = [read_parameter(text, known) for text in signature.split(", ")]
        if is_camel_case(name):
            requests = [re.sub(r"{\w+}", lambda slot: camel_case(slot[0]), request) for request in requests]
            parameters = [Parameter(**vars(p) | {"name": camel_case(p.name)}) for p in parameters]
        tools.append(Tool(name, description, tuple(parameters), tuple(requests), domain))
    return tuple(tools)


def read_parameter(text: str, known: dict[str, Parameter]) -> Parameter:
    """Reads `name`, `name?` or `name=default`. In `name:other`, the name is modelled on another
    parameter or a kind of value."""
    text, _, default = text.partition("=")
    name, _, other = text.rstrip("?").partition(":")
    base = known.get(other) if other else known[name]
    label = name.replace("_", " ")
    if base is None:
        fields = {"kind": other, "description": f"The {label}.", "clauses": (f"with {label} {{}}", f"{label} {{}}")}
    elif not other:
        fields = vars(base)
    else:
        description = re.sub(rf"\b{base.name}\b".replace("_", " "), label, base.description, flags=re.I)
        renamed = description if description != base.description else f"The {label}."
        fields = vars(base) | {"description": renamed[0].upper() + renamed[1:]}
    required = not default and not text.endswith("?")
    value = int(default) if default.isdecimal() else default or None
    return Parameter(**fields | {"name": name, "required": required, "default": value})


def is_camel_case(name: str) -> bool:
    """Whether a tool's name is written likeThis."""
    return re.search(r"[a-z][A-Z]", name) is not None


def camel_case(name: str) -> str:
    """`start_date` as `startDate`."""
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def table_lines(file: str) -> list[str]:
    """A table's lines without empty lines and comments."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
