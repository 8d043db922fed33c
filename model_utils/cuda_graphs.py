"""The decoder's forward and backward as CUDA graphs: two launches per micro-batch instead of
thousands.

At eight examples a step, a fast GPU finishes its kernels before the CPU has launched them. A CUDA
graph is launched whole, but has fixed shapes and addresses. So micro-batches are padded to one of a
few sizes, with the padding as one more example without supervision, and each size has its own
graph. The head and the loss stay outside, on the supervised tokens only. The graphs
fill gradients outside autograd, so DDP misses them: speed.gradient_sync averages them."""

import bisect
import contextlib
import functools
import gc
import itertools
from collections import Counter

import torch
from accelerate.utils import DistributedType
from transformers.modeling_outputs import BaseModelOutputWithPast

from data_utils.batching import num_tokens
from model_utils.attention import ISOLATED, has_varlen_kernel
from run_utils.clock import lap
from run_utils.errors import UserError
from run_utils.launch import raise_anywhere
from run_utils.terminal import progress

MULTIPLE = 64  # of the sizes, in tokens
MOST_SIZES = 20  # each is captured before step 1, and its graphs take memory
WARM_LAYERS = 2  # the first one's input may have no gradient


def use_cuda_graphs(accelerator, model, data, steps):
    """Let the training passes of a PEFT model replay CUDA graphs: a forward and a backward graph
    for each size of micro-batches. Prints the number of sizes.

    steps: the whole run's, as a range. The sizes follow from the numbers of tokens in `data`'s
    micro-batches of these steps, so a resumed run pads and drops as before."""
    whole_model = accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU)
    if accelerator.device.type != "cuda" or not whole_model:
        raise UserError("--cuda_graphs is for GPUs, each with the whole model")
    decoder = model.get_base_model().get_decoder()
    dtype = decoder.get_input_embeddings().weight.dtype
    if model.config._attn_implementation != ISOLATED or not has_varlen_kernel(accelerator.device, dtype):
        raise UserError(f"--cuda_graphs needs --attn_implementation {ISOLATED}, bf16 and torch's varlen kernel")
    if getattr(model, "is_loaded_in_8bit", False):
        raise UserError("--cuda_graphs cannot capture int8 layers, which wait for the CPU: use nf4 or none")
    max_length = max(len(example.input_ids) for example in data.examples)
    graphed = GraphedDecoder(decoder, data.batch_size, max_length, [num_tokens(chunk) for chunk in data.chunks(steps)])
    sizes = graphed.sizes[::-1]  # the largest first: the smaller ones fit in its memory
    problem = ""
    try:
        with few_layers(decoder):
            for size in progress(sizes, "Trying the sizes of micro-batches", unit="size"):
                graphed.warm_up(size)
        gc.collect()
        torch.cuda.empty_cache()  # graphs have memory of their own
        lap("sizes of micro-batches")
        for size in progress(sizes, "Capturing their CUDA graphs", unit="size"):
            graphed.capture(size)
        lap("CUDA graphs")
    except torch.OutOfMemoryError:
        problem = "CUDA graphs do not fit in this GPU's memory; --cuda_graphs false would"
    if problem:  # free memory: raise_anywhere uses the GPU
        del graphed
        gc.collect()
        torch.cuda.empty_cache()
    raise_anywhere(problem)
    for parameter in graphed.parameters:
        parameter.grad = None  # drop the warm-up's gradients
    decoder.forward = graphed
    accelerator.print(f"CUDA graphs for {len(sizes)} sizes of micro-batches")


