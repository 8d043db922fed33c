"""Constrained decoding: every answer is a list of calls to the given tools."""

import itertools
import json
import math
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import ROOT, TAGS
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_utils.prompt import to_json
from data_utils.sources import load_rows
from data_utils.tool_calls import check_calls
from data_utils.tool_schema import call_problems, conforms
from demo.rows import generate_rows
from model_utils import generation, token_masks
from model_utils.generation import Engine, generate, generate_plainly
from model_utils.grammar import TERMINALS, value_rule
from model_utils.token_masks import TokenMasks, compile_grammar, new_matcher
from run_utils.errors import UserError

BASE = ROOT / "demo" / "base"
ROWS = 12
NEW_TOKENS = 100
# A tool with all of xLAM's types and with names that JSON must escape.
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
    """Prompts and parsed tools."""
    rows = load_rows(str(rows_file))[0][:ROWS]
    return [TAGS.render(row.query, row.tools) for row in rows], [json.loads(row.tools) for row in rows]


@pytest.fixture(scope="module")
def constrained(model, tokenizer, rows):
    prompts, tools = rows
    return answer_prompts(model, tokenizer, prompts, tools)


def answer_prompts(model, tokenizer, prompts, tools=None, batch_tokens=50_000, new_tokens=NEW_TOKENS, engine=None):
    decoding = {"batch_tokens": batch_tokens, "tools": tools, "engine": engine}
    return dict(generate(model, tokenizer, TAGS, prompts, new_tokens, **decoding))


def check_answer(text, tools):
    """The whole text is calls to these tools with arguments of the declared types."""
    calls = TAGS.parse(text)
    check_calls(calls)
    assert call_problems(calls, tools) == []


def test_every_answer_has_only_calls_to_the_given_tools(constrained, model, tokenizer, rows):
    prompts, tools = rows
    free = answer_prompts(model, tokenizer, prompts)
    for i in range(ROWS):
        if constrained[i].finish == "end":
            check_answer(constrained[i].text, tools[i])
        else:  # cut by the token budget
            assert constrained[i].finish == "length" and constrained[i].num_tokens == NEW_TOKENS
    assert sum(answer.finish == "end" for answer in constrained.values()) > ROWS / 2
    # The base alone answers differently.
    assert sum(free[i].text != constrained[i].text for i in range(ROWS)) > ROWS / 2


def test_batched_equals_one_at_a_time_and_few_slots(constrained, model, tokenizer, rows):
    prompts, tools = rows
    alone = answer_prompts(model, tokenizer, prompts[:6], tools[:6], batch_tokens=1)
    few = answer_prompts(model, tokenizer, prompts, tools, batch_tokens=3000)
    assert all(alone[i][:3] == constrained[i][:3] for i in range(6))
    assert all(few[i][:3] == constrained[i][:3] for i in range(ROWS))


def test_rows_without_a_grammar_are_unchanged_in_a_mixed_batch(constrained, model, tokenizer, rows):
    """In about three slots, so that rows with and without a grammar follow each other in a slot."""
    prompts, tools = rows
    some = [offered if i % 3 else None for i, offered in enumerate(tools)]
    mixed = answer_prompts(model, tokenizer, prompts, some, batch_tokens=3000)
    free = answer_prompts(model, tokenizer, prompts, batch_tokens=3000)
    assert all(mixed[i][:3] == (constrained if i % 3 else free)[i][:3] for i in range(ROWS))


def test_no_masks_are_made_without_a_grammar(model, tokenizer, rows, monkeypatch):
    monkeypatch.setattr(token_masks, "TokenMasks", None)
    answer_prompts(model, tokenizer, rows[0][:2], [None, None], new_tokens=4)


def test_transformers_generate_gives_the_same_answers(constrained, model, tokenizer, rows):
    plainly = Engine("transformers' generate", generate_plainly, math.inf)
    prompts, tools = rows
    some = [offered if i % 3 else None for i, offered in enumerate(tools)][:6]
    plain = answer_prompts(model, tokenizer, prompts[:6], some, engine=plainly)
    free = answer_prompts(model, tokenizer, prompts[:6], engine=plainly)
    assert all(plain[i][:3] == (constrained if i % 3 else free)[i][:3] for i in range(6))


