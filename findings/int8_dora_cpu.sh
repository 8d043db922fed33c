#!/usr/bin/env bash
# PEFT 0.21.2 with bitsandbytes 0.50.2: on a CPU, an int8 model with DoRA runs forward once, and never again.
# Installs the pinned versions into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    peft==0.21.2 bitsandbytes==0.50.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
cd "$work"
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 CUDA_VISIBLE_DEVICES=
"$work/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings
from importlib.metadata import version

import torch
import transformers
from peft import LoraConfig, get_peft_model

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)  # bitsandbytes' notes on CPUs and dtypes
transformers.utils.logging.disable_progress_bar()
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
transformers.LlamaForCausalLM(config).save_pretrained("base")
ids = torch.arange(8)[None]


def forwards(bits, use_dora):
    """How many of three forward passes succeed, and the error of the next."""
    quantization = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    base = transformers.AutoModelForCausalLM.from_pretrained("base", quantization_config=quantization, device_map="cpu")
    lora = LoraConfig(r=4, target_modules=["q_proj"], use_dora=use_dora, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    for done in range(3):
        try:
            model(ids).logits.sum().backward()
        except AttributeError as error:
            return done, f"AttributeError: {error}"
    return 3, None


print(f"peft {version('peft')}, bitsandbytes {version('bitsandbytes')}, Python {sys.version.split()[0]}")
found = {}
for bits in (4, 8):
    for use_dora in (False, True):
        found[bits, use_dora] = done, error = forwards(bits, use_dora)
        print(f"{bits} bits, {'DoRA' if use_dora else 'LoRA'}: {done} of 3 forward passes", error or "")
as_found = (
    (version("peft"), version("bitsandbytes")) == ("0.21.2", "0.50.2")
    and found.pop((8, True)) == (1, "AttributeError: 'NoneType' object has no attribute 'dtype'")
    and set(found.values()) == {(3, None)}
)
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
