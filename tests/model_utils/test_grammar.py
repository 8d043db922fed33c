"""Constrained decoding: answers that are lists of calls to the tools on offer, whatever the model would rather say."""

import json
import sys

import jsonschema
import numpy as np
import pytest
import torch
from conftest import ROOT, TAGS
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_utils.prompt import to_json
from data_utils.sources import load_rows
from data_utils.tool_calls import check_calls
from data_utils.tool_schema import tool_schema
from demo.rows import generate_rows
from model_utils import generation, grammar
from model_utils.generation import generate
from model_utils.grammar import TokenMasks, calls_schema, compile_grammars, new_matcher
from run_utils.arguments import UserError

BASE = ROOT / "demo" / "base"
ROWS = 12
NEW_TOKENS = 100
# A tool whose schema has all that xLAM's types can say, in names that JSON must escape.
WIDE = {
    "name": 'a/b é "c"',
    "parameters": {
        "x": {"type": "int, optional"},
        "naïve /k": {"type": "str"},
        "any": {"type": "no such type"},
        "free": {"type": "dict"},
        "list": {"type": "list"},
        "typed": {"type": "Dict[str, List[int]]", "default": {}},
        "pair": {"type": "Tuple[int, str]"},
        "one": {"type": "Union[float, None]", "default": 1.5},
        "of": {"type": "str", "enum": ["a/b", "é\n", 'q"'], "default": "a/b"},
        "yes": {"type": "bool", "default": True},
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module", autouse=True)
def _needs_xgrammar():
    pytest.importorskip(
        "xgrammar", reason="constrained decoding needs the optional package xgrammar", exc_type=ImportError
    )


@pytest.fixture(scope="module")
def rows(rows_file):
    """As prompts and as parsed tools."""
    rows = load_rows(str(rows_file))[0][:ROWS]
    return [TAGS.render(row.query, row.tools) for row in rows], [json.loads(row.tools) for row in rows]


@pytest.fixture(scope="module")
def constrained(model, tokenizer, rows):
    prompts, tools = rows
    return say(model, tokenizer, prompts, compile_grammars(tokenizer, model.config.vocab_size, tools))


def say(model, tokenizer, prompts, grammars=None, batch_tokens=50_000, new_tokens=NEW_TOKENS):
    return dict(generate(model, tokenizer, TAGS, prompts, new_tokens, batch_tokens, grammars))


def check_answer(text, tools):
    """All of the text is calls to these tools with arguments of the types declared, in the form that training teaches."""
    calls = TAGS.parse(text)
    check_calls(calls)
    for call in calls:
        (tool,) = [tool for tool in tools if tool["name"] == call["name"]]
        jsonschema.validate(call["arguments"], tool_schema(tool))
    jsonschema.validate(calls, calls_schema(tools))
    assert "\\" in text or text == to_json(calls)  # a letter may be written as an escape, 1e2 is 100.0


def test_every_answer_is_calls_to_the_tools_on_offer(constrained, model, tokenizer, rows):
    prompts, tools = rows
    free = say(model, tokenizer, prompts)
    for i in range(ROWS):
        if constrained[i].finish == "end":
            check_answer(constrained[i].text, tools[i])
        else:  # the budget cuts what may go on
            assert constrained[i].finish == "length" and constrained[i].num_tokens == NEW_TOKENS
    assert sum(answer.finish == "end" for answer in constrained.values()) > ROWS / 2
    assert (
        sum(free[i].text != constrained[i].text for i in range(ROWS)) > ROWS / 2
    )  # the base alone does not keep to it


def test_batched_equals_one_at_a_time_and_few_slots(constrained, model, tokenizer, rows):
    prompts, tools = rows
    grammars = compile_grammars(tokenizer, model.config.vocab_size, tools)
    alone = say(model, tokenizer, prompts[:6], grammars[:6], batch_tokens=1)
    few = say(model, tokenizer, prompts, grammars, batch_tokens=3000)
    assert all(alone[i][:3] == constrained[i][:3] for i in range(6))
    assert all(few[i][:3] == constrained[i][:3] for i in range(ROWS))


def test_rows_without_a_grammar_in_the_batch_say_what_they_would(constrained, model, tokenizer, rows):
    """In three slots or so, where a row without takes the slot of one with, and the other way round."""
    prompts, tools = rows
    grammars = compile_grammars(tokenizer, model.config.vocab_size, tools)
    some = [each if i % 3 else None for i, each in enumerate(grammars)]
    mixed = say(model, tokenizer, prompts, some, batch_tokens=3000)
    free = say(model, tokenizer, prompts, batch_tokens=3000)
    assert all(mixed[i][:3] == (constrained if i % 3 else free)[i][:3] for i in range(ROWS))


def test_no_masks_where_no_row_has_a_grammar(model, tokenizer, rows, monkeypatch):
    monkeypatch.setattr(generation, "TokenMasks", None)
    say(model, tokenizer, rows[0][:2], [None, None], new_tokens=4)


def test_transformers_own_generate_says_the_same(constrained, model, tokenizer, rows, monkeypatch):
    monkeypatch.setattr(generation, "problem_with_slots", lambda *args: "as a test has it")
    prompts, tools = rows
    grammars = compile_grammars(tokenizer, model.config.vocab_size, tools)
    some = [each if i % 3 else None for i, each in enumerate(grammars)][:6]
    plain = say(model, tokenizer, prompts[:6], some)
    free = say(model, tokenizer, prompts[:6])
    assert all(plain[i][:3] == (constrained if i % 3 else free)[i][:3] for i in range(6))


def test_no_tools_and_tools_without_parameters(model, tokenizer, rows):
    tools = [[], [{"name": "now"}, {"name": "ping", "parameters": {}}]]
    said = say(model, tokenizer, rows[0][:2], compile_grammars(tokenizer, model.config.vocab_size, tools))
    assert said[0][:3] == ("[]", len(tokenizer("[]").input_ids), "end")
    calls = '{"name": "now", "arguments": {}}', '{"name": "ping", "arguments": {}}'
    assert set(said[1].text[1:-1].replace("}, {", "}|{").split("|")) <= {*calls, ""} or said[1].finish == "length"
    assert sum(bool(walk(tokenizer, tools[1], seed)) for seed in range(5)) > 2


def walk(tokenizer, tools, seed=0):
    """The calls that a model says that likes all allowed tokens, short ones of punctuation most: they end what is open."""
    (compiled,) = compile_grammars(tokenizer, len(tokenizer), [tools])
    matcher, masks = new_matcher(compiled, {tokenizer.eos_token_id}), TokenMasks(compiled, 1, torch.device("cpu"))
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    liking = torch.tensor([3.0 if set(piece) <= set('"]}[{:, ') else 0.0 for piece in pieces])
    generator, tokens = np.random.default_rng(seed), []
    for _ in range(4000):
        masks.fill({0: matcher})
        noise = torch.from_numpy(generator.gumbel(size=len(tokenizer))).float()
        token = masks.apply((liking + noise)[None]).argmax().item()
        if token == tokenizer.eos_token_id:
            text = tokenizer.decode(tokens)
            try:
                check_answer(text, tools)
            except ValueError as error:
                # What no grammar of JSON Schema keeps out: a free-form object's key twice, numbers and depths beyond our limits.
                assert any(words in str(error) for words in ("same key", "too large", "nested")), text
                return None
            return json.loads(text)
        assert matcher.accept_token(token)
        tokens.append(token)
    return None


def test_whatever_the_model_likes_the_answer_is_calls(tokenizer):
    ended = 0
    for seed, row in enumerate(generate_rows(30, seed=5)):
        ended += walk(tokenizer, json.loads(row["tools"]), seed) is not None
    walked = [walk(tokenizer, [WIDE, {"name": "now"}], seed) for seed in range(40)]
    assert ended > 20 and sum(bool(calls) for calls in walked) > 10


def test_the_grammar_takes_every_right_answer(tokenizer):
    for row in generate_rows(100, seed=6):
        assert accepts(tokenizer, json.loads(row["tools"]), row["answers"])
    full = {
        "x": -3, "naïve /k": "/\\ \"ü\u2028\t", "any": [{"a": None}], "free": {"k": 1.5e3}, "list": [1, "a", []],
        "typed": {"a": [], "b": [1, 2]}, "pair": [1, "b"], "one": None, "of": "é\n", "yes": False,
    }  # fmt: skip
    for left_out in ((), ("x",), ("one", "of"), ("x", "typed", "one", "of", "yes"), ("yes",)):
        arguments = {name: value for name, value in full.items() if name not in left_out}
        call = {"name": WIDE["name"], "arguments": arguments}
        assert accepts(tokenizer, [{"name": "now"}, WIDE], to_json([call, {"name": "now", "arguments": {}}]))


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "g", "arguments": {"n": 1}}]',
        '[{"name": "f", "arguments": {"n": "1"}}]',
        '[{"name": "f", "arguments": {}}]',
        '[{"name": "f", "arguments": {"n": 1, "m": 2}}]',
        '[{"name": "f", "arguments": {"n": 1}},{"name": "f", "arguments": {"n": 1}}]',
        '[{"name":"f","arguments":{"n":1}}]',
        '{"name": "f", "arguments": {"n": 1}}',
        '[{"name": "f", "arguments": {"n": 1}}] ',
        ' [{"name": "f", "arguments": {"n": 1}}]',
    ],
)
def test_the_grammar_refuses(tokenizer, text):
    tools = [{"name": "f", "parameters": {"n": {"type": "int"}}}]
    assert accepts(tokenizer, tools, '[{"name": "f", "arguments": {"n": 1}}]') and not accepts(tokenizer, tools, text)


