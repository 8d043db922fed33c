"""Tokens with a loss under each mask, on the demo's tokenizer and on one token per byte."""

import json

import numpy as np
import pytest
from conftest import ROOT, TAGS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_utils import cache
from data_utils.batching import fingerprint, mark_supervised, tokenize_rows
from data_utils.parts import LOSS_MASKS, PARTS, part_weights
from data_utils.rows import Row
from data_utils.supervision import loss_weights, token_parts
from data_utils.tokens import encode
from run_utils.errors import UsageError, UserError

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


def weights_of(tokenizer, mask, completion, prompt_ids=(5, 6), completion_ids=None):
    """The weights under a mask, in the tag format."""
    ids = encode(tokenizer, [completion])[0] if completion_ids is None else completion_ids
    num_tokens = len(prompt_ids) + len(ids) + 1
    find_parts = lambda: token_parts(tokenizer, TAGS, len(prompt_ids), completion, ids)  # noqa: E731
    weights = loss_weights(part_weights(mask), len(prompt_ids), num_tokens, find_parts)
    assert weights.dtype == np.float32 and len(weights) == num_tokens
    return weights


def supervised(tokenizer, mask, completion, prompt="a b"):
    """The tokens with a loss, one list per contiguous span."""
    prompt_ids, completion_ids = encode(tokenizer, [prompt, completion])
    weights = weights_of(tokenizer, mask, completion, prompt_ids, completion_ids)
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
    (example,) = tokenize_rows(
        demo_tokenizer, TAGS, example_rows(1), 4096, weights=part_weights("values_only")
    ).examples
    assert mark_supervised(demo_tokenizer, example).endswith(f'"arguments": {{"n": ⟦0⟧}}}}]⟦{END}⟧')


def test_masks_share_the_cached_tokens_and_differ_in_the_fingerprint(demo_tokenizer, tmp_path, monkeypatch):
    fresh = {
        mask: fingerprint(
            tokenize_rows(demo_tokenizer, TAGS, example_rows(), 4096, weights=part_weights(mask)).examples
        )
        for mask in LOSS_MASKS
    }
    assert len(set(fresh.values())) == len(LOSS_MASKS) == 4
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path)
    for mask in [*LOSS_MASKS] * 2:  # written, then read
        examples = tokenize_rows(demo_tokenizer, TAGS, example_rows(), 4096, weights=part_weights(mask)).examples
        assert fingerprint(examples) == fresh[mask]
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_a_tokenizer_or_completion_without_parts_is_refused_by_name(demo_tokenizer):
    class SlowTokenizer:
        is_fast = False

    ids = np.arange(3, dtype=np.int32)
    for mask in ("values_only", "names_only"):
        with pytest.raises(UserError, match="the slow tokenizer SlowTokenizer has no offsets"):
            weights_of(SlowTokenizer(), mask, ANSWER, completion_ids=ids)
        for completion in ("f(1)", '{"name": "f", "arguments": {}}', ANSWER[:-1]):
            with pytest.raises(UserError, match="does not show its calls as JSON objects"):
                weights_of(demo_tokenizer, mask, completion)
        with pytest.raises(UserError, match="alone are others than after its prompt"):
            weights_of(demo_tokenizer, mask, ANSWER, completion_ids=ids)
    for mask in ("completion_only", "whole_sequence"):
        assert weights_of(SlowTokenizer(), mask, "f(1)", completion_ids=ids).tolist()[2:] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["name=2"], "of prompt, syntax, words, arguments, names, values, end, not 'name=2'"),
        (["names"], "names must be a number of at least 0, not ''"),
        (["names=-1"], "names must be a number of at least 0, not '-1'"),
        (["names=nan"], "names must be a number of at least 0, not 'nan'"),
        (["end=1e400"], "end must be a number of at least 0"),
        ([f"{part}=0" for part in PARTS], "leaves no token to train on"),
    ],
)
def test_weights_that_cannot_be_trained_on_are_refused(changes, problem):
    with pytest.raises(UsageError, match=problem):
        part_weights("completion_only", changes)


def test_weights_of_parts_replace_the_mask_s(demo_tokenizer):
    rows = example_rows(1)
    weights = part_weights("values_only", ["names=2", "prompt=0.25", "end=0"])
    (example,) = tokenize_rows(demo_tokenizer, TAGS, rows, 4096, weights=weights).examples
    of_completion = example.loss_weights[example.prompt_length :]
    texts = [demo_tokenizer.decode([token]) for token in example.input_ids[example.prompt_length :].tolist()]
    assert "|".join(texts) == '[{"|name|": "|f|", "|arguments|": {"|n|": |0|}}]|<|endoftext|>'
    assert of_completion.tolist() == [0, 0, 2, 2, 2, 0, 0, 0, 0, 1, 0, 0]
    assert example.loss_weights[: example.prompt_length].tolist() == [0] + [0.25] * (example.prompt_length - 1)


def test_a_row_without_a_token_to_train_on_is_refused(demo_tokenizer):
    row = example_rows(1)[0]._replace(answers="[]")
    with pytest.raises(UserError, match="leave a row no token to train on"):
        tokenize_rows(demo_tokenizer, TAGS, [row], 4096, weights=part_weights("values_only", ["end=0"]))


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_each_byte_has_its_part(trim_offsets):
    """S syntax, N names, A arguments, V values. Quotes belong to their string."""
    pieces = [("S", '[{"name": '), ("N", '"f"'), ("S", ', "arguments": {'), ("A", '"a b"'), ("S", ": ")]
    pieces += [("V", '{"c": [1]}'), ("S", ", "), ("A", '"d"'), ("S", ": "), ("V", '" x "')]
    pieces += [("S", '}}, {"arguments": {}, "name": '), ("N", '"g"'), ("S", "}]")]
    completion = "".join(text for _, text in pieces)
    tokenizer = bytes_tokenizer(trim_offsets)
    (ids,) = encode(tokenizer, [completion])
    parts = [PARTS[code] for code in token_parts(tokenizer, TAGS, 2, completion, ids)]
    letters = {"syntax": "S", "names": "N", "arguments": "A", "values": "V"}
    assert parts[:2] == ["prompt", "prompt"] and parts[-1] == "end"
    assert "".join(letters[part] for part in parts[2:-1]) == "".join(part * len(text) for part, text in pieces)


def test_rows_of_another_answer_format_have_no_parts_and_keep_their_loss(demo_tokenizer):
    backwards = TAGS._replace(completion=lambda answers: answers[::-1], parse=lambda text: json.loads(text[::-1]))
    rows = example_rows(2)
    tokenized = tokenize_rows(demo_tokenizer, backwards, rows, 4096, with_parts=True)
    assert list(tokenized.unknown_parts) == ["row 0", "row 1"]
    assert "does not show its calls as JSON objects" in tokenized.unknown_parts["row 0"]
    plain = tokenize_rows(demo_tokenizer, backwards, rows, 4096)
    assert not plain.unknown_parts and all(example.parts is None for example in tokenized.examples + plain.examples)
    assert fingerprint(tokenized.examples) == fingerprint(plain.examples)
