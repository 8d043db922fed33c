"""The prompt format `chat` through the scripts, with a random model and a small template."""

import json
import shutil

import pytest
from conftest import ROOT, read_args
from transformers import AutoModelForCausalLM, AutoTokenizer

import evaluate
import export
import infer
import train
from data_utils.chat_format import find_format
from data_utils.example_rows import example_rows
from model_utils.export_folder import describe_serving

TOOLS = ROOT / "demo" / "math_tools.json"


@pytest.fixture(scope="session")
def chat_model(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_model, folder)
    shutil.copy(ROOT / "tests" / "hermes.jinja", folder / "chat_template.jinja")
    return folder


@pytest.fixture
def chat_flags(flags, chat_model):
    return flags | {"model_name_or_path": chat_model, "prompt_format": "chat", "max_train_steps": 2}


def test_a_chat_adapter_is_evaluated_scored_again_and_called(chat_flags, train_here, run_here):
    adapter = train_here(chat_flags) / "adapter"
    result = run_here(evaluate, {"adapter": adapter, "max_new_tokens": 8, "num_examples": 2})
    assert result.code == 0, result.err
    folder = adapter.parent / "evaluation"
    environment = json.loads((folder / "environment.json").read_text())
    trained_with = json.loads((adapter / "environment.json").read_text())
    assert environment["prompt_sha256"]["adapter"] == trained_with["prompt_sha256"]
    assert environment["prompt_sha256"]["raw"] != environment["prompt_sha256"]["prompted"]
    metrics = (folder / "metrics.json").read_text()
    assert set(json.loads(metrics)["systems"]["adapter"]["outcomes"].items()) >= {("cut off", 2)}  # never an abstention
    # Scored without the model and its tokenizer.
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    for prediction in predictions:
        if prediction["system"] == "adapter":
            calls = "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in prediction["gold"])
            prediction |= {"text": f"Words. {calls}", "finish": "end"}
    (folder / "predictions.jsonl").write_text("".join(json.dumps(prediction) + "\n" for prediction in predictions))
    assert run_here(evaluate, {"rescore": folder}).code == 0
    scores = json.loads((folder / "metrics.json").read_text())["systems"]
    assert scores["adapter"]["exact_match"]["rate"] == scores["adapter"]["lenient_exact_match"]["rate"] == 1
    assert scores["prompted"]["exact_match"]["rate"] == 0
    result = run_here(infer, {"adapter": adapter, "query": "x", "tools": TOOLS, "max_new_tokens": 5})
    assert result.code == 1 and "cut off at --max_new_tokens 5" in result.err


def test_a_base_without_a_template_is_refused_before_its_weights_are_read(chat_flags, tiny_model, run_here):
    without = {"model_name_or_path": tiny_model, "prompt_format": "chat"}
    for module, flags in (
        (train, chat_flags | without),
        (infer, without | {"query": "x", "tools": TOOLS}),
        (evaluate, without | {"dataset_name": chat_flags["dataset_name"], "output_dir": chat_flags["output_dir"]}),
    ):
        (tiny_model / "model.safetensors").rename(tiny_model / "away")  # reading the weights would be another error
        result = run_here(module, flags)
        (tiny_model / "away").rename(tiny_model / "model.safetensors")
        assert result.code == 1 and f"{tiny_model} has no chat template" in result.err, result.err


def test_constrained_decoding_of_a_chat_is_refused_by_name(chat_flags, chat_model, run_here):
    base = {"model_name_or_path": chat_model, "prompt_format": "chat"}
    result = run_here(infer, base | {"query": "x", "tools": TOOLS, "constrained": "true"})
    assert result.code == 2 and "chat has no grammar" in result.err
    rows = {"dataset_name": chat_flags["dataset_name"], "systems": "constrained"}
    result = run_here(evaluate, base | rows | {"output_dir": chat_flags["output_dir"]})
    assert result.code == 2 and "chat has no grammar" in result.err


def test_an_edited_template_is_another_format(chat_flags, chat_model, train_here, run_here, tmp_path):
    adapter = train_here(chat_flags) / "adapter"
    edited = tmp_path / "edited"
    shutil.copytree(chat_model, edited)
    (edited / "chat_template.jinja").write_text((edited / "chat_template.jinja").read_text() + " ")
    result = run_here(infer, {"adapter": adapter, "model_name_or_path": edited, "query": "x", "tools": TOOLS})
    assert result.code == 1 and "is not the adapter's training's" in result.err
    resume = chat_flags | {"resume_from_checkpoint": "latest", "max_train_steps": 2}
    assert "is finished" in run_here(train, resume).out
    result = run_here(train, resume | {"model_name_or_path": edited})
    assert result.code == 1


