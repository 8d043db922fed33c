"""Eight rows with answers, to compare a merged model with the unmerged adapter, and difficult texts
to compare tokenizers with."""

import itertools
import json
from pathlib import Path

from data_utils.rows import Row
from data_utils.tokens import encode_prompts

FILE = Path(__file__).with_name("example_rows.json")
# Texts that tokenizers normalise, split or join differently.
DIFFICULT_TEXTS = Path(__file__).with_name("difficult_texts.json")


def difficult_rows(words, count):
    """`count` example rows with difficult texts around their queries.

    words: further texts, such as a tokenizer's special tokens."""
    texts = [*json.loads(DIFFICULT_TEXTS.read_text(encoding="utf-8")), *words, *(f" {word} " for word in words)]
    pairs = itertools.islice(itertools.product(example_rows(), texts), count)
    return [row._replace(query=f"{text}{row.query}{text}") for row, text in pairs]


def example_rows():
    records = json.loads(FILE.read_text(encoding="utf-8"))
    return [Row(f"example {number}", **record) for number, record in enumerate(records, start=1)]


def example_texts(tokenizer, prompt_format, rows):
    """Token ids (int32) of the prompts and answers of rows."""
    texts = ["".join(prompt_format.texts(row)) for row in rows]
    return encode_prompts(tokenizer, texts, prompt_format.end_token)
