import hashlib
import json
import unicodedata

import numpy as np
import pytest
import torch
from conftest import TAGS
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_utils import cache
from data_utils.batching import (
    Example,
    TrainingData,
    collate,
    epoch_order,
    fingerprint,
    mark_supervised,
    micro_batches,
    num_tokens,
    tokenize_rows,
)
from data_utils.prompt import to_json
from data_utils.rows import Row
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from demo.model import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def rows(rows_file):
    return load_rows(str(rows_file))[0]


def example(prompt, completion, row_id="x"):
    weights = np.repeat(np.float32([0, 1]), [len(prompt), len(completion)])
    return Example(row_id, np.array(prompt + completion, dtype=np.int32), len(prompt), weights)


def test_ids_are_prompt_then_completion_then_end(tokenizer, rows):
    examples = tokenize_rows(tokenizer, TAGS, rows, 4096).examples
    for row, got in zip(rows, examples, strict=True):
        prompt = encode_prompts(tokenizer, [TAGS.render(row.query, row.tools)])[0]
        # the prompt of inference
        assert got.input_ids[: got.prompt_length].tolist() == prompt.tolist()
        assert tokenizer.decode(got.input_ids[got.prompt_length : -1]) == row.answers
        assert got.input_ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_long_rows_are_dropped_and_named_never_cut(tokenizer, rows):
    whole, none, *_ = tokenize_rows(tokenizer, TAGS, rows, 4096)
    assert none == {}
    limit = sorted(len(got.input_ids) for got in whole)[len(rows) // 2]
    kept, too_long, *_ = tokenize_rows(tokenizer, TAGS, rows, limit)
    assert kept and too_long
    assert {got.row_id for got in kept} | set(too_long) == {row.id for row in rows}
    assert all(fingerprint([got]) in {fingerprint([other]) for other in whole} for got in kept)


def test_a_row_of_exactly_the_limit_with_its_end_token_fits(tokenizer, rows):
    (whole,) = tokenize_rows(tokenizer, TAGS, rows[:1], 4096).examples
    length = len(whole.input_ids)
    for limit in (length - 1, length):
        examples, too_long, *_ = tokenize_rows(tokenizer, TAGS, rows[:1], limit)
        assert (len(examples), too_long) == ((1, {}) if limit == length else (0, {rows[0].id: length}))


def test_text_cannot_forge_special_tokens(tokenizer):
    row = Row("x", "stop <|endoftext|> here", "[]", '["<|endoftext|>"]')
    (got,) = tokenize_rows(tokenizer, TAGS, [row], 4096).examples
    assert (got.input_ids == tokenizer.eos_token_id).nonzero()[0].tolist() == [len(got.input_ids) - 1]


def test_tokens_are_read_from_the_cache_until_a_text_changes(tokenizer, rows, tmp_path, monkeypatch):
    fresh = tokenize_rows(tokenizer, TAGS, rows, 4096)[0]
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path)
    for _ in range(2):  # written, then read
        assert fingerprint(tokenize_rows(tokenizer, TAGS, rows, 4096)[0]) == fingerprint(fresh)
    (file,) = tmp_path.glob("*/*")
    stored = load_file(file)
    save_file(stored | {"prompt_ids": stored["prompt_ids"] + 1}, file)
    # The file is read.
    assert fingerprint(tokenize_rows(tokenizer, TAGS, rows, 4096)[0]) != fingerprint(fresh)
    file.write_bytes(file.read_bytes()[:1000])  # cut by a full disk
    assert fingerprint(tokenize_rows(tokenizer, TAGS, rows, 4096)[0]) == fingerprint(fresh)
    edited = [rows[0]._replace(query=rows[0].query + "!"), *rows[1:]]
    assert fingerprint(tokenize_rows(tokenizer, TAGS, edited, 4096)[0]) != fingerprint(fresh)
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_tokens_are_kept_by_tokenizer_special_tokens_and_version(rows, tmp_path, monkeypatch):
    """Tokenizers that differ in one setting do not share cached tokens."""
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path)

    def tokens(tokenizer):
        examples, _, lost, unknown, _ = tokenize_rows(tokenizer, TAGS, rows, 4096)
        return fingerprint(examples), lost, unknown, len(list(tmp_path.glob("*/*")))

    texts = [row.query + row.tools for row in rows]
    first = tokens(build_tokenizer(texts, 600))
    assert tokens(build_tokenizer(texts, 600)) == first and first[3] == 1
    assert tokens(build_tokenizer(texts, 700))[::3] != first[::3]
    with_bos = build_tokenizer(texts, 600)
    with_bos.bos_token = "<|endoftext|>"
    # Another version of the tokenizer could add the BOS.
    assert tokens(with_bos)[::3] == (first[0], 3)
    adding_bos = build_tokenizer(texts, 600)
    adding_bos.bos_token = "<|endoftext|>"
    adding_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", None, [("<|endoftext|>", 0)]
    )
    assert tokens(adding_bos)[0] != first[0]
    other_pad = build_tokenizer(texts, 600)
    other_pad.pad_token = "a"
    assert len(tokens(other_pad)[1]) > 0 == len(first[1])
    monkeypatch.setattr("tokenizers.__version__", "0.0.1")
    assert tokens(build_tokenizer(texts, 600))[3] == 6


