"""Completions of a server: the real client asks a real process, which answers and fails by
script."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT, command_line, launch, read_args
from transformers import AutoTokenizer

import evaluate
from data_utils.chat_format import find_format
from data_utils.prompt import PROMPT_FORMATS
from data_utils.rows import Row
from eval_utils.endpoint import Endpoint, complete
from eval_utils.outcomes import kind_of_answer, kinds_of_turn
from eval_utils.outputs import Task
from eval_utils.predictions import predict
from eval_utils.row_sets import output_of
from run_utils.errors import UserError

# The prompt scripts its answers: one word a try, the last word repeatedly. A word is a status,
# "slow", "hang", "cut", "page", "refused" or "leak" (with the key), "repeat" (the key), or "choice"
# with its JSON, or "error" with the body of a 400. Under the path /all-500/v1 everything is a 500.
SERVER = r"""
import collections, http.server, json, re, threading, time

lock, tries, record, running = threading.Lock(), collections.Counter(), {"most": 0, "requests": []}, [0]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, json.dumps(record))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "messages" in body:
            body["prompt"] = body["messages"][-1]["content"]
        script = re.findall("/all-([0-9]+)/", self.path) or body["prompt"].split(":")[0].split()
        with lock:
            running[0] += 1
            record["most"] = max(record["most"], running[0])
            record["requests"].append({"path": self.path, "key": self.headers["Authorization"], "body": body})
            word = script[min(tries[body["prompt"]], len(script) - 1)]
            tries[body["prompt"]] += 1
            if word == "500" and "fatal" in body["prompt"]:
                record["dead"] = True
            word = "500" if record.get("dead") else word
        try:
            self.answer(word, body)
        finally:
            with lock:
                running[0] -= 1

    def answer(self, word, body):
        if word == "slow":
            time.sleep(0.3)
        if word == "hang":
            time.sleep(60)
        if word == "page":
            return self.reply(200, "<html>Welcome</html>", "text/html")
        if word == "choice":
            choices = [json.loads(body["prompt"].split(":", 1)[1])]
            answer = {"id": "1", "object": "x", "created": 1, "model": "m", "choices": choices}
            return self.reply(200, json.dumps(answer))
        if word == "refused":
            message = "x" * 180 + " bad key " + self.headers["Authorization"]
            return self.reply(401, json.dumps({"error": {"message": message}}))
        if word == "leak":
            return self.reply(400, json.dumps({"error": {"message": "bad schema " + self.headers["Authorization"]}}))
        if word == "error":
            return self.reply(400, body["prompt"].split(":", 1)[1])
        if word == "repeat":
            body["prompt"] = self.headers["Authorization"]
        if word.isdigit() and word != "200":
            message = "This model's maximum context length is 9 tokens." if "long" in body["prompt"] else "as\nscripted"
            error = {"error": {"message": message, "type": "x", "param": None, "code": int(word)}}
            return self.reply(int(word), json.dumps(error))
        finish = "length" if word in ("cut", "thinking") else "stop"
        if "messages" in body:
            message = {"role": "assistant", "content": body["prompt"] if word in ("content", "cut") else None}
            if word == "calls":
                function = {"name": "f", "arguments": '{"x":1}' if "broken" not in body["prompt"] else '{"x":'}
                message["tool_calls"] = [{"id": "c", "type": "function", "function": function}] * 2
                finish = "tool_calls"
            choice = {"index": 0, "message": message, "finish_reason": finish}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
            return self.reply(200, json.dumps(answer))
        choice = {"index": 0, "text": "said " + body["prompt"], "logprobs": None, "finish_reason": finish}
        answer = {"id": "1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}
        if "uncounted" not in body["prompt"]:
            answer["usage"] = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
        self.reply(200, json.dumps(answer))

    def reply(self, status, text, kind="application/json"):
        try:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:  # the client has given up
            pass

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_openai():
    pytest.importorskip("openai", reason="asking endpoints needs the optional package openai", exc_type=ImportError)


@pytest.fixture
def url():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def record_of(url):
    """The server's record: `{"most": requests at one time, "requests": [{"path", "key", "body"},
    ...]}`."""
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def test_completions_are_in_order_of_finish_and_requests_are_greedy(url, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    start = time.perf_counter()
    completions = list(complete(url, "m", ["slow: a", "200: b", "cut: é", "200: uncounted"], 33))
    wall = time.perf_counter() - start
    assert sorted(index for index, _ in completions) == [0, 1, 2, 3] and completions[-1][0] == 0
    completions = dict(completions)
    seconds = [completions[index].pop("seconds") for index in range(4)]
    assert min(seconds) > 0 and 0.3 < sum(seconds) <= wall  # the total time, despite concurrency
    counted = {"num_tokens": 7, "num_prompt_tokens": 3, "finish": "end", "came_as": "text", "retries": 0}
    assert completions[0] == {"text": "said slow: a", **counted}
    assert completions[1] == {"text": "said 200: b", **counted}
    assert (completions[2]["text"], completions[2]["finish"]) == ("said cut: é", "length")
    assert completions[3]["num_tokens"] is None
    for request in record_of(url)["requests"]:
        assert request["path"] == "/v1/completions" and request["key"] == "Bearer none"
        prompt = request["body"].pop("prompt")
        # No stop strings.
        assert prompt and request["body"] == {"model": "m", "max_tokens": 33, "temperature": 0}


def test_the_key_is_an_argument_or_the_environments(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    list(complete(url + "/completions", "m", ["200: a"], 4))
    list(complete(url + "/", "m", ["200: b"], 4, api_key="given"))
    assert [(request["path"], request["key"]) for request in record_of(url)["requests"]] == [
        ("/v1/completions", "Bearer from the environment"),
        ("/v1/completions", "Bearer given"),
    ]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_as_asked_run_at_once(url, concurrency):
    completions = dict(complete(url, "m", [f"slow: {i}" for i in range(3 * concurrency)], 4, concurrency=concurrency))
    assert [completions[i]["text"] for i in range(3 * concurrency)] == [
        f"said slow: {i}" for i in range(3 * concurrency)
    ]
    assert record_of(url)["most"] == concurrency


def test_a_passing_fault_is_tried_again(url):
    prompts = ["500 200: a", "429 200: b", "hang 200: c", "503 503 200: d", "500 503 200: e"]
    completions = dict(complete(url, "m", prompts, 4, timeout=1))
    assert [completions[i]["text"] for i in range(5)] == [f"said {prompt}" for prompt in prompts]
    tries = [request["body"]["prompt"] for request in record_of(url)["requests"]]
    assert [tries.count(prompt) for prompt in prompts] == [2, 2, 2, 3, 3]
    assert [completions[i]["retries"] for i in range(5)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("script", "tries", "message"),
    [
        ("503", 2, r"{url} fails on some/model, tried 2 times \(503: as scripted\): see the server's log"),
        (
            "429",
            2,
            r"{url} limits requests for some/model, tried 2 times \(429: as scripted\): send fewer at once.*",
        ),
        ("hang", 2, r"{url} did not answer within 0.5 s, tried 2 times: allow more time.*"),
        ("401", 1, r"{url} refuses the key for some/model \(401: as scripted\): set OPENAI_API_KEY to .*"),
        ("403", 1, r"{url} refuses the key for some/model .*"),
        (
            "404",
            1,
            r"{url} has no model some/model, .* \(404: as scripted\): {url}/models lists its models",
        ),
        ("page", 1, r"{url} does not answer like an OpenAI-compatible server \(.*\): does its address end in /v1\?"),
    ],
)
def test_a_lasting_fault_is_one_line(url, script, tries, message):
    with pytest.raises(UserError) as caught:
        list(complete(url, "some/model", [f"{script}: a"], 4, timeout=0.5, retries=1))
    (line,) = str(caught.value).splitlines()
    pattern = message.replace("{url}", url)
    assert re.fullmatch(pattern, line), line
    assert len(record_of(url)["requests"]) == tries


def test_a_prompt_that_the_server_has_no_room_for_is_no_error(url):
    completions = dict(complete(url, "m", ["400: long", "200: b"], 4))
    assert completions[0].pop("seconds") >= 0
    assert completions[0] == {"text": "", "num_tokens": 0, "finish": "too_long", "retries": 0}
    assert completions[1]["finish"] == "end"


@pytest.mark.parametrize(
    "body",
    [
        # vLLM, two of its checks
        {"error": {"message": "This model's maximum context length is 2048 tokens. However, you requested 3000"}},
        {"error": {"message": "The decoder prompt (length 3000) is longer than the maximum model length of 2048."}},
        {"error": {"message": "max_tokens must be below max_model_len"}},
        # llama.cpp
        {"error": {"code": 400, "message": "the request is too large", "type": "exceed_context_size_error"}},
        {"error": {"code": 400, "message": "the request is too large", "n_prompt_tokens": 3000, "n_ctx": 2048}},
    ],
)
def test_servers_words_for_an_overlong_prompt_are_understood(url, body):
    ((_, completion),) = complete(url, "m", [f"error:{json.dumps(body)}"], 4)
    assert completion["finish"] == "too_long"


@pytest.mark.parametrize("form", ["text", "chat"])
def test_a_refused_prompt_is_asked_once_and_a_repeated_500_twice(url, form):
    """Neither stops the other rows."""
    prompts = ["500: schema", "422: schema", "400: schema", "content: a"]
    sent = prompts if form == "text" else [(prompt, []) for prompt in prompts]
    completions = dict(complete(url, "m", sent, 4))
    refused = [{key: completions[i][key] for key in ("text", "finish", "refusal", "retries")} for i in range(3)]
    assert refused == [
        {"text": "", "finish": "refused", "refusal": f"{status}: as scripted", "retries": retries}
        for status, retries in ((500, 1), (422, 0), (400, 0))
    ]
    assert completions[3]["finish"] == "end"
    asked = [request["body"] for request in record_of(url)["requests"]]
    asked = [body["prompt"] for body in asked]
    assert [asked.count(prompt) for prompt in prompts] == [2, 1, 1, 1]


def test_equal_prompts_do_not_count_as_a_repeated_500(url):
    completions = dict(complete(url, "m", ["500 500 200: a"] * 2, 4))
    assert [completions[i]["text"] for i in range(2)] == ["said 500 500 200: a"] * 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, r"{url} fails on m, tried 2 times \(500: as scripted\): see the server's log"),
        (422, r"{url} refuses the request for m \(422: as scripted\)"),
        (400, r"{url} refuses the request for m \(400: as scripted\)"),
    ],
)
def test_a_server_that_refuses_a_short_prompt_too_stops_the_evaluation(url, status, message):
    """A crashed server or a wrong setting: no row is counted as refused."""
    url = url.replace("/v1", f"/all-{status}/v1")
    with pytest.raises(UserError) as caught:
        list(complete(url, "m", ["200: a", "200: b"], 4))
    assert re.fullmatch(message.replace("{url}", url), str(caught.value)), str(caught.value)


