"""Fixtures: a random two-layer Qwen3 with a tokenizer, demo rows, and runs of the real scripts."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # set before huggingface_hub reads it; the scripts inherit it
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # only the CPU repeats a run bit for bit

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from filelock import FileLock
from transformers import Qwen3Config, Qwen3ForCausalLM

import train
from data_utils.prompt import PROMPT_FORMATS
from demo.model import build_tokenizer
from demo.rows import generate_rows
from eval_utils.folder import read_predictions
from model_utils import kept_checks
from run_utils import errors
from run_utils.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent
TAGS = PROMPT_FORMATS["tags-1"]
EXACT_TAGS = (  # curves that a resumed run repeats bit for bit
    *("train/loss", "train/grad_norm", "train/learning_rate", "train/completion_tokens", "train/epoch"),
    *("train/num_tokens", "eval/loss", "eval/token_accuracy", "eval/best_loss"),
    *("eval/loss_values", "eval/accuracy_names", "eval/entropy_end"),
)
hypothesis.settings.load_profile("ci")  # the same examples in each run


@pytest.fixture(autouse=True)
def no_kept_checks(monkeypatch, tmp_path_factory):
    """Check models anew in each test. A test may plant a fault, and its model passed without it."""
    monkeypatch.setattr(kept_checks, "HF_HOME", tmp_path_factory.mktemp("hf_home"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random two-layer float32 Qwen3. The tokenizer pads with its end token."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = build_tokenizer([row["query"] + row["tools"] for row in generate_rows(300, seed=1)], 1000)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        # With 0.02, random models generate the same text for any prompt.
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """84 valid rows: 80 to train on and 4 held out at --eval_fraction 0.05."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate_rows(84, seed=2)))
    return path


@pytest.fixture
def flags(tiny_model, rows_file, tmp_path):
    """Flags of a small exact run, a dict for tests to change: no dropout, logs at each step."""
    return {
        "model_name_or_path": tiny_model,
        "dataset_name": rows_file,
        "output_dir": tmp_path / "run",
        "quantization": "none",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0,
        "learning_rate": 1e-2,
        "max_seq_length": 2048,
        "gradient_checkpointing": "false",
        "logging_steps": 1,
        "eval_steps": 1000,
        "save_steps": 1000,
    }


def command_line(flags):
    line = []
    for name, value in flags.items():
        line += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return line


class Result:
    """A script's exit code, stdout and stderr."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run_here(capsys, monkeypatch):
    """`run_here(module, flags)` runs a script's `main` in this process: imports would take 10 s."""

    def run(module, flags):
        argv = flags if isinstance(flags, list) else command_line(flags)
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *argv])
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        code = 0
        try:
            errors.run_script(lambda: module.main(module.parse()))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        # Each load of the demo's rows prints the first line. Tests of load_rows cover the other
        # lines. Before long work there is a line such as "Loading the model demo/base ...".
        dull = re.compile(r": rows without calls: |^[A-Z][^:]*[^,] \.\.\.$")
        return Result(code, out, "".join(line for line in err.splitlines(True) if not dull.search(line)))

    return run


@pytest.fixture
def train_here(run_here):
    """Train in this process and return the output folder; fails the test if the run fails."""

    def run(flags):
        result = run_here(train, flags)
        assert result.code == 0, result.err
        return Path(flags["output_dir"])

    return run


def launch_command(script, flags, processes=1, config=None):
    config = config or ("cpu.yaml" if processes == 1 else "cpu_2proc.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", f"--num_processes={processes}"]
    return [*launcher, "--config_file", str(ROOT / "accelerate_configs" / config), script, *command_line(flags)]


def launch(script, flags, processes=1, config=None):
    """Run `accelerate launch script` in the repository's root."""
    done = subprocess.run(launch_command(script, flags, processes, config), cwd=ROOT, capture_output=True, text=True)
    # An abort at exit can leave any exit code.
    assert "terminate called" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo_adapter(tmp_path_factory, worker_id):
    """The demo's base after 40 steps: most of its answers are right. Copy it to change it. All
    workers of pytest-xdist share one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo_run"
    flags = {"config": ROOT / "recipes" / "demo.yaml", "output_dir": folder}
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            result = launch("train.py", flags | {"max_train_steps": 40, "max_eval_examples": 8})
            assert result.code == 0, result.err
            (folder / "finished").touch()
    return folder / "adapter"


def launch_and_kill(script, flags, reached, log, processes=1, seconds=0, config=None):
    """Launch a run and SIGKILL its launcher and processes `seconds` after `reached()` is true.

    stdout and stderr are written to the file `log`. Returns False if the run ended before the kill.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            launch_command(script, flags, processes, config),
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 600
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline, "`reached()` was never true"
        time.sleep(0.002)
    time.sleep(seconds)
    # Each process has its own session. The launcher is last: its end sends SIGTERM to the rest.
    processes = [*reversed(descendants(process.pid)), process.pid]
    for pid in processes if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL), log.read_text()
    while any(is_running(pid) for pid in processes):
        time.sleep(0.01)
    return process.returncode != 0


def descendants(pid):
    try:
        tasks = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    children = [int(child) for text in tasks for child in text.split()]
    return [*children, *(pid for child in children for pid in descendants(child))]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def texts_by_system(folder):
    """`{system: {row id: text}}` of an evaluation's folder, of the data set's own rows."""
    texts = {}
    for prediction in read_predictions(folder / "predictions.jsonl"):
        if "set" in prediction:
            continue
        texts.setdefault(prediction["system"], {})[prediction["id"]] = prediction["text"]
    return texts


def curve(output_dir, tag):
    """`[(step, value), ...]` of a figure or a text, in the order written."""
    entries = read_metrics(Path(output_dir) / "metrics.jsonl")
    return [(entry["step"], entry[tag]) for entry in entries if tag in entry]


def values(output_dir, tag):
    return torch.tensor([value for _, value in curve(output_dir, tag)], dtype=torch.float64)


def first_moments(checkpoint):
    """Adam's first moment of each parameter: after one step, a tenth of the clipped gradient."""
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return [state[i]["exp_avg"] for i in sorted(state)]


def read_args(folder):
    return yaml.safe_load((Path(folder) / "args.yaml").read_text())


def leave_out(projection, monkeypatch):
    """Leave the projection out of each merge by PEFT."""
    from peft.tuners.lora import LoraModel  # late: peft loads for seconds

    merge_and_unload = LoraModel.merge_and_unload

    def merge_the_others(model):
        for name, module in model.named_modules():
            if hasattr(module, "lora_B") and name.endswith(projection):
                torch.nn.init.zeros_(module.lora_B["default"].weight)
        return merge_and_unload(model)

    monkeypatch.setattr(LoraModel, "merge_and_unload", merge_the_others)
