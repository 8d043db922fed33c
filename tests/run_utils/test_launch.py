"""What the processes that `accelerate launch` starts make of its settings."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
SCRIPT = """
import os, torch
from run_utils.launch import start_accelerator
start_accelerator("fp32")
os.write(1, b"%d\\n" % torch.get_num_threads())  # at once: `print` of two processes can mix
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or CORES == 1, reason="reads the launcher's command line; one thread is all there is"
)
@pytest.mark.parametrize(
    ("launcher", "environment", "threads"),
    [
        ([], {}, CORES),
        ([], {"OMP_NUM_THREADS": "1"}, 1),
        (["--num_cpu_threads_per_process=1"], {}, 1),
        (["--num_processes=2"], {}, CORES // 2),
    ],
)
def test_threads_are_all_cores_or_what_was_asked_for(tmp_path, launcher, environment, threads):
    """Torch's launcher says one thread to several processes where nobody has said anything: that is not taken for a wish."""
    (tmp_path / "script.py").write_text(SCRIPT)
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    config = "cpu_2proc.yaml" if "--num_processes=2" in launcher else "cpu.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "-q",
        "--config_file",
        ROOT / "accelerate_configs" / config,
    ]
    done = subprocess.run(
        [*command, *launcher, tmp_path / "script.py"], env=clean | environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(threads)] * (2 if launcher == ["--num_processes=2"] else 1), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_precision_of_the_launcher_that_is_not_used_is_said(tmp_path, precision):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", f"--config_file={ROOT}/accelerate_configs/cpu_2proc.yaml"]  # fmt: skip
    command = [*launcher, f"--mixed_precision={precision}", tmp_path / "script.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if "--dtype decides (fp32 here)" in line]
    assert len(said) == (precision == "bf16"), done.stderr
