"""The tools that an agent framework makes of 20 functions, as JSON on stdout. check_formats.py runs
this file in the framework's environment: `python framework_tools.py langchain-core`. It prints
{"tools": {function: tool}, "refused": {function: error}}."""

import dataclasses
import datetime
import decimal
import enum
import inspect
import json
import sys
import uuid
from typing import Annotated, Any, Literal, NotRequired, Optional

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    city: str = Field(description="Name of the city")
    zip_code: str | None = None


class Guest(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0, le=130)] = 30
    address: Address
    billing: Address | None = None


class Node(BaseModel):
    label: str
    children: list["Node"] = []


class Email(BaseModel):
    kind: Literal["email"]
    to: str


class Message(BaseModel):
    kind: Literal["sms"]
    number: str


class Filter(BaseModel):
    model_config = ConfigDict(extra="allow")
    field: str


@dataclasses.dataclass
class Point:
    latitude: float
    longitude: float = 0.0


class Size(TypedDict):
    width: int
    height: NotRequired[int]


def get_weather(city: str, days: int = 1, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """The weather.

    Args:
        city: Where.
        days: How many.
        unit: Of the temperature.
    """


def convert(value: float, unit: Unit, priority: Priority = Priority.LOW) -> str:
    """Convert a temperature.

    Args:
        value: The temperature.
        unit: Its unit.
        priority: How urgent.
    """


def book_table(day: datetime.date, time: datetime.time, people: Optional[int] = None) -> str:  # noqa: UP045
    """Book a table.

    Args:
        day: When.
        time: At what time.
        people: How many.
    """


def remind(at: datetime.datetime, every: datetime.timedelta | None = None) -> str:
    """Set a reminder.

    Args:
        at: When.
        every: How often.
    """


def search(query: str, filters: dict[str, Any] | None = None, limit: Annotated[int, Field(ge=1, le=100)] = 10) -> str:
    """Search.

    Args:
        query: What for.
        filters: Field and value.
        limit: The most results.
    """


def tag(items: list[str], weights: dict[str, float]) -> str:
    """Tag items.

    Args:
        items: The items.
        weights: The weight of each tag.
    """


def add_guest(guest: Guest) -> str:
    """Add a guest.

    Args:
        guest: The guest.
    """


def add_guests(guests: list[Guest], notify: bool = False) -> str:
    """Add guests.

    Args:
        guests: The guests.
        notify: Whether they get a message.
    """


def save_tree(root: Node) -> str:
    """Save a tree.

    Args:
        root: The root.
    """


def send(message: Email | Message) -> str:
    """Send a message.

    Args:
        message: The message.
    """


def send_tagged(message: Annotated[Email | Message, Field(discriminator="kind")]) -> str:
    """Send a message, by its kind.

    Args:
        message: The message.
    """


def measure(start: Point, end: Point) -> str:
    """Measure a distance.

    Args:
        start: From.
        end: To.
    """


def resize(size: Size, keep_ratio: bool = True) -> str:
    """Resize a picture.

    Args:
        size: The new size.
        keep_ratio: Whether the ratio stays.
    """


def bounds(corner: tuple[float, float], rest: tuple[int, ...] = ()) -> str:
    """Set bounds.

    Args:
        corner: Latitude and longitude.
        rest: More numbers.
    """


def unique(names: set[str]) -> str:
    """Count names.

    Args:
        names: The names.
    """


def pay(amount: decimal.Decimal, account: uuid.UUID) -> str:
    """Pay.

    Args:
        amount: How much.
        account: From where.
    """


def set_value(key: str, value: str | int | float | bool | None) -> str:
    """Set a value.

    Args:
        key: The key.
        value: The value.
    """


def store(data: Any, labels: dict[str, list[str]]) -> str:
    """Store anything.

    Args:
        data: The data.
        labels: Labels by name.
    """


def query_rows(where: list[Filter], order: list[tuple[str, Literal["asc", "desc"]]] | None = None) -> str:
    """Query rows.

    Args:
        where: Filters.
        order: Columns and directions.
    """


def ping() -> str:
    """Ping."""


FUNCTIONS = [value for value in [*vars().values()] if inspect.isfunction(value) and value.__module__ == __name__]


# One function for each framework: its client's request to OpenAI, or to its own vendor, as a plain
# value.


def agno(function):
    from agno.tools.function import Function

    made = Function.from_callable(function)
    return {"type": "function", "function": made.to_dict()}


def autogen_core(function):
    from autogen_core.tools import FunctionTool

    return {"type": "function", "function": FunctionTool(function, description=function.__doc__).schema}


def crewai(function):
    from crewai.tools import tool
    from crewai.utilities.agent_utils import convert_tools_to_openai_schema

    return convert_tools_to_openai_schema([tool(function)])[0][0]


def fastmcp(function):
    from fastmcp.tools import Tool

    return Tool.from_function(function).to_mcp_tool().model_dump(mode="json", by_alias=True, exclude_none=True)


def google_adk(function):
    from google.adk.tools import FunctionTool

    return FunctionTool(function)._get_declaration().model_dump(mode="json", exclude_none=True)


def google_genai(function):
    from google.genai import types

    declaration = types.FunctionDeclaration.from_callable_with_api_option(callable=function)
    return declaration.model_dump(mode="json", exclude_none=True)


def haystack_ai(function):
    from haystack.tools import create_tool_from_function

    return {"type": "function", "function": create_tool_from_function(function).tool_spec}


def instructor(function):
    from instructor import openai_schema

    parameters = inspect.signature(function).parameters.values()
    fields = {one.name: (one.annotation, ... if one.default is one.empty else one.default) for one in parameters}
    model = create_model(function.__name__, __doc__=function.__doc__, **fields)
    return {"type": "function", "function": openai_schema(model).openai_schema}


def langchain_core(function):
    from langchain_core.tools import tool
    from langchain_core.utils.function_calling import convert_to_openai_tool

    return convert_to_openai_tool(tool(function))


def llama_index_core(function):
    from llama_index.core.tools import FunctionTool

    return FunctionTool.from_defaults(function).metadata.to_openai_tool()


def mcp(function):
    from mcp.server.mcpserver.tools import Tool

    made = Tool.from_function(function)
    return {"name": made.name, "description": made.description, "inputSchema": made.parameters}


def openai_agents(function):
    from agents import function_tool

    try:
        made = function_tool(function)
    except Exception:  # its strict mode refuses a free dict
        made = function_tool(function, strict_mode=False)
    return {
        "type": "function",
        "name": made.name,
        "description": made.description,
        "parameters": made.params_json_schema,
    }


def pydantic_ai_slim(function):
    from pydantic_ai import Tool

    made = Tool(function).tool_def
    return {
        "type": "function",
        "function": {"name": made.name, "description": made.description, "parameters": made.parameters_json_schema},
    }


def semantic_kernel(function):
    from semantic_kernel.connectors.ai.function_calling_utils import kernel_function_metadata_to_function_call_format
    from semantic_kernel.functions import KernelFunctionFromMethod, kernel_function

    made = KernelFunctionFromMethod(kernel_function(function), plugin_name="tools")
    return kernel_function_metadata_to_function_call_format(made.metadata)


def smolagents(function):
    from smolagents import tool
    from smolagents.models import get_tool_json_schema

    return get_tool_json_schema(tool(function))


def strands_agents(function):
    from strands import tool

    return tool(function).tool_spec


def main():
    convert = globals()[sys.argv[1].replace("-", "_")]
    made = {"tools": {}, "refused": {}}
    for function in FUNCTIONS:
        try:
            value = convert(function)
            made["tools"][function.__name__] = json.loads(json.dumps(value))
        except Exception as error:  # a type that this framework does not read
            made["refused"][function.__name__] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps(made))


if __name__ == "__main__":
    main()
