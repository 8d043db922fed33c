"""NEFTune's noise, against transformers' hook."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.neftune import activate_neftune

from data_utils.batching import pack
from model_utils.adapters import add_lora
from model_utils.neftune import add_noise


def embedded(model, lengths):
    """The layers' input for examples of these lengths, [tokens, width], drawn with the seed 0."""
    seen = []
    handle = (
        model.get_base_model()
        .get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    torch.manual_seed(0)
    with torch.no_grad():
        model(**pack([np.arange(length) for length in lengths]), use_cache=False)
    handle.remove()
    return seen[0][0]


def models(folder, alpha):
    """The model without noise, with ours, and with transformers'."""
    plain, ours, theirs = (
        add_lora(AutoModelForCausalLM.from_pretrained(folder), 4, 8, 0.0, ["q_proj"]).train() for _ in range(3)
    )
    add_noise(ours, alpha)
    activate_neftune(theirs, alpha)
    return plain, ours, theirs


def test_one_example_gets_transformers_noise(tiny_model):
    plain, ours, theirs = models(tiny_model, 5)
    expected = embedded(theirs, [40])
    assert not torch.equal(expected, embedded(plain, [40]))
    torch.testing.assert_close(embedded(ours, [40]), expected)


def test_each_example_of_a_batch_has_the_noise_of_its_own_length(tiny_model):
    plain, ours, theirs = models(tiny_model, 5)
    lengths = [400, 100, 25]

    def largest(model):
        noise = embedded(model, lengths) - embedded(plain, lengths)
        return torch.stack([part.abs().max() for part in noise.split(lengths)])

    scales = 5 / (torch.tensor(lengths) * 64).sqrt()
    assert torch.all(largest(ours) <= scales * 1.001) and torch.all(largest(ours) > scales * 0.95)
    # transformers' hook takes the whole batch for one example.
    assert torch.all(largest(theirs) <= 5 / (525 * 64) ** 0.5 * 1.001)


def test_evaluation_has_no_noise(tiny_model):
    plain, ours, _ = models(tiny_model, 5)
    assert torch.equal(embedded(ours.eval(), [40]), embedded(plain.eval(), [40]))
