"""The objects changed by training and held in checkpoints."""

import contextlib

import torch


class Training:
    """Everything changed by training: a model, prepared by Accelerate, the optimizer, the
    scheduler, perhaps a WeightAverage, and other objects of yours.

    A checkpoint has the model's adapter in PEFT's format, and the `state_dict()` of each other
    object in NAME.pt. A resume calls the object's `load_state_dict` with it. With an average, the
    adapter's file has the average, and raw_weights.pt the weights of training.

    tokenizer: of full fine-tuning, whose checkpoints have the whole model in transformers' format
    and its tokenizer."""

    def __init__(self, *, model, optimizer, scheduler, average=None, tokenizer=None, **others):
        self.model, self.optimizer, self.average, self.tokenizer = model, optimizer, average, tokenizer
        averaged = {"raw_weights": average} if average else {}
        self.others = {"optimizer": optimizer, "scheduler": scheduler, **averaged, **others}

    def as_delivered(self):
        """A context in which the model has the weights to evaluate and to save."""
        return self.average.in_model() if self.average else contextlib.nullcontext()

    @property
    def trainable(self):
        """The trained weights."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def num_bytes(self, with_states=True):
        """A checkpoint's approximate size: the trained weights, and the optimizer's tensors."""
        states = self.optimizer.state.values() if with_states else ()
        kept = self.average.kept if self.average and with_states else ()
        tensors = [*self.trainable, *kept, *(value for state in states for value in state.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))
