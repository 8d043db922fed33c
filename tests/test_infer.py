"""infer.py through its real `main`, with models that give a fixed answer."""

import io
import json
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, launch, launch_and_kill
from transformers import AutoModelForCausalLM, AutoTokenizer

import infer
from data_utils.prompt import PROMPT_FORMATS
from data_utils.tool_calls import parse_json

FLAT = {"name": "f", "description": "d", "parameters": {"x": {"type": "int"}}}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = json.dumps([FLAT])
UNREADABLE = {"name": "c", "inputSchema": {"properties": {"x": {"type": "object", "patternProperties": {"^a": {}}}}}}


@pytest.fixture
def model_answering(tiny_model, tmp_path):
    """A folder with a model that answers any prompt with `text`, one new token, and then ends."""

    def make(text):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.add_tokens([text])
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), model.config.hidden_size))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        # The last tokens of the tag prompt and the raw prompt.
        prompts = "\n", PROMPT_FORMATS["raw"].render("hi", TOOLS)
        starts = {tokenizer(prompt).input_ids[-1] for prompt in prompts}
        answer, end = tokenizer(text).input_ids[0], tokenizer.eos_token_id
        with torch.no_grad():
            for layer in model.model.layers:  # each token passes through unchanged
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight[answer].normal_(std=model.config.initializer_range)
            for token, following in (*((start, answer) for start in starts), (answer, end)):
                model.lm_head.weight[following] += model.model.embed_tokens.weight[token]
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


def test_stdout_has_only_the_calls(run_here, model_answering, tools_file):
    result = run_here(infer, {"model_name_or_path": model_answering("[]"), "query": "hi", "tools": tools_file})
    assert (result.code, result.out) == (0, "[]\n"), result.err