def test_no_tools_and_tools_without_parameters_give_valid_answers(model, tokenizer, rows):
    tools = [[], [{"name": "now"}, {"name": "ping", "parameters": {}}]]
    answers = answer_prompts(model, tokenizer, rows[0][:2], tools)
    assert answers[0][:3] == ("[]", len(tokenizer("[]").input_ids), "end")
    calls = '{"name": "now", "arguments": {}}', '{"name": "ping", "arguments": {}}'
    assert set(answers[1].text[1:-1].replace("}, {", "}|{").split("|")) <= {*calls, ""} or answers[1].finish == "length"
    assert sum(bool(walk(tokenizer, tools[1], seed)) for seed in range(5)) > 2


def walk(tokenizer, tools, seed=0):
    """Calls of a model that prefers closing tokens; None if it does not end or repeats a key."""
    compiled = compile_grammar(tokenizer, len(tokenizer), tools)
    matcher, masks = new_matcher(compiled, {tokenizer.eos_token_id}), TokenMasks(len(tokenizer), 1, torch.device("cpu"))
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    preference = torch.tensor([3.0 if set(piece) <= set('"]}[{:, ') else 0.0 for piece in pieces])
    generator, tokens = np.random.default_rng(seed), []
    for _ in range(4000):
        masks.fill({0: matcher})
        noise = torch.from_numpy(generator.gumbel(size=len(tokenizer))).float()
        token = masks.apply((preference + noise)[None, None]).argmax().item()
        if token == tokenizer.eos_token_id:
            text = tokenizer.decode(tokens)
            try:
                check_answer(text, tools)
            except ValueError as error:
                # The grammar allows repeated keys in a free-form object.
                assert "same key" in str(error), text
                return None
            assert accepts(tokenizer, tools, to_json(json.loads(text)))
            return json.loads(text)
        assert matcher.accept_token(token)
        tokens.append(token)
    return None


def test_any_sampled_answer_is_a_list_of_calls(tokenizer):
    ended = 0
    for seed, row in enumerate(generate_rows(30, seed=5)):
        ended += walk(tokenizer, json.loads(row["tools"]), seed) is not None
    walked = [walk(tokenizer, [WIDE, {"name": "now"}], seed) for seed in range(40)]
    assert ended > 20 and sum(bool(calls) for calls in walked) > 10


def test_the_grammar_accepts_every_gold_of_the_demo(tokenizer):
    for row in generate_rows(300, seed=6):
        assert accepts(tokenizer, json.loads(row["tools"]), row["answers"])


def test_the_grammar_accepts_arguments_in_any_order(tokenizer):
    """Two tools have the same arguments in different orders, named like keywords of a schema."""
    names = ["title", "description", "default", "limit"]
    tools = [
        {"name": name, "parameters": {key: {"type": "str, optional"} for key in order}}
        for name, order in (("f", names), ("g", names[::-1]))
    ]
    tools.append({"name": "h", "parameters": {"title": {"type": "int"}, "limit": {"type": "bool, optional"}}})
    for order in itertools.permutations(names):
        for length in range(5):
            arguments = dict.fromkeys(order[:length], "x")
            assert accepts(tokenizer, tools, to_json([{"name": name, "arguments": arguments} for name in "fg"]))
    for arguments in ('"limit": true, "title": 1', '"title": 1, "limit": true', '"title": 1'):
        assert accepts(tokenizer, tools, f'[{{"name": "h", "arguments": {{{arguments}}}}}]')
    for arguments in (
        '"limit": true',
        '"title": 1, "title": 1',
        '"title": "x"',
        '"title": 1, "limit": true, "title": 2',
    ):
        assert not accepts(tokenizer, tools, f'[{{"name": "h", "arguments": {{{arguments}}}}}]')


@pytest.mark.parametrize(("num_keys", "most_owed"), [(6, 5), (8, 2), (14, 1), (300, 0)])
def test_large_objects_accept_orders_near_the_declared_order(num_keys, most_owed):
    """In a near order, at most `most_owed` keys at a time come after a key declared later."""
    names = [f"k{i}" for i in range(num_keys)]
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}, "required": names[1:3]}
    schema["additionalProperties"] = False
    fits = matcher_of(schema)
    assert fits(to_json(dict.fromkeys(names))) and fits('{"k1": null, "k2": null}') and not fits('{"k1": null}')
    generator = np.random.default_rng(0)
    for _ in range(300):
        optional = generator.choice(
            [0, *range(3, num_keys)], generator.integers(0, min(6, num_keys - 2)), replace=False
        )
        order = sorted([1, 2, *optional.tolist()], key=lambda place: place + generator.normal() * num_keys / 8)
        owed = max(sum(later < max(order[: i + 1]) for later in order[i + 1 :]) for i in range(len(order)))
        assert fits(to_json({f"k{place}": None for place in order})) == (owed <= most_owed), order
        twice = [*order, order[generator.integers(len(order))]]
        assert not fits("{" + ", ".join(f'"k{place}": null' for place in twice) + "}")


