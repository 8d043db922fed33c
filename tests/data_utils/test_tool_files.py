"""Tools from a Python file: read by transformers, or by pydantic if transformers cannot read
them."""

import sys

import pytest
from transformers.utils import get_json_schema

from data_utils.tool_files import read_tools
from data_utils.tool_formats import flat_tools
from run_utils.errors import UserError

TYPES = """
import dataclasses, datetime, decimal, enum, typing, uuid
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, TypedDict
from pydantic import BaseModel, Field

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0

class Guest(BaseModel):
    name: str = Field(description="As in the passport")
    born: datetime.date | None = None

class Size(TypedDict):
    width: int
    height: NotRequired[int]

class Unreadable: ...
"""


def tools_of(tmp_path, code):
    path = tmp_path / "tools.py"
    path.write_text(TYPES + code)
    return read_tools(str(path))


def function(arguments, described="x: The x.", name="f"):
    return f'def {name}({arguments}):\n    """Do it.\n\n    Args:\n        {described}\n    """\n'


@pytest.mark.parametrize(
    ("annotation", "spec"),
    [
        ("datetime.date", {"type": "str", "format": "date"}),
        ("datetime.datetime", {"type": "str", "format": "date-time"}),
        ("datetime.date | None", {"type": "Union[str, None]",
            "anyOf": [{"type": "str", "format": "date"}, {"type": "None"}]}),
        ("set[int]", {"type": "List[int]", "uniqueItems": True}),
        ("uuid.UUID", {"type": "str", "format": "uuid"}),
        ("list[Colour]", {"type": "List[str]", "items": {"type": "str", "enum": ["red", "blue"]}}),
        ("Point", {"type": "dict", "properties": {"x": {"type": "float"},
            "y": {"type": "float, optional", "default": 0.0}}}),
        ("Size", {"type": "dict", "properties": {"width": {"type": "int"}, "height": {"type": "int, optional"}}}),
        ("list[Size]", {"type": "List[dict]", "items": {"type": "dict",
            "properties": {"width": {"type": "int"}, "height": {"type": "int, optional"}}}}),
        ("Annotated[datetime.date, Field(description='no')]", {"type": "str", "format": "date"}),
        ("tuple[int, ...]", {"type": "List[int]"}),
        ("'datetime.date'", {"type": "str", "format": "date"}),
    ],
)  # fmt: skip
def test_pydantic_s_types_have_its_schema_and_the_docstring_s_descriptions(tmp_path, annotation, spec):
    read = tools_of(tmp_path, function(f"x: {annotation}"))
    assert read.left_out == [] and read.format == "Python"
    described = {"description": "The x."} if "Annotated" not in annotation else {"description": "no"}
    assert read.tools == [{"name": "f", "description": "Do it.", "parameters": {"x": described | spec}}]


def test_a_model_in_a_model_has_its_own_descriptions_and_a_default_makes_optional(tmp_path):
    described = 'guests: Who comes.\n        day: When. (choices: ["2026-12-01"])'
    (tool,) = tools_of(tmp_path, function("guests: list[Guest], day: datetime.date = None", described)).tools
    guests, day = tool["parameters"].values()
    assert guests["description"] == "Who comes." and guests["type"] == "List[dict]"
    assert guests["items"]["properties"]["name"] == {"description": "As in the passport", "type": "str"}
    assert guests["items"]["properties"]["born"]["type"] == "Union[str, None], optional"
    assert day == {
        "description": "When.",
        "type": "str, optional",
        "enum": ["2026-12-01"],
        "default": None,
        "format": "date",
    }


def test_an_unreadable_function_is_named_and_the_others_are_kept(tmp_path):
    bad = {
        "no_docstring": "def no_docstring(x: int): ...\n",
        "no_type": function("x", name="no_type"),
        "no_description": function("x: datetime.date, y: int", name="no_description"),
        "unreadable": function("x: Unreadable", name="unreadable"),
        "undefined": function("x: 'Nothing'", name="undefined"),
        "variadic": function("x: datetime.date, *rest: int", name="variadic"),
        "positional": function("x: datetime.date, /", name="positional"),
    }
    read = tools_of(tmp_path, function("x: int") + "".join(bad.values()) + function("x: datetime.date", name="g"))
    assert [tool["name"] for tool in read.tools] == ["f", "g"]
    assert [line.partition(":")[0] for line in read.left_out] == [f"function {name}" for name in bad]
    assert "has no description for the argument 'y'" in read.left_out[2] and not any(
        "\n" in line for line in read.left_out
    )


