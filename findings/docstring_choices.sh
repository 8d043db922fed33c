#!/usr/bin/env bash
# transformers 5.23.0: get_json_schema writes a list's "(choices: ...)" as an enum of the list itself, so no list is valid.
# Installs the pinned versions into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 numpy jsonschema==4.26.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from typing import Literal

import transformers
from jsonschema import Draft202012Validator
from transformers.utils import get_json_schema


def by_docstring(drinks: list[str]):
    """Order drinks.

    Args:
        drinks: One or more (choices: ["tea", "coffee"])
    """


def by_type(drinks: list[Literal["tea", "coffee"]]):
    """Order drinks.

    Args:
        drinks: One or more
    """


VALUES = [], ["tea"], ["tea", "coffee"], "tea"
print(f"transformers {transformers.__version__}, Python {sys.version.split()[0]}")
found = {}
for function in (by_docstring, by_type):
    schema = get_json_schema(function)["function"]["parameters"]["properties"]["drinks"]
    validator = Draft202012Validator(schema)
    found[function.__name__] = [validator.is_valid(value) for value in VALUES]
    print(f"{function.__name__}: {schema}")
    print("  valid:", dict(zip(map(repr, VALUES), found[function.__name__])))
as_found = transformers.__version__ == "5.23.0" and found == {
    "by_docstring": [False] * 4,
    "by_type": [True, True, True, False],
}
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