def test_a_server_that_crashes_later_does_not_refuse_the_remaining_prompts(url):
    """Its rows stay unanswered: the same command asks for them again."""
    answered = []
    with pytest.raises(UserError, match="fails on m, tried 2 times .500: as scripted"):
        for index, _ in complete(url, "m", ["200: a", "500: fatal", "200: c"], 4, concurrency=1):
            answered.append(index)
    assert answered == [0]


def test_an_unreachable_server_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=f"^cannot reach {url}, tried 2 times .*: is the server running there"):
            list(complete(url, "m", ["a", "b"], 4, retries=1))
    with pytest.raises(UserError, match="^cannot reach localhost:1/v1, .*protocol"):
        list(complete("localhost:1/v1", "m", ["a"], 4, retries=0))


def test_an_error_stops_the_other_requests_quietly(url, caplog):
    start = time.perf_counter()
    with pytest.raises(UserError, match="401"), caplog.at_level(logging.WARNING):
        list(complete(url, "m", ["hang: a", "401: b", "401: c", *[f"slow: {i}" for i in range(50)]], 4, concurrency=3))
    assert time.perf_counter() - start < 30 and len(record_of(url)["requests"]) < 10
    assert not caplog.records  # asyncio logs exceptions that nobody retrieved


def test_a_caller_that_stops_early_waits_for_nothing(url):
    start = time.perf_counter()
    for index, _ in complete(url, "m", ["hang: a", "200: b"], 4):
        assert index == 1
        break
    assert time.perf_counter() - start < 30  # the other request hangs for a minute


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install openai$"):
        list(complete("http://localhost/v1", "m", ["a"], 4))


