"""Before step 1: the run's largest micro-batches, so that a lack of memory shows at once and not
after hours.

The checks run passes and catch the error, on a GPU only: a CPU has no such error. They leave no
gradients behind. The random state may change: the loop seeds every step."""

import gc

import torch
from accelerate.utils import extract_model_from_parallel

from data_utils.batching import TrainingData, collate, largest_chunks, share_out
from model_utils.in_training import evaluation_mode
from run_utils.errors import say
from run_utils.launch import raise_anywhere
from run_utils.launch_file import is_sharded


def check_training_memory(training, train, steps, args, loss_fn):
    """Forward and backward over the largest micro-batches of these steps (a range) of the
    TrainingData `train`.

    loss_fn: `(model, batch, device) -> loss`. Raises UserError, on all processes, with arguments
    that fit."""
    if steps and can_check(training):
        say("Trying the largest micro-batches ...")
        raise_anywhere(training_problem(training, args, train, steps, loss_fn))


def check_graph_memory(training, train, steps, loss_fn):
    """The same with CUDA graphs, which keep their memory. Raises UserError."""
    if steps and can_check(training):
        fit = runs(training, loss_fn, largest_chunks(train.chunks(steps)))
        problem = "CUDA graphs leave too little of this GPU's memory; --cuda_graphs false would leave enough"
        raise_anywhere("" if fit else problem)


def check_evaluation_memory(training, data, args, loss_fn, system):
    """The evaluation's largest batch, and the first text that `system` generates, beside training's
    memory. Raises UserError, on all processes, with arguments that fit."""
    if data.eval_examples and can_check(training):
        raise_anywhere(evaluation_problem(training, args, data, loss_fn))
        rows = data.eval_rows[: args.eval_generate_examples][data.train.process_index :: data.train.num_processes]
        raise_anywhere(generation_problem(training, system.answer(rows)))


def can_check(training):
    """Whether the model is on a GPU without FSDP2. With FSDP2 a process cannot try a pass alone,
    since all processes gather each layer."""
    return one_process_model(training).device.type == "cuda" and not is_sharded()


def one_process_model(training):
    """The model without DDP. DDP would wait for the other processes, which may try other passes."""
    return extract_model_from_parallel(training.model)


def training_problem(training, args, train, steps, loss_fn):
    """This process's problem in words, with arguments that fit; "" if there is none."""

    def fits(batch_size, checkpointing, max_seq_length):
        examples = [example for example in train.examples if len(example.input_ids) <= max_seq_length]
        if not examples:
            return False
        accumulation = train.global_batch // (batch_size * train.num_processes)
        trial = TrainingData(
            examples,
            train.seed,
            batch_size,
            accumulation,
            num_processes=train.num_processes,
            process_index=train.process_index,
        )
        if checkpointing and not args.gradient_checkpointing:
            model = one_process_model(training)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return runs(training, loss_fn, largest_chunks(trial.chunks(steps)))

    if fits(args.per_device_train_batch_size, args.gradient_checkpointing, args.max_seq_length):
        return ""
    found = what_fits(args, fits)
    return f"the largest micro-batch does not fit in this GPU's memory; {' or '.join(found) or 'nothing'} would"


def evaluation_problem(training, args, data, loss_fn):
    """The same for the evaluation's largest batch."""

    def fits(batch_size):
        chunks = share_out(data.eval_examples, batch_size, data.train.num_processes, data.train.process_index)
        return runs(training, loss_fn, largest_chunks(chunks), completions=True)

    with evaluation_mode(one_process_model(training)):
        fit = fits(args.per_device_eval_batch_size)
        smaller = None if fit else next(filter(fits, range(args.per_device_eval_batch_size // 2, 0, -1)), None)
    would = f"--per_device_eval_batch_size {smaller}" if smaller else "nothing"
    return "" if fit else f"the evaluation's largest batch does not fit in this GPU's memory; {would} would"


def generation_problem(training, generations):
    """The same for the cache of an evaluation's generated calls, which is allocated whole at the
    first."""
    with evaluation_mode(one_process_model(training)):
        try:
            next(generations, None)
            problem = ""
        except torch.OutOfMemoryError:
            problem = "the evaluation's generated calls do not fit in this GPU's memory; a smaller batch would leave it"
        generations.close()
    gc.collect()
    torch.cuda.empty_cache()
    return problem


def what_fits(args, fits):
    """Changes to `args` with which `fits(batch_size, checkpointing, max_seq_length)` is true, at
    the same effective batch: checkpointing or a smaller batch size if one is enough, else both,
    else both with a shorter --max_seq_length."""
    batch_size, length = args.per_device_train_batch_size, args.max_seq_length
    smaller = [size for size in range(batch_size - 1, 0, -1) if batch_size % size == 0]
    checkpointing = "--gradient_checkpointing true" + " --cuda_graphs false" * args.cuda_graphs

    def cut(size):
        accumulation = args.gradient_accumulation_steps * batch_size // size
        return f"--per_device_train_batch_size {size} --gradient_accumulation_steps {accumulation}"

    found = []
    if size := next((size for size in smaller if fits(size, args.gradient_checkpointing, length)), None):
        found.append(cut(size))
    if not args.gradient_checkpointing and fits(batch_size, True, length):
        found.append(checkpointing)
    if not found and not args.gradient_checkpointing:
        found += [f"{checkpointing} {cut(size)}" for size in smaller if fits(size, True, length)][:1]
    shorter = [length * eighths // 8 for eighths in (7, 6, 5, 4, 3, 2, 1)]
    if not found:
        found += [f"{checkpointing} {cut(1)} --max_seq_length {n}" for n in shorter if fits(1, True, n)][:1]
    return found


def runs(training, loss_fn, chunks, completions=False):
    """Whether a pass over each micro-batch fits in memory, with Adam's moments. completions: see
    collate."""
    model, optimizer, trainable = one_process_model(training), training.optimizer, training.trainable

    def passes():  # a function, so that its tensors are freed at its end
        moments = [torch.empty_like(parameter) for parameter in trainable * 2 if not optimizer.state]
        for chunk in chunks:
            loss = loss_fn(model, collate(chunk, completions=completions), model.device)
            if loss.requires_grad:
                loss.backward()
        del moments

    fitted = True
    try:
        passes()
    except torch.OutOfMemoryError:
        fitted = False
    for parameter in trainable:
        parameter.grad = None
    gc.collect()
    torch.cuda.empty_cache()
    return fitted
