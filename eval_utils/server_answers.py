"""The answers of an OpenAI-compatible server, read as texts."""

from collections import Counter

from data_utils.prompt import render_calls, to_json

# The server's finish_reason in the words of generation.Generation.
FINISH = {"stop": "end", "tool_calls": "end", "length": "length", None: "end"}
# Fields beside `content` whose text is no answer.
OTHER_WORDS = ("reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "refusal", "audio")


def read_answer(answer, is_chat):
    """The completion in the first choice of a server's answer (parsed JSON). Raises ValueError if
    the answer has no choices."""
    if not isinstance(answer, dict) or "choices" not in answer:
        raise ValueError("no completion in its answer")
    choices, usage = answer["choices"], answer.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    fields = choice if isinstance(choice, dict) else {}
    finish = fields.get("finish_reason")
    if is_chat:
        message = fields["message"] if isinstance(fields.get("message"), dict) else {}
        text, came_as = read_message(message, finish)
        other_fields = {key for key, value in message.items() if value} - {"role", "content"}
        is_plain = came_as == "content" and message["content"] == text and not other_fields
    else:
        is_plain = isinstance(fields.get("text"), str)
        text, came_as = (fields["text"], "text") if is_plain else ("", "nothing")
    usage = usage if isinstance(usage, dict) else {}
    num_tokens, num_prompt_tokens = usage.get("completion_tokens"), usage.get("prompt_tokens")
    return {
        "text": text,
        "num_tokens": num_tokens if isinstance(num_tokens, int) else None,
        "finish": FINISH.get(finish, finish) if isinstance(finish, str) else "end",
        "came_as": came_as,
        **({"num_prompt_tokens": num_prompt_tokens} if isinstance(num_prompt_tokens, int) else {}),
        **({} if is_plain else {"choice": choice}),
    }


def read_message(message, finish_reason):
    """The text of a chat's message, and its origin.

    "tool_calls", or the older "function_call": the list of calls as text, with the server's
    arguments unchanged. Invalid JSON in them is for the scores. "content": a text, or the parts of
    one. "no calls": `[]`, if tool_calls is an empty list, the model ended by itself and no field
    has text. "nothing": "", which is no abstention. A refusal or reasoning alone is nothing.
    """
    if calls := message.get("tool_calls"):
        calls = calls if isinstance(calls, list) else [calls]
        return render_functions(
            [call.get("function") if isinstance(call, dict) else call for call in calls]
        ), "tool_calls"
    if function := message.get("function_call"):
        return render_functions([function]), "function_call"
    content = message.get("content")
    if text := "".join(map(part_text, content if isinstance(content, list) else [content])):
        return text, "content"
    is_silent = not content and not any(message.get(key) for key in OTHER_WORDS)
    if message.get("tool_calls") == [] and finish_reason == "stop" and is_silent:
        return "[]", "no calls"
    return "", "nothing"


def is_empty_turn(completion):
    """Whether a chat's message without calls has an empty text, an end by itself and nothing else.
    null as content is no text."""
    choice = completion.get("choice")
    message = choice.get("message") if isinstance(choice, dict) and completion["came_as"] == "nothing" else None
    if not isinstance(message, dict) or message.get("content") != "" or choice.get("finish_reason") != "stop":
        return False
    return not any(value for name, value in message.items() if name != "role")


def render_functions(functions):
    """A list of calls as text. If an element is no function, the list as JSON, which no score reads
    as calls."""
    if all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
        calls = [{"name": function["name"], "arguments": function.get("arguments") or {}} for function in functions]
        return render_calls(calls)
    return to_json(functions)


def part_text(part):
    """The text of a part of a message's content, or "" for reasoning, a refusal or an image."""
    if isinstance(part, dict):
        part = part.get("text") if part.get("type", "text") in ("text", "output_text") else None
    return part if isinstance(part, str) else ""


def describe_messages(system, predictions):
    """Lines about the form of a server's answers, which reveal a wrong parser of tool calls. Empty
    for a system without a server.

    predictions: one system's, in the rows' order.
    """
    found = Counter(prediction["came_as"] for prediction in predictions if "came_as" in prediction)
    refusals = [prediction for prediction in predictions if prediction["finish"] == "refused"]
    retries = [prediction["retries"] for prediction in predictions if "retries" in prediction]
    forms = ("tool_calls", "content", "function_call", "text")
    parts = [f"{found[name]} had {name}" for name in forms if found[name]]
    if retries:  # older predictions don't have them
        parts += [f"{len(refusals)} refused", f"retries: {sum(retries)}"]
    lines = [f"{system}: of {len(predictions)} answers, {', '.join(parts)}."] if parts else []
    if refusals:
        reason = refusals[0].get("refusal", "")
        lines.append(f"{system}: refused, and counted as broken: {listed(refusals)} (the first: {reason})")
    if found["no calls"]:
        lines.append(
            f"{system}: {found['no calls']} had an empty list of tool_calls and no text: each counts as [], an "
            "abstention. Some servers send the empty list with every message."
        )
    if found["empty turn"]:
        lines.append(f"{system}: {found['empty turn']} were empty turns: each counts as an abstention")
    if without := [prediction for prediction in predictions if prediction.get("came_as") == "nothing"]:
        lines.append(f"{system}: {len(without)} had no text, and count as broken: {listed(without)}")
    return lines


def listed(predictions):
    """The ids of at most 20 predictions."""
    return ", ".join(prediction["id"] for prediction in predictions[:20]) + ", ..." * (len(predictions) > 20)
