"""Before step 1: the run's largest micro-batches, so that what would run out of memory hours later says so at once.

On a GPU alone: a CPU has no such error to wait for. No gradients are left behind, and no random state that matters: the
loop seeds every step.
"""

import gc

import torch
from accelerate.utils import gather_object

from data_utils.batching import TrainingData, collate, largest_chunks, share_out
from script_utils import UserError


def check_training_fits(accelerator, model, optimizer, loss_of, data, args, first_step, last_step):
    """Forward and backward over the largest micro-batches of these steps, by `loss_of(model, batch, device)`.

    Where memory runs out, raises UserError with the arguments that fit, tried one after the other.
    """
    if accelerator.device.type != "cuda":
        return
    model = accelerator.unwrap_model(model)  # processes may differ in what they try: DDP would wait for the others

    def fits(batch_size, checkpointing, max_seq_length):
        examples = [example for example in data.examples if len(example.input_ids) <= max_seq_length]
        if not examples:
            return False
        accumulation = data.global_batch // (batch_size * data.num_processes)
        trial = TrainingData(examples, data.seed, batch_size, accumulation, data.num_processes, data.process_index)
        if checkpointing and not args.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return runs(model, optimizer, loss_of, largest_chunks(trial.chunks(first_step, last_step)))

    problem = ""
    if not fits(args.per_device_train_batch_size, args.gradient_checkpointing, args.max_seq_length):
        found = what_fits(args, fits)
        problem = f"the largest micro-batch does not fit in this GPU's memory; {' or '.join(found) or 'nothing'} would"
    raise_anywhere(problem)


def check_graphs_fit(model, optimizer, loss_of, data, first_step, last_step):
    """Likewise once CUDA graphs have taken their memory for good."""
    fit = runs(model, optimizer, loss_of, largest_chunks(data.chunks(first_step, last_step)))
    problem = "CUDA graphs leave too little of this GPU's memory; --cuda_graphs false would leave enough"
    raise_anywhere("" if fit else problem)


def check_evaluation_fits(accelerator, model, optimizer, loss_of, data, eval_examples, args):
    """Likewise the evaluation's largest batch, after whatever training keeps in memory."""
    if accelerator.device.type != "cuda" or not eval_examples:
        return
    model = accelerator.unwrap_model(model).eval()

    def fits(batch_size):
        chunks = share_out(eval_examples, batch_size, data.num_processes, data.process_index)
        with torch.no_grad():
            return runs(model, optimizer, loss_of, largest_chunks(chunks))

    problem = ""
    if not fits(args.per_device_eval_batch_size):
        smaller = next(filter(fits, range(args.per_device_eval_batch_size // 2, 0, -1)), None)
        would = f"--per_device_eval_batch_size {smaller}" if smaller else "nothing"
        problem = f"the evaluation's largest batch does not fit in this GPU's memory; {would} would"
    model.train()
    raise_anywhere(problem)


def raise_anywhere(problem):
    """Raise on all processes what one has met: it must not be waited for."""
    for message in gather_object([problem]):
        if message:
            raise UserError(message)


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


def runs(model, optimizer, loss_of, chunks):
    """Whether there is the memory for a pass over each of the micro-batches, with Adam's moments beside it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def passes():  # a function of its own, so that its tensors are gone when it is
        moments = [torch.empty_like(parameter) for parameter in trainable * 2 if not optimizer.state]
        for chunk in chunks:
            loss = loss_of(model, collate(chunk), model.device)
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
