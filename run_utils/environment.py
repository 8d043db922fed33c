"""Where a result comes from, and how it is written down."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from run_utils.arguments import ROOT


def environment_record(**extra):
    """Where a result comes from: versions, git commit, machine, command. A dict for environment.json."""

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
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the CUDA version it was built for
        **{package: installed(package) for package in packages},
        "machine": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **extra,
    }


def write_json(path, value):
    """Write the value as indented JSON; a kill leaves the old file or the new one."""
    unfinished = Path(f"{path}.incomplete")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
