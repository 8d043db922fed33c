"""Eight rows with their answers, on which an adapter merged into its base is compared with the unmerged one."""

import json
from pathlib import Path
from typing import NamedTuple

from data_utils.tokens import encode_prompts

FILE = Path(__file__).with_name("example_rows.json")


class ExampleRow(NamedTuple):
    query: str
    tools: str  # JSON, as the answers are
    answers: str


def example_rows():
    return [ExampleRow(**record) for record in json.loads(FILE.read_text(encoding="utf-8"))]


def example_texts(tokenizer, prompt_format, rows):
    """Token ids (int32) of rows with their answers."""
    texts = [prompt_format.render(row.query, row.tools) + prompt_format.completion(row.answers) for row in rows]
    return encode_prompts(tokenizer, texts)
