"""Unsloth's and TRL's trainers on the rows of train_throughput.py, which runs this script as a
process for each system, with its settings as JSON. It reports the tokens/s of three intervals."""

import itertools
import json
import sys
import time

from benchmarks.processes import report


def main(job):
    if job["library"] == "unsloth":
        import unsloth  # noqa: F401  It changes transformers, PEFT and TRL, and must be imported before them.
    load = load_unsloth if job["library"] == "unsloth" else load_trl
    model, tokenizer, dataset, config, others = load(job)
    train(job, model, tokenizer, dataset, config, others)


def load_unsloth(job):
    """At its best: flat batches (its padding_free), its kernels, no checkpointing, PyTorch's fused
    AdamW. With checkpointing in the job: as its notebooks have it, with 8-bit AdamW."""
    import numpy as np
    import torch
    from datasets import Dataset
    from unsloth import FastLanguageModel

    from benchmarks.train_throughput import TARGETS

    checkpointing = "unsloth" if job["options"].get("gradient_checkpointing") else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model_dir"],
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        load_in_4bit=job["precision"] == "nf4",
        max_seq_length=1024,
        use_gradient_checkpointing=checkpointing,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=32,
        lora_alpha=64,
        lora_dropout=job["dropout"],
        target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
    )
    # It gives rows with labels a collator of its own, which pads, unless it leaves them as they
    # are. Then it wants to know that they are short enough.
    dataset = Dataset.from_list(
        [
            {"input_ids": ids.tolist(), "labels": np.where(weights > 0, ids, -100).tolist()}
            for ids, weights in tokens(job, tokenizer)
        ]
    )
    dataset._unsloth_truncated_to = 1024
    config = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": 1024, "optim": "adamw_torch_fused"}
    if checkpointing:
        config |= job["options"] | {"optim": "adamw_8bit"}
        del config["gradient_checkpointing"]  # the notebooks give it to the model alone
    else:
        config |= job["options"] | {
            "per_device_train_batch_size": job["examples"],
            "gradient_accumulation_steps": 1,  # Unsloth's default is 2
            "gradient_checkpointing": False,
        }
    return model, tokenizer, dataset, config, {}


def load_trl(job):
    """As published, or at its best: packed blocks, Liger's kernels, no checkpointing."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.train_throughput import TARGETS

    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(job["model_dir"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model_dir"], dtype=torch.bfloat16 if on_gpu else torch.float32, device_map="cuda" if on_gpu else "cpu"
    )
    dataset = Dataset.from_list(
        [
            {"input_ids": ids.tolist(), "completion_mask": weights.astype(int).tolist()}
            for ids, weights in tokens(job, tokenizer)
        ]
    )
    config = {"completion_only_loss": True, "max_length": 1024} | job["options"]
    if job["options"].get("packing"):
        config |= {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": False,
            "max_length": 8192,
            "use_liger_kernel": on_gpu,
            # TRL's own chunked loss stays.
            "liger_kernel_config": {"cross_entropy": False, "fused_linear_cross_entropy": False} if on_gpu else None,
        }
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=32, lora_alpha=64, lora_dropout=job["dropout"], target_modules=TARGETS
    )  # fmt: skip
    return model, tokenizer, dataset, config, {"peft_config": lora}


def tokens(job, tokenizer):
    """(ids, 1 or 0 for a supervised token) of each row, as train.py has them."""
    from benchmarks.train_throughput import TAGS
    from data_utils.batching import tokenize_rows
    from data_utils.sources import load_rows

    rows = load_rows(f"{job['work_dir']}/rows.jsonl")[0]
    for example in tokenize_rows(tokenizer, TAGS, rows, 1024).examples:
        yield example.input_ids, example.loss_weights


def train(job, model, tokenizer, dataset, config, others):
    """Train, and report the speed of each interval, in real tokens: of a micro-batch they are
    counted with its loss."""
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from benchmarks.train_throughput import INTERVALS

    on_gpu = torch.cuda.is_available()
    num_tokens, marks = [0], []

    class Clock(TrainerCallback):
        def on_step_end(self, trainer_args, state, control, **kwargs):
            if state.global_step % job["every"] == 0:
                if on_gpu:
                    torch.cuda.synchronize()
                marks.append((num_tokens[0], time.perf_counter()))

    class CountingTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, *arguments, **kwargs):
            mask = inputs.get("attention_mask")
            num_tokens[0] += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().compute_loss(model, inputs, *arguments, **kwargs)

    trainer = CountingTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=dataset,
        args=SFTConfig(
            output_dir=f"{job['work_dir']}/{job['library']}",
            max_steps=(1 + INTERVALS) * job["every"],
            learning_rate=1e-4,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            logging_steps=job["every"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **config,
        ),
        callbacks=[Clock()],
        **others,
    )
    if config.get("padding_free") and not getattr(trainer.data_collator, "padding_free", False):
        sys.exit("padding_free was switched off: the log says why")
    trainer.train()
    pairs = itertools.pairwise(marks)  # the first interval is the warm-up
    report(
        speeds=[(after[0] - before[0]) / (after[1] - before[1]) for before, after in pairs],
        peak_memory_gib=torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
        loss=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
