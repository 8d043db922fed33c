"""Tools from a file: JSON in any of the formats of tool_formats.py, or Python functions with types and docstrings."""

import contextlib
import inspect
import sys
import types
from pathlib import Path

from data_utils.prompt import to_json
from data_utils.tool_calls import parse_json
from data_utils.tool_formats import flat_tools
from run_utils.arguments import UserError


def read_tools(path):
    """Tools in the flat form from a JSON file, from stdin for `-`, or from a Python file, which is run; and the name of their
    format. Raises UserError."""
    name = "stdin" if path == "-" else path
    try:
        if Path(path).suffix == ".py":
            value, form = functions_of(path), "Python"
        else:
            data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
            value, form = parse_json(data.decode("utf-8-sig")), None
            if isinstance(value, str):  # the `tools` field of an xLAM row, copied as it is
                value = parse_json(value)
        read = flat_tools(value)
        to_json(read.tools).encode()
    except UnicodeDecodeError:
        raise UserError(f"--tools {name} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--tools {name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"--tools {name} must be a JSON list of tools (docs/formats.md has the layouts): {error}"
        ) from None
    return read.tools, form or read.format


def functions_of(path):
    """The public functions that a Python file defines, as OpenAI's functions by transformers' get_json_schema. Runs the file."""
    from transformers.utils import get_json_schema

    # Not imported, which would run the compiled file of a moment ago where two versions have one second and one size.
    module = types.ModuleType("tools_of_the_user")
    module.__file__ = str(path)
    functions = []
    try:
        code = compile(Path(path).read_bytes(), path, "exec")
        with contextlib.redirect_stdout(sys.stderr), importable(module):  # stdout is for the calls
            exec(code, module.__dict__)
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                functions.append(get_json_schema(value))
    except OSError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever the user's own code raises, or a function without types or docstring
        raise UserError(f"--tools {path}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    if not functions:
        raise UserError(f"--tools {path} defines no public function")
    return functions


@contextlib.contextmanager
def importable(module):
    """What a Python file finds when it is run: itself among the modules, where dataclasses look, and its folder to import from."""
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(Path(module.__file__).resolve().parent))
    try:
        yield
    finally:
        sys.path.pop(0)
        del sys.modules[module.__name__]
