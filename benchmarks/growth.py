"""How cost grows: seconds and memory by the number of rows, by their tokens and by the tools on
offer, with the exponent of each line.

    python -m benchmarks.growth --only rows tokens tools        # on a CPU
    python -m benchmarks.growth --only training generation      # on a GPU, under 150 s
    python -m benchmarks.growth --shape tiny                    # a dry run of all on a CPU
    python -m benchmarks.growth --table                         # the table of what is measured

Nothing is downloaded. Each work on a CPU is a process of its own. Each part of it is a line of
growth.jsonl in --work_dir. So a killed run keeps its measurements. Runs with other sizes add lines.
The exponent is the slope of the logarithms: 1 is linear. In the groups by rows it is that of all
rows' seconds, in the others that of a row's.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from run_utils import journal

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "rows": [1_000, 10_000, 50_000, 200_000],
    "tokens": [256, 512, 1_024, 2_048, 4_096, 8_192],  # a row
    "tools": [1, 2, 4, 8, 16, 32, 64],  # a row
}
TINY = {"rows": [100, 200], "tokens": [256, 512], "tools": [1, 2]}
WORKS = ["load", "load_again", "inspect", "rescore", "compare", "compile_grammars"]
ON_GPU = ["training", "generation"]
LEAST_SECONDS = 0.05  # shorter times have no exponent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SIZES, *ON_GPU], default=[*SIZES, *ON_GPU])
    parser.add_argument("--sizes", nargs="+", type=int, help="of those on a CPU; by default all")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS, help="of those on a CPU")
    parser.add_argument("--shape", default="4b", help="the model's, see train_throughput; tiny: a dry run")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/growth"))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    log = args.work_dir / "growth.jsonl"
    log.touch()
    if not args.table:
        for group in args.only:
            if group in SIZES:
                measure_on_cpu(args, group, log)
        on_gpu = [group for group in args.only if group in ON_GPU]
        if on_gpu:
            from benchmarks.growth_gpu import measure_on_gpu

            journal.append(log, shown(measure_on_gpu(on_gpu, args.shape)))
    print_tables(list(journal.read(log)))


def measure_on_cpu(args, group, log):
    """Append the lines of a group to the log, from a process for each size and work."""
    for size in (TINY if args.shape == "tiny" else SIZES)[group]:
        if args.sizes and size not in args.sizes:
            continue
        cache = args.work_dir / f"cache_{group}_{size}"  # for this size alone
        env = os.environ | {"HF_HOME": str(cache.resolve()), "HF_HUB_OFFLINE": "1"}
        for work in ["make", *args.works]:
            before = len(list(journal.read(log)))
            with (args.work_dir / f"{work}.log").open("w") as output:
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.growth_cpu", group, str(size), work, log],
                    cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT,
                )  # fmt: skip
            list(shown(list(journal.read(log))[before:]))
            if done.returncode:
                print(f"{group} {size} {work} failed: see {args.work_dir / f'{work}.log'}", flush=True)


def shown(lines):
    for line in lines:
        print(json.dumps(line), flush=True)
        yield line


def exponent(points):
    """The slope of log(y) over log(x) of [(x, y)], or None for fewer than two."""
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def print_tables(lines):
    """A table in Markdown for each group: a line for each part, a column for each size."""
    newest = {(line["group"], line["part"], line["size"]): line for line in lines}
    console = Console(width=200 if not sys.stdout.isatty() else None)
    for group in dict.fromkeys(line["group"] for line in lines):
        of_group = [line for line in newest.values() if line["group"] == group]
        sizes = sorted({line["size"] for line in of_group})
        table = Table("", *(f"{size:,}" for size in sizes), "exponent", "at the end", "of memory", box=MARKDOWN)
        for part in dict.fromkeys(line["part"] for line in of_group):
            by_size = {size: newest.get((group, part, size)) for size in sizes}
            found = [line for line in by_size.values() if line]
            times = [(line["size"], cost(line)) for line in found if line["seconds"] >= LEAST_SECONDS]
            added = [(line["size"], line["gib"] - line["start_gib"]) for line in found]
            added = [(size, gib) for size, gib in added if gib > 0.02]
            table.add_row(
                part,
                *(cell(line) if line else "" for line in by_size.values()),
                *("" if value is None else f"{value:.2f}" for value in map(exponent, (times, times[-2:], added[-2:]))),
            )
        console.print(f"\n{group}:")
        console.print(table)


def cost(line):
    """The seconds that grow with the size: of all rows in the groups by rows, else of one row."""
    return line["seconds"] / (1 if line["group"].endswith("rows") else line["rows"])


def cell(line):
    if "error" in line:
        return line["error"][:40]
    speed = [f"{line[rate]:,.0f} {title}" for rate, title in RATES.items() if rate in line]
    page = [f"{line['page_mib']:.1f} MiB"] if "page_mib" in line else []
    seconds = f"{line['seconds']:.2f} s" if line["seconds"] < 10 else f"{line['seconds']:,.0f} s"
    return ", ".join([*(speed or [seconds]), f"{line['gib']:.2f} GiB", *page])


RATES = {"tokens_per_second": "tokens/s", "rows_per_second": "rows/s"}

if __name__ == "__main__":
    main()
