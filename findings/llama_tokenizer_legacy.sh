#!/usr/bin/env bash
# transformers 5.23.0: LlamaTokenizer.save_pretrained drops "legacy": true, so the saved tokenizer encodes a prompt differently.
# Installs the pinned version into a temporary folder and exits with 1 if the behaviour differs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
cd "$work"
export HF_HOME="$work/home" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import sys

import sentencepiece
import transformers

pathlib.Path("text.txt").write_text("\n".join(f"Is it raining in city number {i}?" for i in range(200)))
pathlib.Path("base").mkdir()
sentencepiece.SentencePieceTrainer.train(
    input="text.txt", model_prefix="base/tokenizer", vocab_size=320, model_type="bpe", byte_fallback=True, minloglevel=2
)
config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
pathlib.Path("base/tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))

tokenizer = transformers.AutoTokenizer.from_pretrained("base")
tokenizer.save_pretrained("saved")
saved = transformers.AutoTokenizer.from_pretrained("saved")
text = "<s>Is it raining?"  # as a chat template writes it
before, after = (one.tokenize(text) for one in (tokenizer, saved))
keys = json.loads(pathlib.Path("saved/tokenizer_config.json").read_text()).keys()

print(f"transformers {transformers.__version__}, Python {sys.version.split()[0]}")
print("legacy: of the base", tokenizer.legacy, "of the saved", saved.legacy, "in the saved file", "legacy" in keys)
print("tokens of the base: ", before[:4])
print("tokens of the saved:", after[:4])
as_found = (
    transformers.__version__ == "5.23.0"
    and (tokenizer.legacy, saved.legacy, "legacy" in keys) == (True, False, False)
    and before[1] == "▁" + after[1]
)
print("as found" if as_found else "NOT as found: look at findings/README.md again")
sys.exit(not as_found)
PYTHON
