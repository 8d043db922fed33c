#!/usr/bin/env bash
# bitsandbytes 0.50.2: on a CPU, AdamW8bit moves weights whose gradient has always been 0, if they share a block with others.
# Installs the pinned versions into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check bitsandbytes==0.50.2 torch==2.13.0
cd "$work"
CUDA_VISIBLE_DEVICES= "$work/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings
from importlib.metadata import version

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import bitsandbytes
import torch


def still_part(optimizer_class, **options):
    """The largest change of the half of a matrix whose gradient is 0, and the other half's, after 200 steps."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(128, 64))
    start = weight.detach().clone()
    optimizer = optimizer_class([weight], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(200):
        weight.grad = torch.randn(128, 64)
        weight.grad[:, 32:] = 0
        optimizer.step()
    change = (weight.detach() - start).abs()
    return change[:, 32:].max().item(), change[:, :32].max().item()


print(f"bitsandbytes {version('bitsandbytes')}, torch {torch.__version__}, Python {sys.version.split()[0]}")
found = {}
for name, optimizer_class, options in (
    ("torch AdamW", torch.optim.AdamW, {}),
    ("bitsandbytes AdamW, 32 bits", bitsandbytes.optim.AdamW, {}),
    ("bitsandbytes AdamW8bit", bitsandbytes.optim.AdamW8bit, {"min_8bit_size": 4096}),
):
    found[name] = still_part(optimizer_class, **options)
    print(f"{name}: the half without a gradient moves by up to {found[name][0]:.1e}, the other by {found[name][1]:.1e}")
still = [still for still, _ in found.values()]
as_found = version("bitsandbytes") == "0.50.2" and still[:2] == [0, 0] and still[2] > 1e-5
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
