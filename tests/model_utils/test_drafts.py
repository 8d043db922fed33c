"""Drafts change no text: greedy decoding accepts what it would have chosen."""

import json

import pytest
import torch
from conftest import ROOT, TAGS
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from model_utils.drafts import DRAFTS, MOST_SLOTS, look_up, num_agreed
from model_utils.generation import generate
from model_utils.slots import Slots, slots_modules
from model_utils.token_masks import TokenMasks, compile_grammar, new_matcher

BASE = ROOT / "demo" / "base"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows(rows_file):
    return load_rows(str(rows_file))[0][:10]


def drafts_after(tokens, count=3):
    """The drafts of one row, beside a row that only repeats its newest token."""
    history = torch.tensor([[*tokens, *[99] * 9], [5] * (len(tokens) + 9)])  # rejected tokens follow
    found, sure = look_up(history, torch.tensor([len(tokens) - 1, 0]), count)
    return found[0].tolist(), sure[0].item()


def test_the_longest_then_latest_repetition_gives_the_drafts():
    # Three tokens, not the one later.
    assert drafts_after([1, 2, 3, 4, 8, 9, 3, 6, 1, 2, 3]) == ([4, 8, 9], True)
    assert drafts_after([1, 2, 7, 1, 2, 8, 6, 1, 2]) == ([8, 6, 1], False)  # the later of two
    assert drafts_after([7, 1, 2, 1, 2]) == ([1, 2, 1], False)  # it goes on beyond the newest token
    assert drafts_after([4, 4, 4, 4, 4]) == ([4, 4, 4], True)


def test_drafts_hold_up_to_the_first_that_differs():
    chosen = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [9, 2, 3, 4]])
    assert num_agreed(chosen, torch.tensor([[1, 2, 3]] * 3)).tolist() == [3, 1, 0]


def texts_and_passes(monkeypatch, most_slots, *args, **kwargs):
    """The results of `generate` with drafts in at most so many slots, and the width of each
    pass."""
    passes, forward = [], Slots.next_logits
    with monkeypatch.context() as patched:
        patched.setitem(MOST_SLOTS, "cpu", most_slots)
        patched.setattr(Slots, "next_logits", lambda slots: passes.append(slots.width) or forward(slots))
        done = {index: generation[:3] for index, generation in generate(*args, **kwargs)}
    return done, passes


@pytest.mark.parametrize("budget", [5, 40])
@pytest.mark.parametrize("with_grammar", [False, True])
def test_texts_and_ends_are_those_without_drafts(monkeypatch, model, tokenizer, rows, with_grammar, budget):
    """In one slot, in two, and in eight. Answers end among accepted tokens."""
    tools = None
    if with_grammar:
        pytest.importorskip("xgrammar", exc_type=ImportError)
        tools = [json.loads(row.tools) if i % 3 else None for i, row in enumerate(rows)]
    prompts = [TAGS.render(row.query, row.tools) for row in rows]
    room = max(map(len, encode_prompts(tokenizer, prompts))) + budget
    common = model, tokenizer, TAGS, prompts, budget
    list(generate(*common, batch_tokens=1))  # the check of the model has passes of both widths
    plain, passes = texts_and_passes(monkeypatch, 0, *common, batch_tokens=room, tools=tools)
    assert set(passes) == {1}
    assert len(passes) == sum(tokens - (finish != "end") for _, tokens, finish in plain.values())
    for slots in (1, 2, 8):
        found, drafted = texts_and_passes(monkeypatch, slots, *common, batch_tokens=slots * room, tools=tools)
        assert found == plain
        assert set(drafted) == {1, 1 + DRAFTS}
        if budget == 40 and slots == 1:
            assert len(drafted) < 0.8 * len(passes)


def test_drafts_may_reach_beyond_the_models_positions(monkeypatch, tokenizer, rows):
    """Learned positions have no row for a draft beyond the last."""
    prompt = TAGS.render(rows[0].query, rows[0].tools)
    (ids,) = encode_prompts(tokenizer, [prompt])
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=len(ids) + 8, n_embd=32, n_layer=2, n_head=2, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()  # a random model repeats tokens
    common = model, tokenizer, TAGS, [prompt], 40
    list(generate(*common, batch_tokens=1))
    plain, passes = texts_and_passes(monkeypatch, 0, *common, batch_tokens=1)
    found, drafted = texts_and_passes(monkeypatch, 1, *common, batch_tokens=1)
    assert found == plain and plain[0][1:] == (8, "length")
    assert set(passes) == {1} and max(drafted) == 1 + DRAFTS


def test_a_new_row_accepts_no_drafts_of_the_row_before(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompt = torch.arange(5, 12).int().numpy()
    with slots_modules(model, fused=False), torch.inference_mode():
        slots = Slots(model, num_slots=1, length=20, drafts=3)
        slots.prefill([0], [prompt])
        (token,) = slots.newest([0])[0]
        slots.tokens[0, 1:] = token  # the drafts that would hold after the same prompt
        slots.release([0])
        slots.prefill([0], [prompt])
        assert slots.newest([0]) == {0: [token]}


@pytest.mark.parametrize("place", [5, -4])  # in the text, and with a draft of its end and drafts after it
def test_masks_after_drafts_are_those_of_the_longer_text(tokenizer, rows, place):
    pytest.importorskip("xgrammar", exc_type=ImportError)
    grammar = compile_grammar(tokenizer, len(tokenizer), json.loads(rows[0].tools))
    tokens = [*tokenizer(rows[0].answers).input_ids, tokenizer.eos_token_id]
    start = range(len(tokens))[place]
    matcher, alone = (new_matcher(grammar, {tokenizer.eos_token_id}) for _ in range(2))
    for token in tokens[:start]:
        assert matcher.accept_token(token) and alone.accept_token(token)
    masks, single = (TokenMasks(len(tokenizer), 2, torch.device("cpu"), drafts) for drafts in (DRAFTS, 0))
    row = torch.tensor([*tokens, *[5] * DRAFTS][start - 1 :][: 1 + DRAFTS])
    masks.fill({1: matcher}, torch.stack([torch.zeros_like(row), row]))
    for i, token in enumerate(tokens[start : start + 1 + DRAFTS]):
        single.fill({1: alone})
        assert torch.equal(masks.filled[1, i], single.filled[1, 0])
        assert alone.accept_token(token)
    assert (masks.filled[0] == -1).all()
    assert matcher.accept_token(tokens[start])  # the matcher has not moved
