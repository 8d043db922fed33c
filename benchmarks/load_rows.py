"""How long 60,000 rows take until they are ready to train on: read, validated and tokenised, the
first time and from the cache.

    python -m benchmarks.load_rows                                        # the demo's tokenizer
    python -m benchmarks.load_rows --tokenizer PATH                       # a second tokenizer
    git worktree add /tmp/before COMMIT; python -m benchmarks.load_rows --beside /tmp/before

Nothing is downloaded. Each line of the table is a process with an empty cache, followed by a second
process with a full cache. Seconds are wall-clock time and, in brackets, the CPU time of all cores,
which a busy machine changes less. `peak` is the first process's peak memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.model import build_tokenizer
from demo.rows import generate_rows

ROOT = Path(__file__).resolve().parent.parent
# Runs in the measured checkout. Prints the seconds to load and to tokenise, as wall-clock and CPU
# time, and the peak in MiB.
MEASURE = """
import resource, sys, time
from transformers import AutoTokenizer
from data_utils.batching import tokenize_rows
from data_utils.prompt import PROMPT_FORMATS
from data_utils.sources import load_rows
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
tokenizer("")
times = [(time.perf_counter(), time.process_time())]
rows = load_rows(sys.argv[1])[0]
times.append((time.perf_counter(), time.process_time()))
examples = tokenize_rows(tokenizer, PROMPT_FORMATS["tags-1"], rows, 4096)[0]
times.append((time.perf_counter(), time.process_time()))
assert len(examples) == len(rows) > 0
for before, after in zip(times, times[1:]):
    print(after[0] - before[0], after[1] - before[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60000)
    parser.add_argument("--tokenizer", action="append", default=[], help="Hub id or folder; may be repeated")
    parser.add_argument("--beside", action="append", default=[], help="Another checkout, measured in turn")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    table = Table(title=f"{args.rows:,} rows, seconds")
    for column in ("checkout", "tokenizer", "load", "tokenise", "load again", "tokenise again", "peak MiB"):
        table.add_column(column, justify="left" if column in ("checkout", "tokenizer") else "right")
    with tempfile.TemporaryDirectory() as work:
        rows = generate_rows(args.rows, seed=0)
        rows_file = Path(work) / "rows.jsonl"
        rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        demo = Path(work) / "demo"
        build_tokenizer((row["query"] + row["tools"] for row in rows[:3000]), 4096).save_pretrained(demo)
        for tokenizer in (str(demo), *args.tokenizer):
            for _ in range(args.repeats):
                for checkout in (str(ROOT), *args.beside):
                    with tempfile.TemporaryDirectory(dir=work) as cache:
                        first, again = (measure(checkout, rows_file, tokenizer, cache) for _ in range(2))
                    seconds = [*first[:4], *again[:4]]
                    cells = [
                        f"{clock:.1f} ({cores:.1f})" for clock, cores in zip(seconds[::2], seconds[1::2], strict=True)
                    ]
                    line = [Path(checkout).name, Path(tokenizer).name, *cells, f"{first[4]:,.0f}"]
                    table.add_row(*line)
                    print(*line, flush=True)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def measure(checkout, rows_file, tokenizer, cache):
    environment = os.environ | {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "PYTHONPATH": checkout}
    command = [sys.executable, "-c", MEASURE, str(rows_file), tokenizer]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return [float(figure) for figure in done.stdout.split()]


if __name__ == "__main__":
    main()
