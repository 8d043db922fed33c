"""The prompt and its answer as a conversation with tools, for servers: what an exported tokenizer carries."""

import re
from pathlib import Path

from data_utils.prompt import PROMPT_FORMATS, to_json
from data_utils.tokens import encode_prompts, wants_bos
from data_utils.tool_formats import TABLES

TEMPLATES = {"tags-1": Path(__file__).with_name("chat_template.jinja")}  # by prompt format

# JSON as the regex module's recursive patterns; `call` is what training writes.
JSON = r"""(?(DEFINE)
(?P<text>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")
(?P<object>\{\s*+(?:(?&text)\s*+:(?&value)(?:,\s*+(?&text)\s*+:(?&value))*+)?\})
(?P<value>\s*+(?:(?&object)|\[(?:(?&value)(?:,(?&value))*+|\s*+)\]|(?&text)|-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][+-]?\d++)?|true|false|null)\s*+)
(?P<call>\{\s*+"name"\s*+:\s*+(?&text)\s*+,\s*+"arguments"\s*+:\s*+(?&object)\s*+\})
)""".replace("\n", "")
CALL = r'\{\s*+"name"\s*+:\s*+"(?P<name>[^"\\\x00-\x1f]*+)"\s*+,\s*+"arguments"\s*+:\s*+(?P<arguments>(?&object))'


def template_text(name):
    """The chat template of a prompt format, with the tables of data_utils/tool_formats.py written before its macros."""
    tables = "".join(f"{{%- set {table} = {to_json(value)} -%}}\n" for table, value in TABLES.items())
    return tables + TEMPLATES[name].read_text(encoding="utf-8")


def chat_template(tokenizer, name):
    """The chat template of a prompt format, whose token ids are training's: after a BOS where training had one, and the blank
    that SentencePiece puts before a text but not behind a BOS. ValueError for a tokenizer that neither suits."""
    template = template_text(name)
    messages = [{"role": "user", "content": "Is it raining in Rome?"}]
    (wanted,) = encode_prompts(tokenizer, [PROMPT_FORMATS[name].render(messages[0]["content"], "[]")])
    for start in ("{{- bos_token -}}\n", '{{- bos_token ~ " " -}}\n') if wants_bos(tokenizer) else ("",):
        ids = tokenizer.apply_chat_template(
            messages, tools=[], chat_template=start + template, add_generation_prompt=True, return_dict=False
        )
        if ids == wanted.tolist():
            return start + template
    raise ValueError("the tokenizer reads the prompt in a chat template otherwise than training did")


def response_template(tokenizer):
    """How `tokenizer.parse_response` and `transformers serve` read an answer: a whole list of calls as `tool_calls`, their arguments
    as the model wrote them; anything else, an empty list or one cut short too, as `content`."""
    end = tokenizer.eos_token
    whole_list = rf"(?=(?&call)(?:\s*+,\s*+(?&call))*+\s*+\]\s*+(?:{re.escape(end)})?+\s*+$)"
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "<answer>\n",
        "fields": {
            "tool_calls": {
                # The first call where all of the list is well formed, each further one right behind the comma before it.
                "open_pattern": rf"{JSON}(?:^\s*+\[\s*+{whole_list}|(?<=\}}\s*,\s*)\G){CALL}",
                "close_pattern": r"\}\s*+(?:,\s*+|\])",
                "repeats": True,
                "content": "text",  # nothing: all is in the pattern's groups
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            },
            "content": {"close": end, "content": "text"},
        },
    }


if __name__ == "__main__":
    print(template_text("tags-1"))
