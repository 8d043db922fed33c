"""Starts servers of an export, one at a time, asks them as OpenAI's clients do, and compares their
answers with evaluate.py's. Prints a Markdown table.

    python -m benchmarks.serve --export runs/demo/export        # transformers
    python -m benchmarks.serve --export runs/demo/export --servers transformers vllm vllm_lora \\
        llama_cpp mlx_lm --adapter runs/demo/adapter --gguf runs/demo/export.gguf \\
        --vllm_python VENV/bin/python --llama_cpp_python ... --mlx_lm_python ...

Made for the demo, in float32 on a CPU. The rows are the demo's held-out rows, and the reference is
evaluate.py's greedy text of the export. Each server has its own Python, by default this one.
docs/serving.md has the installations. The logs are in --output_dir.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import openai
from transformers import AutoTokenizer

from data_utils.prompt import render_tags
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from data_utils.tool_formats import openai_tools
from demo.rows import GENERATORS
from eval_utils.server_answers import read_answer
from model_utils.adapter_files import ranks, read_adapter, read_config
from model_utils.loading import resolve_model
from run_utils.arguments import ROOT
from run_utils.errors import UsageError, UserError, require, run_script, say

NEW_TOKENS, REQUESTS_AT_A_TIME, SECONDS_TO_START = 200, 4, 600
PACKAGES = {"transformers": "transformers", "vllm": "vllm", "vllm_lora": "vllm", "llama_cpp": "xllamacpp", "mlx_lm": "mlx-lm"}  # fmt: skip
ENV = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Server(NamedTuple):
    name: str
    version: str
    command: list[str]  # without the port
    model: str  # in requests


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True, help="of export.py --dtype fp32")
    parser.add_argument("--adapter", help="its adapter, for vllm_lora")
    parser.add_argument("--gguf", help="the export as a file of demo.to_gguf --weights f32, for llama_cpp")
    parser.add_argument("--servers", nargs="+", choices=PACKAGES, default=["transformers"])
    parser.add_argument("--num_examples", type=int, default=60)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/serve"))
    for name in ("transformers", "vllm", "llama_cpp", "mlx_lm"):
        parser.add_argument(f"--{name}_python", default=sys.executable, metavar="PYTHON")
    return parser.parse_args()


def main():
    args = parse()
    require((args.export / "config.json").is_file(), f"--export {args.export} has no config.json")
    require(args.adapter or "vllm_lora" not in args.servers, "vllm_lora needs --adapter")
    require(args.gguf or "llama_cpp" not in args.servers, "llama_cpp needs --gguf")
    servers = [server_of(name, args) for name in args.servers]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    texts = reference_texts(args)
    rows = [row for row in load_rows("demo", generators=GENERATORS)[0] if row.id in texts]
    tokenizer = AutoTokenizer.from_pretrained(args.export)
    columns = []
    for server in servers:
        say(f"Starting {server.name}, whose log is {args.output_dir / server.name}.log ...")
        columns.append(measure(server, rows, texts, tokenizer, args.output_dir / f"{server.name}.log"))
    print(f"\n| {len(rows)} rows |" + "".join(f" {server.name} {server.version} |" for server in servers))
    print("|---|" + "---|" * len(servers))
    for line in dict.fromkeys(line for column in columns for line in column):
        print(f"| {line} |" + "".join(f" {column.get(line, '')} |" for column in columns))
    print("\n```\nexport " + " ".join(f"{name}={value}" for name, value in ENV.items()))
    for server in servers:
        print(shlex.join([Path(server.command[0]).name, *server.command[1:]]))
    print("```")


def server_of(name, args):
    """The Server of a name of PACKAGES. Raises UsageError if its package is not installed."""
    flag = f"{name.removesuffix('_lora')}_python"
    python = getattr(args, flag)
    scripts, export = Path(python).parent, str(args.export)
    folder, model, lora_options = export, export, []
    if name == "vllm_lora":
        adapter = read_adapter(args.adapter)
        rank = max(8, 1 << (max(ranks(read_config(args.adapter))) - 1).bit_length())  # vLLM has powers of two from 8
        folder, model = os.path.relpath(resolve_model(adapter.args["model_name_or_path"])), "tools"
        lora_options = ["--enable-lora", "--max-lora-rank", rank, "--lora-modules", f"tools={args.adapter}"]
        lora_options += ["--tokenizer", export, "--generation-config", export]
    vllm_options = "--enforce-eager --max-num-seqs 4 --enable-auto-tool-choice --tool-call-parser hf".split()
    command = {
        "transformers": [scripts / "transformers", "serve", folder, "--dtype", "float32"],
        "vllm": [scripts / "vllm", "serve", folder, "--dtype", "float32", *vllm_options, *lora_options],
        "llama_cpp": [python, "benchmarks/llama_server.py", args.gguf],
        "mlx_lm": [scripts / "mlx_lm.server", "--model", folder],
    }[name.removesuffix("_lora")]
    ask_version = f"from importlib.metadata import version; print(version({PACKAGES[name]!r}))"
    version = subprocess.run([python, "-c", ask_version], capture_output=True, text=True)
    if version.returncode:
        raise UsageError(f"{python} has no {PACKAGES[name]}: name another Python with --{flag}")
    return Server(name, version.stdout.strip(), list(map(str, command)), model)


def reference_texts(args):
    """Evaluate.py's greedy text of the export by row id, of held-out rows."""
    folder = args.output_dir / "evaluation"
    say("Generating with evaluate.py ...")
    flags = ["--model_name_or_path", args.export, "--dataset_name", "demo", "--systems", "prompted", "--dtype", "fp32"]
    flags += ["--num_examples", args.num_examples, "--no_call_examples", 0]
    flags += ["--max_new_tokens", NEW_TOKENS, "--batch_tokens", 8192]
    command = [sys.executable, ROOT / "evaluate.py", *flags, "--output_dir", folder, "--overwrite_output_dir"]
    if subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"evaluate.py has no texts of {args.export}: see its error above")
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {prediction["id"]: prediction["text"] for prediction in map(json.loads, lines)}