def test_no_torch():
    code = "import sys, eval_utils.endpoint; assert 'torch' not in sys.modules and 'openai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_chat_s_calls_are_the_text_of_their_list(url):
    """Whether the server parses the list or leaves it in the content."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    asked = [
        "calls: a",
        "calls: broken",
        "content: [] as it is",
        "cut: [{",
        "none: a",
        "429 400: too long",
        "thinking: a",
    ]
    completions = dict(complete(f"{url}/chat/completions", "m", [(query, tools) for query in asked], 33))
    # Cut off without text: no list of calls, not even an empty one.
    assert completions[6]["text"] == ""
    assert [completions[i]["text"] for i in range(6)] == [
        '[{"name": "f", "arguments": {"x":1}}, {"name": "f", "arguments": {"x":1}}]',
        '[{"name": "f", "arguments": {"x":}, {"name": "f", "arguments": {"x":}]',
        "content: [] as it is", "cut: [{", "", "",
    ]  # fmt: skip
    assert [completions[i]["finish"] for i in range(6)] == ["end", "end", "end", "length", "end", "too_long"]
    requests = record_of(url)["requests"]
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert all(request["body"]["tools"] == tools and request["body"]["temperature"] == 0 for request in requests)
    next(iter(complete(url, "m", [("none: a", [])], 33)))
    # Some servers refuse an empty list of tools.
    assert "tools" not in record_of(url)["requests"][-1]["body"]


CALL = {"name": "f", "arguments": '{"x": 1}'}
CALLS = '[{"name": "f", "arguments": {"x": 1}}]'


@pytest.mark.parametrize(
    ("message", "text", "came_as"),
    [
        ({"content": CALLS}, CALLS, "content"),
        ({"content": "[]", "tool_calls": []}, "[]", "content"),
        ({"content": [{"type": "text", "text": CALLS[:9]}, {"type": "text", "text": CALLS[9:]}]}, CALLS, "content"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                    {"type": "text", "text": CALLS},
                ]
            },
            CALLS,
            "content",
        ),
        ({"content": None, "tool_calls": [{"id": "c", "type": "function", "function": CALL}]}, CALLS, "tool_calls"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}, CALLS, "tool_calls"),
        ({"content": None, "tool_calls": ["f", {"function": CALL}]}, json.dumps(["f", CALL]), "tool_calls"),
        ({"content": None, "function_call": CALL}, CALLS, "function_call"),
        ({"content": None, "tool_calls": [], "function_call": CALL}, CALLS, "function_call"),
        # No call and no text, by a model that ended by itself.
        ({"content": None, "tool_calls": []}, "[]", "no calls"),
        ({"content": "", "tool_calls": [], "refusal": None, "reasoning_content": ""}, "[]", "no calls"),
        # Nothing, which is no abstention.
        ({"content": None}, "", "nothing"),
        ({"content": ""}, "", "nothing"),
        ({"content": None, "tool_calls": None}, "", "nothing"),
        ({"content": None, "tool_calls": [], "refusal": "I cannot."}, "", "nothing"),
        ({"content": None, "tool_calls": [], "reasoning_content": CALLS}, "", "nothing"),
        ({"content": None, "reasoning": CALLS}, "", "nothing"),
        ({"content": [{"type": "refusal", "refusal": "I cannot."}], "tool_calls": []}, "", "nothing"),
        ({"content": 5}, "", "nothing"),
        ({}, "", "nothing"),
        (None, "", "nothing"),
        ("[]", "", "nothing"),
    ],
)
def test_a_message_is_a_text_or_broken(url, message, text, came_as):
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    ((_, completion),) = complete(url, "m", [(f"choice:{json.dumps(choice)}", [])], 33)
    assert (completion["text"], completion["came_as"], completion["finish"]) == (text, came_as, "end")
    assert completion.get("choice", choice) == choice  # as it came
    assert ("choice" in completion) is (message not in ({"content": CALLS}, {"content": "[]", "tool_calls": []}))


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", None, 5])
def test_an_empty_list_of_calls_counts_if_the_model_ended_by_itself(url, finish_reason):
    choice = {"message": {"content": None, "tool_calls": []}, "finish_reason": finish_reason}
    ((_, completion),) = complete(url, "m", [(f"choice:{json.dumps(choice)}", [])], 33)
    assert (completion["text"], completion["came_as"]) == ("", "nothing")


@pytest.mark.parametrize("choice", [{}, {"text": None}, {"text": 5}, {"text": ["[]"]}, None, "[]"])
def test_a_completion_without_a_text_is_broken(url, choice):
    ((_, completion),) = complete(url, "m", [f"choice:{json.dumps(choice)}"], 33)
    assert (completion["text"], completion["came_as"], completion["choice"]) == ("", "nothing", choice)


def rows_of(tmp_path, queries):
    """A file of rows that want the call CALLS, or none if the query's last word is "none"."""
    tools = [{"name": "f", "description": "", "parameters": {"x": {"type": "int", "description": ""}}}]
    rows = [
        {"id": str(i), "query": query, "tools": tools, "answers": [] if query.endswith("none") else json.loads(CALLS)}
        for i, query in enumerate(queries)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def endpoint_flags(url, data, folder, api="chat"):
    return {
        "endpoint": url,
        "endpoint_model": "m",
        "endpoint_api": api,
        "systems": ["endpoint"],
        "dataset_name": data,
        "eval_fraction": 1,
        "output_dir": folder,
    }


def outcomes(folder):
    return {
        score["id"]: score["outcome"] for score in map(json.loads, (folder / "scores.jsonl").read_text().splitlines())
    }


def test_the_origins_of_the_texts_are_counted_and_answers_without_text_are_named(url, tmp_path, run_here):
    messages = [
        {"content": [{"type": "text", "text": CALLS}]},
        {"tool_calls": [{"function": CALL}]},
        {"content": None, "tool_calls": []},
        {"content": None, "reasoning_content": CALLS},
    ]
    queries = [f"choice:{json.dumps({'message': message, 'finish_reason': 'stop'})}" for message in messages]
    flags = endpoint_flags(url, rows_of(tmp_path, queries), tmp_path / "out")
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    shown = " ".join(result.out.split())
    assert "endpoint: of 4 answers, 1 had tool_calls, 1 had content, 0 refused, retries: 0." in shown
    assert "endpoint: 1 had an empty list of tool_calls and no text: each counts as []" in shown
    assert "endpoint: 1 had no text, and count as broken: 3" in shown
    assert outcomes(tmp_path / "out") == {"0": "right", "1": "right", "2": "missed call", "3": "unparseable"}
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]["endpoint"]
    assert figures["came_as"] == {"content": 1, "tool_calls": 1, "no calls": 1, "nothing": 1}
    assert figures["call_table"]["gold_calls"] == {"calls": 2, "abstains": 1, "broken": 1}


