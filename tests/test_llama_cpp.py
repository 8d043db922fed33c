"""llama.cpp's server on a GGUF of the export gives the prompts and the texts that evaluate.py
measures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from conftest import ROOT, texts_by_system
from transformers import AutoTokenizer

import evaluate
import export
from data_utils.chat import chat_template
from data_utils.prompt import render_tags
from data_utils.sources import load_rows
from data_utils.tool_formats import openai_tools
from demo.rows import GENERATORS

pytest.importorskip("xllamacpp")  # llama.cpp's server as a wheel, for Linux on x86-64
pytestmark = pytest.mark.slow


@contextmanager
def serve(folder):
    """The URL of llama.cpp's server of an exported folder."""
    model, log = folder.parent / "export.gguf", folder.parent / "server.log"
    convert = [sys.executable, "-m", "demo.to_gguf", str(folder), str(model), "--weights", "f32"]
    subprocess.run(convert, cwd=ROOT, check=True)
    with log.open("w") as err:
        command = [sys.executable, str(ROOT / "benchmarks" / "llama_server.py"), str(model), "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True)
    try:
        url = process.stdout.readline().strip()  # empty if the server has ended
        assert url, log.read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def test_llama_cpp_gives_the_evaluations_prompts_and_texts(demo_adapter, run_here, tmp_path):
    exported, output_dir = tmp_path / "export", tmp_path / "evaluation"
    result = run_here(export, {"adapter": demo_adapter, "output_dir": exported, "dtype": "fp32"})
    assert result.code == 0, result.err
    tokenizer, rows = AutoTokenizer.from_pretrained(exported), load_rows("demo", generators=GENERATORS)[0]
    with serve(exported) as server:
        flags = {
            "model_name_or_path": exported, "dataset_name": "demo", "num_examples": 60,
            "systems": ["endpoint", "prompted"], "dtype": "fp32", "endpoint": f"{server}/v1",
            "endpoint_model": "demo", "endpoint_api": "chat", "max_new_tokens": 200, "output_dir": output_dir,
        }  # fmt: skip
        result = run_here(evaluate, flags)
        assert result.code == 0, result.err
        texts = texts_by_system(output_dir)
        # 60 on the machine of the first run. Another CPU's rounding may turn a tie of two tokens.
        assert sum(texts["endpoint"][row_id] == text for row_id, text in texts["prompted"].items()) >= 59
        assert len(texts["prompted"]) == 60
        metrics = json.loads((output_dir / "metrics.json").read_text())["systems"]["prompted"]
        assert metrics["json_valid"]["rate"] > 0.5

        for row in rows:
            if row.id in texts["prompted"]:
                request = {
                    "messages": [{"role": "user", "content": row.query}],
                    "tools": openai_tools(json.loads(row.tools)),
                }
                prompt = post(f"{server}/apply-template", request)["prompt"]
                ids = post(f"{server}/tokenize", {"content": prompt, "parse_special": True})["tokens"]
                assert ids == tokenizer(render_tags(row.query, row.tools), add_special_tokens=False).input_ids


def test_llama_cpps_engine_writes_the_prompts_of_jinja2(tmp_path):
    """Schemas of which the template builds objects, floats that llama.cpp's tojson cuts, calls."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    tokenizer.chat_template = chat_template(tokenizer, "tags-1")
    folder = shutil.copytree(ROOT / "demo" / "base", tmp_path / "export")
    tokenizer.save_pretrained(folder)

    properties = {
        "items": {"type": "array", "items": {"$ref": "#/$defs/Place"}, "description": 'it\'s <here> & "é"'},
        "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
        "pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "maxItems": 2},
        "both": {"allOf": [{"$ref": "#/$defs/Place"}, {"properties": {"y": {"type": "number"}}, "required": ["y"]}]},
        "size": {"type": "number", "default": 1.0, "minimum": 0.5, "enum": [1.0, 123456.789, 1e-05]},
    }
    place = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    parameters = {"type": "object", "properties": properties, "required": ["items"], "$defs": {"Place": place}}
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}]
    call = {"name": "f", "arguments": json.dumps({"size": 1.0, "items": [], "text": 'a\\ "b"\n'})}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": "it's done"},
    ]
    with serve(folder) as server:
        prompt = post(f"{server}/apply-template", {"messages": messages, "tools": tools})["prompt"]
        assert prompt == tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False
        )
        properties["when"] = {"$ref": "#/$defs/Nowhere"}
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{server}/v1/chat/completions", {"messages": messages, "tools": tools})
        reason = json.load(refused.value)["error"]["message"]
        assert 'tool f, when: the reference "#/$defs/Nowhere" leads nowhere in this schema' in reason
