"""Texts to token ids, and back."""

import functools
import json
import re
import unicodedata
from typing import NamedTuple

import numpy as np
import tokenizers

from data_utils import cache
from data_utils.prompt import to_json
from data_utils.tool_calls import json_equal

try:
    from transformers.utils.chat_template_utils import mark_control_tokens
except ImportError:  # an older transformers: chat_format.py refuses the format
    mark_control_tokens = None

# Around the text of a special token that is a row's content, in a text of a chat template.
_PAIR = mark_control_tokens("x", re.compile("x")).split("x") if mark_control_tokens else None
MARKS = re.compile("[{}{}]".format(*_PAIR) if _PAIR else "(?!)")


def encode(tokenizer, texts, end_token=None):
    """Token ids of each text, int32 arrays. The text of a special token stays text, so that rows
    cannot forge one.

    end_token: of a chat format, if there is one: the texts hold its template's special tokens, and
    the rows' texts of such tokens have MARKS."""
    if end_token:
        return encode_rendered(tokenizer, texts)
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


def encode_rendered(tokenizer, texts):
    """Token ids of texts of a chat template, which has the beginning-of-sequence token if the model
    expects one."""
    arrays = []
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        ids = tokenizer([MARKS.sub("", text) for text in part], add_special_tokens=False)["input_ids"]
        for place, text in enumerate(part):
            if MARKS.search(text):
                ids[place] = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"]
        arrays += [np.array(text_ids, dtype=np.int32) for text_ids in ids]
    return arrays


def marked(tokenizer, value):
    """A JSON value with MARKS around the text of special tokens, in keys too."""
    text, special = to_json(value), special_tokens(tokenizer)
    if not special.search(text) and not MARKS.search(text):
        return value
    return json.loads(mark_control_tokens(text, special))  # without the text's own MARKS


@functools.lru_cache(maxsize=8)
def special_tokens(tokenizer):
    """A pattern of the text of any special token, the longest first."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def end_token_id(tokenizer, prompt_format):
    """The token that ends an answer."""
    if prompt_format.end_token:
        return tokenizer.convert_tokens_to_ids(prompt_format.end_token)
    return tokenizer.eos_token_id


def encode_prompts(tokenizer, prompts, end_token=None):
    """Prompt ids as in training: with the beginning-of-sequence token if the model expects one.
    end_token: see `encode`."""
    if end_token:
        return encode(tokenizer, prompts, end_token)
    prefix = np.array([tokenizer.bos_token_id] if wants_bos(tokenizer) else [], dtype=np.int32)
    return [np.concatenate([prefix, ids]) for ids in encode(tokenizer, prompts)]


def wants_bos(tokenizer):
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def token_offsets(tokenizer, text, end_token=None):
    """The ids of a text, tokenised as in `encode`, and the first character, and one past the last,
    of each token.

    Several tokens of one character have the same offsets. Raises ValueError for a slow
    tokenizer."""
    if not tokenizer.is_fast:
        raise ValueError(f"the slow tokenizer {type(tokenizer).__name__} has no offsets of tokens")
    options = {} if end_token else {"split_special_tokens": True}
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
    return encoding["input_ids"], encoding["offset_mapping"]


class Encoded(NamedTuple):
    prompts: list  # int32 arrays
    completions: list
    lost: np.ndarray  # int64: completions changed by encoding and decoding
    unknown: np.ndarray  # int64: prompts with the unknown token


def encode_or_load(tokenizer, prompt_format, prompts, completions):
    specials = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id
    versions = tokenizers.__version__, *specials, tokenizer("").input_ids
    versions += (prompt_format.end_token,) if prompt_format.end_token else ()
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
    prompt_ids = encode_prompts(tokenizer, prompts, prompt_format.end_token)
    completion_ids = encode_completions(tokenizer, prompts, completions, prompt_format.end_token)
    pairs = zip(completions, completion_ids, strict=True)
    lost = [index for index, pair in enumerate(pairs) if not comes_back(tokenizer, prompt_format, *pair)]
    start, unknown = int(wants_bos(tokenizer)), []
    if tokenizer.unk_token_id is not None:
        unknown = [index for index, ids in enumerate(prompt_ids) if (ids[start:] == tokenizer.unk_token_id).any()]
    return Encoded(prompt_ids, completion_ids, *(np.array(indices, dtype=np.int64) for indices in (lost, unknown)))


def encode_completions(tokenizer, prompts, completions, end_token=None):
    """Token ids of each completion. After a template's prompt, they are the rest of the whole
    text's ids, unless the tokenizer joins the end of the prompt and the beginning of the
    completion: generation begins after the prompt's own ids. end_token: see `encode`."""
    if not end_token:
        return encode(tokenizer, completions)
    # A special token separates the ids of its sides.
    contexts = [special_tokens(tokenizer).split(prompt)[-1] for prompt in prompts]
    texts = [context + completion for context, completion in zip(contexts, completions, strict=True)]
    starts, wholes = (encode(tokenizer, part, end_token) for part in (contexts, texts))
    return [
        ids[len(start) :] if np.array_equal(ids[: len(start)], start) else encode(tokenizer, [text], end_token)[0]
        for ids, start, text in zip(wholes, starts, completions, strict=True)
    ]


def comes_back(tokenizer, prompt_format, completion, ids):
    """Whether the decoded ids are read as the completion's value and words, in NFC."""
    if tokenizer.eos_token_id in ids or end_token_id(tokenizer, prompt_format) in ids:
        return False  # generation stops there
    text = decode_answer(tokenizer, ids.tolist())
    if text == completion:
        return True
    texts = [unicodedata.normalize("NFC", spelled) for spelled in (text, completion)]
    try:
        return json_equal(*([prompt_format.parse(text), prompt_format.words(text)] for text in texts))
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
