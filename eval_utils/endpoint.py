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

from data_utils.prompt import PromptFormat
from data_utils.tool_formats import openai_tools
from eval_utils.server_answers import is_empty_turn, read_answer
from run_utils.errors import UserError
from run_utils.redaction import address_secrets, hide, redact

# A server's words for an overlong prompt: OpenAI and vLLM "maximum context length", "maximum model
# length" or max_model_len, llama.cpp exceed_context_size_error or n_ctx.
TOO_LONG = re.compile(r"context.(length|size|window)|model.length|max_model_len|\bn_ctx\b", re.IGNORECASE)
# Statuses of a request that the server cannot answer, such as a chat template's error for a schema:
# vLLM and llama.cpp 400, `transformers serve` 500.
REFUSALS = (400, 413, 422, 500)
# A question that a working server answers.
SHORT_QUERY = "Hello"
SHORT_TOOLS = [{"name": "greet", "description": "Greet someone", "parameters": {}}]


def complete(url, model, prompts, max_new_tokens, *, api_key=None, concurrency=8, timeout=60, retries=3):
    """Yields greedy completions as `(index, completion)`, in the order in which they finish.

    url: the part before /completions or /chat/completions, such as `http://localhost:8000/v1`.
    prompts: texts, sent unchanged, or pairs `(query or messages, OpenAI's tools)`, sent as a
    chat. At most `concurrency` requests run at a time. A request is sent again, at most
    `retries` times, after a broken connection, a time-out (`timeout` seconds), a 429 or a 5xx, but
    not after a second 500 with the same body. The pauses grow, or are as long as the server asks
    for. The key is `api_key` or the environment's OPENAI_API_KEY.

    A completion is `{"text", "num_tokens", "finish", "seconds"}`. num_tokens is None if the server
    does not count tokens. finish is "end", "length", "too_long" (prompt and new tokens exceed the
    server's context), "refused" (the server refuses this prompt, and answers a short one) or the
    server's own word. seconds is the time since the previous completion, so the seconds add up to
    the total time. A server's answer also has "came_as", the text's origin (see read_message), and
    "choice", the server's choice unchanged, if it holds more or less than a text. A refusal has
    "refusal", the server's words. "retries" is the number of times that the request was sent again.

    Raises UserError if the server is unreachable, refuses every request, or fails after all
    retries.
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
        http_client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [Failures().stop_repeating]})
        client = openai.AsyncOpenAI(
            base_url=url, api_key=key, timeout=timeout, max_retries=retries, http_client=http_client
        )
        requests = Requests(openai, client, model, max_new_tokens, concurrency)
        try:
            last = time.perf_counter()
            runner.run(requests.start(prompts))
            for _ in prompts:
                index, outcome = runner.run(requests.finished.get())
                if isinstance(outcome, Exception):
                    settings = {"model": model, "timeout": timeout, "secrets": secrets}
                    raise UserError(in_words(openai, outcome, url, **settings)) from outcome
                last, since = time.perf_counter(), last
                if "refusal" in outcome:
                    outcome["refusal"] = shorten(outcome["refusal"], secrets)
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
            prompts = [(self.prompt_format.messages(row), openai_tools(json.loads(row.tools))) for row in rows]
        else:
            prompts = list(map(self.prompt_format.prompt, rows))
        for index, completion in complete(self.url, self.model, prompts, self.max_new_tokens):
            if self.prompt_format.end_token and is_empty_turn(completion):
                completion["came_as"] = "empty turn"  # in the format `chat` an abstention
            yield index, completion


def import_openai():
    try:
        import openai
    except ImportError as error:
        raise UserError(f"asking an endpoint needs a package ({error}): pip install openai") from None
    return openai


class Failures:
    """The last 500 of each request. A server that fails twice with the same words, such as a chat
    template's error, would fail again."""

    def __init__(self):
        self.bodies = {}

    async def stop_repeating(self, response):
        """A hook of the HTTP client: the header ends openai's retries."""
        if response.status_code == 500:
            request, body = response.request.content, await response.aread()
            # Another row may have sent the same request: only a retry counts.
            if count_retries(response.request) and self.bodies.get(request) == body:
                response.headers["x-should-retry"] = "false"
            self.bodies[request] = body


