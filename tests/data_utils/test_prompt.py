import json

import pytest

from data_utils.prompt import PROMPT_FORMATS, PromptFormat, check_format, render_raw, render_tags, to_json
from data_utils.rows import Row


def test_the_tag_prompt_is_exact():
    tools = to_json([{"name": "größe", "parameters": {"x": {"type": "int"}}}])
    assert render_tags("How big is {query} in {tools}?\n", tools) == (
        "<system_prompt>\n"
        "Only use the tools provided and get the args from the query.\n"
        "And only output a valid json which shows the function call and the args.\n"
        "</system_prompt>\n"
        "<tools>\n"
        '[{"name": "größe", "parameters": {"x": {"type": "int"}}}]\n'
        "</tools>\n"
        "<query>\n"
        "How big is {query} in {tools}?\n\n"
        "</query>\n"
        "<answer>\n"
    )


def test_raw_prompt_is_json_without_tags():
    assert render_raw('say "hé"', '[{"name": "f"}]') == '{"query": "say \\"hé\\"", "tools": [{"name": "f"}]}'


@pytest.mark.parametrize(
    ("prompt_format", "message"),
    [
        (PromptFormat(render_tags, completion=lambda answers: f"CALLS: {answers}"), "parse does not read"),
        (PromptFormat(render_tags, completion=lambda a: f"{a}\n```",
                      parse=lambda t: json.loads(t.removesuffix("\n```"))),
         "finished stops it after"),
    ],
)  # fmt: skip
def test_a_format_that_misreads_its_own_completion_is_refused(prompt_format, message):
    with pytest.raises(ValueError, match=message):
        check_format("custom", prompt_format, Row("", "q", "[]", '[{"name": "f", "arguments": {}}]'))
    for name in ("tags-1", "raw"):
        row = Row("", "q", "[]", '[{"name": "f", "arguments": {"x": "</answer>"}}]')
        check_format(name, PROMPT_FORMATS[name], row)


def test_both_formats_read_back_their_completion():
    """A format reads back its completion, and generation may stop right after it."""
    answers = '[{"name": "größe", "arguments": {"x": "</answer>"}}]'
    for prompt_format in (PROMPT_FORMATS["tags-1"], PROMPT_FORMATS["raw"]):
        completion = prompt_format.completion(answers)
        assert to_json(prompt_format.parse(completion)) == answers
        assert prompt_format.finished(completion + "\n\n[") and not prompt_format.finished(completion[:-1])


def test_a_format_is_checked_without_reading_a_long_completion_again_and_again():
    read = []  # characters
    tags = PROMPT_FORMATS["tags-1"]
    counting = tags._replace(finished=lambda text: read.append(len(text)) or tags.finished(text))
    answers = to_json([{"name": "f", "arguments": {"x": "[{word}] " * 200}}] * 20)
    check_format("tags-1", counting, Row("", "q", "[]", answers))
    assert sum(read) <= 2 * len(answers)
