"""Runs killed at random moments and resumed equal an uninterrupted run, bit for bit.

`make soak` kills training 50 times and evaluation 20 times, the suite a few times.
SOAK_SEED changes the moments.
"""

import contextlib
import json
import os
import random
import re
from collections import Counter

import pytest
from conftest import EXACT_TAGS, curve, launch, launch_and_kill

pytestmark = pytest.mark.slow

KILLS_IN_TRAINING = int(os.environ.get("SOAK_TRAINING", 2))
KILLS_IN_EVALUATION = int(os.environ.get("SOAK_EVALUATION", 2))
SEED = int(os.environ.get("SOAK_SEED", 0))
SECONDS_TO_START = 8


def checkpoints(run):
    return sorted(int(path.name[11:]) for path in run.glob("checkpoint-*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_training_killed_repeatedly_equals_an_uninterrupted_run(flags, tmp_path, processes):
    """Ten steps per epoch, a checkpoint every second step; the last two and the best are kept."""
    kills, draw = KILLS_IN_TRAINING // 2, random.Random(SEED + processes)
    last_step = 6 * kills + 4
    flags |= {
        "lora_dropout": 0.1, "max_train_steps": last_step, "save_steps": 2, "eval_steps": 3, "save_total_limit": 2,
        "final_adapter": "best", "gradient_accumulation_steps": 4 // processes,
    }  # fmt: skip
    straight, killed, log = tmp_path / "straight", tmp_path / "killed", tmp_path / "log"
    done = launch("train.py", flags | {"output_dir": straight}, processes)
    assert done.code == 0, done.err
    flags |= {"output_dir": killed, "resume_from_checkpoint": "latest"}  # no checkpoint at first
    newest, caught = 0, Counter()
    for kill in range(kills):
        if kill % 8 == 3:  # while it loads
            reached, seconds = lambda: True, draw.uniform(0, SECONDS_TO_START)
        else:  # during a step, its evaluation or checkpoint, or the deletion of an older checkpoint
            line = f"step {min(newest + draw.randrange(1, 6), last_step - 1)}/"
            reached, seconds = lambda line=line: line in log.read_text(), draw.uniform(0, 0.2)
        if not launch_and_kill("train.py", flags, reached, log, processes, seconds):
            break
        text, saved = log.read_text(), checkpoints(killed)
        steps = [int(step) for step in re.findall(r"^step (\d+)/", text, re.M)]
        assert "Traceback" not in text
        if steps:
            assert steps[0] == newest + 1 and (newest == 0 or f"checkpoint-{newest}, after step {newest}" in text), text
        before, newest = newest, max(saved, default=0)
        # Only steps since the last due checkpoint are lost.
        assert newest >= max([before, *(step - 2 for step in steps)]), text
        incomplete = [path.name for path in killed.glob("incomplete-*")]
        caught["saving or deleting" if incomplete else "training" if steps else "starting"] += 1
        print(
            f"{processes} processes, kill {kill + 1}: steps {steps}, checkpoints {saved}, left {incomplete}", flush=True
        )
    print(f"{processes} processes: {dict(caught)}", flush=True)
    assert caught.total() > 0.8 * kills
    done = launch("train.py", flags, processes)
    assert done.code == 0, done.err
    for tag in EXACT_TAGS:
        points = curve(killed, tag)
        assert points == curve(straight, tag), tag
        assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}
    for name in (
        "adapter/adapter_model.safetensors",
        *(f"checkpoint-{step}/state.json" for step in checkpoints(straight)),
    ):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_killed_repeatedly_equals_an_uninterrupted_run(tiny_model, rows_file, tmp_path, processes):
    """Two systems, row by row."""
    kills, draw = KILLS_IN_EVALUATION // 2, random.Random(SEED + processes)
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 1, "batch_tokens": 1,
             "max_new_tokens": 30, "systems": ["raw", "prompted"]}  # fmt: skip
    straight, killed, log = tmp_path / "straight", tmp_path / "killed", tmp_path / "log"
    done = launch("evaluate.py", flags | {"output_dir": straight}, processes)
    assert done.code == 0, done.err
    total = len(read_predictions(straight))
    flags |= {"output_dir": killed}
    kept = {}
    for kill in range(kills):
        target = len(kept) + draw.randrange(1, 2 * (total - len(kept)) // (kills - kill + 1))
        reached = lambda target=target: len(read_predictions(killed)) >= target  # noqa: E731
        assert launch_and_kill("evaluate.py", flags, reached, log, processes, draw.uniform(0, 0.02)), log.read_text()
        predictions = read_predictions(killed)
        assert "Traceback" not in log.read_text()
        # with their seconds: none is lost or generated again
        assert kept.items() <= predictions.items()
        kept = predictions
        print(f"{processes} processes, kill {kill + 1}: {len(kept)} of {total} predictions", flush=True)
    done = launch("evaluate.py", flags, processes)
    assert done.code == 0, done.err
    end, expected = read_predictions(killed), read_predictions(straight)
    assert kept.items() <= end.items() and end.keys() == expected.keys()
    assert all(json.loads(end[row])["text"] == json.loads(expected[row])["text"] for row in expected)


def read_predictions(folder):
    """Complete lines by (system, id)."""
    lines = []
    for path in folder.glob("predictions*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # the run has just merged this file
            lines += path.read_text().split("\n")[:-1]
    return {(record["system"], record["id"]): line for line in lines for record in [json.loads(line)]}
