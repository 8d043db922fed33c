"""infer.py through its real `main`, on a model that is made to answer what a test wants."""

import io
import itertools
import json

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import infer

TOOLS = json.dumps([{"name": "f", "description": "d", "parameters": {"x": {"type": "int"}}}])


@pytest.fixture
def model_that_says(tiny_model, tmp_path):
    """A folder with a model that answers any prompt with the given text: one-hot states shifted by a fixed table."""

    def make(text):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        start = tokenizer("\n").input_ids[-1]
        chain = [start, *tokenizer(text).input_ids, tokenizer.eos_token_id]
        if len(set(chain)) != len(chain):
            pytest.fail("a token occurs twice: this model could not tell where it is")
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), model.config.hidden_size))
        with torch.no_grad():
            for layer in model.model.layers:  # every token passes through unchanged
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            embedding = model.model.embed_tokens.weight
            for here, following in itertools.pairwise(chain):
                model.lm_head.weight[following] += embedding[here]
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
    ],
)
def test_bad_tools(run_here, tiny_model, tmp_path, content, message):
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    result = run_here(infer, {"model_name_or_path": tiny_model, "query": "hi", "tools": path})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and message in line


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
