"""Two machines, as two network namespaces of this one: real rendezvous and real gloo over their own network."""

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
    """Two namespaces, joined by a cable. Not where namespaces may not be made: that needs root, its capabilities and iproute2."""
    try:
        for name, _ in NODES:
            ip("netns", "delete", name, check=False)  # of a test that was killed
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
    """`accelerate launch` on one node, as the launch file's header says it."""
    name, _ = NODES[node]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--config_file", ROOT / "accelerate_configs" / "multi_node.yaml"]  # fmt: skip
    where = ["--num_machines=2", "--num_processes=2", f"--machine_rank={node}", f"--main_process_ip={NODES[0][1]}"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *launcher, *where, "train.py", *command_line(flags)],
        cwd=ROOT, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def train_on_both(flags, folder, on_the_second=None):
    logs = [folder / f"node{node}.log" for node in (0, 1)]
    nodes = [start(0, flags, logs[0]), start(1, flags | (on_the_second or {}), logs[1])]
    return nodes, logs


def test_a_node_dies_and_the_run_goes_on(network, flags, rows_file, tmp_path):
    flags |= {"max_train_steps": 40, "save_steps": 3, "eval_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
              "lora_dropout": 0.1}  # fmt: skip
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
    # The other node notices, says so in one line of its own, and does not wait for ever.
    assert nodes[0].wait(120) not in (0, None)
    said = [line for line in logs[0].read_text().splitlines() if line.startswith("train.py: ")]
    assert len(said) == 1 and "lost another process" in said[0] and "--resume_from_checkpoint latest" in said[0], said
    assert "Traceback" not in logs[0].read_text().split("train.py: ")[0]

    copy = shutil.copy(rows_file, tmp_path / "copy.jsonl")  # each machine may have the rows in a place of its own
    resumed = flags | {"resume_from_checkpoint": "latest"}
    nodes, logs = train_on_both(resumed, tmp_path, on_the_second={"dataset_name": copy})
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
def test_machines_with_other_arguments_or_rows_are_refused(network, flags, tmp_path, other, difference):
    """They would train two adapters, of which one is saved, or wait for each other for ever."""
    assert_refused(flags, tmp_path, other, difference)


def test_machines_with_other_evaluation_rows_are_refused(network, flags, rows_file, tmp_path):
    mine, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    for path, line in zip((mine, other), rows_file.read_text().splitlines(), strict=False):
        path.write_text(json.dumps(json.loads(line) | {"id": "held out", "query": "In neither training set?"}))
    assert_refused(
        flags | {"eval_dataset_name": mine}, tmp_path, {"eval_dataset_name": other}, "their evaluation rows: "
    )


def assert_refused(flags, tmp_path, other, difference):
    nodes, logs = train_on_both(flags | {"max_train_steps": 4}, tmp_path, on_the_second=other)
    assert [node.wait(120) for node in nodes] == [1, 1], [log.read_text() for log in logs]
    assert f"train.py: error: the processes differ in {difference}" in logs[0].read_text()
    assert not flags["output_dir"].exists()
