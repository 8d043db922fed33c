"""Batched greedy generation: the same outputs as one at a time, and it stops where it should."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_utils.batching import encode_prompts
from data_utils.prompt import render_prompt
from data_utils.rows import load_rows
from data_utils.tool_calls import ValueWatcher
from generation_utils import AnswerIsComplete, generate, token_batches


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(rows_file):
    return [render_prompt(row.query, row.tools) for row in load_rows(str(rows_file))[0][:32]]


def test_batched_equals_one_at_a_time_equals_plain_transformers(model, tokenizer, prompts):
    batched = dict(generate(model, tokenizer, prompts, 12, batch_tokens=20_000))
    alone = dict(generate(model, tokenizer, prompts, 12, batch_tokens=1))
    assert sorted(batched) == list(range(32))
    for i, prompt in enumerate(prompts):
        assert batched[i].text == alone[i].text and batched[i].finish == alone[i].finish
        ids = torch.tensor(encode_prompts(tokenizer, [prompt]))
        plain = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        ended = plain.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in plain else len(plain)
        assert tokenizer.decode(plain[:ended]).startswith(batched[i].text)
        assert batched[i].num_tokens <= 12 and (batched[i].finish != "length" or batched[i].num_tokens == 12)


def test_the_models_own_sampling_defaults_are_left_out_of_force(model, tokenizer, prompts):
    before = dict(generate(model, tokenizer, prompts[:4], 8, batch_tokens=20_000))
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    after = dict(generate(model, tokenizer, prompts[:4], 8, batch_tokens=20_000))
    assert [before[i].text for i in range(4)] == [after[i].text for i in range(4)]


def test_batches_are_longest_first_and_within_their_tokens():
    prompts = [[0] * length for length in (5, 90, 30, 31, 200, 7)]
    batches = token_batches(prompts, max_new_tokens=10, batch_tokens=130)
    assert batches == [[4], [1], [3, 2, 5], [0]]
    assert sorted(index for batch in token_batches(prompts, 10, 1) for index in batch) == list(range(6))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ('[{"name": "f", "arguments": {}}] and so on', '[{"name": "f", "arguments": {}}] a'),
        ('{"a": "}"}\n\n[1]', '{"a": "}"}\n\n['),
        ('["\\"]"] x', '["\\"]"] x'),
        ("[]\n</answer>", "[]\n<"),
        ("no idea</answer> [1]", "no idea</answer>"),
        ("prose [1] prose", "prose [1] prose"),
        ("[[1, 2], [3", "[[1, 2], [3"),
        ("  [1]   ", "  [1]   "),
    ],
)
@pytest.mark.parametrize("piece_length", [1, 3, 100])
def test_a_text_is_watched_until_its_value_closed_and_something_follows(text, seen, piece_length):
    watcher, fed = ValueWatcher(), ""
    for start in range(0, len(text), piece_length):
        fed += text[start : start + piece_length]
        if watcher.feed(text[start : start + piece_length]):
            break
    assert fed.startswith(seen) and (piece_length > 1 or fed == seen)


def test_rows_of_a_batch_stop_each_on_their_own(tokenizer):
    rows = ["[1] x y z", "[[2] x y z", "[3]"]
    tokens = [tokenizer(text).input_ids for text in rows]
    tokens[2] += [tokenizer.eos_token_id] * 9
    complete = AnswerIsComplete(tokenizer, 3)
    for step in range(min(map(len, tokens))):
        done = complete(torch.tensor([ids[: step + 1] for ids in tokens]), None)
    assert done.tolist() == [True, False, True] and complete.finish == ["closed", None, "end"]
    assert [tokenizer.decode(ids) for ids in complete.tokens][::2] == ["[1] x", "[3]"]
