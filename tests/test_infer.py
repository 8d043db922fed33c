"""infer.py through its real `main`, on a model that is made to answer what a test wants."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import infer

FLAT = {"name": "f", "description": "d", "parameters": {"x": {"type": "int"}}}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = json.dumps([FLAT])


@pytest.fixture
def model_that_says(tiny_model, tmp_path):
    """A folder with a model that answers any prompt with the given text, one token of its own, and then ends."""

    def make(text):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.add_tokens([text])
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), model.config.hidden_size))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        start, said, end = tokenizer("\n").input_ids[-1], tokenizer(text).input_ids[0], tokenizer.eos_token_id
        with torch.no_grad():
            for layer in model.model.layers:  # every token passes through unchanged
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight[said].normal_(std=model.config.initializer_range)
            for here, following in ((start, said), (said, end)):
                model.lm_head.weight[following] += model.model.embed_tokens.weight[here]
        folder = tmp_path / "says"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def tools_file(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(TOOLS)
    return path


def test_calls_alone_on_stdout(run_here, model_that_says, tools_file):
    result = run_here(infer, {"model_name_or_path": model_that_says("[]"), "query": "hi", "tools": tools_file})
    assert (result.code, result.out) == (0, "[]\n"), result.err


@pytest.mark.parametrize("closing", ["", "</answer>", "\n</answer> and more"])
def test_a_closing_tag_is_no_part_of_the_answer(run_here, model_that_says, tools_file, closing):
    says = '[{"name": "f", "arguments": {"x": "</answer>"}}]'
    result = run_here(
        infer, {"model_name_or_path": model_that_says(says + closing), "query": "hi", "tools": tools_file}
    )
    assert (result.code, result.out) == (0, f"{says}\n"), result.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_is_printed_is_json_whatever_stdout_can_hold(run_here, model_that_says, tools_file, monkeypatch, encoding):
    calls = [{"name": "f", "arguments": {"x": "Zoë"}}]
    folder = model_that_says(json.dumps(calls, ensure_ascii=False))
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    result = run_here(infer, {"model_name_or_path": folder, "query": "hi", "tools": tools_file})
    assert result.code == 0, result.err
    assert json.loads(written.getvalue().decode("utf-8")) == calls
    assert ("ë".encode() in written.getvalue()) == (encoding == "utf-8")


def test_an_output_that_is_no_list_of_calls(run_here, model_that_says, tools_file):
    result = run_here(infer, {"model_name_or_path": model_that_says("{]"), "query": "hi", "tools": tools_file})
    assert result.code == 1 and result.out == ""
    raw, line = result.err.strip().splitlines()
    assert raw.startswith("{]") and line.startswith("infer.py: error: the output above is not a list of calls")


def test_tools_come_from_stdin_and_the_base_can_be_asked_raw(run_here, tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TOOLS.encode("utf-8-sig")), encoding="ascii"))
    flags = {"model_name_or_path": tiny_model, "query": "hi", "tools": "-", "system": "raw", "max_new_tokens": 3}
    result = run_here(infer, flags)
    assert result.code == 1 and result.out == "" and "cut off at --max_new_tokens 3" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "must be a JSON list of tools"),
        ("[{", "must be a JSON list of tools"),
        ("{}", "not a list of tools"),
        ('[{"description": "x"}]', "a tool must be an object with a name"),
        ("[NaN]", "NaN is not JSON"),
        (json.dumps([{"type": "function", "function": FLAT}]), "OpenAI's wrapper"),
        (json.dumps([{**FLAT, "parameters": SCHEMA}]), "OpenAI's format (JSON Schema"),
        (json.dumps([{"name": "f", "inputSchema": SCHEMA}]), "MCP's format"),
        (json.dumps({"tools": [{"name": "f", "inputSchema": SCHEMA}]}), "MCP's tools/list"),
        (json.dumps([{"name": "f", "input_schema": SCHEMA}]), "Anthropic's format"),
        (json.dumps([{"functionDeclarations": [FLAT]}]), "Gemini's format"),
        (json.dumps([{"name": "f", "parameters": {"x": "int"}}]), "xLAM's flat form"),
    ],
)
def test_bad_tools(run_here, tiny_model, tmp_path, content, message):
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    result = run_here(infer, {"model_name_or_path": tiny_model, "query": "hi", "tools": path})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and message in line


def test_a_byte_order_mark_is_no_part_of_the_tools(run_here, model_that_says, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(TOOLS, encoding="utf-8-sig")
    assert run_here(infer, {"model_name_or_path": model_that_says("[]"), "query": "hi", "tools": path}).out == "[]\n"


def test_a_prompt_beyond_the_model_s_positions_is_said(run_here, tiny_model, tools_file, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    result = run_here(infer, {"model_name_or_path": short, "query": "hi", "tools": tools_file})
    assert result.code == 1 and "tokens and the model 20 positions: offer fewer tools" in result.err


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"query": "  "}, 2, "--query is missing"),
        ({"tools": ""}, 2, "--tools is missing"),
        ({"system": "adapter"}, 2, "needs --adapter"),
        ({"system": "lora"}, 2, "lora"),
        ({"adapter": "absent"}, 1, "no adapter in absent"),
        ({"model_name_or_path": "absent"}, 1, "no such model folder"),
    ],
)
def test_wrong_use_is_one_line(run_here, monkeypatch, tiny_model, tools_file, change, code, message):
    monkeypatch.chdir(ROOT)
    result = run_here(infer, {"model_name_or_path": tiny_model, "query": "hi", "tools": tools_file} | change)
    (line,) = result.err.strip().splitlines()
    assert result.code == code and message in line


def test_code_that_comes_with_a_model_runs_only_if_asked_for(tiny_model, tools_file, tmp_path):
    """For real, with a `y` waiting on stdin for whoever asks."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnModel(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    command = [
        sys.executable,
        "infer.py",
        "--model_name_or_path",
        folder,
        "--query",
        "hi",
        "--tools",
        tools_file,
        "--max_new_tokens",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, input="y\n" * 9, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "ran").exists()
    assert done.stderr.strip().splitlines()[-1].startswith("infer.py: error: cannot load a")
    done = subprocess.run([*command, "--trust_remote_code"], cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "ran").exists() and "cut off at --max_new_tokens 2" in done.stderr, done.stderr
