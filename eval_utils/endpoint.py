"""Completions of an OpenAI-compatible server, such as vLLM's, llama.cpp's or a hosted one, for evaluate.py. No torch.

By the openai package, which is optional: it is imported when prompts are sent.
"""

import asyncio
import os
import re
import time

from data_utils.prompt import render_calls
from run_utils.arguments import UserError

FINISH = {
    "stop": "end",
    "tool_calls": "end",
    "length": "length",
    None: "end",
}  # the server's finish_reason, in generation.Generation's words
# How servers say with a 400 that a prompt has no room: OpenAI and vLLM "maximum context length", llama.cpp "context size".
TOO_LONG = re.compile(r"context.(length|size|window)", re.IGNORECASE)


def complete(url, model, prompts, max_new_tokens, *, api_key=None, concurrency=8, timeout=60, retries=3):
    """Greedy completions, as `(index, completion)` in the order in which they finish.

    url: what stands before /completions or /chat/completions, `http://localhost:8000/v1` say. prompts: texts, sent as they are; or
    `(query, OpenAI's tools)`, sent as a chat of one message, whose answer's `tool_calls` are given as the text of the list of calls, and
    its content where it has none. A completion is `{"text", "num_tokens", "finish",
    "seconds"}`: num_tokens is None where the server does not count them; finish is "end", "length", "too_long" (prompt and new
    tokens do not fit the server's context) or another word of the server's; seconds is the time since the answer before, so that they
    add up to what all took. At most `concurrency` requests run at a time. One that meets a broken connection, a time-out (after `timeout`
    seconds), a 429 or a 5xx is sent again, at most `retries` times, after growing pauses or as long as the server asks for. The
    key is `api_key` or the environment's OPENAI_API_KEY.

    Raises UserError where the server cannot be reached, refuses, or still fails.
    """
    openai = import_openai()
    url = url.rstrip("/").removesuffix("/completions").removesuffix("/chat")
    # Requests advance while the caller waits for the next one, on a loop of our own. Leaving it, by an error, an interrupt or a
    # caller who has seen enough, cancels what is under way; threads would have to be waited for.
    with asyncio.Runner() as runner:
        client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",  # the client wants one, local servers do not
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
                    raise UserError(in_words(openai, outcome, url, model, timeout, retries)) from outcome
                last, since = time.perf_counter(), last
                yield index, outcome | {"seconds": last - since}
        finally:
            runner.run(requests.stop())


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
        if isinstance(answer, str) or not answer.choices:  # of a page, the client makes a string
            raise ValueError("no completion in its answer")
        choice = answer.choices[0]
        return {
            "text": choice.text if isinstance(prompt, str) else text_of(choice),
            "num_tokens": answer.usage.completion_tokens if answer.usage else None,
            "finish": FINISH.get(choice.finish_reason, choice.finish_reason),
        }

    def send(self, prompt):
        settings = {"model": self.model, "max_tokens": self.max_new_tokens, "temperature": 0}
        if isinstance(prompt, str):
            return self.client.completions.create(prompt=prompt, **settings)
        query, tools = prompt
        messages = [{"role": "user", "content": query}]
        return self.client.chat.completions.create(messages=messages, tools=tools or self.openai.NOT_GIVEN, **settings)


def text_of(choice):
    """What a chat's answer says as the text of a list of calls, their arguments as the server gives them: if these are no JSON, that is
    for the scores to see. A server that does not take the list apart leaves it in the content; one that is done and says nothing makes
    no call."""
    message = choice.message
    if not message.tool_calls:
        return message.content or ("[]" if choice.finish_reason == "stop" else "")
    functions = [call.function for call in message.tool_calls]
    return render_calls([{"name": each.name, "arguments": each.arguments} for each in functions])


def in_words(openai, error, url, model, timeout, retries):
    """One line on what went wrong, and what to do."""
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


def server_words(error):
    """The message in the body of a refusal, in the form of OpenAI's errors or any other."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return shorten(message or error.response.text or error.response.reason_phrase)


def one_line(error):
    return f"{type(error).__name__}: {shorten(error)}"


def shorten(text):
    text = " ".join(str(text).split())
    return text[:200] + "..." * (len(text) > 200)