def test_refusals_and_retries_are_counted_and_shown(url, tmp_path, run_here):
    flags = endpoint_flags(
        url, rows_of(tmp_path, ["content: a", "503 content: b", "500: c", "422: d"]), tmp_path / "out"
    )
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    shown = " ".join(result.out.split())
    assert "endpoint: of 4 answers, 2 had content, 2 refused, retries: 2." in shown
    assert re.search(
        r"endpoint: refused, and counted as broken: (2, 3|3, 2) \(the first: (500|422): as scripted\)", shown
    )
    assert outcomes(tmp_path / "out")["2"] == outcomes(tmp_path / "out")["3"] == "unparseable"
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]["endpoint"]
    assert figures["finish"] == {"end": 2, "refused": 2} and figures["came_as"] == {"content": 2}


@pytest.mark.parametrize("text", [None, 5, [{"type": "text", "text": "[]"}], {"text": "[]"}, True])
def test_a_folder_with_a_text_that_is_no_string_is_read(url, tmp_path, run_here, text):
    """Earlier versions wrote such folders and could not score them."""
    folder = tmp_path / "out"
    assert run_here(evaluate, endpoint_flags(url, rows_of(tmp_path, ["content: a", "content: none"]), folder)).code == 0
    path = folder / "predictions.jsonl"
    predictions = [json.loads(line) for line in path.read_text().splitlines()]
    for prediction in predictions:
        if prediction["id"] == "1":
            prediction |= {"text": text, "finish": None, "seconds": None, "num_tokens": "7"}
    path.write_text("".join(json.dumps(prediction) + "\n" for prediction in predictions))
    result = run_here(evaluate, {"rescore": folder})
    assert result.code == 0 and "1 had no text, and count as broken: 1" in " ".join(result.out.split())
    assert outcomes(folder)["1"] == "unparseable"