def test_an_export_keeps_the_base_s_template_and_ends_with_its_token(chat_model):
    tokenizer, model = AutoTokenizer.from_pretrained(chat_model), AutoModelForCausalLM.from_pretrained(chat_model)
    template = tokenizer.chat_template
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = template.replace("eos_token", "'<|im_end|>'")
    chat = find_format("chat", tokenizer)
    describe_serving(model, tokenizer, "chat", chat)
    assert tokenizer.chat_template == template.replace("eos_token", "'<|im_end|>'")
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert model.generation_config.eos_token_id == sorted(ends)
    for row in example_rows():
        prompt, completion = chat.texts(row)
        message = tokenizer.parse_response(completion + "<|im_end|>", prefix=prompt)
        assert [call["function"] for call in message.get("tool_calls", [])] == json.loads(row.answers)


@pytest.mark.slow  # two times eight long answers of a random model
def test_a_chat_adapter_is_exported_with_its_template(chat_flags, chat_model, train_here, run_here, tmp_path):
    adapter = train_here(chat_flags) / "adapter"
    result = run_here(export, {"adapter": adapter, "output_dir": tmp_path / "export"})
    assert result.code == 0, result.err
    written = (tmp_path / "export" / "chat_template.jinja").read_text()
    assert written == (chat_model / "chat_template.jinja").read_text()
    assert "The prompt is the base's own chat template" in (tmp_path / "export" / "README.md").read_text()
    assert read_args(adapter)["prompt_format"] == "chat"


def conversations(path, number):
    """Logs of an agent: a call, its result, an answer in words, a question back."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip
    for place in range(number):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": f"city {place}"}}}
        messages = [
            {"role": "user", "content": f"Is it raining in city {place}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "no"},
            {"role": "assistant", "content": f"No, city {place} is dry."},
            {"role": "user", "content": "And there?"},
            {"role": "assistant", "content": "Which city do you mean?"},
        ]
        with path.open("a") as file:
            file.write(json.dumps({"messages": messages, "tools": tools}) + "\n")


def test_turns_in_words_are_trained_and_judged_by_what_they_do(chat_flags, train_here, run_here, tmp_path):
    conversations(tmp_path / "logs.jsonl", 30)
    flags = chat_flags | {"dataset_name": tmp_path / "logs.jsonl", "eval_fraction": 0.1, "max_train_steps": 1}
    result = run_here(train, flags)
    assert result.code == 0, result.err
    assert "of the 81 turns to train on are words, trained as they are" in result.out
    adapter = flags["output_dir"] / "adapter"
    assert run_here(evaluate, {"adapter": adapter, "max_new_tokens": 2, "systems": "adapter"}).code == 0
    folder = flags["output_dir"] / "evaluation"
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert len(predictions) == 9
    answers = {"1": "Wait.", "3": "It is dry!", "5": "Where?"}  # by the turn's place: wrong, right, right
    for prediction in predictions:
        prediction |= {"text": answers[prediction["id"].split("/")[1]], "finish": "end"}
    (folder / "predictions.jsonl").write_text("".join(json.dumps(prediction) + "\n" for prediction in predictions))
    result = run_here(evaluate, {"rescore": folder})
    assert result.code == 0, result.err
    figures = json.loads((folder / "metrics.json").read_text())["systems"]["adapter"]
    none = {"called": 0, "answered": 0, "asked": 0, "neither": 0}
    assert figures["turn_table"] == {
        "called": none | {"answered": 3}, "answered": none | {"answered": 3}, "asked": none | {"asked": 3}
    }  # fmt: skip
    assert (figures["turn_match"]["k"], figures["turn_match"]["n"]) == (6, 9)
    assert figures["call_table"]["gold_none"] == {"calls": 0, "abstains": 6, "broken": 0}
    assert "adapter: gold asked   : called 0, answered 0, asked 3, neither 0" in result.out
    assert "To call, to answer or to ask" in (folder / "report.html").read_text()


def test_the_tag_prompt_trains_turns_in_words_as_no_calls_and_counts_them(flags, run_here, tmp_path):
    conversations(tmp_path / "logs.jsonl", 10)
    result = run_here(train, flags | {"dataset_name": tmp_path / "logs.jsonl", "max_train_steps": 1})
    assert result.code == 0, result.err
    assert "turns to train on are words, trained as turns without calls: --prompt_format chat" in result.out
