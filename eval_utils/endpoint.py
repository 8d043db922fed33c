"""Completions of an OpenAI-compatible server, such as vLLM's, llama.cpp's or a hosted one, for evaluate.py. No torch.

By the openai package, which is optional: it is imported when prompts are sent.
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

FINISH = {
    "stop": "end",
    "tool_calls": "end",
    "length": "length",
    None: "end",
}  # the server's finish_reason, in generation.Generation's words
# How servers say with a 400 that a prompt has no room: OpenAI and vLLM "maximum context length", llama.cpp "context size".
# Where servers put words that are no answer, beside `content`.
OTHER_WORDS = ("reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "refusal", "audio")
TOO_LONG = re.compile(r"context.(length|size|window)", re.IGNORECASE)


def complete(url, model, prompts, max_new_tokens, *, api_key=None, concurrency=8, timeout=60, retries=3):
    """Greedy completions, as `(index, completion)` in the order in which they finish.

    url: what stands before /completions or /chat/completions, such as `http://localhost:8000/v1`. prompts: texts, sent as they
    are; or `(query, OpenAI's tools)`, sent as a chat of one message. At most `concurrency` requests run at a time. One that meets
    a broken connection, a time-out (after `timeout` seconds), a 429 or a 5xx is sent again, at most `retries` times, after growing
    pauses or as long as the server asks for. The key is `api_key` or the environment's OPENAI_API_KEY.

    A completion is `{"text", "num_tokens", "finish", "seconds"}`. num_tokens is None if the server does not count them. finish
    is "end", "length", "too_long" (prompt and new tokens do not fit the server's context) or another word of the server's.
    seconds is the time since the answer before, so that they add up to the time that all took. An answer has "came_as" too, how
    the text came (see read_message), and "choice", as the server sent it, if there was more or less in it than a text.

    Raises UserError if the server cannot be reached, refuses, or still fails.
    """
    openai = import_openai()
    url = url.rstrip("/").removesuffix("/completions").removesuffix("/chat")
    key = api_key or os.environ.get("OPENAI_API_KEY") or "none"  # the client wants one, local servers do not
    secrets = [key, *address_secrets(url)]
    # Requests advance while the caller waits for the next one, on a loop of our own. Leaving it, by an error, an interrupt or a
    # caller who has seen enough, cancels what is under way; threads would have to be waited for.
    with asyncio.Runner() as runner:
        client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key,
            timeout=timeout,
            max_retries=retries,
        )
        requests = Requests(openai, client, model, max_new_tokens, concurrency)
        try:
            last = time.perf_counter()
            runner.run(requests.start(prompts))
            for _ in prompts:
                index, outcome = runner.run(requests.finished.get())
                if isinstance(outcome, Exception):
                    raise UserError(in_words(openai, outcome, url, model, timeout, retries, secrets)) from outcome
                last, since = time.perf_counter(), last
                yield index, hide(outcome, secrets) | {"seconds": last - since}
        finally:
            runner.run(requests.stop())


@dataclass
class Endpoint:
    """A system behind an OpenAI-compatible server (see `complete`).

    as_chat: the query is sent as a chat with OpenAI's tools, and not as the prompt format's text.
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
    """Requests to one server, some at a time. `finished` is the queue of `(index, completion or the exception)`."""

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
        except Exception as error:  # whatever it is, it is for the caller to see
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
    """A completion from a server's answer, parsed JSON: of its first choice, whatever is in it. Raises ValueError if it is an
    answer to something else."""
    if not isinstance(answer, dict) or "choices" not in answer:
        raise ValueError("no completion in its answer")
    choices, usage = answer["choices"], answer.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    fields = choice if isinstance(choice, dict) else {}
    finish = fields.get("finish_reason")
    if is_chat:
        message = fields["message"] if isinstance(fields.get("message"), dict) else {}
        text, came_as = read_message(message, finish)
        others = {key for key, value in message.items() if value} - {"role", "content"}
        is_plain = came_as == "content" and message["content"] == text and not others
    else:
        is_plain = isinstance(fields.get("text"), str)
        text, came_as = (fields["text"], "text") if is_plain else ("", "nothing")
    num_tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return {
        "text": text,
        "num_tokens": num_tokens if isinstance(num_tokens, int) else None,
        "finish": FINISH.get(finish, finish) if isinstance(finish, str) else "end",
        "came_as": came_as,
        **({} if is_plain else {"choice": choice}),
    }


def read_message(message, finish_reason):
    """The text of a chat's message, and how it came.

    "tool_calls", or the older "function_call": the text of the list of calls, with the arguments as the server gives them. If
    these are no JSON, that is for the scores to see. "content": a text, or the parts of one. "no calls": `[]`, of an empty list of
    tool_calls if the model ended by itself and there are no words anywhere. "nothing": "", which is no abstention; a refusal or
    reasoning alone is this.
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
    """The text of a list of calls; of what is no function as JSON, which no score takes for a call."""
    if all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
        calls = [{"name": function["name"], "arguments": function.get("arguments") or {}} for function in functions]
        return render_calls(calls)
    return to_json(functions)


def part_text(part):
    """The text of a part of a message's content; "" if it is something else: reasoning, a refusal, an image."""
    if isinstance(part, dict):
        part = part.get("text") if part.get("type", "text") in ("text", "output_text") else None
    return part if isinstance(part, str) else ""


def in_words(openai, error, url, model, timeout, retries, secrets):
    """One line: the fault, and the remedy. Servers repeat the key that they refuse."""

    def shorten(text):  # after the secrets are gone: half of one is one
        text = " ".join(redact(str(text), secrets).split())
        return text[:200] + "..." * (len(text) > 200)

    def one_line(error):
        return f"{type(error).__name__}: {shorten(error)}"

    def server_words(error):
        """The message in the body of a refusal, in the form of OpenAI's errors or any other."""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return shorten(message or error.response.text or error.response.reason_phrase)

    url = redact(url)
    tries = f"{retries + 1} times" if retries else "once"
    if isinstance(error, openai.APITimeoutError):
        return f"{url} did not answer within {timeout} s, tried {tries}: allow it more time, or send fewer requests at once"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot reach {url}, tried {tries} ({one_line(error.__cause__)}): is the server running there?"
    if not isinstance(error, openai.APIStatusError):
        return (
            f"{url} does not answer like an OpenAI-compatible server ({one_line(error)}): does its address end in /v1?"
        )
    said = f"{error.status_code}: {server_words(error)}"
    if error.status_code in (401, 403):
        return f"{url} refuses the key for {model} ({said}): set OPENAI_API_KEY to one that may use this model"
    if error.status_code == 404:
        return f"{url} has no model {model}, or not this API ({said}): {url}/models lists the names that it knows"
    if error.status_code == 429:
        return f"{url} turns requests for {model} away, tried {tries} ({said}): send fewer at once, or later"
    if error.status_code >= 500:
        return f"{url} fails on {model}, tried {tries} ({said}): its log may say why"
    return f"{url} refuses the request for {model} ({said})"