def weather_rows(cities):
    tools = json.dumps([{"name": "weather", "parameters": {"city": {"type": "str"}}}])
    answers = [to_json([{"name": "weather", "arguments": {"city": city}}]) for city in cities]
    return [
        Row(f"row {n}", f"{city}?", tools, answer) for n, (city, answer) in enumerate(zip(cities, answers, strict=True))
    ]


def byte_level(normalizer=None, **specials):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "</s>", "pad_token": "</s>"} | specials)


def with_unknown(texts):
    """Like SentencePiece without byte fallback: a blank is ▁, an unseen letter is <unk>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["</s>", "<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


CITIES = ["Oslo", "oslo", "北京", "Ｂ１", "a  b", unicodedata.normalize("NFD", "Köln"), "Kö!ln"]
NFKC_LOWER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
(LATIN,) = weather_rows(["Oslo oslo Kö!ln Ko\u0308ln a b"])


@pytest.mark.parametrize(
    ("make", "lost"),
    [
        (byte_level, []),
        (lambda: byte_level(normalizers.NFC()), []),  # Qwen's: equal in NFC
        (lambda: byte_level(NFKC_LOWER), ["Oslo", "Ｂ１", "Köln", "Kö!ln"]),
        (lambda: byte_level(normalizers.Replace(Regex(" +"), " ")), ["a  b"]),
        (lambda: byte_level(pad_token="!"), ["Kö!ln"]),  # generation removes padding
        (lambda: byte_level(eos_token="!"), ["Kö!ln"]),  # generation ends at it
        (lambda: with_unknown([TAGS.render("", "[]"), LATIN.answers]), ["北京", "Ｂ１"]),
    ],
    ids=["bytes", "NFC", "lower", "blanks", "padding", "end", "unknown"],
)
def test_answers_lost_in_tokenization_are_named(make, lost, tmp_path, monkeypatch):
    rows, tokenizer = weather_rows(CITIES), make()
    expected = [row.id for row, city in zip(rows, CITIES, strict=True) if unicodedata.normalize("NFC", city) in lost]
    assert tokenize_rows(tokenizer, TAGS, rows, 4096).lost_answers == expected
    monkeypatch.setattr(cache, "FROM_ROWS", 1)
    monkeypatch.setattr(cache, "HF_HOME", tmp_path)
    for _ in range(2):  # written, then read
        assert tokenize_rows(tokenizer, TAGS, rows, 4096).lost_answers == expected
    (file,) = tmp_path.glob("*/*")
    save_file(load_file(file) | {"lost": np.array([6])}, file)
    # The file is read.
    assert tokenize_rows(tokenizer, TAGS, rows, 4096).lost_answers == ["row 6"]


def test_prompts_with_unknown_tokens_are_named(tmp_path):
    (row,) = weather_rows(["Oslo"])
    tokenizer = with_unknown([TAGS.render("?", row.tools) + row.answers])
    assert tokenize_rows(tokenizer, TAGS, weather_rows(["Oslo", "北京"]), 4096).unknown_prompts == ["row 1"]


def test_collate_packs_examples_into_one_row():
    batch = collate([example([10, 11, 12], [13, 0]), example([20], [21, 22, 0])])
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 0, 20, 21, 22, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 5, 9] and batch.pop("cu_seq_lens_q").dtype == torch.int32
    assert batch.pop("max_length_q") == 5
    assert batch["logits_to_keep"].tolist() == [2, 3, 5, 6, 7]
    assert batch["labels"].tolist() == [13, 0, 21, 22, 0]
    assert batch.pop("loss_weights") is None  # all weights are 1
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    empty = collate([example([10, 11, 12], [13, 0])], supervised=False)
    assert empty["logits_to_keep"].tolist() == empty["labels"].tolist() == []
    assert empty["logits_to_keep"].dtype == torch.int64 and empty["loss_weights"] is None


def test_only_tokens_with_a_weight_are_supervised_and_keep_it():
    first, second = example([10, 11], [12, 13, 0]), example([20], [21, 0])
    weighted = first._replace(loss_weights=np.float32([0, 0.25, 0, 0, 2]))
    batch = collate([weighted, second])
    assert batch["labels"].tolist() == [11, 0, 21, 0] and batch["logits_to_keep"].tolist() == [0, 3, 5, 6]
    assert batch["loss_weights"].tolist() == [0.25, 2, 1, 1] and batch["loss_weights"].dtype == torch.float32
    step = TrainingData([weighted, second], 0, 1, 2)[0]
    assert (step.num_tokens, step.num_supervised, step.weight_sum) == (8, 4, 4.25)
    assert fingerprint([weighted]) != fingerprint([first])


def test_the_fingerprint_of_completions_is_that_of_checkpoints_from_before_loss_masks():
    row = example([10, 11], [12, 13, 0])
    before = hashlib.sha256(f"{row.row_id} 2 ".encode() + row.input_ids.tobytes())
    assert fingerprint([row]) == before.hexdigest()


def test_the_supervised_span_is_marked(tokenizer, rows):
    (got,) = tokenize_rows(tokenizer, TAGS, rows[:1], 4096).examples
    prompt = TAGS.render(rows[0].query, rows[0].tools)
    assert mark_supervised(tokenizer, got) == f"{prompt}⟦{rows[0].answers}<|endoftext|>⟧"


def test_a_long_prompt_is_cut_in_its_middle_and_the_supervised_span_is_not(tokenizer, rows):
    tools = json.dumps([{"name": f"tool_{i}", "parameters": {}} for i in range(30)])
    (got,) = tokenize_rows(tokenizer, TAGS, [rows[0]._replace(tools=tools)], 100_000).examples
    prompt, answer = TAGS.render(rows[0].query, tools), f"⟦{rows[0].answers}<|endoftext|>⟧"
    cut = f" ... {len(prompt) - 200:,} characters ... "
    assert mark_supervised(tokenizer, got, most=200) == prompt[:100] + cut + prompt[-100:] + answer


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_processes_share_every_example_once_in_equally_many_micro_batches(batch_size, num_processes):
    rng = np.random.default_rng(0)
    for num_examples in range(1, 40):
        examples = [example([1] * rng.integers(1, 50), [100 + i, 0]) for i in range(num_examples)]
        shares = [micro_batches(examples, batch_size, num_processes, index) for index in range(num_processes)]
        (count,) = {len(share) for share in shares}
        assert (count - 1) * batch_size * num_processes < num_examples <= count * batch_size * num_processes
        labels = [batch["labels"][batch["labels"] > 0].tolist() for share in shares for batch in share]
        assert max(map(len, labels)) <= batch_size
        assert sorted(label for batch in labels for label in batch) == [100 + i for i in range(num_examples)]


def test_processes_and_micro_batches_get_about_equal_tokens():
    """Lengths as in xLAM: eight processes with rows in order would wait 25% of the time."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(350), 0.5, 4096), 100, 1024).astype(int)
    examples = [example([1] * (length - 1), [0]) for length in lengths]
    for batch_size, accumulation_steps, num_processes in [(8, 1, 2), (8, 1, 8), (2, 4, 1), (4, 2, 4)]:
        data = [
            TrainingData(examples, 0, batch_size, accumulation_steps, num_processes=num_processes, process_index=index)
            for index in range(num_processes)
        ]
        shares = np.array([[num_tokens(chunk) for chunk in process.chunks(range(16))] for process in data])
        by_step = shares.reshape(num_processes, 16, accumulation_steps)
        # Time that processes wait for each other.
        assert by_step.sum(2).max(0).sum() < 1.03 * by_step.sum(2).mean(0).sum()
        assert by_step.max((0, 2)).sum() < 1.3 * by_step.mean((0, 2)).sum()  # peak memory


