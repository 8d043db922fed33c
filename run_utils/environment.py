"""The record of a result's origin."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from run_utils.arguments import ROOT
from run_utils.redaction import redact_command


def environment_record(**extra):
    """A result's origin as a dict for environment.json: versions, git commit, machine, command."""

    def installed(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    packages = ["accelerate", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers", "safetensors"]
    return {
        "command": redact_command(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its CUDA version
        **{package: installed(package) for package in packages},
        "machine": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **extra,
    }
