"""The largest micro-batches, the state after a trial, and the proposals if they do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data_utils.batching import Example, TrainingData, largest_chunks
from model_utils.memory import runs, what_fits
from run_utils.training import Training
from train import TrainingArguments


@pytest.mark.parametrize("process_index", [0, 1])
def test_the_largest_micro_batches_of_the_steps_to_come_are_found(process_index):
    rng = np.random.default_rng(0)
    examples = [
        Example(str(i), np.zeros(length, dtype=np.int32), 9, rng.integers(0, 2, length).astype(np.float32))
        for i, length in enumerate(rng.integers(10, 100, 61))
    ]
    data = TrainingData(examples, 7, 3, 2, num_processes=2, process_index=process_index)
    # across an epoch's end
    most_tokens, most_supervised = largest_chunks(data.chunks(range(4, 13)))
    batches = [batch for step in range(4, 13) for batch in data[step].micro_batches]
    assert sum(len(example.input_ids) for example in most_tokens) == max(b["input_ids"].shape[1] for b in batches)
    assert sum(example.num_supervised for example in most_supervised) == max(len(b["labels"]) for b in batches)


@pytest.mark.parametrize("memory_runs_out", [False, True])
def test_a_trial_leaves_no_gradient_behind(memory_runs_out):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 1)
    model.device = torch.device("cpu")
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    examples = [Example("x", np.arange(5, dtype=np.int32), 2, np.float32([0, 0, 1, 1, 1]))]
    seen = []

    def loss_fn(model, batch, device):
        seen.append(batch["input_ids"].tolist())
        if memory_runs_out and len(seen) == 2:
            raise torch.OutOfMemoryError
        return model(torch.ones(3)).sum()

    training = Training(model=model, optimizer=optimizer, scheduler=None)
    assert runs(training, loss_fn, [examples, examples]) is not memory_runs_out
    assert seen == [[[0, 1, 2, 3, 4]]] * 2
    assert all(parameter.grad is None for parameter in model.parameters()) and not optimizer.state


# room: the GPU's memory. A token takes 4 without checkpointing and 1 with it.
@pytest.mark.parametrize(
    ("room", "proposed"),
    [
        (
            16 * 1024,
            [
                "--per_device_train_batch_size 4 --gradient_accumulation_steps 6",
                "--gradient_checkpointing true --cuda_graphs false",
            ],
        ),
        (
            8 * 1024,
            [
                "--per_device_train_batch_size 2 --gradient_accumulation_steps 12",
                "--gradient_checkpointing true --cuda_graphs false",
            ],
        ),
        (
            3 * 1024,
            [
                "--gradient_checkpointing true --cuda_graphs false --per_device_train_batch_size 2 "
                "--gradient_accumulation_steps 12"
            ],
        ),
        (
            600,
            [
                "--gradient_checkpointing true --cuda_graphs false --per_device_train_batch_size 1 "
                "--gradient_accumulation_steps 24 --max_seq_length 512"
            ],
        ),
        (100, []),
    ],
)
def test_proposals_fit_and_keep_the_effective_batch(room, proposed):
    args = TrainingArguments(
        per_device_train_batch_size=8, gradient_accumulation_steps=3, gradient_checkpointing=False, cuda_graphs=True
    )

    def fits(batch_size, checkpointing, max_seq_length):
        return batch_size * max_seq_length * (1 if checkpointing else 4) <= room

    assert not fits(8, False, 1024)
    assert what_fits(args, fits) == proposed


def test_for_a_batch_of_one_with_checkpointing_a_shorter_length_is_proposed():
    args = replace(TrainingArguments(), per_device_train_batch_size=1, gradient_checkpointing=True)
    (only,) = what_fits(args, lambda batch_size, checkpointing, length: length <= 900)
    assert "--max_seq_length 896" in only
