"""A full disk: a small tmpfs in its own mount namespace, enlarged before the second run."""

import json
import re
import subprocess
import sys

import pytest
from conftest import EXACT_TAGS, ROOT, command_line, curve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0
        if sys.platform == "linux"
        else True,
        reason="mounts need `unshare -rm`",
    ),
]


def run_until_full_then_again(script, flags, disk, size, copied):
    """Run on a disk of `size`, run again on 64 MiB, then copy the disk to `copied`.

    Returns (exit code, stderr, files) of both runs.
    """
    disk.mkdir()
    run = (
        f'"$@" > {copied}-out-$n 2> {copied}-err-$n; echo $? > {copied}-code-$n; '
        f"find {disk} -type f > {copied}-files-$n"
    )
    sequence = (
        f"mount -t tmpfs -o size={size} tmpfs {disk} && n=1; {run}; "
        f"mount -o remount,size=64m {disk} && n=2; {run}; cp -r {disk} {copied}"
    )
    command = [sys.executable, script, *command_line(flags)]
    subprocess.run(["unshare", "-rm", "sh", "-c", sequence, "sh", *command], cwd=ROOT, check=True)
    return [
        [copied.with_name(f"{copied.name}-{name}-{n}").read_text() for name in ("code", "err", "files")] for n in (1, 2)
    ]


@pytest.mark.parametrize("size", ["60k", "700k"])
def test_training_resumes_after_a_full_disk(train_here, flags, tmp_path, size):
    """60k is too small for TensorBoard's files and the first checkpoint, 700k for a later one."""
    flags |= {"max_train_steps": 8, "save_steps": 1, "eval_steps": 4, "save_total_limit": 9, "lora_dropout": 0.1}
    straight = train_here(flags | {"output_dir": tmp_path / "straight"})
    disk = tmp_path / "disk"
    flags |= {"output_dir": disk / "run", "resume_from_checkpoint": "latest"}
    (code, err, files), (code_2, err_2, files_2) = run_until_full_then_again(
        "train.py", flags, disk, size, tmp_path / "copy"
    )
    assert code == "1\n" and "Traceback" not in err
    line = err.strip().splitlines()[-1]
    pattern = (
        r"train.py: error: \S+/checkpoint-(\d) could not be written: it needs about (\S+) MiB and the disk has "
        r"(\S+) MiB free; last good checkpoint: (?:\S+/checkpoint-(\d)|none yet)"
    )
    failed, _needed, free, good = re.fullmatch(pattern, line).groups()
    assert float(free) < 0.7 and int(good or 0) == int(failed) - 1 and (good is None) == (size == "60k")
    assert good is None or f"checkpoint-{good}/optimizer.pt" in files
    assert "incomplete" not in files
    assert code_2 == "0\n" and "incomplete" not in files_2, err_2
    for tag in EXACT_TAGS:
        points = dict(curve(tmp_path / "copy" / "run", tag))
        # The full disk may have lost points.
        assert points and points.items() <= dict(curve(straight, tag)).items()
    ours, theirs = (run / "adapter" / "adapter_model.safetensors" for run in (tmp_path / "copy" / "run", straight))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("size", ["4k", "48k", "200k"])
def test_evaluation_resumes_after_a_full_disk(tiny_model, rows_file, tmp_path, size):
    """The disk fills in the first files, the predictions or the report."""
    disk, copied = tmp_path / "disk", tmp_path / "copy"
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 1, "max_new_tokens": 20,
             "output_dir": disk / "evaluation"}  # fmt: skip
    (code, err, _), (code_2, err_2, _) = run_until_full_then_again("evaluate.py", flags, disk, size, copied)
    assert code == "1\n" and "Traceback" not in err and "No space left on device" in err.strip().splitlines()[-1]
    assert code_2 == "0\n", err_2
    lines = [json.loads(line) for line in (copied / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["system"], line["id"]) for line in lines}) == 2 * (84 + 16)  # 16 are made


def test_export_succeeds_after_a_full_disk(train_here, flags, tmp_path):
    """The disk is smaller than the base: a warning before the merge, no room for the weights."""
    adapter = train_here(flags | {"max_train_steps": 1}) / "adapter"
    disk, copied = tmp_path / "disk", tmp_path / "copy"
    flags = {"adapter": adapter, "output_dir": disk / "export", "dtype": "fp32"}
    (code, err, files), (code_2, err_2, _) = run_until_full_then_again("export.py", flags, disk, "300k", copied)
    assert code == "1\n" and "Traceback" not in err and files == ""
    *lines, line = err.strip().splitlines()
    warning = r"Warning: the merged model needs about (\S+) MiB and the disk has 0\.3 MiB free"
    assert any(re.search(warning, earlier) for earlier in lines), err
    assert re.fullmatch(
        r"export.py: error: \S+/export could not be written: it needs about \S+ MiB and the disk has \S+ MiB free; "
        "make room, and the same command exports it",
        line,
    )
    assert code_2 == "0\n" and (copied / "export" / "model.safetensors").is_file(), err_2


@pytest.mark.parametrize("size", ["8k", "20k"])
def test_inference_resumes_after_a_full_disk(tiny_model, rows_file, tmp_path, size):
    """The disk fills in the first answers, in later answers or in the output."""
    disk, copied = tmp_path / "disk", tmp_path / "copy"
    flags = {"model_name_or_path": tiny_model, "input": rows_file, "max_new_tokens": 20, "output": disk / "calls.jsonl"}
    (code, err, _), (code_2, err_2, files_2) = run_until_full_then_again("infer.py", flags, disk, size, copied)
    line = err.strip().splitlines()[-1]
    pattern = (
        r"infer.py: error: --output \S+ could not be written: it needs about \S+ MiB and .*; "
        r"(\d+) of (\d+) rows are answered: .*"
    )
    answered, total = map(int, re.fullmatch(pattern, line).groups())
    assert code == "1\n" and "Traceback" not in err and 0 < answered <= total
    assert code_2 == "0\n" and ".partial" not in files_2 and ".incomplete" not in files_2, err_2
    assert len((copied / "calls.jsonl").read_text().splitlines()) == total