@contextlib.contextmanager
def started(server, log_path):
    """The server's address, when it is healthy. The server and its child processes are killed at
    the end. Raises RuntimeError if it ends or is too slow."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    command = server.command + ([port] if server.name == "llama_cpp" else ["--host", "127.0.0.1", "--port", port])
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENV, start_new_session=True)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(server, rows, texts, tokenizer, log_path):
    """The server's column of the table: `{line: cell}`. A failure has the last line of the log."""
    cells, start = {}, time.perf_counter()
    try:
        with started(server, log_path) as address:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
            ask(client, server.model, rows[0])
            cells["seconds until the first answer"] = f"{time.perf_counter() - start:.0f}"
            for line, cell in compare(server, client, address, rows, texts, tokenizer):
                say(f"  {line}: {cell}")
                cells[line] = cell
    except (RuntimeError, openai.OpenAIError, OSError) as error:
        log = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        last_line = next((line.strip() for line in reversed(log) if line.strip()), "an empty log")
        cells["failure"] = f"{error}: {last_line[:200]}".replace("|", "/")
    return cells


def compare(server, client, address, rows, texts, tokenizer):
    """Yields `(line of the table, cell)`."""

    def answers(**settings):
        with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as pool:
            return list(pool.map(lambda row: ask(client, server.model, row, **settings), rows))

    def count_equal(answers):
        equal = [answer["text"] == texts[row.id] for answer, row in zip(answers, rows, strict=True)]
        refused = Counter(answer["came_as"] for answer in answers if answer["came_as"].startswith("HTTP"))
        return f"{sum(equal)} of {len(rows)}" + "".join(f", {refusal} {count}" for refusal, count in refused.items())

    start = time.perf_counter()
    greedy = answers(temperature=0)
    yield "rows/s", f"{len(rows) / (time.perf_counter() - start):.1f}"
    yield "texts equal", count_equal(greedy)
    yield "texts equal, streamed", count_equal(answers(temperature=0, stream=True))
    yield "texts equal, no temperature sent", count_equal(answers())
    yield "prompts equal", equal_prompts(server, address, rows, greedy, tokenizer)
    forms = Counter(answer["came_as"] for answer in greedy)
    yield "form of the answers", ", ".join(f"`{form}` {count}" for form, count in forms.most_common())

    def outcome(row, **settings):
        answer = ask(client, server.model, row, temperature=0, **settings)
        if answer["came_as"].startswith("HTTP"):
            return answer["came_as"]
        return "ignored" if answer["text"] == texts[row.id] else f"`{answer['came_as']}`: another text"

    def first_row(start):
        return next((row for row in rows if texts[row.id].startswith(start)), rows[0])

    silent, calling = first_row("[]"), first_row("[{")
    for line, row, limit in (("an answer `[]`", silent, NEW_TOKENS), ("an answer cut after 8 tokens", calling, 8)):
        answer = ask(client, server.model, row, temperature=0, max_tokens=limit)
        yield line, f"`{answer['came_as']}`: `{answer['text']}`, `{answer['finish_reason']}`"
    tools = openai_tools(json.loads(silent.tools))
    strict = [tool | {"function": tool["function"] | {"strict": True}} for tool in tools]
    yield '`"strict": true`', outcome(silent, tools=strict)
    # The reference does not call here, so a server that forces a call gives another text.
    yield '`tool_choice: "required"`', outcome(silent, tool_choice="required")
    by_name = {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
    yield "`tool_choice` by name", outcome(silent, tool_choice=by_name)
    several = next((row for row in rows if texts[row.id].count('"arguments"') > 1), calling)
    yield "`parallel_tool_calls: false`", outcome(several, parallel_tool_calls=False)


def ask(client, model, row, **settings):
    """A completion as read_answer gives it, with the server's finish_reason. If the server refuses
    the request, came_as is its HTTP status."""
    request = {"model": model, "max_tokens": NEW_TOKENS, "messages": [{"role": "user", "content": row.query}]}
    request |= {"tools": openai_tools(json.loads(row.tools))} | settings
    try:
        answer = client.chat.completions.create(**request)
        answer = join_chunks(answer) if settings.get("stream") else answer.model_dump(exclude_unset=True)
    except openai.APIStatusError as error:
        return {"text": "", "came_as": f"HTTP {error.status_code}", "finish_reason": None}
    return read_answer(answer, is_chat=True) | {"finish_reason": answer["choices"][0]["finish_reason"]}


def join_chunks(chunks):
    """The answer whose chunks a server streams."""
    content, calls, finish_reason = "", {}, None
    for chunk in chunks:
        for choice in chunk.choices[:1]:
            finish_reason = choice.finish_reason or finish_reason
            content += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                function = calls.setdefault(part.index, {"name": "", "arguments": ""})
                function["name"] += part.function.name or ""
                function["arguments"] += part.function.arguments or ""
    message = {"content": content or None, "tool_calls": [{"function": function} for function in calls.values()]}
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


def equal_prompts(server, address, rows, answers, tokenizer):
    """The number of prompts whose token ids are the training's. transformers and mlx-lm only count
    a prompt's tokens."""
    wanted = encode_prompts(tokenizer, [render_tags(row.query, row.tools) for row in rows])
    if server.name in ("transformers", "mlx_lm"):
        pairs = zip(answers, wanted, strict=True)
        return f"{sum(answer.get('num_prompt_tokens') == len(ids) for answer, ids in pairs)} of {len(rows)} (lengths)"
    num_equal = 0
    for row, ids in zip(rows, wanted, strict=True):
        request = {"messages": [{"role": "user", "content": row.query}], "tools": openai_tools(json.loads(row.tools))}
        if server.name == "llama_cpp":
            prompt = post(f"{address}/apply-template", request)["prompt"]
            request = {"content": prompt, "parse_special": True}
        else:
            request |= {"model": server.model, "add_generation_prompt": True}
        num_equal += post(f"{address}/tokenize", request)["tokens"] == ids.tolist()
    return f"{num_equal} of {len(rows)} (ids)"


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


if __name__ == "__main__":
    run_script(main)
