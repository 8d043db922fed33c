#!/usr/bin/env bash
# xgrammar 0.2.8: the compiler's cache makes a grammar refuse a valid text, and a schema's floats are written with 17 digits.
# Installs the pinned version into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
# Without its dependency triton, which a CPU does not need. Any torch version would do.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy pydantic torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import xgrammar

tokens = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)] + [b""], stop_token_ids=[256])


def accepts(compiled, text):
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


# An object whose required key "b" may follow other keys.
GRAMMAR = r"""
root ::= "{" start
null ::= "null"
key ::= ("\"" | "\\" ["\\bfnrt] key) (= ": ")
required ::= "\"b\": " null
other ::= [^"\\\x00-\x1f\U00000062] key
end ::= "}"
with_it ::= required (", " "\"" other ": " null)* end
next ::= ", " with_it
start ::= "\"" other ": " null (", " "\"" other ": " null)* next
"""
TEXT = '{"z": null, "b": null}'
cached, fresh = (
    accepts(xgrammar.GrammarCompiler(tokens, cache_enabled=enabled).compile_grammar(xgrammar.Grammar.from_ebnf(GRAMMAR)), TEXT)
    for enabled in (True, False)
)

compiled = xgrammar.GrammarCompiler(tokens).compile_json_schema({"enum": [0.7]})
short, long = accepts(compiled, "0.7"), accepts(compiled, "0.69999999999999996")

print(f"xgrammar {version('xgrammar')}, Python {sys.version.split()[0]}")
print(f"{TEXT} is accepted: with the compiler's cache {cached}, without it {fresh}")
print(f"of {{'enum': [0.7]}}: 0.7 is accepted {short}, 0.69999999999999996 {long}")
as_found = version("xgrammar") == "0.2.8" and (cached, fresh, short, long) == (False, True, False, True)
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
