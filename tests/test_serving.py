"""`transformers serve` on the export answers with the `tool_calls` that evaluate.py generates."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import openai
import pytest
from conftest import texts_by_system

import evaluate
import export
from data_utils.sources import load_rows
from data_utils.tool_formats import openai_tools
from data_utils.written_calls import flat_calls
from demo.rows import GENERATORS

pytestmark = pytest.mark.slow


@pytest.fixture
def exported(demo_adapter, run_here, tmp_path):
    folder = tmp_path / "export"
    result = run_here(export, {"adapter": demo_adapter, "output_dir": folder, "dtype": "fp32"})
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def server(exported):
    """The URL of `transformers serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", serve, "serve", str(exported), "--port", str(port)]
    log = (exported.parent / "server.log").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.seek(0) or log.read()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def test_a_servers_calls_equal_the_evaluations(run_here, exported, server, tmp_path):
    output_dir = tmp_path / "evaluation"
    flags = {
        "model_name_or_path": exported, "dataset_name": "demo", "num_examples": 16,
        "systems": ["endpoint", "prompted"], "dtype": "fp32", "endpoint": server, "endpoint_model": exported,
        "endpoint_api": "chat", "max_new_tokens": 200, "output_dir": output_dir,
    }  # fmt: skip
    result = run_here(evaluate, flags)
    assert result.code == 0, result.err
    texts = texts_by_system(output_dir)
    assert texts["endpoint"] == texts["prompted"] and len(texts["prompted"]) == 16
    assert json.loads((output_dir / "metrics.json").read_text())["systems"]["prompted"]["json_valid"]["rate"] > 0.5

    # The openai client gets the same calls, at once and streamed.
    client = openai.OpenAI(base_url=server, api_key="none")
    rows = {row.id: row for row in load_rows("demo", generators=GENERATORS)[0]}
    row_id = next(row_id for row_id, text in texts["prompted"].items() if text.startswith("[{") and text.endswith("}]"))
    request = {
        "model": str(exported),
        "messages": [{"role": "user", "content": rows[row_id].query}],
        "tools": openai_tools(json.loads(rows[row_id].tools)),
        "max_tokens": 200,
    }
    message = client.chat.completions.create(**request).choices[0].message
    assert not message.content
    assert flat_calls([call.model_dump() for call in message.tool_calls]) == json.loads(texts["prompted"][row_id])
    streamed = [
        chunk.choices[0].delta for chunk in client.chat.completions.create(**request, stream=True) if chunk.choices
    ]
    calls = [call.model_dump() for delta in streamed for call in delta.tool_calls or []]
    assert flat_calls(calls) == json.loads(texts["prompted"][row_id])
    assert not "".join(delta.content or "" for delta in streamed)
