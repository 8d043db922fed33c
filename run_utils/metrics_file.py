"""metrics.jsonl: every logged figure of a run, one JSON object a line, such as `{"step": 10,
"train/loss": 0.5, ...}`."""

import json
import math
from pathlib import Path

from run_utils.errors import UserError, one_line
from run_utils.files import check_depth, no_pipe, write_json_lines


class MetricsFile:
    """A tracker of TrainingLog. It drops entries from first_step on: a resumed run writes
    them again. The arguments are in args.yaml."""

    files = "metrics.jsonl"

    def __init__(self, output_dir, first_step, arguments, changed):
        self.path = Path(output_dir) / "metrics.jsonl"
        entries = read_metrics(self.path) if self.path.exists() else []
        write_json_lines(self.path, (entry for entry in entries if entry["step"] < first_step))
        self.file = self.path.open("a", encoding="utf-8")

    def scalars(self, step, figures):
        self.file.write(json.dumps({"step": step, **figures}) + "\n")
        self.file.flush()  # a kill loses no entry

    def text(self, step, name, text):
        self.scalars(step, {name: text})

    def close(self, is_finished):
        self.file.close()


def last_figure(output_dir, tag):
    """The newest value of a figure, or None if the file has no positive number."""
    try:
        entries = read_metrics(Path(output_dir) / "metrics.jsonl")
    except UserError:  # no file, or a damaged one
        return None
    values = [entry[tag] for entry in entries if tag in entry]
    is_positive = values and isinstance(values[-1], float) and 0 < values[-1] < math.inf
    return values[-1] if is_positive else None


def read_metrics(path):
    """The entries of a metrics.jsonl, without a last line cut by a kill or a full disk. Raises
    UserError."""
    try:
        *lines, _ = no_pipe(path).read_text(encoding="utf-8").split("\n")
        for line in lines:
            check_depth(line)
        entries = [json.loads(line) for line in lines]
        if not all(isinstance(entry, dict) and isinstance(entry.get("step"), int) for entry in entries):
            raise ValueError("a line is no entry with a step")
        return entries
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path} cannot be read: {reason}") from None
