"""Chat templates and response templates for servers. Export saves them with the tokenizer."""

import re
from pathlib import Path

from data_utils.chat_turns import THOUGHT
from data_utils.prompt import PROMPT_FORMATS, to_json
from data_utils.tokens import encode_prompts, wants_bos
from data_utils.tool_formats import TABLES

TEMPLATES = {"tags-1": Path(__file__).with_name("chat_template.jinja")}  # by prompt format

# By the two hexadecimal digits of its code.
CHARACTERS = {f"{code:02X}": chr(code) for code in range(32, 127)}

# JSON as recursive patterns of the regex module. `call` is a call as training writes it.
JSON = r"""(?(DEFINE)
(?P<text>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")
(?P<object>\{\s*+(?:(?&text)\s*+:(?&value)(?:,\s*+(?&text)\s*+:(?&value))*+)?\})
(?P<value>\s*+(?:(?&object)|\[(?:(?&value)(?:,(?&value))*+|\s*+)\]|(?&text)|-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][+-]?\d++)?|true|false|null)\s*+)
(?P<call>\{\s*+"name"\s*+:\s*+(?&text)\s*+,\s*+"arguments"\s*+:\s*+(?&object)\s*+\})
)""".replace("\n", "")
CALL = r'\{\s*+"name"\s*+:\s*+"(?P<name>[^"\\\x00-\x1f]*+)"\s*+,\s*+"arguments"\s*+:\s*+(?P<arguments>(?&object))'


def template_text(name):
    """The chat template of a prompt format, with the tables of data_utils/tool_formats.py in
    front."""
    tables = TABLES | {"characters": CHARACTERS}
    lines = [f"{{%- set {table} = {to_json(value)} -%}}\n" for table, value in tables.items()]
    return "".join(lines) + TEMPLATES[name].read_text(encoding="utf-8")


def chat_template(tokenizer, name):
    """The chat template of a prompt format, which gives the token ids of training.

    It starts with a BOS if training used one, and adds the space that SentencePiece puts before a
    text but not after a BOS. Raises ValueError if the token ids differ both with and without the
    space."""
    template = template_text(name)
    messages = [{"role": "user", "content": "Is it raining in Rome?"}]
    (wanted,) = encode_prompts(tokenizer, [PROMPT_FORMATS[name].render(messages[0]["content"], "[]")])
    for start in ("{{- bos_token -}}\n", '{{- bos_token ~ " " -}}\n') if wants_bos(tokenizer) else ("",):
        ids = tokenizer.apply_chat_template(
            messages, tools=[], chat_template=start + template, add_generation_prompt=True, return_dict=False
        )
        if ids == wanted.tolist():
            return start + template
    raise ValueError("the tokenizer encodes a chat template's prompt differently than training did")


def response_template(tokenizer):
    """How `tokenizer.parse_response` and `transformers serve` read an answer.

    A complete list of calls becomes `tool_calls`, with the arguments as the model wrote them. Any
    other text, such as an empty or truncated list, becomes `content`."""
    end = tokenizer.eos_token
    whole_list = rf"(?=(?&call)(?:\s*+,\s*+(?&call))*+\s*+\]\s*+(?:{re.escape(end)})?+\s*+$)"
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "<answer>\n",
        "fields": {
            "tool_calls": {
                # The first call needs a well-formed list. Each further call follows a comma.
                "open_pattern": rf"{JSON}(?:^\s*+\[\s*+{whole_list}|(?<=\}}\s*,\s*)\G){CALL}",
                "close_pattern": r"\}\s*+(?:,\s*+|\])",
                "repeats": True,
                "content": "text",  # empty: the groups of the patterns hold everything
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            },
            "content": {"close": end, "content": "text"},
        },
    }


def turn_template(chat_format):
    """How `tokenizer.parse_response` and `transformers serve` read an answer of a ChatFormat whose
    tokenizer has no response template. None for bare calls, which have no markers.

    A call that is cut or malformed stays in `content`. transformers would refuse it with a
    ValueError, and its server with HTTP 500."""
    markers = chat_format.markers
    if not markers.start:
        return None
    call = "" if markers.is_list else "content."  # of a list, each call has its own keys
    function = {"name": f"{{{call}name}}", "arguments": f"{{{call}{markers.arguments}}}"}
    end = "|".join(map(re.escape, dict.fromkeys([markers.end_token, chat_format.tokenizer.eos_token])))
    close = re.escape(markers.end) if markers.end else rf"(?={end})"
    name, arguments = r'"name"\s*+:\s*+(?&text)', rf'"{markers.arguments}"\s*+:\s*+(?&object)'
    body = rf"\{{\s*+(?:{name}\s*+,\s*+{arguments}|{arguments}\s*+,\s*+{name})\s*+\}}"
    if markers.is_list:
        body = rf"\[\s*+{body}(?:\s*+,\s*+{body})*+\s*+\]"
    # A string with the end marker would end the region, so such a call stays in `content` too.
    json_patterns = JSON.replace(r'[^"\\\x00-\x1f]', rf'(?:(?!{close})[^"\\\x00-\x1f])', 1)
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": chat_format.opening(),
        "fields": {
            "reasoning_content": {"open": THOUGHT[0], "close": THOUGHT[1], "content": "text"},
            "tool_calls": {
                "open_pattern": rf"{json_patterns}\s*{re.escape(markers.start)}(?=\s*+{body}\s*+{close})",
                "close_pattern": close,
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": function},
                "transform_each": markers.is_list,
            },
            "content": {"close_pattern": rf"\s*(?:{end})", "content": "text"},
        },
    }


if __name__ == "__main__":
    print(template_text("tags-1"))
