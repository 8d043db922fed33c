#!/usr/bin/env bash
# datasets 5.2.0: texts in a column of its Json feature are read as other values, and numbers are rounded.
# Installs the pinned version into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cd "$work"
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$work/venv/bin/python" - <<'PYTHON'
import json
import sys

import datasets

texts = ["007", "12.50", "true", "null", "1e5", "NaN", "Rome"]
rows = [{"arguments": {"value": text}} for text in texts]
rows += [{"arguments": {"value": [1]}}]  # one row differs in type: the column becomes Json automatically
with open("mixed.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
mixed = datasets.load_dataset("json", data_files="mixed.jsonl", split="train")
seen = [row["arguments"]["value"] for row in mixed][: len(texts)]
with open("same.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows[:-1])
same = datasets.load_dataset("json", data_files="same.jsonl", split="train")
kept = [row["arguments"]["value"] for row in same]
numbers = datasets.Dataset.from_list([{"x": 0.12345678901234, "y": 1e-11}])
numbers.to_json("numbers.jsonl")
rounded = json.loads(open("numbers.jsonl").read())

print(f"datasets {datasets.__version__}, Python {sys.version.split()[0]}")
print("written:                     ", texts)
print("read, one more row is a list:", seen, mixed.features["arguments"])
print("read, without that row:      ", kept, same.features["arguments"])
print("to_json of 0.12345678901234 and 1e-11:", rounded)
as_found = (
    datasets.__version__ == "5.2.0"
    and seen == [7, 12.5, True, None, 100000.0, None, "Rome"]
    and kept == texts
    and rounded == {"x": 0.123456789, "y": 0.0}
)
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