@pytest.mark.parametrize(("more", "counted"), [("", False), (function("y", name="g"), True)])
def test_a_file_of_which_no_function_can_be_read_is_refused_with_the_first_reason(tmp_path, more, counted):
    with pytest.raises(UserError, match="no tool is left: function f: ") as refused:
        tools_of(tmp_path, function("x") + more)
    assert str(refused.value).endswith(" (and 1 more)") == counted


@pytest.mark.parametrize(
    "code", ["raise KeyboardInterrupt", "raise GeneratorExit", "class Own(BaseException): ...\nraise Own"]
)
def test_whatever_a_file_raises_is_a_line(tmp_path, code):
    with pytest.raises(UserError, match=r"[.]py: (KeyboardInterrupt|GeneratorExit|Own)$"):
        tools_of(tmp_path, code)


def test_whatever_an_object_raises_when_looked_at_leaves_it_out(tmp_path):
    hidden = "class Hidden:\n    @property\n    def __class__(self): raise KeyboardInterrupt\n    def __call__(self): ...\nhidden = Hidden()\n"
    read = tools_of(tmp_path, hidden + function("x: int"))
    assert [tool["name"] for tool in read.tools] == ["f"]


def test_decorated_functions_are_read_and_callable_objects_are_named(tmp_path):
    code = """
import functools
from functools import cache
from operator import add
Ids, Name = list[int], typing.NewType("Name", str)
class Tool:
    def __init__(self, function): self.function = function
class Called(Tool):
    def __call__(self, x): return self.function(x)
def logged(function):
    \"\"\"A decorator.\"\"\"
    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))
_private = Called(print)
"""
    for decorator, name in (("@functools.cache", "f"), ("@logged", "g"), ("@Tool", "h"), ("@Called", "i")):
        code += f"{decorator}\n" + function("x: int", name=name)
    code += function("x: int", name="plain") + "part = functools.partial(plain, x=1)\n"
    read = tools_of(tmp_path, code)
    assert [tool["name"] for tool in read.tools] == ["f", "g", "plain"]
    assert all(tool["parameters"] == {"x": {"description": "The x.", "type": "int"}} for tool in read.tools)
    objects = [f"{name}: not a plain function" for name in ("h", "i", "part")]
    assert read.left_out[1:] == objects and read.left_out[0].startswith("function logged: ")


def test_functions_that_transformers_can_read_have_its_schema(tmp_path):
    code = function(
        'a: int, b: Literal["x", "y"], c: list[str] | None = None, d: dict[str, float] = {}',
        'a: A.\n        b: B.\n        c: C.\n        d: D. (choices: [{"k": 1.5}])',
    )
    namespace = {}
    exec(TYPES + code, namespace)
    assert tools_of(tmp_path, code).tools == flat_tools([get_json_schema(namespace["f"])]).tools


@pytest.mark.parametrize("kind, item", [("list[str]", "str"), ("list", "any"), ("set[str]", "str")])
def test_a_list_s_choices_are_those_of_its_items(tmp_path, kind, item):
    described = 'drinks: One or more (choices: ["tea", "coffee"])'
    (tool,) = tools_of(tmp_path, function(f"drinks: {kind}", described)).tools
    drinks = tool["parameters"]["drinks"]
    assert "enum" not in drinks
    assert drinks["items"] == {"type": item, "enum": ["tea", "coffee"]}


def test_choices_that_are_lists_stay_the_list_s(tmp_path):
    (tool,) = tools_of(tmp_path, function("drinks: list[str]", 'drinks: Both (choices: [["tea", "milk"]])')).tools
    assert tool["parameters"]["drinks"]["enum"] == [["tea", "milk"]]


def test_a_missing_pydantic_is_named(tmp_path, monkeypatch):
    code = "import datetime\n" + function("x: int") + function("x: datetime.date", name="g")
    monkeypatch.setitem(sys.modules, "pydantic", None)
    path = tmp_path / "tools.py"
    path.write_text(code)
    (line,) = read_tools(str(path)).left_out
    assert line.startswith("function g: Couldn't convert the type hint") and line.endswith(
        "(`pip install pydantic` for more types)"
    )
    path.write_text("import datetime\n" + function("x: datetime.date", name="g"))
    with pytest.raises(UserError, match="no tool is left: function g"):
        read_tools(str(path))