def matcher_of(schema):
    """A function that tests a text with the schema's grammar."""
    rules = {}
    root = value_rule(rules, schema)
    if root is None:
        return lambda text: False
    text = f"root ::= {root}{TERMINALS}" + "\n".join(f"{name} ::= {body}" for body, name in rules.items())
    import xgrammar

    info = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)] + [b""], stop_token_ids=[256])
    compiled = xgrammar.GrammarCompiler(info, cache_enabled=False).compile_grammar(xgrammar.Grammar.from_ebnf(text))

    def fits(text):
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return matcher.accept_string(text) and matcher.is_terminated()

    return fits


INT, STR, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
SCHEMAS = [
    {}, INT, STR, NULL, {"type": "number"}, {"type": "boolean"}, {"type": "array"}, {"type": "object"},
    {"anyOf": [INT, STR]}, {"anyOf": [STR, NULL], "enum": ["a", None, 3]}, {"anyOf": []}, {"anyOf": [{}, INT]},
    {"enum": [0.7, 0.75, 1, 2.0, "a\x7f", "é\n", True, None, [1, "a"], {"b": 1, "a": 2}]},
    {"type": "integer", "enum": [1, 2.0, "a"]}, {"type": "number", "enum": [1, 2.5]},
    {"type": "boolean", "enum": [True]}, {"enum": []}, {"type": "string", "enum": [1]}, {"type": "array", "items": INT},
    {"type": "array", "items": {}, "minItems": 1}, {"type": "array", "items": INT, "maxItems": 2},
    {"type": "array", "items": INT, "minItems": 2, "maxItems": 3}, {"type": "array", "items": {"enum": []}},
    {"type": "array", "minItems": 2, "maxItems": 1}, {"type": "array", "items": False},
    {"type": "array", "items": INT, "minItems": 2}, {"type": "array", "prefixItems": [INT, STR]},
    {"type": "array", "prefixItems": [INT, STR], "items": False},
    {"type": "array", "prefixItems": [INT, STR], "items": NULL},
    {"type": "array", "prefixItems": [INT, STR], "minItems": 2},
    {"type": "array", "prefixItems": [INT, STR], "minItems": 2, "maxItems": 2},
    {"type": "array", "prefixItems": [INT], "maxItems": 0}, {"type": "array", "prefixItems": [INT, {"enum": []}, INT]},
    {"type": "array", "prefixItems": [{"enum": []}], "minItems": 1},
    {"type": "array", "prefixItems": [INT], "items": STR, "minItems": 3}, {"prefixItems": [INT]}, {"items": INT},
    {
        "anyOf": [{"type": "array", "prefixItems": [STR]}, NULL, {"type": "object", "properties": {"a": STR}}],
        "items": INT,
        "additionalProperties": INT,
    },
    {
        "type": "object",
        "properties": {"a": INT},
        "required": ["a"],
        "anyOf": [
            {"type": "object", "properties": {"b": STR}, "additionalProperties": {}},
            {"properties": {"z": INT}, "required": ["z"]},
        ],
    },
    {
        "type": "object",
        "anyOf": [{"anyOf": [{"properties": {"a": STR}}, {"additionalProperties": INT}]}, {"enum": [{"a": 1}, 3]}],
    },
    {"oneOf": [INT, STR]},
    {
        "items": INT,
        "minItems": 1,
        "anyOf": [{"type": "array", "prefixItems": [{}, STR], "maxItems": 3}, {"items": NULL}],
    },
    {"type": "integer", "anyOf": [{"enum": [1, 2.0, "a"]}, {"type": "number", "enum": [3]}]},
    {"anyOf": [{"type": "array"}, NULL], "items": INT}, {"anyOf": [{"type": "number"}, STR], "type": "integer"},
    {"type": "object", "properties": {"a": INT, "b": STR}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": INT, "b": STR}, "required": ["b"]},
    {"type": "object", "properties": {"a": INT}, "additionalProperties": INT},
    {"type": "object", "properties": {"a": INT, "ab": INT, 'q"\n': INT, "é": INT}, "additionalProperties": STR},
    {"type": "object", "additionalProperties": False}, {"type": "object", "additionalProperties": STR},
    {"type": "object", "properties": {"a": {"enum": []}}},
    {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, {"type": "object", "required": ["zz"]},
    {"type": "object", "required": ["zz"], "additionalProperties": False},
    {"properties": {"a": INT}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "object"}, "b": {}}},
    {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"a": INT}}}}},
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -3, 2, 3, 1.0, 2.0, 2.5, -0.75, 0.7, 0.75, 1e-07, 1.5e16, 12345678901234567890, "", "a",
    "a\x7f", "é\n", 'q"\\/', "\u2028😀", [], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, "a"], ["a", 1], [1, "a", None],
    [1, "a", 7], [1, "a", "b"], [None], ["a"], [[1, [2]], {"a": [None]}], {}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"},
    {"b": "x", "a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 2}, {"b": 1, "a": 2}, {"z": 1}, {"z": "x"},
    {"z": 1, "a": 1}, {"a": 1, "z": 1, "b": "x"}, {"z": "x", "a": 1}, {"z": 1, "y": 2, "b": "x", "x": 3},
    {"ab": 1, "a": 1, 'q"\n': 1, "é": 1}, {"ab": "x"}, {'q"\n': "x"}, {'q"': "x", "q": "x"}, {"é": "x"},
    {"éa": "x", "e": "x"}, {"abc": "x", "": "x"}, {"zz": 1}, {"a": {"z": {}}}, {"a": [{"a": 1}, {"z": 1, "a": 1}]},
    {"a": [{"a": "x"}]}, {"": None}, {"a\\": "x"},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=to_json)