def accepts(tokenizer, tools, text):
    (compiled,) = compile_grammars(tokenizer, len(tokenizer), [tools])
    matcher = new_matcher(compiled, {tokenizer.eos_token_id})
    tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return all(matcher.accept_token(token) for token in [*tokens, tokenizer.eos_token_id])


def allowed_after(tokenizer, text, vocab_size, end_tokens):
    (compiled,) = compile_grammars(tokenizer, vocab_size, [[{"name": "f", "parameters": {"s": {"type": "str"}}}]])
    matcher, masks = new_matcher(compiled, end_tokens), TokenMasks(compiled, 2, torch.device("cpu"))
    for token in tokenizer(text).input_ids:
        assert matcher.accept_token(token)
    masks.fill({1: matcher})
    logits = torch.randn(2, vocab_size)
    masked = masks.apply(logits)
    assert torch.equal(masked[0], logits[0])  # a row without a grammar, to the last bit
    assert torch.equal(masks.apply(logits[1:], torch.tensor([1])), masked[1:])
    return set(masked[1].isfinite().nonzero()[:, 0].tolist())


def test_any_end_token_of_the_model_ends_a_whole_answer_and_nothing_else_follows(tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|other|>"]})
    end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|other|>"])
    ends = {tokenizer.eos_token_id, end}
    assert allowed_after(tokenizer, "[]", len(tokenizer) + 37, ends) == ends
    # In a string too, where it would pass for the text that spells it; nor has padding of the logits a text.
    inside = allowed_after(tokenizer, '[{"name": "f", "arguments": {"s": "a', len(tokenizer) + 37, ends)
    assert len(inside) > 1000 and not inside & {*ends, other} and max(inside) < len(tokenizer)


def test_logits_beyond_the_tokenizers_vocabulary_are_never_chosen(constrained, tokenizer, rows):
    """Of a model with 40 more, the likeliest wherever they are allowed."""
    prompts, tools = rows
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    model.resize_token_embeddings(len(tokenizer) + 40, mean_resizing=False)
    best = model.lm_head.weight.detach()[[tokenizer(text).input_ids[0] for text in ("[", "]")]].mean(0)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = torch.stack([best * 50, best * -50] * 20)
    free = say(model, tokenizer, prompts[:4], new_tokens=4)
    grammars = compile_grammars(tokenizer, len(tokenizer) + 40, tools)
    said = say(model, tokenizer, prompts[:4], grammars[:4])
    assert all(free[i].text == "" for i in range(4))  # these have no text
    assert all(said[i][:3] == constrained[i][:3] for i in range(4))
    with pytest.raises(ValueError, match="3072 tokens, and 3112 logits"):
        say(model, tokenizer, prompts[:1], compile_grammars(tokenizer, len(tokenizer), tools[:1]))


def test_equal_lists_of_tools_share_a_grammar(tokenizer):
    one, same, other = compile_grammars(tokenizer, len(tokenizer), [[{"name": "f"}], [{"name": "f"}], [{"name": "g"}]])
    assert one is same and one is not other
    assert compile_grammars(tokenizer, len(tokenizer), [[{"name": "g"}]]) == [other]


def test_a_missing_package_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    grammar.compiled.cache_clear()
    grammar.compiler.cache_clear()
    with pytest.raises(UserError, match="pip install xgrammar$"):
        compile_grammars(tokenizer, len(tokenizer), [[]])