def steps(examples, num_steps, batch_size, accumulation_steps, num_processes):
    """Row ids by optimizer step, and the labels of all processes by step."""
    data = [
        TrainingData(examples, 7, batch_size, accumulation_steps, num_processes=num_processes, process_index=index)
        for index in range(num_processes)
    ]
    ids = [data[0][k].row_ids for k in range(num_steps)]
    seen = [
        sorted(label for process in data for batch in process[k].micro_batches for label in batch["labels"].tolist())
        for k in range(num_steps)
    ]
    return ids, seen


@pytest.mark.parametrize("split", [(1, 8, 1), (8, 1, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2)])
def test_order_depends_on_seed_and_epoch_alone(split):
    examples = [example([1, i], [1000 + i, 0], row_id=i) for i in range(21)]
    assert steps(examples, 7, *split) == steps(examples, 7, 2, 4, 1)
    ids, _ = steps(examples, 6, *split)
    # The last step of an epoch takes the rest.
    assert [len(step) for step in ids] == [8, 8, 5, 8, 8, 5]
    epochs = [[row_id for step in part for row_id in step] for part in (ids[:3], ids[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(21)) and epochs[0] != epochs[1]
    assert epochs[0] == epoch_order(range(21), seed=7, epoch=0).tolist()


def test_counts_include_all_processes():
    examples = [example([1] * (i + 1), [5] * i + [0], row_id=i) for i in range(6)]
    for index in range(2):
        step = TrainingData(examples, 0, 1, 3, num_processes=2, process_index=index)[0]
        assert step.num_tokens == sum(len(got.input_ids) for got in examples)
        assert step.num_supervised == step.weight_sum == sum(i + 1 for i in range(6))


def test_chunks_equal_the_micro_batches():
    """Also for a process without examples: CUDA graphs are made for the sizes of the chunks."""
    examples = [example([1] * (i + 1), [5, 0], row_id=i) for i in range(11)]
    for index in range(2):
        data = TrainingData(examples, 0, 1, 4, num_processes=2, process_index=index)
        lengths = [batch["input_ids"].shape[1] for step in range(4) for batch in data[step].micro_batches]
        assert lengths == [num_tokens(chunk) for chunk in data.chunks(range(4))] and len(lengths) == 4 + 2 + 4 + 2
        supervised = [batch["labels"].numel() > 0 for batch in data[1].micro_batches]
        # Three examples: the longest alone, the other two together.
        assert supervised == [[True, False], [True, True]][index]


def test_any_step_can_be_read_first():
    examples = [example([1, i], [0], row_id=i) for i in range(20)]
    forward = TrainingData(examples, 0, 2, 2)
    all_ids = [forward[k].row_ids for k in range(12)]
    assert TrainingData(examples, 0, 2, 2)[11].row_ids == all_ids[11]
    assert forward[2].row_ids == all_ids[2]