def test_the_grammar_of_a_schema_accepts_exactly_its_values(schema):
    fits = matcher_of(schema)
    assert [value for value in VALUES if fits(to_json(value))] == [value for value in VALUES if conforms(value, schema)]


def test_an_unsupported_keyword_is_named():
    with pytest.raises(UserError, match="does not know the keyword 'not'"):
        value_rule({}, {"type": "array", "items": {"not": {}}})


def test_an_escaped_key_never_passes_for_a_declared_key():
    fits = matcher_of({"type": "object", "properties": {"ab": INT}, "required": ["ab"]})
    assert fits('{"x": 2, "ab": 1}') and fits('{"ab": 1, "x": 2, "abc": 3, "a": 4}') and not fits('{"x": 2}')
    for key in (r"\u0061b", r"a\u0062", "ab", r"a\/b"):
        assert not fits(f'{{"ab": 1, "{key}": "x"}}')


@pytest.mark.parametrize(
    "text", [r'"\ud83d\ude00"', r'"\u00E9\u0041\/\b"', "-0.0", "1E5", "1e+307", "9.5e-999", "0.10"]
)
def test_any_spelling_of_json_is_accepted(text):
    assert matcher_of({})(text)


@pytest.mark.parametrize(
    "text",
    [
        b'"\xed\xa0\x80"',
        r'"\ud800"',
        r'"\ud800\u0041"',
        r'"\udc00"',
        '"\n"',
        "1e308",
        "01",
        "1.",
        ".5",
        "+1",
        "NaN",
        "1e",
        "9" * 33,
    ],
)
def test_invalid_strings_and_numbers_are_refused(text):
    assert not matcher_of({})(text)


@pytest.mark.parametrize("liked", ["[", "9", "[9", '{"a": ', "-9.9e9", '[{"b": 1'])
def test_a_value_of_unknown_type_ends_for_any_model(tokenizer, liked):
    """The model repeats a text if allowed, else writes digits, else closes. (Strings are
    unbounded.)"""
    tools = [{"name": "f", "parameters": {"x": {"type": "no such type"}}}]
    compiled = compile_grammar(tokenizer, len(tokenizer), tools)
    matcher, masks = new_matcher(compiled, {tokenizer.eos_token_id}), TokenMasks(len(tokenizer), 1, torch.device("cpu"))
    tokens = tokenizer('[{"name": "f", "arguments": {"x": ').input_ids
    assert all(map(matcher.accept_token, tokens))
    (liked, closing) = ([tokenizer(character).input_ids[0] for character in text] for text in (liked, '7]}"'))
    place = 0
    for _ in range(400):
        masks.fill({0: matcher})
        allowed = masks.apply(torch.zeros(1, 1, len(tokenizer)))[0, 0] == 0
        wanted = [liked[place], tokenizer.eos_token_id, *closing]
        token = next(token for token in wanted if allowed[token])
        place = (place + (token == liked[place])) % len(liked)
        assert matcher.accept_token(token)
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
    check_answer(tokenizer.decode(tokens), tools)


