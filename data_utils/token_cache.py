"""Tokenised data sets on disk, so that only the first run over 60,000 rows waits for the tokenizer.

A file's name is a hash of the rendered texts themselves and of the tokenizer and its library: an edited prompt, other rows
or another tokenizer never find an old file.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import tokenizers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

VERSION = 1  # to be raised with every change to how `batching.encode` calls the tokenizer
FROM_TEXTS = 2000  # fewer are tokenised in a second


def load(path):
    """`(prompt ids, completion ids)`, a list of int32 arrays each, or None where they have to be made."""
    if path is None or not path.is_file():
        return None
    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return None
    return tuple(
        np.split(stored[f"{part}_ids"], np.cumsum(stored[f"{part}_lengths"])[:-1]) for part in ("prompt", "completion")
    )


def save(path, encoded):
    """Keep what `load` returns; `path` is from `file_of`."""
    if path is None:
        return
    tensors = {}
    for part, arrays in zip(("prompt", "completion"), encoded, strict=True):
        tensors[f"{part}_ids"] = np.concatenate(arrays)
        tensors[f"{part}_lengths"] = np.array([len(ids) for ids in arrays])
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError):  # a full or read-only disk costs the cache and nothing else
        unfinished.unlink(missing_ok=True)


def file_of(tokenizer, prompts, completions):
    """Where the ids of these texts are kept, or None for those that are not: too few, or a tokenizer that is Python."""
    if len(prompts) < FROM_TEXTS or not tokenizer.is_fast:
        return None
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr((VERSION, tokenizers.__version__, tokenizer.bos_token_id, tokenizer("").input_ids)).encode())
    for text in (*prompts, *completions):
        digest.update(hashlib.sha256(text.encode()).digest())
    return Path(HF_HOME) / "tool_call_tokens" / f"{digest.hexdigest()[:32]}.safetensors"
