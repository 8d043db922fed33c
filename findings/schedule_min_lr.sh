#!/usr/bin/env bash
# transformers 5.23.0: the rate at the end of a schedule, min_lr or lr_end, holds only for groups at the optimizer's default rate.
# Installs the pinned versions into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 numpy
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers

STEPS, END = 100, 2e-5
RATES = 1e-4, 1.6e-3  # of A and of B, for LoRA+ with a ratio of 16


def end_rates(make_schedule, rates=RATES, **default):
    """The rates of an optimizer's groups after STEPS steps."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.AdamW(groups, **default)
    schedule = make_schedule(optimizer)
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
    return [float(f"{group['lr']:.3g}") for group in optimizer.param_groups]


def by_name(name, **words):
    return lambda optimizer: transformers.get_scheduler(
        name, optimizer, num_warmup_steps=0, num_training_steps=STEPS, scheduler_specific_kwargs=words
    )


cosine, polynomial = by_name("cosine_with_min_lr", min_lr=END), by_name("polynomial", lr_end=END)
print(f"transformers {transformers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print(f"two groups, {RATES[0]:g} and {RATES[1]:g} at the start, to end at {END:g}. They end at:")
found = {
    "torch's CosineAnnealingLR, eta_min": end_rates(lambda it: torch.optim.lr_scheduler.CosineAnnealingLR(it, STEPS, END)),
    "cosine_with_min_lr, AdamW(groups, lr=1e-4)": end_rates(cosine, lr=1e-4),
    "polynomial, AdamW(groups, lr=1e-4)": end_rates(polynomial, lr=1e-4),
    "cosine_with_min_lr, AdamW(groups)": end_rates(cosine),
    "polynomial, AdamW(groups)": end_rates(polynomial),
}
for name, rates in found.items():
    print(f"  {name}: {rates}")
as_found = transformers.__version__ == "5.23.0" and list(found.values()) == [
    [END, END],
    *[[END, 3.2e-4]] * 2,  # 16 * END
    *[[2e-6, 3.2e-5]] * 2,  # a tenth: the default rate of AdamW is 1e-3
]
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
