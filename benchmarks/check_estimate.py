"""Memory and speed as inspect_data.py computes them, beside the measurements of
benchmarks/README.md and docs/scaling.md.

    python -m benchmarks.check_estimate

Needs no GPU. The rows are those of the measurements: train_throughput.py's, in train.py's order.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config

from benchmarks.train_throughput import ROOT, SHAPES, make_rows
from data_utils.dataset import prepare_data
from model_utils.estimate import estimate
from train import TrainingArguments

PLAIN = {"gradient_checkpointing": False}
GRAPHS = PLAIN | {"cuda_graphs": True}
FAST = GRAPHS | {"torch_compile": True}
BF16, NO_DROPOUT = {"quantization": "none"}, {"lora_dropout": 0.0}


class Measured(NamedTuple):
    """One line of a table of measurements."""

    name: str
    shape: str
    gpu: str
    batch: int  # examples of a micro-batch; a step has 8 or, if they are more, these
    steps: int
    flags: dict
    gib: float | None  # None: not measured since the memory changed
    speed: float | None  # tokens/s


MEASURED = [
    Measured("reference recipe", "4b", "h200", 2, 40, {}, 4.3, 852),
    Measured("the same, 500 steps", "4b", "h100", 2, 500, {}, 4.18, 810),
    Measured("fast recipe", "4b", "h200", 8, 20, BF16 | FAST, 18.5, 26590),
    Measured("fast recipe, no dropout", "4b", "h200", 8, 16, BF16 | NO_DROPOUT | FAST, 18.0, 26509),
    Measured("fast, 40 examples", "4b", "h200", 40, 20, BF16 | FAST, 55.5, 29733),
    Measured("fast, 40 examples, no dropout", "4b", "h200", 40, 20, BF16 | NO_DROPOUT | FAST, 55.1, 30812),
    Measured("the same, FP8", "4b", "h200", 40, 20, BF16 | NO_DROPOUT | FAST | {"base_precision": "fp8"}, 62.8, None),
    Measured("fast recipe", "4b", "h100", 8, 16, BF16 | FAST, None, 22621),
    Measured("fast, 40 examples", "4b", "h100", 40, 16, BF16 | FAST, None, 26089),
    Measured("fast, NF4", "4b", "h200", 8, 20, FAST, None, 22787),
    Measured("bf16, no dropout", "4b", "h200", 8, 40, BF16 | NO_DROPOUT | PLAIN, 34.6, 9648),
    Measured("bf16, no dropout, graphs alone", "4b", "h200", 8, 16, BF16 | NO_DROPOUT | GRAPHS, None, 15934),
    Measured("NF4, no dropout", "4b", "h200", 8, 40, NO_DROPOUT | PLAIN, 29.6, 6974),
    Measured("NF4, no dropout, fast", "4b", "h200", 8, 40, NO_DROPOUT | FAST, None, 23668),
    Measured("bf16, no dropout", "14b", "h200", 8, 24, BF16 | NO_DROPOUT | PLAIN, 76.9, 7007),
    Measured("bf16, no dropout, fast", "14b", "h200", 8, 24, BF16 | NO_DROPOUT | FAST, None, 9254),
    Measured("NF4, no dropout", "14b", "h200", 8, 24, NO_DROPOUT | PLAIN, 58.6, 5892),
    Measured("NF4, no dropout, fast", "14b", "h200", 8, 24, NO_DROPOUT | FAST, None, 8582),
]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    examples = measured_examples()
    columns = ("setting", "shape", "GPU", "GiB measured", "computed", "", "tokens/s measured", "computed", "")
    table = Table(*columns, title="Computed beside measured")
    for measured in MEASURED:
        gib, speed = compute(measured, examples)
        cells = compare(measured.gib, gib, ".1f") + compare(measured.speed, speed, ",.0f")
        table.add_row(measured.name, measured.shape, measured.gpu, *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def measured_examples():
    """The training examples of the measurements, in the order of a run's rows."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        make_rows(rows, tokenizer)
        args = TrainingArguments(dataset_name=str(rows), eval_fraction=0)
        return prepare_data(args, tokenizer, 40960, Accelerator(cpu=True)).train.examples


def compute(measured, examples):
    """`(GiB, tokens/s)` of a Measured's settings."""
    args = TrainingArguments(
        per_device_train_batch_size=measured.batch,
        gradient_accumulation_steps=max(1, 8 // measured.batch),
        max_train_steps=measured.steps,
        **measured.flags,
    )
    result = estimate(args, Qwen3Config(**SHAPES[measured.shape]), examples, [], measured.gpu)
    (gpu,) = result["gpus"]
    return result["memory"]["peak"], gpu["time"] and gpu["time"]["tokens_per_second"]


def compare(measured, computed, form):
    if measured is None:
        return ["", "" if computed is None else format(computed, form), ""]
    return [format(measured, form), format(computed, form), f"{computed / measured - 1:+.0%}"]


if __name__ == "__main__":
    main()