class Requests:
    """Concurrent requests to one server. `finished` is the queue of `(index, completion or
    exception)`."""

    def __init__(self, openai, client, model, max_new_tokens, concurrency):
        self.openai = openai
        self.client, self.model, self.max_new_tokens = client, model, max_new_tokens
        self.free = asyncio.Semaphore(concurrency)
        self.has_answered = False
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
        except self.openai.APIStatusError as error:
            return await self.refusal(prompt, error)
        self.has_answered = True
        completion = read_answer(json.loads(answer.text), is_chat=not isinstance(prompt, str))
        return completion | {"retries": count_retries(answer.http_request)}

    async def refusal(self, prompt, error):
        """The completion of a prompt that the server cannot answer. Raises the error if it is not
        about the prompt."""
        # A 422 may repeat the prompt.
        if error.status_code in REFUSALS and error.status_code != 422 and TOO_LONG.search(error.response.text):
            reason = {"finish": "too_long"}
        elif error.status_code in REFUSALS and await self.answers_short(prompt, error):
            reason = {"finish": "refused", "refusal": f"{error.status_code}: {server_words(error)}"}
        else:
            raise error
        return {"text": "", "num_tokens": 0, "retries": count_retries(error.request)} | reason

    async def answers_short(self, prompt, error):
        """Whether the server answers a short question in the form of a refused prompt. Without one,
        a wrong setting or a crash would look like a refusal of every prompt."""
        if error.status_code != 500 and self.has_answered:
            return True
        try:
            await self.send(SHORT_QUERY if isinstance(prompt, str) else (SHORT_QUERY, openai_tools(SHORT_TOOLS)))
        except self.openai.OpenAIError:
            return False
        return True

    def send(self, prompt):
        settings = {"model": self.model, "max_tokens": self.max_new_tokens, "temperature": 0}
        if isinstance(prompt, str):
            return self.client.completions.with_raw_response.create(prompt=prompt, **settings)
        query, tools = prompt
        messages = [{"role": "user", "content": query}] if isinstance(query, str) else query
        tools = tools or self.openai.NOT_GIVEN
        return self.client.chat.completions.with_raw_response.create(messages=messages, tools=tools, **settings)


def count_retries(request):
    """The number of earlier tries of a request. The client sends it with each."""
    return int(request.headers.get("x-stainless-retry-count", 0))


def server_words(error):
    """The message in the body of a refusal, in OpenAI's form or any other."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return str(message or error.response.text or error.response.reason_phrase)


def shorten(text, secrets):
    """One line of at most 200 characters, redacted first: half a secret is one too."""
    text = " ".join(redact(text, secrets).split())
    return text[:200] + "..." * (len(text) > 200)


def in_words(openai, error, url, *, model, timeout, secrets):
    """One line with the fault and the remedy. Servers repeat the refused key."""

    def one_line(error):
        return f"{type(error).__name__}: {shorten(str(error), secrets)}"

    url = redact(url)
    retries = count_retries(error.request) if isinstance(error, openai.APIError) else 0
    tries = f"{retries + 1} times" if retries else "once"
    if isinstance(error, openai.APITimeoutError):
        return f"{url} did not answer within {timeout} s, tried {tries}: allow more time or send fewer requests at once"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot reach {url}, tried {tries} ({one_line(error.__cause__)}): is the server running there?"
    if not isinstance(error, openai.APIStatusError):
        return (
            f"{url} does not answer like an OpenAI-compatible server ({one_line(error)}): does its address end in /v1?"
        )
    reply = f"{error.status_code}: {shorten(server_words(error), secrets)}"
    if error.status_code in (401, 403):
        return f"{url} refuses the key for {model} ({reply}): set OPENAI_API_KEY to one that may use this model"
    if error.status_code == 404:
        return f"{url} has no model {model}, or not this API ({reply}): {url}/models lists its models"
    if error.status_code == 429:
        return f"{url} limits requests for {model}, tried {tries} ({reply}): send fewer at once, or later"
    if error.status_code >= 500:
        return f"{url} fails on {model}, tried {tries} ({reply}): see the server's log"
    return f"{url} refuses the request for {model} ({reply})"
