"""Our LARS is mmpretrain's, number for number, without reading any on the host."""

import copy

import pytest
import torch
from mmpretrain.engine.optimizers import LARS
from pretend_gpu import PretendGpu
from torch import nn

from varcon_plugin.training.lars import ForeachLARS

SETTINGS = {
    "plain": {},
    "recipe": {"momentum": 0.9, "weight_decay": 1e-6},
    "decay": {"momentum": 0.9, "weight_decay": 0.1, "eta": 0.02},
    "dampened": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
}


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4)
    return nn.Sequential(*layers)


def groups(model):
    """One group a parameter, as mmengine makes them; biases and norms excluded."""
    excluded = {"lars_exclude": True, "weight_decay": 0}
    return [
        {"params": [p], **(excluded if p.ndim < 2 else {})} for p in model.parameters()
    ]


def train(optimizer, model, steps=4):
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 / (step + 1)
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_are_those_of_mmpretrains_lars(name):
    ours, theirs = net(), net()
    found = train(ForeachLARS(groups(ours), lr=0.5, **SETTINGS[name]), ours)
    expected = train(LARS(groups(theirs), lr=0.5, **SETTINGS[name]), theirs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found[0], next(net().parameters()))


def test_zero_weights_and_zero_gradients_move_as_in_mmpretrains():
    results = []
    for kind in (ForeachLARS, LARS):
        zero, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
        idle = nn.Parameter(torch.ones(2))  # without a gradient at all
        optimizer = kind([zero, still, idle], lr=0.5, momentum=0.9, weight_decay=0.1)
        zero.grad, still.grad = torch.ones(3), torch.zeros(3)
        optimizer.step()
        results.append([zero.detach(), still.detach(), idle.detach()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_checkpoint_of_mmpretrains_goes_on_in_ours():
    model = net()
    theirs = LARS(groups(model), lr=0.5, momentum=0.9)
    train(theirs, model, steps=2)
    twin = copy.deepcopy(model)
    ours = ForeachLARS(groups(twin), lr=0.5, momentum=0.9)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for a, b in zip(train(ours, twin, 2), train(theirs, model, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_gpu_is_never_waited_for():
    with PretendGpu() as gpu:
        model = gpu.put(net())
        optimizer = ForeachLARS(groups(model), lr=0.5, momentum=0.9, weight_decay=1e-6)
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert gpu.syncs == {}
    assert gpu.mixed == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0, got -1.0"),
        ({"lr": 1.0, "eta": -1.0}, "eta must be >= 0"),
        ({"lr": 1.0, "momentum": -0.1}, "momentum must be >= 0"),
        ({"lr": 1.0, "nesterov": True}, "nesterov needs momentum > 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForeachLARS(net().parameters(), **arguments)
