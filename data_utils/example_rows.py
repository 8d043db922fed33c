"""Eight rows with answers, to compare a merged model with the unmerged adapter."""

import json
from pathlib import Path
from typing import NamedTuple

from data_utils.tokens import encode_prompts

FILE = Path(__file__).with_name("example_rows.json")


class ExampleRow(NamedTuple):
    query: str
    tools: str  # JSON text, like the answers
    answers: str


def example_rows():
    return [ExampleRow(**record) for record in json.loads(FILE.read_text(encoding="utf-8"))]


def example_texts(tokenizer, prompt_format, rows):
    """Token ids (int32) of the prompts and answers of rows."""
    texts = [prompt_format.render(row.query, row.tools) + prompt_format.completion(row.answers) for row in rows]
    return encode_prompts(tokenizer, texts)
