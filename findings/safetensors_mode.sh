#!/usr/bin/env bash
# safetensors 0.8.0: save_file writes files of mode 0600, whatever the umask and the file's former mode.
# Installs the pinned version into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import os
import sys

import numpy
import safetensors
from safetensors.numpy import save_file

os.umask(0o022)
weights = {"a": numpy.zeros(3)}
open("other", "w").close()
save_file(weights, "new")
open("old", "w").close()
save_file(weights, "old")
modes = {name: oct(os.stat(name).st_mode & 0o777) for name in ("other", "new", "old")}

print(f"safetensors {safetensors.__version__}, Python {sys.version.split()[0]}")
print("modes: of a file by open(), of a new and of an overwritten file by save_file():", modes)
as_found = safetensors.__version__ == "0.8.0" and list(modes.values()) == ["0o644", "0o600", "0o600"]
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
