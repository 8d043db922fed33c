"""The loss and its gradients: equal to transformers', for each split of a step, without leaks."""

import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, TAGS, first_moments, launch, values
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, Qwen3NextConfig, Qwen3NextForCausalLM

from data_utils.batching import Example, collate, pack, tokenize_rows
from data_utils.parts import LOSS_MASKS, PARTS, part_weights
from data_utils.sources import load_rows
from model_utils.adapters import add_lora
from model_utils.in_training import evaluation_figures
from model_utils.loading import ModelSource, load_base_model
from model_utils.self_checks import check_training_batches
from model_utils.speed import prepare_model
from run_utils.errors import UserError
from run_utils.signals import SIGNALS, StopRequest
from train import completion_loss, cross_entropy

LOSS = {"loss_fn": completion_loss, "cross_entropy": cross_entropy}


@pytest.fixture(scope="module", params=["isolated", "sdpa"])
def model(tiny_model, request):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=request.param)


@pytest.fixture(scope="module")
def examples(tiny_model, rows_file):
    return tokenize_rows(AutoTokenizer.from_pretrained(tiny_model), TAGS, load_rows(str(rows_file))[0][:7], 4096)[0]


def padded(examples):
    """The usual batch of transformers: right-padded, label -100 on unsupervised tokens."""
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.zeros(len(examples), length, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for i, example in enumerate(examples):
        ids = torch.from_numpy(example.input_ids).long()
        input_ids[i, : len(ids)] = ids
        labels[i, example.prompt_length : len(ids)] = ids[example.prompt_length :]
    mask = torch.tensor([[i < len(example.input_ids) for i in range(length)] for example in examples]).long()
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="module")
def peer(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def test_loss_and_gradients_are_those_of_transformers_own_labels(peer, model, examples):
    peer.zero_grad()
    expected = peer(**padded(examples)).loss
    expected.backward()
    gradients = [parameter.grad for parameter in peer.parameters()]
    weight_sum = sum(example.weight_sum for example in examples)
    loss = completion_loss(model, collate(examples), model.device) / weight_sum
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_a_token_counts_by_its_weight(peer, model, examples, stop):
    """Compared with PyTorch's cross-entropy of each token. Weights are 0 to 2, on prompts too."""
    rng = np.random.default_rng(0)
    weighted = [
        example._replace(loss_weights=np.float32([0, *rng.choice([0, 0, 0.5, 1, 2], len(example.input_ids) - 1)]))
        for example in examples
    ]
    loss_sum = hits = 0
    peer.zero_grad()
    for example in weighted:
        ids = torch.from_numpy(example.input_ids).long()
        logits, token_weights = peer(ids[None]).logits[0, :-1], torch.from_numpy(example.loss_weights[1:])
        loss_sum += (torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") * token_weights).sum()
        hits += token_weights[logits.argmax(-1) == ids[1:]].sum().item()
    expected = loss_sum / sum(example.loss_weights.sum() for example in weighted)
    expected.backward()
    gradients = [parameter.grad for parameter in peer.parameters()]
    weight_sum = sum(example.weight_sum for example in weighted)
    for chunk in (weighted[:2], weighted[2:]):
        (completion_loss(model, collate(chunk), model.device) / weight_sum).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    for batch_size in (2, 16):
        figures = evaluation_figures(Accelerator(cpu=True), model, weighted, batch_size=batch_size, **LOSS, stop=stop)
        assert figures["loss"] == pytest.approx(expected.item(), rel=2e-6)
        assert figures["token_accuracy"] == pytest.approx(hits / weight_sum)


def test_a_micro_batch_without_supervision_has_zero_gradients(model, examples):
    loss = completion_loss(model, collate(examples[:1], supervised=False), model.device)
    loss.backward()
    assert loss.item() == 0
    gradients = [parameter.grad for parameter in model.model.layers.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    model.zero_grad()


@pytest.mark.parametrize("attn_implementation", ["isolated", "sdpa", "eager"])
def test_examples_of_a_batch_do_not_see_each_other(tiny_model, examples, attn_implementation):
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, attn_implementation=attn_implementation
    ).eval()
    check_training_batches(model, "tiny", examples)
    first, second, third = examples[:3]
    edited = first._replace(input_ids=(first.input_ids + 7) % 900)

    def logits(*batch):
        with torch.no_grad():
            return model(**pack([example.input_ids for example in batch]), use_cache=False).logits[0]

    before, after = logits(first, second, third), logits(edited, second, third)
    length = len(first.input_ids)
    assert not torch.equal(before[:length], after[:length])
    assert torch.equal(before[length:], after[length:])
    torch.testing.assert_close(before[-len(third.input_ids) :], logits(third), rtol=1e-5, atol=1e-5)


def test_a_kernel_that_mixes_examples_is_refused(tiny_model, examples):
    # SDPA without the block mask.
    def leaky(module, query, key, value, attention_mask, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        return scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    AttentionInterface.register("leaky", leaky)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="leaky").eval()
    with pytest.raises(UserError, match="--attn_implementation leaky lets examples of one batch see each other"):
        check_training_batches(model, "tiny", examples)


def test_a_model_without_isolation_is_refused():
    """Linear attention carries its state into the next example and ignores the positions."""
    config = Qwen3NextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    )
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(config).eval()
    with pytest.raises(UserError, match="lets examples of one batch see each other"):
        texts = [np.arange(length, dtype=np.int32) for length in (20, 30)]
        check_training_batches(model, "linear", [Example("", text, 5, np.ones_like(text)) for text in texts])


def test_gradients_are_equal_for_each_split_of_a_step(train_here, flags, tmp_path):
    """7 examples in a step, so that the last micro-batches are short.

    Adam's first moment after one step is a tenth of the clipped gradient, read from the checkpoint.
    """
    flags |= {"max_train_steps": 1, "warmup_ratio": 0, "max_train_examples": 7, "max_eval_examples": 3}
    runs = {}
    for accumulation, batch, checkpointing in [(1, 8, False), (4, 2, False), (8, 1, False), (4, 2, True)]:
        output_dir = tmp_path / f"{accumulation}_{batch}_{checkpointing}"
        train_here(
            flags
            | {
                "output_dir": output_dir,
                "gradient_accumulation_steps": accumulation,
                "per_device_train_batch_size": batch,
                "per_device_eval_batch_size": batch,
                "gradient_checkpointing": checkpointing,
            }
        )
        runs[accumulation, batch, checkpointing] = output_dir
    runs["two processes"] = tmp_path / "two"
    both = flags | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "output_dir": tmp_path / "two"}
    result = launch("train.py", both, processes=2)
    assert result.code == 0, result.err

    # With --cuda_graphs the training loop averages gradients itself, without DDP. A CPU has no
    # CUDA graphs and runs the same loop.
    script = tmp_path / "without_graphs.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train\n"
        "train.use_cuda_graphs = lambda *args: None\ntrain.main(train.parse())\n"
    )
    runs["two processes, no DDP"] = tmp_path / "by_hand"
    by_hand = both | {"cuda_graphs": True, "gradient_checkpointing": False, "output_dir": tmp_path / "by_hand"}
    result = launch(str(script), by_hand, processes=2)
    assert result.code == 0, result.err

    one, *rest = runs.values()
    expected = first_moments(one / "checkpoint-1")
    assert any(moment.abs().max() > 1e-3 for moment in expected)
    for output_dir in rest:
        by_part = ("eval/loss_values", "eval/accuracy_syntax", "eval/entropy_end")
        for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "eval/loss", *by_part):
            torch.testing.assert_close(values(output_dir, tag), values(one, tag), rtol=2e-6, atol=0)
        for got, wanted in zip(first_moments(output_dir / "checkpoint-1"), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_checkpointing_does_not_change_nf4_gradients(train_here, flags, tmp_path):
    flags |= {"max_train_steps": 1, "warmup_ratio": 0, "max_train_examples": 4, "quantization": "nf4"}
    moments = []
    for checkpointing in (True, False):
        output_dir = tmp_path / f"{checkpointing}"
        train_here(flags | {"output_dir": output_dir, "gradient_checkpointing": checkpointing})
        moments.append(first_moments(output_dir / "checkpoint-1"))
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def test_bf16_logits_have_the_loss_and_gradients_of_float32_copies(tiny_model, examples):
    """Accelerate's own preparation makes the copies."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    dtypes, results = [], []

    def loss_fn(logits, labels, weights):
        dtypes.append(logits.dtype)
        return cross_entropy(logits, labels, weights)

    for prepare in (accelerator.prepare_model, lambda model: prepare_model(accelerator, model, cuda_graphs=False)):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).requires_grad_(False)
        torch.manual_seed(0)
        model = prepare(add_lora(model, 4, 8, 0.0, ["q_proj", "up_proj"], init="gaussian"))
        loss = completion_loss(model, collate(examples), accelerator.device, cross_entropy=loss_fn)
        accelerator.backward(loss)
        results.append([loss, *(weight.grad for weight in model.parameters() if weight.requires_grad)])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert dtypes == [torch.float32, torch.bfloat16]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert any(result.any() for result in results[0][1:])


def test_nf4_gradients_are_those_of_the_dequantised_base(tiny_model, examples):
    """bitsandbytes can lose gradients through weights after a no-grad pass on some CPUs."""
    gradients = []
    for dequantise in (False, True):
        model = load_base_model(ModelSource(tiny_model, quantization="nf4"), Accelerator(cpu=True))
        check_training_batches(model, "tiny", examples)
        model = model.dequantize() if dequantise else model
        torch.manual_seed(0)
        model = add_lora(model, 4, 8, 0.0, ["q_proj", "v_proj", "up_proj"]).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        completion_loss(model, collate(examples), model.device).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for got, wanted in zip(*gradients, strict=True):
        assert wanted.any()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def stop():
    """A request that never stops. The signal handlers of this process are restored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopRequest(Accelerator(cpu=True), checkpoint=lambda: None)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_evaluation_averages_over_tokens_not_batches(peer, model, examples, stop):
    expected = peer(**padded(examples)).loss.item()
    for batch_size in (1, 2, 3, 16):
        figures = evaluation_figures(Accelerator(cpu=True), model, examples, batch_size=batch_size, **LOSS, stop=stop)
        assert figures["loss"] == pytest.approx(expected, rel=2e-6)


def test_token_accuracy_is_the_share_of_supervised_tokens_that_greedy_decoding_would_take(peer, model, examples, stop):
    """Two of the three targets of a row are the model's own choice."""
    example = examples[0]
    with torch.no_grad():
        first, second = peer(torch.from_numpy(example.input_ids[None, :-1]).long()).logits[0, -2:].argmax(-1).tolist()
    ids, weights = example.input_ids.copy(), np.zeros_like(example.loss_weights)
    ids[-2:], weights[-3:] = (first, second + 1), 1
    with torch.no_grad():
        choices = peer(torch.from_numpy(ids[None]).long()).logits[0, -4:-1].argmax(-1)
    expected = (choices == torch.from_numpy(ids[-3:])).float().mean().item()
    assert 0 < expected < 1
    edited = [example._replace(input_ids=ids, loss_weights=weights)]
    figures = evaluation_figures(Accelerator(cpu=True), model, edited, batch_size=1, **LOSS, stop=stop)
    assert figures["token_accuracy"] == pytest.approx(expected)


def test_figures_by_part_are_those_of_pytorch_at_weight_1_under_any_mask(peer, model, tiny_model, rows_file, stop):
    """A row without known parts counts in the loss alone."""
    tokenizer, rows = AutoTokenizer.from_pretrained(tiny_model), load_rows(str(rows_file))[0][:7]
    figures = {}
    for mask in LOSS_MASKS:
        tokenized = tokenize_rows(tokenizer, TAGS, rows, 4096, weights=part_weights(mask), with_parts=True)
        assert not tokenized.unknown_parts
        examples = [*tokenized.examples[:-1], tokenized.examples[-1]._replace(parts=None)]
        figures[mask] = evaluation_figures(Accelerator(cpu=True), model, examples, batch_size=3, **LOSS, stop=stop)
    expected = {}
    for example in examples[:-1]:
        ids = torch.from_numpy(example.input_ids).long()
        with torch.no_grad():
            choices = torch.distributions.Categorical(logits=peer(ids[None]).logits[0, :-1])
        hits = choices.probs.argmax(-1) == ids[1:]
        of_tokens = zip(-choices.log_prob(ids[1:]), hits, choices.entropy(), strict=True)
        for code, values_of_token in zip(example.parts[1:], of_tokens, strict=True):
            for name, value in zip(("loss", "accuracy", "entropy"), values_of_token, strict=True):
                expected.setdefault(f"{name}_{PARTS[code]}", []).append(value.item())
    parts = {part for part in PARTS if f"loss_{part}" in expected}
    assert parts == {"prompt", "syntax", "names", "arguments", "values", "end"}
    for of_mask in figures.values():
        names = {name for name in of_mask if "_" in name} - {"token_accuracy"}
        assert names == {name for name in expected if not name.endswith("_prompt")}
        for name in names:
            assert of_mask[name] == pytest.approx(np.mean(expected[name]), rel=1e-5)
    assert len({of_mask["loss"] for of_mask in figures.values()}) == len(LOSS_MASKS)  # it follows the mask
    weighted = {part: sum(expected[f"loss_{part}"]) for part in ("values", "end")}
    count = sum(len(expected[f"loss_{part}"]) for part in weighted)
    without_last = evaluation_figures(
        Accelerator(cpu=True),
        model,
        tokenize_rows(tokenizer, TAGS, rows[:-1], 4096, weights=part_weights("values_only"), with_parts=True).examples,
        batch_size=3,
        **LOSS,
        stop=stop,
    )
    assert without_last["loss"] == pytest.approx(sum(weighted.values()) / count, rel=1e-5)