def test_several_processes_are_refused(run_here, model_answering, tools_file, monkeypatch):
    """Each process would print the calls, and two lists are not JSON."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_here(infer, {"model_name_or_path": model_answering("[]"), "query": "hi", "tools": tools_file})
    assert result.code == 1 and result.out == "" and "start it with python" in result.err.splitlines()[-1]


@pytest.mark.parametrize("closing", ["", "</answer>", "\n</answer> and more"])
def test_a_closing_tag_is_not_part_of_the_answer(run_here, model_answering, tools_file, closing):
    answer = '[{"name": "f", "arguments": {"x": "</answer>"}}]'
    result = run_here(
        infer, {"model_name_or_path": model_answering(answer + closing), "query": "hi", "tools": tools_file}
    )
    assert (result.code, result.out) == (0, f"{answer}\n"), result.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_output_is_json_in_any_encoding_of_stdout(run_here, model_answering, tools_file, monkeypatch, encoding):
    calls = [{"name": "f", "arguments": {"x": "Zoë"}}]
    folder = model_answering(json.dumps(calls, ensure_ascii=False))
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    result = run_here(infer, {"model_name_or_path": folder, "query": "hi", "tools": tools_file})
    assert result.code == 0, result.err
    assert json.loads(written.getvalue().decode("utf-8")) == calls
    assert ("ë".encode() in written.getvalue()) == (encoding == "utf-8")


def test_an_output_that_is_not_a_list_of_calls_is_an_error(run_here, model_answering, tools_file):
    result = run_here(infer, {"model_name_or_path": model_answering("{]"), "query": "hi", "tools": tools_file})
    assert result.code == 1 and result.out == ""
    loaded, raw, line = result.err.strip().splitlines()
    assert re.fullmatch(r"Loaded in \d+\.\d s, of which libraries took \d+\.\d", loaded)
    assert raw.startswith("{]") and line.startswith("infer.py: error: the output above is not a list of calls")


@pytest.mark.parametrize(
    ("answer", "misfit"),
    [([{"name": "g", "arguments": {}}], "g is not among the tools"), ([{"name": "f", "arguments": {"x": 1}}], None)],
)
def test_calls_that_do_not_fit_are_reported_and_are_errors_with_strict(
    run_here, model_answering, tools_file, answer, misfit
):
    flags = {"model_name_or_path": model_answering(json.dumps(answer)), "query": "hi", "tools": tools_file}
    result = run_here(infer, flags)
    assert result.code == 0 and json.loads(result.out) == answer
    assert result.err.splitlines()[1:] == ([misfit] if misfit else [])
    result = run_here(infer, flags | {"strict": True, "format": "openai"})
    assert result.code == (1 if misfit else 0)
    (call,) = json.loads(result.out)
    assert call["type"] == "function" and json.loads(call["function"]["arguments"]) == answer[0]["arguments"]


def test_tools_may_be_python_functions(run_here, model_answering, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import math\nfrom math import sqrt\nprint('imported')\ndef f(x: int, how: str = 'up'):\n"
        '    """Round.\n\n    Args:\n        x: The number.\n        how: Up or down.\n    """\n'
        "def _hidden(): ...\n"
    )
    answer = '[{"name": "f", "arguments": {"x": 1}}]'
    flags = {"model_name_or_path": model_answering(answer), "query": "hi", "tools": path, "strict": True}
    result = run_here(infer, flags)
    assert (result.code, result.out) == (0, f"{answer}\n") and f"{path}: 1 tools, read as Python's" in result.err
    for content, message in (
        (
            "def f(x): ...",
            "no tool is left: function f: Cannot generate JSON schema for f because it has no docstring!",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(", "SyntaxError"),
        ("x = 1", "defines no public function"),
    ):
        path.write_text(content)
        result = run_here(infer, flags)
        (line,) = result.err.strip().splitlines()
        assert result.code == 1 and message in line


def rows_of_all_layouts(tmp_path):
    """Rows in each layout, with and without answers, one bad row and one broken line."""
    openai = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]
    records = [
        {"id": "a", "query": "hi", "tools": TOOLS, "answers": "[]"},
        {"query": "hi, and more of it", "tools": openai},
        {"id": "bad", "tools": TOOLS},
        {
            "id": "b",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}],
            "tools": openai,
        },
        {
            "id": "c",
            "question": [[{"role": "user", "content": "hi"}]],
            "function": [{"name": "f", "parameters": SCHEMA}],
        },
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "{broken\n")
    return path


def test_a_file_of_rows_is_answered_line_by_line_in_its_order(run_here, model_answering, tmp_path):
    answer = [{"name": "f", "arguments": {"x": "1"}}]
    output = tmp_path / "calls.jsonl"
    flags = {
        "model_name_or_path": model_answering(json.dumps(answer)),
        "input": rows_of_all_layouts(tmp_path),
        "output": output,
    }
    result = run_here(infer, flags)
    assert result.code == 0 and result.out == "", result.err
    assert (
        result.err.splitlines()[-1] == f"6 rows in {output}: 4 with calls, 4 of which do not fit their tools; 2 errors"
    )
    lines = list(map(json.loads, output.read_text().splitlines()))
    no_layout = "a row of no known layout: it has id, tools"
    assert lines[2]["error"].startswith(no_layout)
    lines[2]["error"] = no_layout
    misfits = ["f.x: '1' is not of type 'integer'"]
    assert lines == [
        {"id": "a", "calls": answer, "misfits": misfits},
        {"id": 2, "calls": answer, "misfits": misfits},
        {"id": "bad", "error": no_layout},
        {"id": "b", "calls": answer, "misfits": misfits},
        {"id": "c", "calls": answer, "misfits": misfits},
        {
            "id": 6,
            "error": "broken JSON in a line, which must be a whole row: "
            "Expecting property name enclosed in double quotes (column 2)",
        },
    ]
    result = run_here(infer, flags)
    assert result.code == 1 and "is there already: remove it, or choose another" in result.err
    output.unlink()
    result = run_here(infer, flags | {"strict": True, "format": "openai"})
    assert result.code == 1 and "6 of the 6 rows have errors, calls that do not fit" in result.err
    assert json.loads(output.read_text().splitlines()[0])["tool_calls"][0]["function"]["name"] == "f"


def test_tools_for_rows_that_have_none(run_here, model_answering, tools_file, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"query": "hi"}\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    flags = {
        "model_name_or_path": model_answering("[]"),
        "input": tmp_path / "rows.jsonl",
        "output": tmp_path / "calls.jsonl",
    }
    result = run_here(infer, flags | {"tools": tools_file})
    assert result.code == 0, result.err
    assert (tmp_path / "calls.jsonl").read_text() == '{"id": 1, "calls": []}\n{"id": 2, "calls": []}\n'


def test_an_unreadable_tool_is_left_out_with_a_line(run_here, model_answering, tmp_path):
    """The list mixes formats."""
    path = tmp_path / "tools.json"
    path.write_text(
        json.dumps([{"name": "f", "inputSchema": SCHEMA}, UNREADABLE, {"type": "function", "function": {"name": "g"}}])
    )
    answer = '[{"name": "f", "arguments": {"x": 1}}]'
    flags = {"model_name_or_path": model_answering(answer), "query": "hi", "tools": path}
    result = run_here(infer, flags)
    assert (result.code, result.out) == (0, f"{answer}\n")
    lines = result.err.splitlines()[:2]
    assert lines[0] == f"{path}: 2 tools, read as MCP and OpenAI's"
    assert lines[1].startswith(f"{path}: left out: tool c, x: patternProperties")
    result = run_here(infer, flags | {"strict": True})
    assert result.code == 1 and result.out == "" and "1 tools are left out, and --strict is set" in result.err


def test_rows_leave_out_their_unreadable_tools(run_here, model_answering, tmp_path):
    mixed = [{"name": "f", "inputSchema": SCHEMA}, UNREADABLE]
    records = [{"query": "q", "tools": tools} for tools in (mixed, TOOLS, json.dumps(mixed), [UNREADABLE], "[{")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    answer = [{"name": "f", "arguments": {"x": 1}}]
    flags = {"model_name_or_path": model_answering(json.dumps(answer)), "input": tmp_path / "rows.jsonl"}
    result = run_here(infer, flags | {"output": tmp_path / "calls.jsonl"})
    assert result.code == 0, result.err
    (reason,) = re.findall(r"rows.jsonl: left out: (tool c, x: patternProperties .*) \(3 rows\)", result.err)
    calls = {"calls": answer}
    *lines, broken = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert broken["id"] == 5 and broken["error"].startswith("broken JSON in field 'tools'")
    assert lines == [
        {"id": 1} | calls | {"left_out": [reason]},
        {"id": 2} | calls,
        {"id": 3} | calls | {"left_out": [reason]},
        {"id": 4, "error": f"no tool is left: {reason}"},
    ]
    result = run_here(infer, flags | {"output": tmp_path / "again.jsonl", "strict": True})
    assert result.code == 1 and "4 of the 5 rows have errors" in result.err.splitlines()[-1]


def test_an_id_that_is_not_json_becomes_the_row_number(run_here, model_answering, tools_file, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": NaN, "query": "q"}\n{"id": 0, "query": "q"}\n{"id": -Infinity}\n')
    flags = {"model_name_or_path": model_answering("[]"), "tools": tools_file, "input": tmp_path / "rows.jsonl"}
    result = run_here(infer, flags | {"output": tmp_path / "calls.jsonl"})
    assert result.code == 0, result.err
    assert [parse_json(line)["id"] for line in (tmp_path / "calls.jsonl").read_text().splitlines()] == [1, 0, 3]


@pytest.mark.slow
def test_a_killed_run_continues_its_file(tiny_model, rows_file, tmp_path):
    flags = {"model_name_or_path": tiny_model, "input": rows_file, "output": tmp_path / "straight.jsonl",
             "max_new_tokens": 40, "batch_tokens": 1}  # fmt: skip
    assert launch("infer.py", flags).code == 0
    flags |= {"output": tmp_path / "calls.jsonl"}
    partial = tmp_path / "calls.jsonl.partial"
    reached = lambda: partial.exists() and partial.read_text().count("\n") > 20  # noqa: E731
    assert launch_and_kill("infer.py", flags, reached, tmp_path / "log")
    assert not (tmp_path / "calls.jsonl").exists()
    kept = partial.read_text().count("\n") - 1
    for more in ({"max_new_tokens": 41}, {"system": "raw"}, {"model_name_or_path": "demo"}):
        refused = launch("infer.py", flags | more)
        assert refused.code == 1 and "has answers to other rows, or of another model or settings" in refused.err
    done = launch("infer.py", flags)
    assert done.code == 0 and f"{kept} of 84 rows are answered in {partial}: continuing" in done.err, done.err
    assert (tmp_path / "calls.jsonl").read_bytes() == (
        tmp_path / "straight.jsonl"
    ).read_bytes() and not partial.exists()


def test_compare_prints_the_answer_of_each_system(run_here, model_answering, tools_file):
    answer = '[{"name": "f", "arguments": {"x": "1"}}]'
    flags = {
        "model_name_or_path": model_answering(answer),
        "query": "hi",
        "tools": tools_file,
        "compare": True,
        "max_new_tokens": 3,
    }
    result = run_here(infer, flags)
    assert result.code == 0, result.err
    lines = [f"  {answer}", "  (f.x: '1' is not of type 'integer')"]
    assert result.out.splitlines() == ["raw:", *lines, "prompted:", *lines]


def test_tools_come_from_stdin_and_the_base_can_be_asked_raw(run_here, tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TOOLS.encode("utf-8-sig")), encoding="ascii"))
    flags = {"model_name_or_path": tiny_model, "query": "hi", "tools": "-", "system": "raw", "max_new_tokens": 3}
    result = run_here(infer, flags)
    assert result.code == 1 and result.out == "" and "cut off at --max_new_tokens 3" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "must be a JSON list of tools (docs"),
        ("[{", "must be a JSON list of tools (docs"),
        ("{}", "not a list of tools"),
        ('[{"description": "x"}]', "a tool must be an object with a name"),
        ("[NaN]", "NaN is not JSON"),
        (json.dumps([{"type": "web_search", "name": "f"}]), 'tools of the type "web_search" are not read'),
        (json.dumps([{"name": "f", "inputSchema": {"properties": {"x": {"not": {}}}}}]), "f, x: not cannot be said"),
        (
            json.dumps([{"name": "f", "parameters": {"x": "int"}}]),
            "tool f: x is not read: arguments belong in a JSON Schema",
        ),
        (
            json.dumps([UNREADABLE, UNREADABLE]),
            "no tool is left: tool c, x: patternProperties cannot be said in the flat form (and 1 more)",
        ),
    ],
)
def test_bad_tools_are_refused_in_one_line(run_here, tiny_model, tmp_path, content, message):
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    result = run_here(infer, {"model_name_or_path": tiny_model, "query": "hi", "tools": path})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and message in line


def test_a_byte_order_mark_is_not_part_of_the_tools(run_here, model_answering, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(TOOLS, encoding="utf-8-sig")
    assert run_here(infer, {"model_name_or_path": model_answering("[]"), "query": "hi", "tools": path}).out == "[]\n"


def test_a_prompt_beyond_the_models_positions_is_an_error(run_here, tiny_model, tools_file, tmp_path):
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


def test_a_models_code_runs_only_with_trust_remote_code(tiny_model, tools_file, tmp_path):
    """stdin answers any question with `y`."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    custom = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config | custom))
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


