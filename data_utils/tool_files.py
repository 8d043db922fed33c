"""Tools from a file: JSON in any format of tool_formats.py, or Python functions with types and
docstrings."""

import ast
import contextlib
import inspect
import sys
import types
import typing
import warnings
from pathlib import Path

import typing_extensions
from transformers.utils import TypeHintParsingException, get_json_schema

from data_utils.prompt import to_json
from data_utils.tool_calls import parse_json
from data_utils.tool_formats import flat_tools
from run_utils.errors import UserError, one_line, say
from run_utils.paths import did_you_mean
from run_utils.signals import Stopped


def read_tools(path):
    """ReadTools of a JSON file, of stdin for `-`, or of a Python file, which is executed.
    Unreadable tools are left out. Raises UserError, also if no tool is left."""
    name = "stdin" if path == "-" else path
    left_out = []
    try:
        if is_python := Path(path).suffix == ".py":
            value, left_out = functions_of(path)
        else:
            data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
            value = parse_json(data.decode("utf-8-sig"))
            if isinstance(value, str):  # a copied `tools` field of an xLAM row
                value = parse_json(value)
        read = flat_tools(value, keep_going=True)
        to_json(read.tools).encode()
    except UnicodeDecodeError:
        raise UserError(f"--tools {name} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--tools {name}: {error.strerror}{did_you_mean(path)}") from None
    except ValueError as error:
        raise UserError(
            f"--tools {name} must be a JSON list of tools (docs/formats.md has the layouts): {error}"
        ) from None
    left_out = left_out + read.left_out
    if left_out and not read.tools:
        raise UserError(f"--tools {name}: {none_left(left_out)}")
    return read._replace(left_out=left_out, format="Python" if is_python else read.format)


def none_left(left_out):
    """The error line if all tools are left out."""
    others = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
    return f"no tool is left: {left_out[0]}{others}"


def functions_of(path):
    """The public functions of a Python file as OpenAI's functions, and a line for each unreadable
    function or callable object. Decorated functions are unwrapped. Runs the file. Raises UserError
    if the file fails."""
    # Not imported: if a file changes within a second and keeps its size, an import would run the
    # old compiled file.
    module = types.ModuleType("tools_of_the_user")
    module.__file__ = str(path)
    functions, left_out = [], []
    with contextlib.redirect_stdout(sys.stderr), importable(module):  # stdout is for the calls
        try:
            tree = ast.parse(Path(path).read_bytes(), path)
            exec(compile(tree, path, "exec"), module.__dict__)
        except (OSError, Stopped):
            raise
        except BaseException as error:  # whatever the user's own code raises
            reason = ": ".join(filter(None, (type(error).__name__, first_paragraph(error))))
            raise UserError(f"--tools {path}: {reason}") from None
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = {alias.asname or alias.name for node in imports for alias in node.names}
        for name, value in list(vars(module).items()):
            try:
                if name.startswith("_") or not (name in defined or (name not in imported and is_tool_object(value))):
                    continue
                function = inspect.unwrap(value)
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    functions.append(items_take_choices(function_schema(function)))
                elif name in defined or not inspect.isfunction(function):
                    left_out.append(f"{name}: not a plain function")
            except Stopped:
                raise
            except BaseException as error:  # of transformers, of pydantic, or of a type's own code
                left_out.append(f"function {name}: {first_paragraph(error) or type(error).__name__}")
    if not functions and not left_out:
        raise UserError(f"--tools {path} defines no public function")
    return functions, left_out


def is_tool_object(value):
    """Whether a value is callable, but not a class, a type of typing, or a builtin of Python."""
    is_type = isinstance(value, type) or type(value).__module__ in ("typing", "typing_extensions", "types")
    return callable(value) and not is_type and not inspect.isbuiltin(value)


def first_paragraph(error):
    """On one line. Pydantic's further paragraphs are not for its users."""
    return one_line(str(error).partition("\n\n")[0])


def function_schema(function):
    """A function in OpenAI's form, by transformers' get_json_schema, or by pydantic if transformers
    cannot read its types or descriptions. Raises the exceptions of both."""
    try:
        return get_json_schema(function)
    except Exception as error:
        try:
            from pydantic import TypeAdapter
        except ImportError:
            way_out = " (`pip install pydantic` for more types)" * isinstance(error, TypeHintParsingException)
            raise TypeError(first_paragraph(error) + way_out) from None
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise TypeError("a call names its arguments: *args, **kwargs and arguments before a / cannot be called")
    # Pydantic warns about defaults that are not JSON, and leaves them out.
    with warnings.catch_warnings(action="ignore"):
        schema = TypeAdapter(function).json_schema()
    described = {name for name, argument in schema.get("properties", {}).items() if "description" in argument}
    read = get_json_schema(without_types(function, described))
    for name, documented in read["function"]["parameters"]["properties"].items():
        schema["properties"][name] |= documented
    read["function"]["parameters"] = schema
    return read


def items_take_choices(tool):
    """A function in OpenAI's form. The docstring's choices of a list move to its items:
    get_json_schema writes them as an enum of the list, which no list fits."""
    for argument in tool["function"]["parameters"].get("properties", {}).values():
        is_list = argument.get("type") == "array" and "enum" in argument
        if is_list and not any(isinstance(choice, list) for choice in argument["enum"]):
            argument["items"] = argument.get("items", {}) | {"enum": argument.pop("enum")}
    return tool


def without_types(function, described):
    """A function with another function's name, docstring and undescribed arguments, all of type
    Any. get_json_schema then reads only the docstring."""

    def documented(): ...

    documented.__name__, documented.__doc__ = function.__name__, function.__doc__
    documented.__signature__ = inspect.Signature(
        [
            parameter if parameter.annotation is parameter.empty else parameter.replace(annotation=typing.Any)
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in described
        ]
    )
    documented.__annotations__ = dict.fromkeys(documented.__signature__.parameters, typing.Any)
    return documented


@contextlib.contextmanager
def importable(module):
    """Add a module to sys.modules, which dataclasses and pydantic search, and its folder to the
    front of sys.path, as for a script."""
    typed_dict = typing.TypedDict
    if sys.version_info < (3, 12):  # pydantic needs the backport
        typing.TypedDict = typing_extensions.TypedDict
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(Path(module.__file__).resolve().parent))
    try:
        yield
    finally:
        sys.path.pop(0)
        del sys.modules[module.__name__]
        typing.TypedDict = typed_dict


def read_tools_and_say(path, strict):
    """The tools of a file in the flat form. Prints their format on stderr, and a line for each
    partly read or unreadable tool."""
    read = read_tools(path)
    if read.format != "xLAM":
        say(f"{path}: {len(read.tools)} tools, read as {read.format}'s")
    for note in read.notes:
        say(f"{path}: {note}")
    for reason in read.left_out:
        say(f"{path}: left out: {reason}")
    if strict and read.left_out:
        raise UserError(f"--tools {path}: {len(read.left_out)} tools are left out, and --strict is set")
    return read.tools
