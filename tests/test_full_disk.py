"""A disk that is really full: a small tmpfs in a mount namespace of its own, made larger before the next start."""

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
    """Run on a disk of `size`, then again with 64 MiB, then copy the disk to `copied`. Returns (code, stderr, files) of both runs."""
    disk.mkdir()
    run = f'"$@" > {copied}-out-$n 2> {copied}-err-$n; echo $? > {copied}-code-$n; find {disk} -type f > {copied}-files-$n'
    sequence = f"mount -t tmpfs -o size={size} tmpfs {disk} && n=1; {run}; mount -o remount,size=64m {disk} && n=2; {run}; cp -r {disk} {copied}"
    command = [sys.executable, script, *command_line(flags)]
    subprocess.run(["unshare", "-rm", "sh", "-c", sequence, "sh", *command], cwd=ROOT, check=True)
    return [
        [copied.with_name(f"{copied.name}-{what}-{n}").read_text() for what in ("code", "err", "files")] for n in (1, 2)
    ]


@pytest.mark.parametrize("size", ["60k", "700k"])
def test_training(train_here, flags, tmp_path, size):
    """60k: in TensorBoard's files and in the first checkpoint. 700k: in a later one."""
    flags |= {"max_train_steps": 8, "save_steps": 1, "eval_steps": 4, "save_total_limit": 9, "lora_dropout": 0.1}
    straight = train_here(flags | {"output_dir": tmp_path / "straight"})
    disk = tmp_path / "disk"
    flags |= {"output_dir": disk / "run", "resume_from_checkpoint": "latest"}
    (code, err, files), (code_2, err_2, files_2) = run_until_full_then_again(
        "train.py", flags, disk, size, tmp_path / "copy"
    )
    assert code == "1\n" and "Traceback" not in err
    line = err.strip().splitlines()[-1]
    said = r"train.py: error: \S+/checkpoint-(\d) could not be written: it needs about (\S+) MiB and the disk has (\S+) MiB free; last good checkpoint: (?:\S+/checkpoint-(\d)|none yet)"
    failed, _needed, free, good = re.fullmatch(said, line).groups()
    assert float(free) < 0.7 and int(good or 0) == int(failed) - 1 and (good is None) == (size == "60k")
    assert good is None or f"checkpoint-{good}/optimizer.pt" in files
    assert "incomplete" not in files
    assert code_2 == "0\n" and "incomplete" not in files_2, err_2
    for tag in EXACT_TAGS:
        mine = dict(curve(tmp_path / "copy" / "run", tag))  # what could not be written is missing from the curves
        assert mine and mine.items() <= dict(curve(straight, tag)).items()
    mine, its = (folder / "adapter" / "adapter_model.safetensors" for folder in (tmp_path / "copy" / "run", straight))
    assert mine.read_bytes() == its.read_bytes()


@pytest.mark.parametrize("size", ["4k", "48k", "200k"])
def test_evaluation(tiny_model, rows_file, tmp_path, size):
    """In the first files, in the predictions, in the report."""
    disk, copied = tmp_path / "disk", tmp_path / "copy"
    flags = {"model_name_or_path": tiny_model, "dataset_name": rows_file, "eval_fraction": 1, "max_new_tokens": 20,
             "output_dir": disk / "evaluation"}  # fmt: skip
    (code, err, _), (code_2, err_2, _) = run_until_full_then_again("evaluate.py", flags, disk, size, copied)
    assert code == "1\n" and "Traceback" not in err and "No space left on device" in err.strip().splitlines()[-1]
    assert code_2 == "0\n", err_2
    lines = [json.loads(line) for line in (copied / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["system"], line["id"]) for line in lines}) == 2 * 84


def test_export(train_here, flags, tmp_path):
    """In the merged weights. The disk's first size is below that of the base, which is known before anything is merged."""
    adapter = train_here(flags | {"max_train_steps": 1}) / "adapter"
    disk, copied = tmp_path / "disk", tmp_path / "copy"
    flags = {"adapter": adapter, "output_dir": disk / "export", "dtype": "fp32"}
    (code, err, files), (code_2, err_2, _) = run_until_full_then_again("export.py", flags, disk, "300k", copied)
    assert code == "1\n" and "Traceback" not in err and files == ""
    *_, warning, line = err.strip().splitlines()
    assert re.search(r"Warning: the merged model needs about (\S+) MiB and the disk has 0\.3 MiB free", warning)
    assert re.fullmatch(
        r"export.py: error: \S+/export could not be written: it needs about \S+ MiB and the disk has \S+ MiB free; make room, "
        "and the same command exports it",
        line,
    )
    assert code_2 == "0\n" and (copied / "export" / "model.safetensors").is_file(), err_2


@pytest.mark.parametrize("size", ["8k", "20k"])
def test_inference(tiny_model, rows_file, tmp_path, size):
    """In the first answers, in later ones or in the output itself."""
    disk, copied = tmp_path / "disk", tmp_path / "copy"
    flags = {"model_name_or_path": tiny_model, "input": rows_file, "max_new_tokens": 20, "output": disk / "calls.jsonl"}
    (code, err, _), (code_2, err_2, files_2) = run_until_full_then_again("infer.py", flags, disk, size, copied)
    line = err.strip().splitlines()[-1]
    said = r"infer.py: error: --output \S+ could not be written: it needs about \S+ MiB and .*; (\d+) of (\d+) rows are answered: .*"
    answered, total = map(int, re.fullmatch(said, line).groups())
    assert code == "1\n" and "Traceback" not in err and 0 < answered <= total
    assert code_2 == "0\n" and ".partial" not in files_2 and ".incomplete" not in files_2, err_2
    assert len((copied / "calls.jsonl").read_text().splitlines()) == total