def test_rows_without_answers_are_read_from_parquet_too(run_here, model_answering, tools_file, tmp_path):
    flags = {"model_name_or_path": model_answering("[]"), "max_new_tokens": 3, "output": tmp_path / "calls.jsonl"}
    tools = {"tools": [TOOLS, TOOLS]}
    for number, (columns, more) in enumerate([(tools, {}), ({}, {"tools": tools_file})]):
        pq.write_table(pa.table({"id": ["a", "b"], "query": ["q", "r"]} | columns), tmp_path / "rows.parquet")
        output = tmp_path / f"calls{number}.jsonl"
        result = run_here(infer, flags | more | {"input": tmp_path / "rows.parquet", "output": output})
        assert result.code == 0, result.err
        assert [json.loads(line) for line in output.read_text().splitlines()] == [
            {"id": "a", "calls": []},
            {"id": "b", "calls": []},
        ]


def test_a_row_without_a_question_is_an_error_and_any_id_is_written(run_here, model_answering, tools_file, tmp_path):
    records = [
        {"id": "\ud800", "query": "q"},
        {"id": 1, "query": ""},
        {"id": 2, "messages": [{"role": "assistant", "content": "hi"}]},
        {"id": 3, "question": [5], "function": []},
        {"id": 4, "query": "q", "messages": [{"role": "user", "content": "not this"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    flags = {"model_name_or_path": model_answering("[]"), "tools": tools_file, "input": tmp_path / "rows.jsonl"}
    result = run_here(infer, flags | {"output": tmp_path / "calls.jsonl", "max_new_tokens": 3})
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["\ud800", 1, 2, 3, 4]
    assert lines[4] == {"id": 4, "calls": []} and "error" in lines[0]
    reasons = "an empty query", "a conversation in which nobody asks", "not in the leaderboard's layout"
    assert [line["error"] for line in lines[1:4]] == list(reasons)


def test_an_empty_partial_file_is_started_again(run_here, model_answering, tools_file, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"query": "q"}\n')
    (tmp_path / "calls.jsonl.partial").touch()
    flags = {"model_name_or_path": model_answering("[]"), "tools": tools_file, "input": tmp_path / "rows.jsonl"}
    result = run_here(infer, flags | {"output": tmp_path / "calls.jsonl", "max_new_tokens": 3})
    assert result.code == 0 and (tmp_path / "calls.jsonl").read_text() == '{"id": 1, "calls": []}\n'


def test_wrong_flags_are_refused_before_loading(run_here, tools_file, tmp_path):
    flags = {"model_name_or_path": "absent/model", "tools": tools_file}
    for more, message in (
        ({"input": "rows.jsonl", "output": tmp_path / "absent" / "calls.jsonl"}, "there is no such folder"),
        ({"interactive": True, "compare": True}, "do not go together"),
    ):
        result = run_here(infer, flags | more)
        assert result.code == 2 and message in result.err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class Mine(BaseException): pass\nraise Mine('x')", "Mine: x"),
        (
            "class M(type):\n    def __getattr__(cls, name): raise SystemExit\n"
            "class A(metaclass=M): pass\ndef f(a: A):\n    'Do.'",
            "no tool is left: function f: SystemExit",
        ),
        (
            "from __future__ import annotations\nimport dataclasses\nimport helper_of_mine\n"
            "@dataclasses.dataclass\nclass A:\n    x: int\n",
            "defines no public function",
        ),
    ],
)
def test_a_python_file_of_tools_runs_as_by_itself(run_here, tiny_model, tmp_path, code, message):
    (tmp_path / "helper_of_mine.py").touch()
    (tmp_path / "tools.py").write_text(code)
    result = run_here(infer, {"model_name_or_path": tiny_model, "query": "q", "tools": tmp_path / "tools.py"})
    assert result.code == 1 and result.out == "" and message in result.err
