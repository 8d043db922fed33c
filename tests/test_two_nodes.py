"""Two machines as two network namespaces of this one: real rendezvous and gloo on their network."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import EXACT_TAGS, ROOT, command_line, curve, descendants, launch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
NODES = [("tool-calls-0", "10.77.0.1"), ("tool-calls-1", "10.77.0.2")]


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True)


@pytest.fixture
def network():
    """Two connected network namespaces. Skips without root, its capabilities or iproute2."""
    try:
        for name, _ in NODES:
            ip("netns", "delete", name, check=False)  # left by a killed test
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", NODES[0][0], "type", "veth", "peer", "name", "eth0", "netns", NODES[1][0])
        for name, address in NODES:
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield
    for name, _ in NODES:
        ip("netns", "delete", name, check=False)


def start(node, flags, log):
    """`accelerate launch` on one node with the command in the launch file's header."""
    name, _ = NODES[node]
    config = ROOT / "accelerate_configs" / "multi_node.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--config_file", config]
    topology = ["--num_machines=2", "--num_processes=2", f"--machine_rank={node}", f"--main_process_ip={NODES[0][1]}"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *launcher, *topology, "train.py", *command_line(flags)],
        cwd=ROOT, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def train_on_both(flags, folder, second_flags=None):
    logs = [folder / f"node{node}.log" for node in (0, 1)]
    nodes = [start(0, flags, logs[0]), start(1, flags | (second_flags or {}), logs[1])]
    return nodes, logs


def test_a_run_resumes_after_a_node_dies(network, flags, rows_file, tmp_path):
    flags |= {"max_train_steps": 40, "save_steps": 3, "eval_steps": 3, "per_device_train_batch_size": 2,
              "gradient_accumulation_steps": 1, "lora_dropout": 0.1}  # fmt: skip
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert launch("train.py", flags | {"output_dir": straight}, 2).code == 0

    flags |= {"output_dir": killed}
    nodes, logs = train_on_both(flags, tmp_path)
    deadline = time.monotonic() + 300
    while not (killed / "checkpoint-3").exists():
        assert time.monotonic() < deadline and nodes[0].poll() is None, logs[0].read_text()
        time.sleep(0.01)
    for pid in [*reversed(descendants(nodes[1].pid)), nodes[1].pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert nodes[1].wait(60) == -signal.SIGKILL
    # The other node ends with one error line instead of waiting forever.
    assert nodes[0].wait(120) not in (0, None)
    errors = [line for line in logs[0].read_text().splitlines() if line.startswith("train.py: ")]
    assert (
        len(errors) == 1 and "lost another process" in errors[0] and "--resume_from_checkpoint latest" in errors[0]
    ), errors
    assert "Traceback" not in logs[0].read_text().split("train.py: ")[0]

    # each machine may have its own path
    copy = shutil.copy(rows_file, tmp_path / "copy.jsonl")
    resumed = flags | {"resume_from_checkpoint": "latest"}
    nodes, logs = train_on_both(resumed, tmp_path, second_flags={"dataset_name": copy})
    assert [node.wait(300) for node in nodes] == [0, 0], [log.read_text() for log in logs]
    assert "Resuming from" in logs[0].read_text() and "Resuming from" not in logs[1].read_text()
    for tag in EXACT_TAGS:
        assert curve(killed, tag)[-len(curve(straight, tag)) :] == curve(straight, tag), tag
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (killed, straight))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    nodes, logs = train_on_both(resumed, tmp_path)
    assert [node.wait(60) for node in nodes] == [0, 0] and "is finished" in logs[0].read_text()


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"learning_rate": 1e-5}, "--learning_rate: 0.01 on process 0, 1e-05 on process 1"),
        ({"eval_steps": 2}, "--eval_steps: 1000 on process 0, 2 on process 1"),
        ({"dataset_name": "demo"}, "their training rows: "),
    ],
)
def test_machines_with_different_arguments_or_rows_are_refused(network, flags, tmp_path, other, difference):
    """They would train two adapters and save one, or wait for each other forever."""
    assert_refused(flags, tmp_path, other, difference)


def test_machines_with_different_evaluation_rows_are_refused(network, flags, rows_file, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for path, line in zip((first, second), rows_file.read_text().splitlines(), strict=False):
        path.write_text(json.dumps(json.loads(line) | {"id": "held out", "query": "In neither training set?"}))
    assert_refused(
        flags | {"eval_dataset_name": first}, tmp_path, {"eval_dataset_name": second}, "their evaluation rows: "
    )


def assert_refused(flags, tmp_path, other, difference):
    nodes, logs = train_on_both(flags | {"max_train_steps": 4}, tmp_path, second_flags=other)
    assert [node.wait(120) for node in nodes] == [1, 1], [log.read_text() for log in logs]
    assert f"train.py: error: the processes differ in {difference}" in logs[0].read_text()
    assert not flags["output_dir"].exists()