class GraphedDecoder:
    """Takes the place of `decoder.forward` in training.

    decoder: maps input_ids [1, tokens] to hidden states [1, tokens, hidden]; gradients are added to
    its trainable parameters as usual. A micro-batch has at most max_examples examples of max_length
    tokens each. lengths: the numbers of tokens of all micro-batches. Dropout uses the default
    generator, so `torch.manual_seed` before a step has effect."""

    def __init__(self, decoder, max_examples, max_length, lengths):
        weight = decoder.get_input_embeddings().weight
        self.plain_forward = decoder.forward
        self.sizes = choose_sizes(lengths)
        max_size = self.sizes[-1]
        self.max_length = max(max_length, *(self.size_of(tokens) - tokens for tokens in lengths))
        self.dtype = weight.dtype
        self.device = weight.device
        self.input_ids = torch.zeros(1, max_size, dtype=torch.int64, device=self.device)
        self.position_ids = torch.zeros_like(self.input_ids)
        self.cu_seq_lens = torch.zeros(max_examples + 2, dtype=torch.int32, device=self.device)
        self.hidden = torch.zeros(1, max_size, decoder.config.hidden_size, dtype=weight.dtype, device=self.device)
        self.hidden_grad = torch.zeros_like(self.hidden)
        self.parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        # Autograd calls Replay.backward because this input requires a gradient.
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)
        # For warm-ups: a stream cannot reuse another stream's freed memory.
        self.stream = torch.cuda.Stream()
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle()

    def __call__(self, **kwargs):
        if not torch.is_grad_enabled():  # evaluation and generation
            return self.plain_forward(**kwargs)
        input_ids, position_ids, cu_seq_lens_q = (kwargs[k] for k in ("input_ids", "position_ids", "cu_seq_lens_q"))
        tokens = input_ids.shape[1]
        size = self.size_of(tokens)
        self.input_ids[:, :tokens] = input_ids
        self.position_ids[:, :tokens] = position_ids
        self.position_ids[:, tokens:size] = 0
        self.cu_seq_lens[: len(cu_seq_lens_q)] = cu_seq_lens_q
        self.cu_seq_lens[len(cu_seq_lens_q) :] = size
        return BaseModelOutputWithPast(last_hidden_state=Replay.apply(self.anchor, self, size, tokens))

    def size_of(self, tokens):
        return self.sizes[bisect.bisect_left(self.sizes, tokens)]

    def forward(self, size):
        # A separate context: an outer context's cached casts would be stale in the next step.
        with torch.autocast("cuda", self.dtype):
            return self.plain_forward(
                input_ids=self.input_ids[:, :size],
                position_ids=self.position_ids[:, :size],
                cu_seq_lens_q=self.cu_seq_lens,
                max_length_q=self.max_length,
                use_cache=False,
                # PEFT's own calls have these. With other arguments, the layers would compile again.
                output_attentions=None,
                output_hidden_states=None,
            ).last_hidden_state

    def warm_up(self, size):
        """Let libraries and compilers set up: a capture must not include setup, and some setup
        depends on the size. Warm up all sizes before the first capture: a capture keeps its memory,
        and a later warm-up would need as much again."""
        self.prepare(size)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.forward(size).backward(self.hidden_grad[:, :size])
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, size):
        self.prepare(size)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with capturing(forward, self.pool):
            hidden = self.forward(size)
            self.hidden[:, :size].copy_(hidden.detach())
        with capturing(backward, self.pool):
            hidden.backward(self.hidden_grad[:, :size])
        self.graphs[size] = forward, backward

    def prepare(self, size):
        """Fill the batch with `size` tokens of examples of the greatest length."""
        starts = torch.arange(len(self.cu_seq_lens), device=self.device) * self.max_length
        self.cu_seq_lens.copy_(starts.clamp(max=size))
        self.take_gradients()

    def take_gradients(self):
        """Make `.grad` the graphs' gradient tensors. Zero them if the optimizer has set `.grad` to
        None."""
        fresh = [
            (parameter, gradient)
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True)
            if parameter.grad is not gradient
        ]
        if fresh:
            torch._foreach_zero_([gradient for _, gradient in fresh])
        for parameter, gradient in fresh:
            parameter.grad = gradient


@contextlib.contextmanager
def few_layers(decoder):
    """Let the decoder run two of its layers, if all are equal: a size's setup in them is its setup
    in all, and 20 sizes through all layers take seconds. Compiled layers must have run before, as
    the check of the memory does: some families' layers need a graph each."""
    layers, types = getattr(decoder, "layers", []), getattr(decoder.config, "layer_types", None) or []
    if len(set(map(repr, layers))) != 1 or len(set(types)) > 1:
        yield
        return
    decoder.layers = layers[:WARM_LAYERS]
    try:
        yield
    finally:
        decoder.layers = layers


@contextlib.contextmanager
def capturing(graph, pool=None):
    """Capture the CUDA work of this block in `graph`, on a stream of its own.

    Unlike `torch.cuda.graph`, this does not wait for the GPU's earlier work, collects no garbage
    and keeps the allocator's free memory. A collection may free objects that a capture must not
    free. CUDA calls of other threads, such as NCCL's, do not end the capture."""
    gc.disable()
    stream = capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                yield
            finally:
                graph.capture_end()
    except RuntimeError as error:  # the end of a failed capture hides the lack of memory
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from None
        raise
    finally:
        gc.enable()
    torch.cuda.current_stream().wait_stream(stream)


@functools.cache
def capture_stream():
    """One stream for all captures: autograd runs a backward pass on its forward pass's stream."""
    return torch.cuda.Stream()


class Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, decoder, size, tokens):
        ctx.decoder, ctx.size, ctx.tokens = decoder, size, tokens
        decoder.graphs[size][0].replay()
        return decoder.hidden[:, :tokens].clone()

    @staticmethod
    def backward(ctx, grad):
        decoder, size, tokens = ctx.decoder, ctx.size, ctx.tokens
        decoder.hidden_grad[:, :tokens] = grad
        decoder.hidden_grad[:, tokens:size] = 0
        decoder.take_gradients()
        decoder.graphs[size][1].replay()
        return None, None, None, None


def choose_sizes(lengths):
    """The sizes for micro-batches of these numbers of tokens, ascending: their multiples of
    MULTIPLE, at most MOST_SIZES. Of more, the one goes whose micro-batches then need the least
    padding."""
    counts = Counter(map(padded, lengths))
    while len(counts) > MOST_SIZES:
        pairs = itertools.pairwise(sorted(counts))
        size, larger = min(pairs, key=lambda pair: counts[pair[0]] * (pair[1] - pair[0]))
        counts[larger] += counts.pop(size)
    return sorted(counts)


def padded(tokens):
    return -(-tokens // MULTIPLE) * MULTIPLE