def test_seconds_are_shared_by_the_processes_at_work(url):
    """The sum over all rows is the processes' time, not a multiple of it."""
    rows = [Row(str(i), f"query {i}", "[]", "[]") for i in range(64)]
    system = Endpoint(url, "m", PROMPT_FORMATS["raw"], 4)
    start = time.perf_counter()
    predictions = list(predict("endpoint", system, rows, processes=4))
    seconds = sum(prediction["seconds"] for prediction in predictions)
    assert len(predictions) == 64 and 0 < seconds <= (time.perf_counter() - start) / 4


@pytest.mark.slow
def test_two_processes_ask_for_each_row_once(url, tmp_path):
    tool = {"name": "f", "description": "d", "parameters": {}}
    rows = [{"id": i, "query": f"200: {i}", "tools": [tool], "answers": []} for i in range(64)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "endpoint": url,
        "endpoint_model": "m",
        "endpoint_api": "chat",
        "systems": ["endpoint"],
        "dataset_name": data,
        "eval_fraction": 1,
        "output_dir": tmp_path / "evaluation",
    }
    result = launch("evaluate.py", flags, processes=2)
    assert result.code == 0, result.err
    asked = [request["body"]["messages"][-1]["content"] for request in record_of(url)["requests"]]
    assert sorted(asked) == sorted(row["query"] for row in rows)


