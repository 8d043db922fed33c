"""docs/first_hour.md, typed from its first command to its last. About 10 minutes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

STEP = re.compile(r"^## (\d+\. .*?)$(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
# A block of commands, or the output after a paragraph that begins with "You will see".
BLOCK = re.compile(r"(You will see(?:(?!```|\n\n).)*\n\n)?```\n(.*?)```", re.DOTALL)
SERVERS = {"tensorboard": ("6006", "/"), "transformers serve": ("8000", "/health")}


@pytest.fixture
def clone(tmp_path):
    """The files of the repository in an empty folder, with this environment."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return tmp_path


@pytest.fixture
def servers():
    """Processes to kill at the end, with their children."""
    processes = []
    yield processes
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_each_command_of_the_first_hour_prints_its_output(clone, servers):
    page = (ROOT / "docs" / "first_hour.md").read_text()
    ports = {port: free_port() for port, _ in SERVERS.values()}
    for port, free in ports.items():
        page = page.replace(f"localhost:{port}", f"localhost:{free}")
    steps = STEP.findall(page)
    assert [title.split(".")[0] for title, _ in steps] == [str(number) for number in range(1, 11)]
    for title, text in steps:
        output = ""
        for after, block in BLOCK.findall(text):
            if after:
                check_output(output, block, title)
            elif server := next((name for name in SERVERS if f"{name} " in block), None):
                port, path = SERVERS[server]
                servers.append(start(f"{block.strip()} --port {ports[port]}", clone))
                wait_for(f"http://localhost:{ports[port]}{path}", servers[-1], clone)
            else:
                done = run(block, clone)
                output = done.stdout
                assert done.returncode == 0, f"{title}\n{output}"


def environment():
    return os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}


def run(commands, folder):
    return subprocess.run(
        ["bash", "-e"], input=commands, cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200,
    )  # fmt: skip


def start(commands, folder):
    log = (folder / "server.log").open("w")
    return subprocess.Popen(
        ["bash", "-e", "-c", commands], cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
    )


def wait_for(url, process, folder):
    deadline = time.monotonic() + 300
    while subprocess.run(["curl", "-sf", url], capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
        time.sleep(0.5)


def check_output(output, expected, title):
    """Every line of `expected` is in `output`, in this order; `...` stands for any text."""
    place = 0
    for line in filter(lambda line: line != "...", expected.splitlines()):
        found = re.compile(".*".join(map(re.escape, line.split("...")))).search(output, place)
        assert found, f"{title}: no line {line!r} in\n{output[place:]}"
        place = found.end()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
