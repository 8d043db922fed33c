"""metrics.jsonl: whole lines only, steps once."""

import os

import pytest

from run_utils.errors import UserError
from run_utils.metrics_file import MetricsFile, read_metrics


def write(folder, first_step, *entries):
    metrics = MetricsFile(folder, first_step, {}, set())
    for step, figures in entries:
        metrics.scalars(step, figures)
    metrics.close(is_finished=True)


def test_a_resume_drops_a_cut_line_and_the_entries_beyond_its_checkpoint(tmp_path):
    write(
        tmp_path,
        1,
        (1, {"train/loss": 3.0}),
        (2, {"train/loss": 2.5}),
        (2, {"eval/loss": 2.0}),
        (3, {"train/loss": 9.0}),
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    write(tmp_path, 3, (3, {"train/loss": 1.0}))
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 3.0},
        {"step": 2, "train/loss": 2.5},
        {"step": 2, "eval/loss": 2.0},
        {"step": 3, "train/loss": 1.0},
    ]


@pytest.mark.parametrize(
    "content", ["[]\n", "7\n", "{}\n", '{"step": "1"}\n', "\n", "{\n", "[" * 100_000 + "\n", "\0\n"]
)
def test_a_file_of_something_else_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: .+"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="not a file"):
        read_metrics(tmp_path / "metrics.jsonl")
