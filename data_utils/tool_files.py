"""Tools from a file: JSON in any of the formats of tool_formats.py, or Python functions with types and docstrings."""

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
from run_utils.arguments import UserError
from run_utils.signals import Stopped


def read_tools(path):
    """ReadTools of a JSON file, of stdin for `-`, or of a Python file, which is run. A tool that cannot be read is left out.
    Raises UserError, also if all of them are."""
    name = "stdin" if path == "-" else path
    left_out = []
    try:
        if is_python := Path(path).suffix == ".py":
            value, left_out = functions_of(path)
        else:
            data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
            value = parse_json(data.decode("utf-8-sig"))
            if isinstance(value, str):  # the `tools` field of an xLAM row, copied as it is
                value = parse_json(value)
        read = flat_tools(value, keep_going=True)
        to_json(read.tools).encode()
    except UnicodeDecodeError:
        raise UserError(f"--tools {name} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--tools {name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"--tools {name} must be a JSON list of tools (docs/formats.md has the layouts): {error}"
        ) from None
    left_out = left_out + read.left_out
    if left_out and not read.tools:
        raise UserError(f"--tools {name}: {none_left(left_out)}")
    return read._replace(left_out=left_out, format="Python" if is_python else read.format)


def none_left(left_out):
    """One line about tools that all are left out, for their reasons."""
    others = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
    return f"no tool is left: {left_out[0]}{others}"


def functions_of(path):
    """The public functions that a Python file defines, as OpenAI's functions, and a line for each of them, and each callable
    object, that cannot be read. A decorator's wrapper is read as the function in it. Runs the file. Raises UserError if that fails."""
    # Not imported: of two versions with one second and one size, an import would run the compiled first.
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
            raise UserError(f"--tools {path}: {type(error).__name__}: {one_line(error)}") from None
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = {alias.asname or alias.name for node in imports for alias in node.names}
        for name, value in list(vars(module).items()):
            try:
                if name.startswith("_") or not (name in defined or (name not in imported and is_tool_object(value))):
                    continue
                function = inspect.unwrap(value)
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    functions.append(function_schema(function))
                elif name in defined or not inspect.isfunction(function):
                    left_out.append(f"{name}: not a plain function")
            except Stopped:
                raise
            except BaseException as error:  # of transformers, of pydantic, or of a type's own code
                left_out.append(f"function {name}: {one_line(error)}")
    if not functions and not left_out:
        raise UserError(f"--tools {path} defines no public function")
    return functions, left_out


def is_tool_object(value):
    """Whether a value can be called and is neither a class, a type of typing's, nor built into Python."""
    is_type = isinstance(value, type) or type(value).__module__ in ("typing", "typing_extensions", "types")
    return callable(value) and not is_type and not inspect.isbuiltin(value)


def one_line(error):
    return " ".join(str(error).partition("\n\n")[0].split())  # pydantic's next paragraphs are for its extenders


def function_schema(function):
    """A function as OpenAI's: by transformers' get_json_schema and, with types or descriptions that it does not read, by pydantic.
    Raises the exceptions of both."""
    try:
        return get_json_schema(function)
    except Exception as error:
        try:
            from pydantic import TypeAdapter
        except ImportError:
            way_out = " (`pip install pydantic` for more types)" * isinstance(error, TypeHintParsingException)
            raise TypeError(one_line(error) + way_out) from None
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise TypeError("a call names its arguments: *args, **kwargs and arguments before a / cannot be called")
    with warnings.catch_warnings(action="ignore"):  # of defaults that are not JSON: they are left out
        schema = TypeAdapter(function).json_schema()
    described = {name for name, argument in schema.get("properties", {}).items() if "description" in argument}
    read = get_json_schema(without_types(function, described))
    for name, documented in read["function"]["parameters"]["properties"].items():
        schema["properties"][name] |= documented
    read["function"]["parameters"] = schema
    return read


def without_types(function, described):
    """A function with the name and docstring of another, and those of its arguments that are not described, of any type: what
    get_json_schema reads of a docstring."""

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
    """Put a module among Python's, which dataclasses and pydantic search, and its folder first in the path, as for a script."""
    typed_dict = typing.TypedDict
    if sys.version_info < (3, 12):  # pydantic reads the backport alone
        typing.TypedDict = typing_extensions.TypedDict
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(Path(module.__file__).resolve().parent))
    try:
        yield
    finally:
        sys.path.pop(0)
        del sys.modules[module.__name__]
        typing.TypedDict = typed_dict
