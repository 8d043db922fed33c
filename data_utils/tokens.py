"""Texts to token ids, and back."""

import unicodedata
from typing import NamedTuple

import numpy as np
import tokenizers

from data_utils import cache
from data_utils.tool_calls import json_equal
from run_utils.errors import UserError


def encode(tokenizer, texts):
    """Token ids of each text, int32 arrays. The text of a special token stays text, so that rows
    cannot forge one."""
    arrays = []
    # In parts: as lists, the ids of a whole data set would take gigabytes.
    for start in range(0, len(texts), 1000):
        ids = tokenizer(
            texts[start : start + 1000],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
        )["input_ids"]
        arrays += [np.array(text_ids, dtype=np.int32) for text_ids in ids]
    return arrays


def encode_prompts(tokenizer, prompts):
    """Prompt ids as in training: with the beginning-of-sequence token if the model expects one."""
    prefix = np.array([tokenizer.bos_token_id] if wants_bos(tokenizer) else [], dtype=np.int32)
    return [np.concatenate([prefix, ids]) for ids in encode(tokenizer, prompts)]


def wants_bos(tokenizer):
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def token_offsets(tokenizer, text):
    """The first character, and one past the last, of each token of a text, tokenised as in
    `encode`.

    Several tokens of one character have the same offsets. Raises UserError for a slow tokenizer."""
    if not tokenizer.is_fast:
        raise UserError(
            f"LOSS_MASK in data_utils/supervision.py needs the tokens' offsets, which the slow tokenizer "
            f"{type(tokenizer).__name__} does not have: set it to completion_only"
        )
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    return encoding["offset_mapping"]


class Encoded(NamedTuple):
    prompts: list  # int32 arrays
    completions: list
    lost: np.ndarray  # int64: completions changed by encoding and decoding
    unknown: np.ndarray  # int64: prompts with the unknown token


def encode_or_load(tokenizer, prompt_format, prompts, completions):
    specials = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id
    versions = tokenizers.__version__, *specials, tokenizer("").input_ids
    texts = (tokenizer.backend_tokenizer.to_str(), repr(versions), *prompts, *completions)
    file = cache.file_of("tokens", (text.encode() for text in texts))
    if stored := cache.load(file):
        arrays = (np.split(stored[f"{part}_ids"], stored[f"{part}_ends"][:-1]) for part in ("prompt", "completion"))
        return Encoded(*arrays, stored["lost"], stored["unknown"])
    encoded = encode_texts(tokenizer, prompt_format, prompts, completions)
    kept = {"lost": encoded.lost, "unknown": encoded.unknown}
    for part, arrays in ("prompt", encoded.prompts), ("completion", encoded.completions):
        kept[f"{part}_ids"] = np.concatenate(arrays)
        kept[f"{part}_ends"] = np.cumsum([len(ids) for ids in arrays])
    cache.save(file, kept)
    return encoded


def encode_texts(tokenizer, prompt_format, prompts, completions):
    prompt_ids, completion_ids = encode_prompts(tokenizer, prompts), encode(tokenizer, completions)
    pairs = zip(completions, completion_ids, strict=True)
    lost = [index for index, pair in enumerate(pairs) if not comes_back(tokenizer, prompt_format, *pair)]
    start, unknown = int(wants_bos(tokenizer)), []
    if tokenizer.unk_token_id is not None:
        unknown = [index for index, ids in enumerate(prompt_ids) if (ids[start:] == tokenizer.unk_token_id).any()]
    return Encoded(prompt_ids, completion_ids, *(np.array(indices, dtype=np.int64) for indices in (lost, unknown)))


def comes_back(tokenizer, prompt_format, completion, ids):
    """Whether the decoded ids are read as the completion's value. Strings are compared in NFC."""
    if tokenizer.eos_token_id in ids:
        return False  # generation stops there
    text = decode_answer(tokenizer, ids.tolist())
    if text == completion:
        return True
    try:
        return json_equal(*(prompt_format.parse(unicodedata.normalize("NFC", one)) for one in (text, completion)))
    except ValueError:
        return False


def decode_answer(tokenizer, tokens):
    """The text of generated tokens, without padding."""
    padding = tokenizer.pad_token_id  # looked up once: the attribute is slow
    return decode_tokens(tokenizer, [token for token in tokens if token != padding])


def decode_tokens(tokenizer, tokens):
    """The text of tokens. Tokens of an embedding larger than the vocabulary have no text; a slow
    tokenizer would raise an error."""
    if not tokenizer.is_fast:
        tokens = [token for token in tokens if token < len(tokenizer)]
    return tokenizer.decode(tokens)
