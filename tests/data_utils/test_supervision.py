"""Tokens with a loss under each mask, on the demo's tokenizer and on one token per byte."""

import json

import numpy as np
import pytest
from conftest import ROOT, TAGS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_utils import cache
from data_utils.batching import fingerprint, mark_supervised, tokenize_rows
from data_utils.rows import Row
from data_utils.supervision import LOSS_MASKS, loss_weights
from data_utils.tokens import encode
from run_utils.errors import UserError

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def demo_tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "demo" / "base")


def bytes_tokenizer(trim_offsets=False):
    """A tokenizer with one token per byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=[END], initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def supervised(tokenizer, mask, completion, prompt="a b"):
    """The tokens with a loss, one list per contiguous span."""
    prompt_ids, completion_ids = encode(tokenizer, [prompt, completion])
    weights = loss_weights(tokenizer, prompt_ids, completion, completion_ids, mask)
    assert weights.dtype == np.float32 and len(weights) == len(prompt_ids) + len(completion_ids) + 1
    assert set(weights.tolist()) <= {0.0, 1.0}
    ids = [*prompt_ids, *completion_ids, tokenizer.eos_token_id]
    spans, inside = [], False
    for token, weight in zip(ids, weights, strict=True):
        if weight:
            spans = spans if inside else [*spans, []]
            spans[-1].append(int(token))
        inside = bool(weight)
    return spans


ANSWER = '[{"name": "get_weather", "arguments": {"city": "Paris", "days": 12}}]'


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        (
            "completion_only",
            ['[{"|name|": "|get|_|weather|", "|arguments|": {"|city|": "|P|ari|s|", "|days|": |1|2|}}]|<|endoftext|>'],
        ),
        (
            "whole_sequence",
            [
                ' |b|[{"|name|": "|get|_|weather|", "|arguments|": {"|city|": "|P|ari|s|", "|days|": |1|2|}}]'
                "|<|endoftext|>"
            ],
        ),
        ("values_only", ['": "|P|ari|s|", "', "1|2", END]),
        ("names_only", ['": "|get|_|weather|", "', END]),
    ],
)
def test_the_supervised_tokens_are_exactly_these(demo_tokenizer, mask, tokens):
    """A token with a quote of the value or name is supervised whole."""
    spans = supervised(demo_tokenizer, mask, ANSWER)
    assert ["|".join(demo_tokenizer.decode([token]) for token in span) for span in spans] == tokens


@pytest.mark.parametrize(
    ("completion", "values", "names"),
    [
        ("[]", [], []),
        ('[{"name": "f", "arguments": {}}]', [], ['"f"']),
        (
            '[{"name": "f", "arguments": {"a": 1, "b": -2.5e-3, "c": true, "d": null}}]',
            ["1", "-2.5e-3", "true", "null"],
            ['"f"'],
        ),
        (
            '[{"name": "f", "arguments": {"a": {"b": [1, {"c": "x"}], "d": {}}, "e": []}}]',
            ['{"b": [1, {"c": "x"}], "d": {}}', "[]"],
            ['"f"'],
        ),
        (
            r'[{"name": "a\"b", "arguments": {"q": "say \"hi\\\", \"n\": 5}", "r": ""}}]',
            [r'"say \"hi\\\", \"n\": 5}"', '""'],
            [r'"a\"b"'],
        ),
        ('[{"name": "気温", "arguments": {"città": "Zürich 🌧"}}]', ['"Zürich 🌧"'], ['"気温"']),
        (
            '[{"name": "f", "arguments": {"name": "g", "arguments": 1}}, {"arguments": {"x": 2},"name":"h"}]',
            ['"g"', "1", "2"],
            ['"f"', '"h"'],
        ),
        (' [ {"n\\u0061me" : "f" , "arguments" : { "x" :\n "  y " } } ] ', ['"  y "'], ['"f"']),
    ],
    ids=["no call", "no argument", "scalars", "nested", "escapes", "beyond ASCII", "two calls", "blanks"],
)
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_values_and_names_are_supervised_to_the_byte(completion, values, names, trim_offsets):
    """Values include quotes, brackets and inner keys; each mask includes the end token. Some
    offsets omit blanks."""
    tokenizer = bytes_tokenizer(trim_offsets)
    for mask, texts in (("values_only", values), ("names_only", names)):
        assert [tokenizer.decode(span) for span in supervised(tokenizer, mask, completion)] == [*texts, END]
    assert [tokenizer.decode(span) for span in supervised(tokenizer, "completion_only", completion)] == [
        completion + END
    ]
    (span,) = supervised(tokenizer, "whole_sequence", completion)
    assert tokenizer.decode(span) == f" b{completion}{END}"  # nothing predicts the first token


def example_rows(count=3):
    tools = json.dumps([{"name": "f", "parameters": {"n": {"type": "int"}}}])
    return [Row(f"row {n}", f"f of {n}?", tools, f'[{{"name": "f", "arguments": {{"n": {n}}}}}]') for n in range(count)]


def test_several_supervised_spans_are_marked(demo_tokenizer):
    (example,) = tokenize_rows(demo_tokenizer, TAGS, example_rows(1), 4096, loss_mask="values_only").examples
    assert mark_supervised(demo_tokenizer, example).endswith(f'"arguments": {{"n": ⟦0⟧}}}}]⟦{END}⟧')


def test_masks_share_the_cached_tokens_and_differ_in_the_fingerprint(demo_tokenizer, tmp_path, monkeypatch):
    fresh = {
        mask: fingerprint(tokenize_rows(demo_tokenizer, TAGS, example_rows(), 4096, loss_mask=mask).examples)
        for mask in LOSS_MASKS
    }
    assert len(set(fresh.values())) == len(LOSS_MASKS) == 4
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path)
    for mask in [*LOSS_MASKS] * 2:  # written, then read
        examples = tokenize_rows(demo_tokenizer, TAGS, example_rows(), 4096, loss_mask=mask).examples
        assert fingerprint(examples) == fresh[mask]
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_a_tokenizer_or_completion_without_spans_is_refused_by_name(demo_tokenizer):
    class SlowTokenizer:
        is_fast = False

    ids = np.arange(3, dtype=np.int32)
    for mask in ("values_only", "names_only"):
        with pytest.raises(UserError, match="the slow tokenizer SlowTokenizer does not have"):
            loss_weights(SlowTokenizer(), ids, ANSWER, ids, mask)
        for completion in ("f(1)", '{"name": "f", "arguments": {}}', ANSWER[:-1]):
            with pytest.raises(UserError, match="needs completions that are JSON lists of calls"):
                loss_weights(demo_tokenizer, ids, completion, ids, mask)
    for mask in ("completion_only", "whole_sequence"):
        assert loss_weights(SlowTokenizer(), ids, "f(1)", ids, mask).tolist()[3:] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([0, 1], "2 weights for 3 tokens"),
        ([1, 0, 0], "no token"),
        ([0, 1, -1], "negative"),
        ([0, 1, float("nan")], "negative"),
    ],
)
def test_a_mask_that_cannot_be_trained_on_is_refused(demo_tokenizer, monkeypatch, weights, problem):
    monkeypatch.setitem(LOSS_MASKS, "faulty", lambda *texts: np.float32(weights))
    with pytest.raises(UserError, match=f"the loss mask faulty has .*{problem}"):
        loss_weights(demo_tokenizer, [5], "[]", [6], "faulty")
