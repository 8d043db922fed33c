"""Before step 1: the run's largest micro-batches, so that what would run out of memory hours later says so at once.

On a GPU alone: a CPU has no such error to wait for. No gradients are left behind, and no random state that matters: the
loop seeds every step.
"""

import gc

import torch

from data_utils.batching import TrainingData, collate, largest_chunks, share_out
from model_utils.cuda_graphs import use_cuda_graphs
from run_utils.launch import raise_anywhere
from run_utils.launch_file import is_sharded


def check_memory(accelerator, args, training, data, steps, loss_fn, eval_loss_fn, generations):
    """Forward and backward over the largest micro-batches of these steps (a range) and of the evaluation, and the first of its
    `generations`, an iterator. CUDA graphs, which keep their memory, are captured in between. loss_fn and eval_loss_fn:
    `(model, batch, device) -> loss`.

    Where memory runs out, raises UserError with the arguments that fit, tried one after the other.
    """
    if not steps:
        return
    if is_sharded():  # a process alone cannot try a pass: all of them gather each layer
        return
    on_gpu = accelerator.device.type == "cuda"
    # Processes may differ in what they try: DDP would wait for the others.
    model, optimizer = accelerator.unwrap_model(training.model), training.optimizer
    if on_gpu:
        raise_anywhere(training_problem(model, optimizer, args, data.train, steps, loss_fn))
    if args.cuda_graphs:
        count = use_cuda_graphs(accelerator, model, data.train, steps)
        accelerator.print(f"CUDA graphs for {count} sizes of micro-batches")
        fit = runs(model, optimizer, loss_fn, largest_chunks(data.train.chunks(steps)))
        problem = "CUDA graphs leave too little of this GPU's memory; --cuda_graphs false would leave enough"
        raise_anywhere("" if fit else problem)
    if on_gpu and data.eval_examples:
        raise_anywhere(evaluation_problem(model, optimizer, args, data, eval_loss_fn))
        raise_anywhere(generation_problem(model, generations))


def training_problem(model, optimizer, args, train, steps, loss_fn):
    """What is wrong, in words, and what would fit; "" where nothing is. On this process: the others may find otherwise."""

    def fits(batch_size, checkpointing, max_seq_length):
        examples = [example for example in train.examples if len(example.input_ids) <= max_seq_length]
        if not examples:
            return False
        accumulation = train.global_batch // (batch_size * train.num_processes)
        trial = TrainingData(examples, train.seed, batch_size, accumulation, train.num_processes, train.process_index)
        if checkpointing and not args.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return runs(model, optimizer, loss_fn, largest_chunks(trial.chunks(steps)))

    if fits(args.per_device_train_batch_size, args.gradient_checkpointing, args.max_seq_length):
        return ""
    found = what_fits(args, fits)
    return f"the largest micro-batch does not fit in this GPU's memory; {' or '.join(found) or 'nothing'} would"


def evaluation_problem(model, optimizer, args, data, loss_fn):
    """Likewise for the evaluation's largest batch, after whatever training keeps in memory."""

    def fits(batch_size):
        chunks = share_out(data.eval_examples, batch_size, data.train.num_processes, data.train.process_index)
        with torch.no_grad():
            return runs(model, optimizer, loss_fn, largest_chunks(chunks))

    model.eval()
    fit = fits(args.per_device_eval_batch_size)
    smaller = None if fit else next(filter(fits, range(args.per_device_eval_batch_size // 2, 0, -1)), None)
    model.train()
    would = f"--per_device_eval_batch_size {smaller}" if smaller else "nothing"
    return "" if fit else f"the evaluation's largest batch does not fit in this GPU's memory; {would} would"


def generation_problem(model, generations):
    """Likewise for the cache of the calls that an evaluation generates: it is allocated whole for the first."""
    model.eval()
    try:
        next(generations, None)
        problem = ""
    except torch.OutOfMemoryError:
        problem = (
            "the evaluation's generated calls do not fit in this GPU's memory; a smaller training batch would leave it"
        )
    generations.close()
    model.train()
    gc.collect()
    torch.cuda.empty_cache()
    return problem


def what_fits(args, fits):
    """Changes to `args` with which `fits(batch_size, checkpointing, max_seq_length)` is true and the effective batch stays:
    one of checkpointing and batch size if that is enough, else both, else a shorter --max_seq_length with them."""
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


def runs(model, optimizer, loss_fn, chunks):
    """Whether there is the memory for a pass over each of the micro-batches, with Adam's moments beside it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def passes():  # a function of its own, so that its tensors are gone when it is
        moments = [torch.empty_like(parameter) for parameter in trainable * 2 if not optimizer.state]
        for chunk in chunks:
            loss = loss_fn(model, collate(chunk), model.device)
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
