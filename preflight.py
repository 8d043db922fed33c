"""Before step 1: the run's largest micro-batches, so that what would run out of memory hours later says so at once."""

import torch
from accelerate.utils import gather_object

from data_utils.batching import TrainingData, collate, largest_chunks, share_out
from script_utils import UserError


def preflight(accelerator, model, optimizer, loss_of, data, eval_examples, args, first_step, last_step):
    """On a GPU, run the largest micro-batches of the steps to come and of the evaluation; returns a line on what they took.

    `loss_of(model, batch, device)` is the loss to go backward from. Where memory runs out, raises UserError with the
    arguments that fit, tried one after the other. Leaves no gradients behind, and no random state that matters: the loop
    seeds every step.
    """
    if accelerator.device.type != "cuda":
        return ""
    unwrapped = accelerator.unwrap_model(model)

    def fits(batch_size, checkpointing, max_seq_length):
        examples = [example for example in data.examples if len(example.input_ids) <= max_seq_length]
        accumulation = data.global_batch // (batch_size * data.num_processes)
        trial = TrainingData(examples, data.seed, batch_size, accumulation, data.num_processes, data.process_index)
        if checkpointing != args.gradient_checkpointing:
            unwrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return bool(examples) and runs(
            accelerator, model, optimizer, loss_of, largest_chunks(trial.chunks(first_step, last_step))
        )

    def eval_fits(batch_size):
        chunks = share_out(eval_examples, batch_size, data.num_processes, data.process_index)
        with torch.no_grad():
            return runs(accelerator, model, optimizer, loss_of, largest_chunks(chunks))

    problem = ""
    if not fits(args.per_device_train_batch_size, args.gradient_checkpointing, args.max_seq_length):
        found = what_fits(args, fits)
        problem = f"the largest micro-batch does not fit in this GPU's memory; {' or '.join(found) or 'nothing'} would"
    elif eval_examples and not eval_fits(args.per_device_eval_batch_size):
        smaller = next(filter(eval_fits, range(args.per_device_eval_batch_size // 2, 0, -1)), 1)
        problem = f"the evaluation's largest batch does not fit in memory; --per_device_eval_batch_size {smaller} would"
    for message in gather_object([problem]):  # a process that has the memory must not wait for one that has not
        if message:
            raise UserError(message)
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(accelerator.device).total_memory
    torch.cuda.reset_peak_memory_stats()
    return f"The largest micro-batches take {peak / 2**30:.1f} of {total / 2**30:.0f} GiB"


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


def runs(accelerator, model, optimizer, loss_of, chunks):
    """Whether there is the memory for a pass over each of the micro-batches, with Adam's moments beside it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        moments = [] if optimizer.state else [torch.empty_like(parameter) for parameter in trainable * 2]
        for chunk in chunks:
            with accelerator.no_sync(model):
                loss = loss_of(model, collate(chunk), accelerator.device)
                if loss.requires_grad:
                    accelerator.backward(loss)
        del moments
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        for parameter in trainable:
            parameter.grad = None
        torch.cuda.empty_cache()
