"""TRL's SFTTrainer as the reference: equal model, rows, order and hyper-parameters at each step."""

import json
import math

import torch
from conftest import TAGS, curve
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from data_utils.batching import TrainingData, tokenize_rows
from data_utils.sources import load_rows
from data_utils.split import split_rows
from demo.rows import generate_rows

STEPS = 20
ROWS = 8 * STEPS - 5  # the last step is short: 3 rows in 2 micro-batches


def test_twenty_steps_in_lockstep_with_trl(train_here, flags, tiny_model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate_rows(ROWS, seed=6)))
    flags |= {"dataset_name": path, "eval_fraction": 0, "warmup_ratio": 0.1, "learning_rate": 3e-3, "lora_dropout": 0}
    output_dir = train_here(flags)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows, _, _ = split_rows(load_rows(str(path))[0], 0, seed=42)
    examples = {example.row_id: example for example in tokenize_rows(tokenizer, TAGS, rows, 2048)[0]}
    data = TrainingData(list(examples.values()), 42, 2, 4)
    ordered = [examples[row_id] for step in range(STEPS) for row_id in data[step].row_ids]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(42)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0, target_modules=targets)
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [
                {"input_ids": example.input_ids.tolist(), "completion_mask": example.loss_weights.astype(int).tolist()}
                for example in ordered
            ]
        ),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0,
            optim="adamw_torch",
            completion_only_loss=True,  # by default it would ignore our completion_mask
            max_length=None,
            packing=False,
            train_sampling_strategy="sequential",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]

    assert len(history) == STEPS
    for tag, key in [
        ("train/loss", "loss"),
        ("train/grad_norm", "grad_norm"),
        ("train/learning_rate", "learning_rate"),
    ]:
        ours = curve(output_dir, tag)
        assert [step for step, _ in ours] == list(range(1, STEPS + 1))
        for (step, value), entry in zip(ours, history, strict=True):
            assert math.isclose(value, float(entry[key]), rel_tol=2e-5), (key, step, value, entry[key])
    losses = [value for _, value in curve(output_dir, "train/loss")]
    assert losses[-1] < losses[0] - 0.5  # the loss falls
