from data_utils.prompt import render_prompt, render_raw_prompt, to_json


def test_tag_prompt_to_the_letter():
    tools = to_json([{"name": "größe", "parameters": {"x": {"type": "int"}}}])
    assert render_prompt("How big is {query} in {tools}?\n", tools) == (
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
    assert render_raw_prompt('say "hé"', '[{"name": "f"}]') == '{"query": "say \\"hé\\"", "tools": [{"name": "f"}]}'
