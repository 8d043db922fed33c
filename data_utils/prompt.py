"""The prompt format, in one versioned place: training, evaluation and inference render with these functions alone.

To try another format, edit it here and give it another `PROMPT_VERSION`: the version is saved beside every adapter,
and an adapter is never run on a prompt that it was not trained on.
"""

import json

PROMPT_VERSION = "tags-1"


def to_json(value):
    """One line of JSON with `", "` and `": "`; letters beyond ASCII stay letters, as in the published rows."""
    return json.dumps(value, ensure_ascii=False)


def render_prompt(query, tools):
    """The tag prompt. `tools` is the list of tools as JSON text (see `to_json`). Ends with `<answer>` and a newline.

    The completion that follows is the list of calls as JSON text, then the tokenizer's end-of-sequence token. There
    is no closing tag.
    """
    return f"""\
<system_prompt>
Only use the tools provided and get the args from the query.
And only output a valid json which shows the function call and the args.
</system_prompt>
<tools>
{tools}
</tools>
<query>
{query}
</query>
<answer>
"""


def render_raw_prompt(query, tools):
    """The baseline without tags or instructions: query and tools as one JSON object."""
    return f'{{"query": {to_json(query)}, "tools": {tools}}}'
