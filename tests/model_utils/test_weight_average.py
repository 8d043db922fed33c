"""--ema_decay: the average of the weights is evaluated and delivered, the weights are trained."""

import pytest
import torch
from conftest import EXACT_TAGS, curve, launch, launch_and_kill
from safetensors.torch import load_file

from model_utils.weight_average import WeightAverage
from run_utils.checkpoint import complete_checkpoints


def raw(checkpoint):
    return torch.load(checkpoint / "raw_weights.pt", weights_only=True)["weights"]


def average(checkpoint):
    return load_file(checkpoint / "adapter_model.safetensors")


def test_torch_s_average_has_the_same_numbers():
    torch.manual_seed(0)
    layer, decay = torch.nn.Linear(5, 3), 0.5
    peer = torch.optim.swa_utils.AveragedModel(
        layer,
        avg_fn=lambda kept, new, n: torch.lerp(kept, new, 1 - min(decay, n / (9 + n))),  # n: from 1
    )
    ours = WeightAverage(layer.parameters(), decay)
    peer.update_parameters(layer)  # torch's first update copies
    for _ in range(30):
        for weight in layer.parameters():
            weight.data += torch.randn_like(weight)
        peer.update_parameters(layer)
        ours.update()
    trained = [weight.clone() for weight in layer.parameters()]
    with ours.in_model():
        for kept, weight in zip(peer.module.parameters(), layer.parameters(), strict=True):
            assert torch.equal(kept, weight)
    assert all(torch.equal(*pair) for pair in zip(trained, layer.parameters(), strict=True))


@pytest.fixture
def averaged(flags):
    return flags | {"ema_decay": 0.9, "max_train_steps": 6, "save_steps": 1, "save_total_limit": 9}


def test_training_is_that_without_an_average(train_here, averaged, tmp_path):
    run = train_here(averaged | {"eval_steps": 1})
    plain = {name: value for name, value in averaged.items() if name != "ema_decay"}
    plain = train_here(plain | {"eval_steps": 1, "output_dir": tmp_path / "plain"})
    assert curve(run, "train/loss") == curve(plain, "train/loss")
    assert curve(run, "eval/loss") != curve(plain, "eval/loss")
    # The average of the plain run's weights, from the first checkpoint on
    kept = average(run / "checkpoint-1")
    for n, folder in enumerate(complete_checkpoints(plain)[1:], start=1):
        decay, weights = min(0.9, (1 + n) / (10 + n)), average(folder)
        kept = {name: torch.lerp(kept[name], weights[name], 1 - decay) for name in kept}
    delivered = average(run / "adapter")
    assert all(torch.equal(delivered[name], kept[name]) for name in kept)
    assert not (run / "adapter" / "raw_weights.pt").exists()
    trained = [average(plain / "adapter").values(), raw(run / "checkpoint-6")]  # in another order
    assert len(set(map(frozenset, ([weight.sum().item() for weight in weights] for weights in trained)))) == 1


def test_a_resume_is_exact(train_here, averaged, tmp_path):
    whole = train_here(averaged)
    part = averaged | {"output_dir": tmp_path / "part"}
    train_here(part | {"stop_after_steps": 3})
    part = train_here(part | {"resume_from_checkpoint": "latest"})
    for tag in EXACT_TAGS:
        assert curve(part, tag) == curve(whole, tag)
    for name in ("adapter_model.safetensors", "raw_weights.pt"):
        assert (part / "checkpoint-6" / name).read_bytes() == (whole / "checkpoint-6" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(averaged, tmp_path):
    whole = tmp_path / "whole"
    result = launch("train.py", averaged | {"output_dir": whole}, processes=2)
    assert result.code == 0, result.err
    reached = (averaged["output_dir"] / "checkpoint-3").is_dir
    assert launch_and_kill("train.py", averaged, reached, tmp_path / "log", processes=2)
    result = launch("train.py", averaged | {"resume_from_checkpoint": "latest"}, processes=2)
    assert result.code == 0, result.err
    for name in ("adapter_model.safetensors", "raw_weights.pt"):
        path = f"checkpoint-6/{name}"
        assert (averaged["output_dir"] / path).read_bytes() == (whole / path).read_bytes()
