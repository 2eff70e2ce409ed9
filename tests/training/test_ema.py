"""The slow copy of an encoder."""

import copy

import pytest
import torch
from torch import nn

from varcon_plugin.training.ema import EmaEncoder


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_it_is_equal_first_and_then_an_average_of_weights_and_statistics():
    fast = encoder()
    slow = EmaEncoder(fast, decay=0.75)
    nn.init.normal_(fast[0].weight)  # as frameworks do after building
    slow.follow(fast)
    torch.testing.assert_close(slow.module.state_dict(), fast.state_dict())
    before = copy.deepcopy(fast)
    with torch.no_grad():
        fast[0].weight += 1
    fast(torch.randn(8, 4))  # moves the statistics
    slow.follow(fast)
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        old, new = before.state_dict()[name], fast.state_dict()[name]
        averaged = slow.module.state_dict()[name]
        torch.testing.assert_close(averaged, 0.75 * old + 0.25 * new)
        assert not torch.equal(old, new)


def test_it_has_no_gradient_and_survives_a_checkpoint():
    fast = encoder()
    slow, other = EmaEncoder(fast), EmaEncoder(fast)
    slow.follow(fast)
    images = torch.randn(8, 4, requires_grad=True)
    assert not slow(images).requires_grad
    assert not any(p.requires_grad for p in slow.parameters())
    other.load_state_dict(slow.state_dict())
    with torch.no_grad():
        fast[0].weight += 1
    other.follow(fast)  # its second step: no copy
    assert not torch.equal(other.module[0].weight, fast[0].weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_mistakes_are_told(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        EmaEncoder(encoder(), decay)
