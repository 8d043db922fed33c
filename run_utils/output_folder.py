"""The folder of a training run: created, locked, cleared, and refused if it has other files."""

import atexit
import contextlib
import re
import shutil
import tempfile
from pathlib import Path

from run_utils.arguments import read_yaml
from run_utils.checkpoint import complete_checkpoints, delete_checkpoint, read_checkpoint
from run_utils.errors import UserError, say
from run_utils.files import lock_folder, no_pipe
from run_utils.paths import did_you_mean
from run_utils.weights import round_weights


def claim(output_dir):
    """Take the folder for this run. Raises UserError if this is not possible."""
    make_writable(output_dir)
    # A kill at the start of a run leaves the first file, refused rows leave the second, and
    # inspect_data.py the others.
    known = {"args.yaml.incomplete", "dropped_rows.json", "inspection.json", "inspection.html"}
    others = {path.name for path in output_dir.iterdir()} - known
    if others and not holds_run(output_dir):
        raise UserError(f"{output_dir} is not empty and holds no run of train.py: choose another --output_dir")
    logs, metrics = output_dir / "logs", output_dir / "metrics.jsonl"
    if logs.exists() and not logs.is_dir():
        raise UserError(f"{logs} is a file where TensorBoard's folder is to be: move it away")
    if metrics.exists() and not metrics.is_file():  # reading a pipe would wait
        raise UserError(f"{metrics} is not a file: move it away")


def holds_run(output_dir):
    try:
        return "lora_r" in read_yaml(no_pipe(output_dir / "args.yaml"))
    except UserError:
        return False


def make_writable(output_dir):
    """Create the folder and lock it. Raises UserError if this is not possible. A created folder
    that is still empty when the process ends is removed."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file")
    try:
        if not output_dir.exists():
            output_dir.mkdir(parents=True)
            atexit.register(remove_empty, output_dir)
        lock_folder(output_dir)
        # On Linux this file has no name: a kill leaves nothing.
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None


def remove_empty(folder):
    with contextlib.suppress(OSError):  # it is not empty: a run has started
        folder.rmdir()


def clear_run(output_dir):
    """Delete the checkpoints, the adapter and the logs of an earlier run, and no other file."""
    # The newest first: a kill leaves the beginning of a run.
    for path in reversed(complete_checkpoints(output_dir)):
        delete_checkpoint(path)
    delete_leftovers(output_dir, "incomplete", "superseded")
    for name in ("adapter", "model", "logs"):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / "metrics.jsonl").unlink(missing_ok=True)


def set_aside(path):
    """Rename a folder that a run resumed from an earlier step will make again."""
    aside = path.with_name(f"superseded-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def delete_leftovers(output_dir, *prefixes):
    """Delete folders half-written or half-deleted at a kill ("incomplete"), or set aside
    ("superseded")."""
    for prefix in prefixes:
        for path in output_dir.glob(f"{prefix}-*"):
            if re.fullmatch(r"adapter|model|checkpoint-\d+", path.name.removeprefix(f"{prefix}-")):
                shutil.rmtree(path, ignore_errors=True)


def deliver(checkpoint, final, in_bf16):
    """Copy a checkpoint without a resume's files, under a temporary name first. in_bf16: round a
    whole model's weights."""
    unfinished = final.with_name(f"incomplete-{final.name}")
    left_out = shutil.ignore_patterns("*.pt", "state.json", "*.incomplete")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        # copyfile: checkpoints of older versions have weights of mode 0600.
        shutil.copytree(checkpoint, unfinished, ignore=left_out, copy_function=shutil.copyfile)
        if in_bf16:
            round_weights(unfinished)
        shutil.rmtree(final.with_name(f"superseded-{final.name}"), ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_checkpoint(args, output_dir):
    """The checkpoint to resume from, read completely, or None for a new run (see open_run)."""
    if args.resume_from_checkpoint == "latest":
        return newest_whole(output_dir)
    if args.resume_from_checkpoint:
        checkpoint = Path(args.resume_from_checkpoint)
        if not (checkpoint / "state.json").is_file():
            near = did_you_mean(checkpoint, "state.json")
            raise UserError(f"--resume_from_checkpoint {checkpoint}: no checkpoint there{near}")
        if checkpoint.resolve().parent != output_dir.resolve():
            raise UserError(f"{checkpoint} is of another run: resume it with --output_dir {checkpoint.parent}")
        return read_checkpoint(checkpoint)
    if (output_dir / "args.yaml").exists() and not args.overwrite_output_dir:
        raise UserError(
            f"{output_dir} holds a run: continue it with --resume_from_checkpoint latest, "
            "replace it with --overwrite_output_dir, or choose another --output_dir"
        )
    return None


def newest_whole(output_dir):
    """The newest readable checkpoint, or None if there are no checkpoints. Prints a line for each
    skipped one. Raises UserError if none is readable."""
    problem = None
    for path in reversed(complete_checkpoints(output_dir)):
        try:
            return read_checkpoint(path)
        except UserError as error:
            problem = error
            say(f"{error}: trying the one before")
    if problem:
        raise UserError(f"no checkpoint in {output_dir} can be read: start again with --overwrite_output_dir")
    return None