def planted_in(folder, *texts):
    """The planted secrets (they begin with PLANTED, or are its base64) in a folder's files and in
    texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    parts = {str(path): path.read_bytes() for path in files} | {"terminal": "".join(texts).encode()}
    # "ada:PLANTED" in the header that a client makes from an address.
    return {name for name, content in parts.items() if b"PLANTED" in content or b"YWRhOlBMQU5URU" in content}


def test_credentials_of_an_endpoint_are_in_no_output(url, tmp_path, run_here, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "PLANTED-key")
    address = url.replace("://", "://ada:PLANTED-password@")
    data, folder = rows_of(tmp_path, ["content: a", "200: none", "leak: b"]), tmp_path / "out"
    runs = [run_here(evaluate, endpoint_flags(address, data, folder))]
    runs += [run_here(evaluate, endpoint_flags(address, data, folder))]  # resumes: the same server
    runs += [run_here(evaluate, {"rescore": folder})]
    assert [run.code for run in runs] == [0, 0, 0], runs[1].err
    assert not planted_in(folder, *(run.out + run.err for run in runs))
    assert read_args(folder)["endpoint"] == url.replace("://", "://***@")
    # The header has the key, or the address's user and password.
    for key in ("", "ada:PLANTED-password@"):
        refused = endpoint_flags(url.replace("://", f"://{key}"), rows_of(tmp_path, ["refused: a"]), tmp_path / "no")
        result = run_here(evaluate, refused | {"overwrite_output_dir": "true"})
        assert result.code == 1 and "bad key" in result.err and "***" in result.err
        assert not planted_in(tmp_path / "no", result.out, result.err)


def test_a_server_that_repeats_the_key_in_a_text_has_it_hidden(url):
    ((_, completion),) = complete(url, "m", ["repeat: a"], 4, api_key="PLANTED-key")
    assert completion["text"] == "said Bearer ***"


def test_a_folder_with_credentials_loses_them_in_its_report(url, tmp_path, run_here):
    """Earlier versions wrote such folders."""
    folder = tmp_path / "out"
    assert run_here(evaluate, endpoint_flags(url, rows_of(tmp_path, ["content: a"]), folder)).code == 0
    for name in ("args.yaml", "environment.json"):
        path = folder / name
        path.write_text(path.read_text().replace("http://", "http://ada:PLANTED@"))
    result = run_here(evaluate, {"rescore": folder})
    assert result.code == 0 and not planted_in(folder, result.out, result.err) - {
        str(folder / name) for name in ("args.yaml", "environment.json")
    }


@pytest.mark.slow
def test_planted_credentials_are_in_no_output_of_any_script(url, flags, tmp_path):
    """In an address, in the environment, in the name of a recipe, and in refused arguments."""
    secret_place = tmp_path / "key=PLANTED-place"
    secret_place.mkdir()
    recipe = secret_place / "recipe.yaml"
    recipe.write_text("lora_dropout: 0\n")
    environment = os.environ | {"OPENAI_API_KEY": "PLANTED-key", "HF_TOKEN": "PLANTED-token"}
    address = url.replace("://", "://ada:PLANTED-password@")
    shown = []

    def run(script, flags, code=0):
        command = [sys.executable, script, *command_line(flags)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        shown.extend((done.stdout, done.stderr))

    outputs, adapter = tmp_path / "outputs", tmp_path / "outputs" / "run" / "adapter"
    run("train.py", flags | {"output_dir": outputs / "run", "max_train_steps": 1, "config": recipe})
    empty_recipe = secret_place / "empty.yaml"
    empty_recipe.write_text("seed: 42\n")
    evaluation = {
        "adapter": adapter,
        "endpoint": address,
        "endpoint_model": "m",
        "max_new_tokens": 4,
        "config": empty_recipe,
    }
    run("evaluate.py", evaluation | {"systems": ["adapter", "endpoint"], "num_examples": 2})
    infer_recipe = secret_place / "infer.yaml"
    infer_recipe.write_text("max_new_tokens: 4\n")
    rows = rows_of(tmp_path, ["a"])
    run("infer.py", {"adapter": adapter, "input": rows, "output": outputs / "answers.jsonl", "config": infer_recipe})
    run("export.py", {"adapter": adapter, "output_dir": outputs / "export", "dtype": "fp32"})
    for script in ("train.py", "evaluate.py"):
        wrong = {
            "dataset_name": "https://ada:PLANTED-password@host/rows.jsonl?key=PLANTED",
            "output_dir": outputs / "no",
        }
        run(script, wrong | {"model_name_or_path": flags["model_name_or_path"]}, code=1)
    assert len(list(outputs.rglob("*.*"))) > 30 and not planted_in(outputs, *shown)


def test_an_empty_turn_of_a_chat_is_an_abstention_and_no_other_message_without_text_is(url):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    tokenizer.chat_template = (ROOT / "tests" / "hermes.jinja").read_text()
    chat = find_format("chat", tokenizer)
    choices = [
        ({"content": "", "tool_calls": []}, "stop", "no calls"),
        ({"content": ""}, "stop", "empty turn"),
        ({"content": ""}, "length", "nothing"),
        ({"content": None}, "stop", "nothing"),
        ({"content": "", "refusal": "no"}, "stop", "nothing"),
        ({"content": "Hello"}, "stop", "content"),
        ({"content": "", "tool_calls": [{"function": CALL}]}, "tool_calls", "tool_calls"),
    ]
    queries = [f"choice:{json.dumps({'message': message, 'finish_reason': end})}" for message, end, _ in choices]
    rows = [Row(str(place), query, "[]", "[]") for place, query in enumerate(queries)]
    answers = dict(Endpoint(url, "m", chat, 4, as_chat=True).answer(rows))
    assert [answers[place]["came_as"] for place in range(len(rows))] == [came_as for _, _, came_as in choices]
    outputs = [output_of(Task(row), answers[place], chat.markers) for place, row in enumerate(rows)]
    assert [kind_of_answer(output) for output in outputs] == [
        *("abstains", "abstains", "broken", "broken", "broken", "abstains", "calls")
    ]
    assert [kinds_of_turn(output)[1] for output in outputs] == [*[None] * 5, "answered", "called"]
    (tags,) = dict(Endpoint(url, "m", PROMPT_FORMATS["tags-1"], 4, as_chat=True).answer(rows[1:2])).values()
    assert tags["came_as"] == "nothing"
