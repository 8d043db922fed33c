"""An exponential average of the trained weights (`--ema_decay`)."""

import contextlib

import torch


class WeightAverage:
    """The average of parameters over the optimizer steps: `average += (1 - d) * (weight - average)`
    after each.

    d is `min(decay, (1 + n) / (10 + n))` after n updates, as in diffusers' EMAModel: the first
    steps, far from the last, do not stay in the average of a short run. The average has the dtype
    of its parameters, and starts as a copy of them."""

    def __init__(self, weights, decay):
        self.weights, self.decay, self.num_updates = list(weights), decay, 0
        # The average; while the model has it (in_model), the weights of training.
        self.kept = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self):
        """After each optimizer step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.kept, self.weights, 1 - decay)
        self.num_updates += 1

    @contextlib.contextmanager
    def in_model(self):
        """Put the average into the model for evaluation and saving."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self):
        # In place: CUDA graphs and DDP keep the parameters' addresses.
        for weight, kept in zip(self.weights, self.kept, strict=True):
            former = weight.clone()
            weight.copy_(kept)
            kept.copy_(former)

    def state_dict(self):
        """For a checkpoint, written while the model has the average: the weights of training."""
        return {"num_updates": self.num_updates, "weights": self.kept}

    def load_state_dict(self, state):
        """From a checkpoint whose average is already in the model."""
        self.num_updates = state["num_updates"]
        for kept, weight in zip(self.kept, state["weights"], strict=True):
            kept.copy_(weight)
        self.swap()
