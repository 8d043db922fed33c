"""Completions of an OpenAI-compatible server (vLLM, llama.cpp, a hosted one) for evaluate.py. No
torch.

The optional package openai is imported when prompts are sent.
"""

import asyncio
import json
import os
import re
import time
from dataclasses import dataclass

from data_utils.prompt import PromptFormat, render_calls, to_json
from data_utils.tool_formats import openai_tools
from run_utils.errors import UserError
from run_utils.redaction import address_secrets, hide, redact

# The server's finish_reason in the words of generation.Generation.
FINISH = {"stop": "end", "tool_calls": "end", "length": "length", None: "end"}
# Fields beside `content` whose text is no answer.
OTHER_WORDS = ("reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "refusal", "audio")
# A server's 400 for an overlong prompt: OpenAI and vLLM "maximum context length", llama.cpp
# "context size".
TOO_LONG = re.compile(r"context.(length|size|window)", re.IGNORECASE)


def complete(url, model, prompts, max_new_tokens, *, api_key=None, concurrency=8, timeout=60, retries=3):
    """Yields greedy completions as `(index, completion)`, in the order in which they finish.

    url: the part before /completions or /chat/completions, such as `http://localhost:8000/v1`.
    prompts: texts, sent unchanged, or pairs `(query, OpenAI's tools)`, sent as a chat of one
    message. At most `concurrency` requests run at a time. A request is sent again, at most
    `retries` times, after a broken connection, a time-out (`timeout` seconds), a 429 or a 5xx. The
    pauses grow, or are as long as the server asks for. The key is `api_key` or the environment's
    OPENAI_API_KEY.

    A completion is `{"text", "num_tokens", "finish", "seconds"}`. num_tokens is None if the server
    does not count tokens. finish is "end", "length", "too_long" (prompt and new tokens exceed the
    server's context) or the server's own word. seconds is the time since the previous completion,
    so the seconds add up to the total time. A server's answer also has "came_as", the text's origin
    (see read_message), and "choice", the server's choice unchanged, if it holds more or less than a
    text.

    Raises UserError if the server is unreachable, refuses a request, or fails after all retries.
    """
    openai = import_openai()
    url = url.rstrip("/").removesuffix("/completions").removesuffix("/chat")
    # The client requires a key; local servers do not.
    key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
    secrets = [key, *address_secrets(url)]
    # The requests run in a private event loop while the caller waits for the next completion.
    # Leaving the loop (an error, an interrupt, a caller that stops early) cancels them. Threads
    # would have to be waited for.
    with asyncio.Runner() as runner:
        client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)
        requests = Requests(openai, client, model, max_new_tokens, concurrency)
        try:
            last = time.perf_counter()
            runner.run(requests.start(prompts))
            for _ in prompts:
                index, outcome = runner.run(requests.finished.get())
                if isinstance(outcome, Exception):
                    settings = {"model": model, "timeout": timeout, "retries": retries, "secrets": secrets}
                    raise UserError(in_words(openai, outcome, url, **settings)) from outcome
                last, since = time.perf_counter(), last
                yield index, hide(outcome, secrets) | {"seconds": last - since}
        finally:
            runner.run(requests.stop())


@dataclass
class Endpoint:
    """A system behind an OpenAI-compatible server (see `complete`).

    as_chat: send the query as a chat with OpenAI's tools, instead of the prompt format's text.
    """

    url: str
    model: str
    prompt_format: PromptFormat
    max_new_tokens: int
    as_chat: bool = False

    def answer(self, rows):
        """`(index, completion)` of each Row."""
        if self.as_chat:
            prompts = [(row.query, openai_tools(json.loads(row.tools))) for row in rows]
        else:
            prompts = [self.prompt_format.render(row.query, row.tools) for row in rows]
        return complete(self.url, self.model, prompts, self.max_new_tokens)


def import_openai():
    try:
        import openai
    except ImportError as error:
        raise UserError(f"asking an endpoint needs a package ({error}): pip install openai") from None
    return openai


class Requests:
    """Concurrent requests to one server. `finished` is the queue of `(index, completion or
    exception)`."""

    def __init__(self, openai, client, model, max_new_tokens, concurrency):
        self.openai = openai
        self.client, self.model, self.max_new_tokens = client, model, max_new_tokens
        self.free = asyncio.Semaphore(concurrency)
        self.finished = asyncio.Queue()
        self.tasks = []

    async def start(self, prompts):
        self.tasks = [asyncio.create_task(self.ask(index, prompt)) for index, prompt in enumerate(prompts)]

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.close()

    async def ask(self, index, prompt):
        try:
            async with self.free:
                outcome = await self.completion(prompt)
        except Exception as error:  # the caller raises it
            outcome = error
        self.finished.put_nowait((index, outcome))

    async def completion(self, prompt):
        try:
            answer = await self.send(prompt)
        except self.openai.BadRequestError as error:
            if not TOO_LONG.search(str(error)):
                raise
            return {"text": "", "num_tokens": 0, "finish": "too_long"}
        return read_answer(json.loads(answer.text), is_chat=not isinstance(prompt, str))

    def send(self, prompt):
        settings = {"model": self.model, "max_tokens": self.max_new_tokens, "temperature": 0}
        if isinstance(prompt, str):
            return self.client.completions.with_raw_response.create(prompt=prompt, **settings)
        query, tools = prompt
        messages = [{"role": "user", "content": query}]
        tools = tools or self.openai.NOT_GIVEN
        return self.client.chat.completions.with_raw_response.create(messages=messages, tools=tools, **settings)


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


def in_words(openai, error, url, *, model, timeout, retries, secrets):
    """One line with the fault and the remedy. Servers repeat the refused key."""

    def shorten(text):  # redacted first: half a secret is one too
        text = " ".join(redact(str(text), secrets).split())
        return text[:200] + "..." * (len(text) > 200)

    def one_line(error):
        return f"{type(error).__name__}: {shorten(error)}"

    def server_words(error):
        """The message in the body of a refusal, in OpenAI's form or any other."""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return shorten(message or error.response.text or error.response.reason_phrase)

    url = redact(url)
    tries = f"{retries + 1} times" if retries else "once"
    if isinstance(error, openai.APITimeoutError):
        return f"{url} did not answer within {timeout} s, tried {tries}: allow more time or send fewer requests at once"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot reach {url}, tried {tries} ({one_line(error.__cause__)}): is the server running there?"
    if not isinstance(error, openai.APIStatusError):
        return (
            f"{url} does not answer like an OpenAI-compatible server ({one_line(error)}): does its address end in /v1?"
        )
    reply = f"{error.status_code}: {server_words(error)}"
    if error.status_code in (401, 403):
        return f"{url} refuses the key for {model} ({reply}): set OPENAI_API_KEY to one that may use this model"
    if error.status_code == 404:
        return f"{url} has no model {model}, or not this API ({reply}): {url}/models lists its models"
    if error.status_code == 429:
        return f"{url} limits requests for {model}, tried {tries} ({reply}): send fewer at once, or later"
    if error.status_code >= 500:
        return f"{url} fails on {model}, tried {tries} ({reply}): see the server's log"
    return f"{url} refuses the request for {model} ({reply})"