def test_a_number_of_an_enum_has_one_spelling(tokenizer):
    """xgrammar's converter of JSON Schema would rewrite 0.7 as 0.69999999999999996."""
    tools = [{"name": "f", "parameters": {"x": {"type": "float", "enum": [0.7, 0.75, 19.99, 19.95]}}}]
    for value in (0.7, 0.75, 19.99, 19.95):
        assert accepts(tokenizer, tools, to_json([{"name": "f", "arguments": {"x": value}}]))
    for text in ("0.69999999999999996", "19.989999999999998", "0.70", "0.8"):
        assert not accepts(tokenizer, tools, f'[{{"name": "f", "arguments": {{"x": {text}}}}}]')


def test_no_grammar_is_compiled_for_a_prompt_that_is_too_long(model, tokenizer, rows, monkeypatch):
    monkeypatch.setattr(generation, "compiling", lambda *args: nullcontext(lambda tools: compiled.append(tools)))
    compiled, (prompts, tools) = [], rows
    long = "word " * model.config.max_position_embeddings
    answers = answer_prompts(model, tokenizer, [long + prompts[0], prompts[1]], tools[:2], new_tokens=2)
    assert answers[0].finish == "too_long" and compiled == [tools[1]]


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
def test_the_grammar_refuses_all_other_texts(tokenizer, text):
    tools = [{"name": "f", "parameters": {"n": {"type": "int"}}}]
    assert accepts(tokenizer, tools, '[{"name": "f", "arguments": {"n": 1}}]') and not accepts(tokenizer, tools, text)


def accepts(tokenizer, tools, text):
    compiled = compile_grammar(tokenizer, len(tokenizer), tools)
    matcher = new_matcher(compiled, {tokenizer.eos_token_id})
    tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return all(matcher.accept_token(token) for token in [*tokens, tokenizer.eos_token_id])


def allowed_after(tokenizer, text, vocab_size, end_tokens):
    compiled = compile_grammar(tokenizer, vocab_size, [{"name": "f", "parameters": {"s": {"type": "str"}}}])
    matcher, masks = new_matcher(compiled, end_tokens), TokenMasks(vocab_size, 2, torch.device("cpu"))
    for token in tokenizer(text).input_ids:
        assert matcher.accept_token(token)
    masks.fill({1: matcher})
    logits = torch.randn(2, vocab_size)
    masked = masks.apply(logits[:, None])[:, 0]
    assert torch.equal(masked[0], logits[0])  # a row without a grammar, bit for bit
    return set(masked[1].isfinite().nonzero()[:, 0].tolist())


def test_only_the_models_end_tokens_follow_a_complete_answer(tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|other|>"]})
    end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|other|>"])
    ends = {tokenizer.eos_token_id, end}
    assert allowed_after(tokenizer, "[]", len(tokenizer) + 37, ends) == ends
    # In a string, an end token would pass for its text. Padding of the logits has no text.
    inside = allowed_after(tokenizer, '[{"name": "f", "arguments": {"s": "a', len(tokenizer) + 37, ends)
    assert len(inside) > 1000 and not inside & {*ends, other} and max(inside) < len(tokenizer)


def test_logits_beyond_the_tokenizers_vocabulary_are_never_chosen(constrained, tokenizer, rows):
    """The model has 40 extra tokens, the likeliest ones unless they are masked."""
    prompts, tools = rows
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    model.resize_token_embeddings(len(tokenizer) + 40, mean_resizing=False)
    best = model.lm_head.weight.detach()[[tokenizer(text).input_ids[0] for text in ("[", "]")]].mean(0)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = torch.stack([best * 50, best * -50] * 20)
    free = answer_prompts(model, tokenizer, prompts[:4], new_tokens=4)
    masked = answer_prompts(model, tokenizer, prompts[:4], tools[:4])
    assert all(free[i].text == "" for i in range(4))  # the extra tokens have no text
    assert all(masked[i][:3] == constrained[i][:3] for i in range(4))
    with pytest.raises(ValueError, match="3072 tokens, and 3112 logits"):
        TokenMasks(3072, 1, torch.device("cpu")).apply(torch.zeros(1, 1, 3112))


def test_equal_lists_of_tools_share_a_grammar(tokenizer):
    one, same, other = (compile_grammar(tokenizer, len(tokenizer), [{"name": name}]) for name in "ffg")
    assert one is same and one is not other


def test_a_missing_package_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    token_masks.compiled.cache_clear()
    token_masks.compiler.cache_clear()
    with pytest.raises(UserError, match="pip install xgrammar$"):
        compile_grammar(tokenizer, len(tokenizer), [])
